"""Our engine inside mteb: an Encoder as its encoder, a Scorer as its cross-encoder, and two-stage reranking.

mteb (``pip install 'qwen3-embedding[mteb]'``) brings the tasks, their data and the scoring; what goes into the model
(instruction policy, dimensions) is decided here and recorded in the report.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_embedding.errors import CheckpointError, DataError, NumericalError
from qwen3_embedding.evaluation.averages import mean
from qwen3_embedding.evaluation.benchmarks import BenchmarkTask, TaskDefinition, load_benchmark
from qwen3_embedding.evaluation.cache import ArrayCache, CachedEncoder
from qwen3_embedding.evaluation.collection import Collection, read_collection, read_info
from qwen3_embedding.evaluation.environment import commit, hardware
from qwen3_embedding.evaluation.instructions import Instructions, Policy, instructions_for
from qwen3_embedding.evaluation.results import Report, TaskResult, library_versions, now
from qwen3_embedding.optional import require
from qwen3_embedding.types import Encoder, FloatArray, Scorer

UNVERSIONED = "unversioned"
CANDIDATES = 100
"""How many first-stage documents a reranker gets, as in the published table."""


@dataclass(frozen=True, slots=True)
class MtebSettings:
    """What a score through mteb depends on beside model and task."""

    policy: Policy = "official"
    dimensions: int | None = None
    """Size of the vectors (cut, then normalised); ``None``: the encoder's own."""


class MtebEncoder:
    """An Encoder as mteb's ``EncoderProtocol``."""

    def __init__(self, encoder: Encoder, settings: MtebSettings | None = None) -> None:
        self.encoder, self.settings = encoder, settings or MtebSettings()
        self.mteb_model_meta = _meta(encoder, "dense", self.settings)

    def encode(
        self,
        inputs: Iterable[Any],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> FloatArray:
        """(N, D) unit vectors in the loader's order.

        The loader's batches are joined first: the engine packs by length itself.

        Raises:
            NumericalError: a vector is not finite.
        """
        texts = _texts(inputs)
        side = _side(task_metadata, self.settings.policy, getattr(prompt_type, "value", prompt_type))
        dimensions = self.settings.dimensions
        if side is None:
            vectors_ND = self.encoder.embed_documents(texts, dimensions=dimensions)
        else:
            vectors_ND = self.encoder.embed_queries(texts, side, dimensions=dimensions)
        if not np.isfinite(vectors_ND).all():
            raise NumericalError(f"{self.encoder.name}: vectors of {task_metadata.name} are not finite")
        return np.asarray(vectors_ND, dtype=np.float32)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine similarity of every pair, (N, M)."""
        return require("mteb.similarity_functions", extra="mteb").cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine similarity row by row, (N,)."""
        return require("mteb.similarity_functions", extra="mteb").pairwise_cos_sim(embeddings1, embeddings2)


class MtebScorer:
    """A Scorer as mteb's ``CrossEncoderProtocol``."""

    def __init__(self, scorer: Scorer, settings: MtebSettings | None = None) -> None:
        self.scorer, self.settings = scorer, settings or MtebSettings()
        self.mteb_model_meta = _meta(scorer, "cross-encoder", self.settings)

    def predict(
        self,
        inputs1: Iterable[Any],
        inputs2: Iterable[Any],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> FloatArray:
        """(N,) scores of the pairs, in the loaders' order.

        Raises:
            ValueError: another number of queries than documents.
            NumericalError: a score is not finite.
        """
        queries, documents = _texts(inputs1), _texts(inputs2)
        if len(queries) != len(documents):
            raise ValueError(f"{len(queries)} queries and {len(documents)} documents; wanted pairs")
        instruction = instructions_for(_definition(task_metadata), self.settings.policy).query
        scores_N = self.scorer.score_pairs(queries, documents, instruction)
        if not np.isfinite(scores_N).all():
            raise NumericalError(f"{self.scorer.name}: scores of {task_metadata.name} are not finite")
        return np.asarray(scores_N, dtype=np.float32)


def evaluate_encoder(
    encoder: Encoder,
    tasks: Sequence[Any],
    predictions: str | Path | None = None,
    cache: str | Path | None = None,
    settings: MtebSettings | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Report:
    """Score an encoder on mteb tasks.

    Args:
        encoder: any encoder.
        tasks: of :func:`benchmark_tasks`, :func:`local_task` or mteb itself.
        predictions: gets the rankings, which :func:`evaluate_reranker` needs.
        cache: folder where finished tasks are kept, so that an interrupted run goes on; ``None`` keeps nothing.
        settings: instruction policy and dimensions.
        log: takes a line a task.
    """
    model = MtebEncoder(encoder, settings)
    return _evaluate(model, encoder.name, None, list(tasks), predictions, cache, model.settings, {}, log)


def evaluate_reranker(
    scorer: Scorer,
    tasks: Sequence[Any],
    predictions: str | Path,
    first_stage: str,
    candidates: int = CANDIDATES,
    cache: str | Path | None = None,
    settings: MtebSettings | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Report:
    """Rerank the best ``candidates`` of stored first-stage rankings.

    Args:
        scorer: any scorer.
        tasks: fresh task objects; they are turned into reranking tasks.
        predictions: the folder :func:`evaluate_encoder` filled.
        first_stage: name of the model whose rankings these are.
        candidates: how many documents a query.
        cache: folder where finished tasks are kept.
        settings: instruction policy.
        log: takes a line a task.

    Raises:
        FileNotFoundError: no stored ranking of a task.
    """
    model = MtebScorer(scorer, settings)
    staged = [task.convert_to_reranking(Path(predictions), top_k=candidates) for task in tasks]
    extra = {"candidates": candidates, "first_stage": first_stage}
    return _evaluate(model, first_stage, scorer.name, staged, None, cache, model.settings, extra, log)


def evaluate_stages(
    tasks: Callable[[Sequence[str] | None], list[Any]],
    encoder: Encoder,
    scorer: Scorer | None,
    out: str | Path,
    settings: MtebSettings | None = None,
    candidates: int = CANDIDATES,
    log: Callable[[str], None] = lambda line: None,
) -> list[Report]:
    """An embedder on mteb tasks, then a reranker over its best documents of the Retrieval tasks; repeat it to resume.

    Args:
        tasks: makes fresh task objects, of these types alone or (``None``) all, as :func:`benchmark_tasks` does.
        encoder: the first stage. Without a fingerprint (a server) finished tasks are not kept.
        scorer: the second stage.
        out: gets ``embedder.json``, ``reranker.json``, the rankings and what is kept for the next time.
        settings: instruction policy and dimensions.
        candidates: documents a query that the reranker orders.
        log: takes lines of progress.

    Returns:
        One report a stage.
    """
    out = Path(out)
    cache = None if _fingerprint(encoder) == UNVERSIONED else out / "kept"
    with ArrayCache(out / "vectors.sqlite") as arrays:
        first = evaluate_encoder(CachedEncoder(encoder, arrays), tasks(None), out / "rankings", cache, settings, log)
    first.save(out / "embedder.json")
    if scorer is None:
        return [first]
    cache = None if _fingerprint(scorer) == UNVERSIONED else out / "kept"
    retrieval = tasks(["Retrieval"])
    second = evaluate_reranker(scorer, retrieval, out / "rankings", encoder.name, candidates, cache, settings, log)
    second.save(out / "reranker.json")
    return [first, second]


def benchmark_tasks(
    name: str,
    as_published: bool = False,
    types: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> list[Any]:
    """mteb's task objects for one of our benchmarks, with exactly the splits and subsets of our definition.

    Args:
        name: of :data:`qwen3_embedding.evaluation.benchmarks.BENCHMARKS`.
        as_published: the splits of the published figures.
        types: only tasks of these types, such as ``["Retrieval"]`` for a reranker.
        names: only these tasks.

    Raises:
        ValueError: an unknown benchmark, or a task that is not in it.
    """
    tasks = load_benchmark(name, as_published).tasks
    unknown = sorted(set(names or ()) - {item.task.name for item in tasks})
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no task of {name}; it has {', '.join(item.task.name for item in tasks)}")
    mteb = require("mteb", extra="mteb")
    wanted = [
        item
        for item in tasks
        if (types is None or item.task.type in types) and (names is None or item.task.name in names)
    ]
    return [_mteb_task(mteb, item) for item in wanted]


def local_task(folder: str | Path, split: str = "test") -> Any:
    """A mteb retrieval task made from a local folder in BEIR's layout; nothing is downloaded.

    Raises:
        DataError: a file of the folder is missing or not what it should be.
    """
    folder = Path(folder)
    info, collection = read_info(folder), read_collection(folder, split)
    mteb_tasks = require("mteb.abstasks.retrieval", extra="mteb")
    metadata = require("mteb.abstasks.task_metadata", extra="mteb").TaskMetadata(
        name=info.name,
        type="Reranking" if collection.candidates else "Retrieval",
        description="Made from a local folder.",
        reference="https://localhost/local",
        dataset={"path": info.name, "revision": _revision(collection)},
        category="t2t",
        eval_splits=[split],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
        date=None,
        domains=None,
        task_subtypes=None,
        license=None,
        annotations_creators=None,
        dialect=None,
        modalities=["text"],
        sample_creation=None,
        bibtex_citation=None,
        prompt={"query": info.instruction} if info.instruction else None,
    )
    task_class = type("LocalTask", (mteb_tasks.AbsTaskRetrieval,), {"metadata": metadata})
    task = task_class()
    task.dataset = {"default": {split: _split_data(collection)}}
    task.data_loaded = True
    return task


def _evaluate(
    model: Any,
    name: str,
    reranker: str | None,
    tasks: list[Any],
    predictions: str | Path | None,
    cache: str | Path | None,
    settings: MtebSettings,
    extra: dict[str, Any],
    log: Callable[[str], None],
) -> Report:
    mteb = require("mteb", extra="mteb")
    if cache is not None and model.mteb_model_meta.revision == UNVERSIONED:
        raise ValueError(f"{name} has no fingerprint, so kept results could be another model's; leave out cache")
    found, started = [], time.perf_counter()
    for number, task in enumerate(tasks, start=1):
        before = time.perf_counter()
        log(f"[{number}/{len(tasks)}] {task.metadata.name} ({task.metadata.type})")
        try:
            (result,) = mteb.evaluate(
                model,
                task,
                cache=None if cache is None else _store(Path(cache), task, settings, extra),
                prediction_folder=None if predictions is None else Path(predictions),
                show_progress_bar=False,
                co2_tracker=False,
            ).task_results
        except (ConnectionError, FileNotFoundError) as error:
            raise DataError(
                f"{task.metadata.name}: its data {task.metadata.dataset['path']} cannot be had ({error}); mteb loads "
                "public data from the Hugging Face hub, or from its local cache"
            ) from error
        found.append(_task_result(task, result, settings, time.perf_counter() - before))
    return Report(
        model=name,
        tasks=tuple(found),
        commit=commit(),
        hardware=hardware(),
        reranker=reranker,
        settings={"runner": "mteb", "instructions": settings.policy, "dimensions": settings.dimensions, **extra},
        versions=library_versions(),
        created=now(),
        seconds=time.perf_counter() - started,
    )


def _store(cache: Path, task: Any, settings: MtebSettings, extra: dict[str, Any]) -> Any:
    """mteb's cache knows model and task by name; what else a score depends on goes into the folder's name."""
    key = repr((_item(task).fingerprint, settings, sorted(extra.items())))
    folder = cache / hashlib.sha256(key.encode()).hexdigest()[:16]
    return require("mteb.cache", extra="mteb").ResultCache(folder)


def _item(task: Any) -> BenchmarkTask:
    return BenchmarkTask(_definition(task.metadata), tuple(task.eval_splits), tuple(task.hf_subsets))


def _task_result(task: Any, result: Any, settings: MtebSettings, seconds: float) -> TaskResult:
    metadata, item = task.metadata, _item(task)
    rows = [(split, row) for split, found in result.scores.items() for row in found]
    by_subset: dict[str, list[float]] = {}
    for _, row in rows:
        by_subset.setdefault(row["hf_subset"], []).append(float(row["main_score"]))
    main = metadata.main_score.replace("-", "_")
    metrics = {main: mean(float(row["main_score"]) for _, row in rows)}
    side = instructions_for(item.task, settings.policy)
    return TaskResult(
        name=metadata.name,
        type=metadata.type.lower(),
        main_metric=main,
        metrics=metrics,
        definition=item.fingerprint,
        subsets={name: {main: mean(values)} for name, values in by_subset.items()} if len(by_subset) > 1 else {},
        instruction=side.query,
        seconds=seconds,
        notes=("the instruction stands before documents too",) if item.task.asymmetric and side.document else (),
    )


def _mteb_task(mteb: Any, item: BenchmarkTask) -> Any:
    (task,) = mteb.get_tasks(tasks=[item.task.name], eval_splits=list(item.splits))
    task.hf_subsets = list(item.subsets)
    return task


def _texts(loader: Iterable[Any]) -> list[str]:
    return [text for batch in loader for text in batch["text"]]


def _side(metadata: Any, policy: Policy, prompt_type: str | None) -> str | None:
    """The instruction of this side of the task; texts of one kind take the query's."""
    both: Instructions = instructions_for(_definition(metadata), policy)
    return both.document if prompt_type == "document" else both.query


def _definition(metadata: Any) -> TaskDefinition:
    prompt = metadata.prompt
    if isinstance(prompt, dict):
        prompt = {getattr(side, "value", side): text for side, text in prompt.items()}
    return TaskDefinition(
        name=metadata.name,
        type=metadata.type,
        main_score=metadata.main_score,
        dataset=metadata.dataset["path"],
        revision=metadata.dataset["revision"],
        prompt=prompt,
    )


def _meta(model: Encoder | Scorer, kind: str, settings: MtebSettings) -> Any:
    name = (
        model.name if "/" in model.name.strip("/") and not model.name.startswith("/") else f"local/{_short(model.name)}"
    )
    overwrites = {
        "name": name,
        "revision": _fingerprint(model),
        "model_type": [kind],
        "framework": ["PyTorch"],
        "similarity_fn_name": "cosine",
        "use_instructions": True,
        "experiment_kwargs": {"instructions": settings.policy, "dimensions": settings.dimensions},
    }
    return require("mteb.models.model_meta", extra="mteb").ModelMeta.create_empty(overwrites)


def _fingerprint(model: Encoder | Scorer) -> str:
    try:
        found = getattr(model, "fingerprint", None)
    except CheckpointError:  # built in memory, from no folder
        return UNVERSIONED
    return found if isinstance(found, str) else UNVERSIONED


def _short(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1] or "model"


def _split_data(collection: Collection) -> dict[str, Any]:
    dataset = require("datasets", extra="mteb").Dataset
    return {
        "corpus": dataset.from_list([{"id": key, "text": text} for key, text in collection.documents.items()]),
        "queries": dataset.from_list([{"id": key, "text": text} for key, text in collection.queries.items()]),
        "relevant_docs": {query: dict(grades) for query, grades in collection.qrels.items()},
        "top_ranked": None if collection.candidates is None else dict(collection.candidates),
    }


def _revision(collection: Collection) -> str:
    digest = hashlib.sha256()
    for part in (collection.documents, collection.queries):
        for key, text in part.items():
            digest.update(f"{key}\0{text}\0".encode())
    digest.update(repr({query: dict(grades) for query, grades in collection.qrels.items()}).encode())
    return digest.hexdigest()[:40]
