"""Our engine through mteb, and our metrics against mteb's on the same vectors."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    mteb = pytest.importorskip("mteb")
    from datasets import Dataset, DatasetDict
    from mteb._evaluators.retrieval_metrics import calculate_pmrr
    from mteb.mocks.mock_tasks.bitext_mining import MockBitextMiningTask
    from mteb.mocks.mock_tasks.classification import MockClassificationTask
    from mteb.mocks.mock_tasks.clustering import LegacyMockClusteringFastTask
    from mteb.mocks.mock_tasks.pair_classification import MockPairClassificationTask
    from mteb.mocks.mock_tasks.sts import MockSTSTask

from qwen3_embedding.errors import DataError, NumericalError
from qwen3_embedding.evaluation.collection import read_collection
from qwen3_embedding.evaluation.following import p_mrr
from qwen3_embedding.evaluation.metrics import average_precision, bitext_scores, evaluate_run, spearman
from qwen3_embedding.evaluation.mteb import (
    MtebEncoder,
    MtebScorer,
    MtebSettings,
    benchmark_tasks,
    evaluate_encoder,
    evaluate_reranker,
    evaluate_stages,
    local_task,
)
from qwen3_embedding.evaluation.protocols import few_shot_classification, resampled_clustering
from qwen3_embedding.evaluation.results import Report
from qwen3_embedding.evaluation.run import evaluate
from qwen3_embedding.evaluation.tasks import TaskSettings
from qwen3_embedding.inference.embedder import Embedder
from qwen3_embedding.inference.reranker import Reranker
from qwen3_embedding.types import Encoder, FloatArray, Scorer

pytestmark = pytest.mark.filterwarnings("ignore")
WORDS = ["owl", "river", "stone", "music", "engine", "garden", "winter", "signal", "copper", "island", "window"]


class WordEncoder:
    """Texts as sums of seeded word vectors: fast, deterministic, and queries do find their documents."""

    name = "org/words"
    fingerprint = "1"
    dimensions = 24

    def __init__(self) -> None:
        self.seen: list[tuple[str | None, str]] = []

    def embed_queries(
        self, texts: Any, instruction: Any = None, dimensions: Any = None, precision: Any = None, progress: bool = False
    ) -> FloatArray:
        self.seen += [(instruction or "default", text) for text in texts]
        return self._embed(texts, dimensions)

    def embed_documents(
        self, texts: Any, dimensions: Any = None, precision: Any = None, progress: bool = False
    ) -> FloatArray:
        self.seen += [(None, text) for text in texts]
        return self._embed(texts, dimensions)

    def _embed(self, texts: Any, dimensions: int | None) -> FloatArray:
        rows = [sum((_vector(word) for word in text.split()), _vector(text) * 0.8) for text in texts]
        vectors_ND = np.array(rows, dtype=np.float32)[:, :dimensions]
        return np.asarray(vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True), dtype=np.float32)


class WordScorer:
    """Share of the query's words that the document has."""

    name = "org/overlap"
    fingerprint = "1"

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, str | None]] = []

    def score(self, query: str, documents: Any, instruction: str | None = None) -> FloatArray:
        return self.score_pairs([query] * len(documents), documents, instruction)

    def score_pairs(self, queries: Any, documents: Any, instruction: str | None = None) -> FloatArray:
        self.calls += [(query, document, instruction) for query, document in zip(queries, documents, strict=True)]
        return np.array(
            [
                len(set(q.split()) & set(d.split())) / len(q.split()) + len(d) % 7 / 1000
                for q, d in zip(queries, documents, strict=True)
            ],
            dtype=np.float32,
        )


def _vector(word: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "little")
    return np.random.default_rng(seed).normal(size=24)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A collection in BEIR's layout: 150 documents with titles, 25 queries, graded judgements."""
    rng = np.random.default_rng(0)
    place = tmp_path / "tiny"
    (place / "qrels").mkdir(parents=True)
    documents = [
        {"_id": f"d{i}", "title": str(rng.choice(WORDS)) if i % 3 else "", "text": " ".join(rng.choice(WORDS, 6))}
        for i in range(150)
    ]
    queries, rows = [], ["query-id\tcorpus-id\tscore"]
    for i in range(25):
        chosen = rng.choice(150, size=3, replace=False)
        words = documents[chosen[0]]["text"].split()[:4] + list(rng.choice(WORDS, 1))
        queries.append({"_id": f"q{i}", "text": " ".join(words) + f" {i}"})
        rows += [f"q{i}\td{d}\t{grade}" for d, grade in zip(chosen, (2, 1, 0), strict=True)]
    (place / "corpus.jsonl").write_text("\n".join(map(json.dumps, documents)))
    (place / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    (place / "qrels" / "test.tsv").write_text("\n".join(rows))
    (place / "dataset.json").write_text(json.dumps({"name": "tiny", "task_instruction": "Find it"}))
    return place


def _own_run(encoder: Encoder, folder: Path, instruction: str) -> tuple[Any, dict[str, dict[str, float]]]:
    collection = read_collection(folder)
    documents_ND = encoder.embed_documents(list(collection.documents.values()))
    queries_QD = encoder.embed_queries(list(collection.queries.values()), instruction)
    ids = list(collection.documents)
    run = {
        query: dict(zip(ids, map(float, documents_ND @ vector_D), strict=True))
        for query, vector_D in zip(collection.queries, queries_QD, strict=True)
    }
    return collection, run


def test_protocols_are_met() -> None:
    words, overlap = WordEncoder(), WordScorer()
    assert isinstance(words, Encoder)
    assert isinstance(overlap, Scorer)
    assert isinstance(MtebEncoder(words), mteb.EncoderProtocol)
    assert isinstance(MtebScorer(overlap), mteb.CrossEncoderProtocol)
    assert not isinstance(MtebScorer(overlap), mteb.EncoderProtocol)


def test_whole_retrieval_task_equals_our_own_path(folder: Path) -> None:
    """nDCG@10, MAP and recall of a mteb task and of ir_measures on our own ranking; mteb keeps five decimals."""
    encoder = WordEncoder()
    report = evaluate_encoder(encoder, [local_task(folder)])
    assert {instruction for instruction, _ in encoder.seen} == {"Find it", None}
    collection, run = _own_run(encoder, folder, "Find it")
    ours = evaluate_run(collection.qrels, run, ["ndcg@10"]).mean["ndcg@10"]
    assert 0.2 < ours < 0.9
    assert report.task("tiny").score == pytest.approx(ours, abs=5.1e-6)
    assert report.task("tiny").instruction == "Find it"
    assert report.settings["instructions"] == "official"


def test_models_score_the_same_through_mteb_and_the_local_path(
    folder: Path, tmp_path: Path, embedder: Embedder, reranker: Reranker
) -> None:
    """Both stages of a whole task, real (tiny) models on the packed engine."""
    local = evaluate([folder], embedder, reranker, TaskSettings(candidates=10), tmp_path / "local")
    first = evaluate_encoder(embedder, [local_task(folder)], predictions=tmp_path / "first")
    second = evaluate_reranker(reranker, [local_task(folder)], tmp_path / "first", embedder.name, candidates=10)
    (ours,) = local.tasks
    assert ours.scores["embedder"]["ndcg@10"] > 0
    assert first.task("tiny").score == pytest.approx(ours.scores["embedder"]["ndcg@10"], abs=5.1e-6)
    assert second.task("tiny").score == pytest.approx(ours.scores["reranker"]["ndcg@10"], abs=5.1e-6)
    assert second.task("tiny").score != first.task("tiny").score


def test_other_metrics_and_ties_equal(folder: Path) -> None:
    """On coarse scores full of ties, through mteb's scoring and through ours."""
    from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores

    collection, run = _own_run(WordEncoder(), folder, "Find it")
    coarse = {q: {d: round(score, 1) for d, score in scores.items()} for q, scores in run.items()}
    qrels = {query: dict(grades) for query, grades in collection.qrels.items()}
    theirs = calculate_retrieval_scores(coarse, qrels, [10, 100])
    found = evaluate_run(collection.qrels, coarse, ["ndcg@10", "recall@100", "map@100", "precision@10"])
    for name, key in (
        ("ndcg@10", "ndcg_cut_10"),
        ("recall@100", "recall_100"),
        ("map@100", "map_cut_100"),
        ("precision@10", "P_10"),
    ):
        for query, value in found.per_query[name].items():
            assert value == pytest.approx(theirs[0][query][key], abs=1e-9)


def test_two_stages(folder: Path, tmp_path: Path) -> None:
    """The reranker gets the stored best 20 of each query, and its order gives the score."""
    encoder, scorer = WordEncoder(), WordScorer()
    evaluate_encoder(encoder, [local_task(folder)], predictions=tmp_path / "first")
    report = evaluate_reranker(scorer, [local_task(folder)], tmp_path / "first", encoder.name, candidates=20)
    assert len(scorer.calls) == 25 * 20
    assert {instruction for *_, instruction in scorer.calls} == {"Find it"}
    collection, run = _own_run(encoder, folder, "Find it")
    reranked = {}
    for query, scores in run.items():
        best = sorted(scores, key=lambda d: scores[d], reverse=True)[:20]
        texts = [collection.documents[document] for document in best]
        found = scorer.score(collection.queries[query], texts)
        reranked[query] = dict(zip(best, map(float, found), strict=True))
    ours = evaluate_run(collection.qrels, reranked, ["ndcg@10"]).mean["ndcg@10"]
    assert report.task("tiny").score == pytest.approx(ours, abs=5.1e-6)
    assert (report.model, report.reranker) == ("org/words", "org/overlap")
    assert report.settings["candidates"] == 20
    with pytest.raises(FileNotFoundError):
        evaluate_reranker(scorer, [local_task(folder)], tmp_path / "nothing", encoder.name)


def test_one_call_for_both_stages_resumes(folder: Path, tmp_path: Path) -> None:
    def tasks(types: Any) -> list[Any]:
        return [local_task(folder)]

    lines: list[str] = []
    encoder, scorer = WordEncoder(), WordScorer()
    first, second = evaluate_stages(tasks, encoder, scorer, tmp_path / "out", candidates=20, log=lines.append)
    assert (tmp_path / "out" / "embedder.json").exists()
    assert Report.load(tmp_path / "out" / "reranker.json").scores() == second.scores()
    assert first.hardware
    assert len(scorer.calls) == 25 * 20
    assert lines == ["[1/1] tiny (Retrieval)"] * 2
    again = WordEncoder(), WordScorer()
    assert [one.scores() for one in evaluate_stages(tasks, *again, tmp_path / "out", candidates=20)] == [
        first.scores(),
        second.scores(),
    ]
    assert not again[0].seen
    assert not again[1].calls


def test_killed_within_a_task_embeds_nothing_twice(folder: Path, tmp_path: Path) -> None:
    class Dies(WordEncoder):
        def embed_documents(self, texts: Any, *more: Any, **named: Any) -> FloatArray:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_stages(lambda types: [local_task(folder)], Dies(), None, tmp_path / "out")
    after = WordEncoder()
    evaluate_stages(lambda types: [local_task(folder)], after, None, tmp_path / "out")
    assert {side for side, _ in after.seen} <= {None, "Find it"}
    assert sum(side is None for side, _ in after.seen) == len(set(read_collection(folder).documents.values()))


def test_public_data_that_cannot_be_had_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Nowhere:
        metadata = mteb.get_task("SCIDOCS").metadata

    def refused(*arguments: Any, **named: Any) -> Any:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(mteb, "evaluate", refused)
    with pytest.raises(DataError, match=r"SCIDOCS: its data mteb/scidocs cannot be had .* Hugging Face hub"):
        evaluate_encoder(WordEncoder(), [Nowhere()])


def test_a_part_of_a_benchmark() -> None:
    (task,) = benchmark_tasks("MTEB(eng, v2)", names=["SCIDOCS"])
    assert task.metadata.name == "SCIDOCS"
    assert benchmark_tasks("MTEB(eng, v2)", names=["SCIDOCS"], types=["STS"]) == []
    with pytest.raises(ValueError, match="'Poetry' is no task of MTEB"):
        benchmark_tasks("MTEB(eng, v2)", names=["Poetry"])


def test_kept_results_are_used_and_never_mixed(folder: Path, tmp_path: Path) -> None:
    first = WordEncoder()
    report = evaluate_encoder(first, [local_task(folder)], cache=tmp_path / "c")
    assert first.seen
    again = WordEncoder()
    assert evaluate_encoder(again, [local_task(folder)], cache=tmp_path / "c").scores() == report.scores()
    assert not again.seen
    smaller = WordEncoder()
    cut = evaluate_encoder(smaller, [local_task(folder)], cache=tmp_path / "c", settings=MtebSettings(dimensions=4))
    assert smaller.seen
    assert cut.scores() != report.scores()
    (folder / "qrels" / "test.tsv").write_text("q0\td0\t1\n")
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q0", "text": "owl river"}))
    changed = WordEncoder()
    other = evaluate_encoder(changed, [local_task(folder)], cache=tmp_path / "c")
    assert changed.seen
    assert other.task("tiny").definition != report.task("tiny").definition
    nameless = WordEncoder()
    nameless.fingerprint = "unversioned"
    with pytest.raises(ValueError, match="has no fingerprint"):
        evaluate_encoder(nameless, [local_task(folder)], cache=tmp_path / "c")


def test_policies_put_instructions_where_they_say() -> None:
    def sides(policy: Any, task: str) -> tuple[set, set]:
        metadata = mteb.get_task(task).metadata
        loaders = {"query": [{"text": ["a", "b"]}, {"text": ["c"]}], "document": [{"text": ["d"]}]}
        found = []
        for side, loader in loaders.items():
            encoder = WordEncoder()
            vectors = MtebEncoder(encoder, MtebSettings(policy)).encode(
                loader,
                task_metadata=metadata,
                hf_split="test",
                hf_subset="default",
                prompt_type=mteb.types.PromptType(side),
            )
            assert vectors.shape == (sum(len(batch["text"]) for batch in loader), 24)
            found.append({instruction for instruction, _ in encoder.seen})
        return found[0], found[1]

    duplicates = "Retrieve duplicate questions from AskUbuntu forum"
    assert sides("official", "AskUbuntuDupQuestions") == ({duplicates}, {duplicates})
    assert sides("mteb", "AskUbuntuDupQuestions") == ({duplicates}, {None})
    assert sides("official", "SCIDOCS")[1] == {None}


def test_vectors_that_are_not_finite_are_refused() -> None:
    class Broken(WordEncoder):
        def _embed(self, texts: Any, dimensions: int | None) -> FloatArray:
            return np.full((len(texts), 24), np.nan, dtype=np.float32)

    metadata = mteb.get_task("SCIDOCS").metadata
    with pytest.raises(NumericalError, match="vectors of SCIDOCS are not finite"):
        MtebEncoder(Broken()).encode([{"text": ["a"]}], task_metadata=metadata, hf_split="test", hf_subset="default")


def test_benchmark_tasks_have_our_splits() -> None:
    (task,) = [
        t for t in benchmark_tasks("MTEB(cmn, v1)", as_published=True) if t.metadata.name == "MultilingualSentiment"
    ]
    assert list(task.eval_splits) == ["validation"]
    tasks = benchmark_tasks("MTEB(eng, v2)", types=["Retrieval"])
    assert len(tasks) == 10
    assert all(task.hf_subsets == ["default"] for task in tasks)


def _run(task: Any, dataset: Any) -> dict[str, float]:
    task.dataset, task.data_loaded = dataset, True
    encoder = MtebEncoder(WordEncoder())
    return dict(task.evaluate(encoder, "test", encode_kwargs={"batch_size": 32})["default"])


def _sentences(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 5)) + f" {seed}{i}" for i in range(count)]


def test_sts_equals() -> None:
    left, right = _sentences(200, 1), _sentences(200, 2)
    scores = np.random.default_rng(0).integers(0, 6, 200).astype(float).tolist()
    data = Dataset.from_dict({"sentence1": left, "sentence2": right, "score": scores})
    theirs = _run(MockSTSTask(), DatasetDict({"test": data}))
    a, b = WordEncoder().embed_queries(left), WordEncoder().embed_queries(right)
    cosines = np.einsum("nd,nd->n", a.astype(np.float64), b.astype(np.float64))
    assert spearman(cosines, scores) == pytest.approx(theirs["cosine_spearman"], abs=1e-9)


def test_pair_classification_equals() -> None:
    left, right = _sentences(300, 3), _sentences(300, 4)
    labels = np.random.default_rng(1).integers(0, 2, 300).tolist()
    data = Dataset.from_dict({"sentence1": left, "sentence2": right, "labels": labels})
    theirs = _run(MockPairClassificationTask(), DatasetDict({"test": data}))
    a, b = WordEncoder().embed_queries(left), WordEncoder().embed_queries(right)
    cosines = np.einsum("nd,nd->n", a.astype(np.float64), b.astype(np.float64))
    assert average_precision(cosines, labels) == pytest.approx(theirs["cosine_ap"], abs=1e-9)


def test_bitext_equals() -> None:
    left = _sentences(120, 5)
    right = [" ".join(text.split()[:3]) + f" x{i}" for i, text in enumerate(left)]
    data = Dataset.from_dict({"sentence1": left, "sentence2": right})
    theirs = _run(MockBitextMiningTask(), DatasetDict({"test": data}))
    ours = bitext_scores(WordEncoder().embed_queries(left), WordEncoder().embed_queries(right))
    assert 0.1 < ours["f1"] < 0.95
    assert ours["f1"] == pytest.approx(theirs["f1"], abs=1e-9)
    assert ours["accuracy"] == pytest.approx(theirs["accuracy"], abs=1e-9)


def _labelled(count: int, seed: int) -> tuple[list[str], list[int]]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count).tolist()
    texts = [" ".join([WORDS[label], *rng.choice(WORDS, 3)]) + f" {seed}{i}" for i, label in enumerate(labels)]
    return texts, labels


def test_classification_equals() -> None:
    (train, train_labels), (test, test_labels) = _labelled(160, 6), _labelled(90, 7)
    task = MockClassificationTask()
    task.n_experiments, task.samples_per_label = 10, 8
    data = {
        "train": Dataset.from_dict({"text": train, "label": train_labels}),
        "test": Dataset.from_dict({"text": test, "label": test_labels}),
    }
    theirs = _run(task, DatasetDict(data))
    encoder = WordEncoder()
    ours = few_shot_classification(encoder.embed_queries(train), train_labels, encoder.embed_queries(test), test_labels)
    assert 0.3 < ours["accuracy"] < 0.999
    for metric in ("accuracy", "f1", "f1_weighted"):
        assert ours[metric] == pytest.approx(theirs[metric], abs=1e-9)


@pytest.mark.parametrize("fraction", [None, 0.5])
def test_clustering_equals(fraction: float | None) -> None:
    texts, labels = _labelled(240, 8)
    task = LegacyMockClusteringFastTask()
    task.max_fraction_of_documents_to_embed, task.max_document_to_embed = fraction, None
    task.n_clusters, task.max_documents_per_cluster, task.k_mean_batch_size = 10, 200, 512
    task.max_depth = None
    data = Dataset.from_dict({"sentences": texts, "labels": [[label] for label in labels]})
    theirs = _run(task, DatasetDict({"test": data}))
    ours = resampled_clustering(WordEncoder().embed_queries(texts), labels, fraction, sample=200)
    assert 0.02 < ours["v_measure"] < 0.999
    assert ours["v_measure"] == pytest.approx(theirs["v_measure"], abs=1e-9)


def test_label_protocols_refuse() -> None:
    vectors = np.eye(3, dtype=np.float32)
    with pytest.raises(ValueError, match="training: 3 vectors and 2 labels"):
        few_shot_classification(vectors, [0, 1], vectors, [0, 1, 0])
    with pytest.raises(ValueError, match="texts: 1 different labels"):
        resampled_clustering(vectors, [1, 1, 1])


def test_p_mrr_equals_on_runs_with_ties() -> None:
    rng = np.random.default_rng(11)
    for _ in range(20):
        queries = [f"{i}" for i in range(8)]
        documents = [f"d{i}" for i in rng.permutation(40)]

        def run(suffix: str, queries: list = queries, documents: list = documents) -> dict:
            return {q + suffix: {d: float(rng.integers(0, 8)) / 8 for d in documents} for q in queries}

        before, after = run("-og"), run("-changed")
        chosen = {q: [*list(rng.choice(documents, size=3, replace=False)), "not there"] for q in queries}
        ours = p_mrr({q: before[q + "-og"] for q in queries}, {q: after[q + "-changed"] for q in queries}, chosen)
        assert np.mean(list(ours.values())) == pytest.approx(calculate_pmrr(before, after, chosen), abs=1e-9)
