"""The parts of mining: the store, exact retrieval, the corpus, and the rules on scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from qwen3_embedding.errors import ConfigError, DataError
from qwen3_embedding.mining.filters import Verdict, choose, judge, share_bound, verify
from qwen3_embedding.mining.retrieve import top_k
from qwen3_embedding.mining.settings import FilterSettings, MiningSettings, VerifySettings
from qwen3_embedding.mining.store import VectorStore, key_of
from qwen3_embedding.mining.texts import Corpus
from qwen3_embedding.types import FloatArray, IntArray


def unit(count: int, dimensions: int = 8, seed: int = 0) -> FloatArray:
    vectors = np.random.default_rng(seed).normal(size=(count, dimensions)).astype(np.float32)
    normal: FloatArray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return normal


# --- store ------------------------------------------------------------------------------------------------------------


def test_store_encodes_each_text_once_and_gives_vectors_back_by_key(tmp_path: Path) -> None:
    vectors, keys = unit(20), np.array([key_of(str(i % 20)) for i in range(30)])
    asked: list[int] = []

    def encode(positions: IntArray) -> FloatArray:
        asked.extend(int(p) for p in positions)
        return vectors[positions % 20]

    store = VectorStore(tmp_path, "model", 8, segment=6)
    assert store.add(keys[:10], encode) == 10
    assert store.add(keys, encode) == 10
    assert asked == list(range(20))
    again = VectorStore(tmp_path, "model", 8, segment=6)
    assert len(again) == 20
    assert again.add(keys, encode) == 0
    np.testing.assert_array_equal(again.get(again.find(keys)), vectors[np.arange(30) % 20])
    assert again.find(np.array([key_of("absent")])).tolist() == [-1]
    assert len(VectorStore(tmp_path, "another model", 8)) == 0
    assert len(VectorStore(tmp_path, "model", 4)) == 0


def test_store_killed_while_encoding_keeps_whole_segments(tmp_path: Path) -> None:
    vectors, keys = unit(20), np.arange(20)
    calls: list[IntArray] = []

    def dying(positions: IntArray) -> FloatArray:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(positions)
        return vectors[positions]

    with pytest.raises(KeyboardInterrupt):
        VectorStore(tmp_path, "model", 8, segment=6).add(keys, dying)
    store = VectorStore(tmp_path, "model", 8, segment=6)
    assert len(store) == 12
    assert store.add(keys, lambda positions: vectors[positions]) == 8
    np.testing.assert_array_equal(store.get(store.find(keys)), vectors)


def test_store_refuses_torn_files_and_bad_vectors(tmp_path: Path) -> None:
    store = VectorStore(tmp_path, "model", 8)
    with pytest.raises(ValueError, match=r"shape \(3, 4\); wanted \(3, 8\)"):
        store.add(np.arange(3), lambda positions: unit(3, 4))
    with pytest.raises(DataError, match="NaN"):
        store.add(np.arange(3), lambda positions: np.full((3, 8), np.nan, np.float32))
    store.add(np.arange(3), lambda positions: unit(3))
    path = store.folder / "000000.npy"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="not a whole array"):
        VectorStore(tmp_path, "model", 8)


def test_keys_tell_the_borders_of_their_parts() -> None:
    assert key_of("ab", "c") != key_of("a", "bc")
    assert key_of("text") == -3544395094686046220  # the same in every process and version: caches depend on it


# --- retrieval and corpus ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 100, 1000])
def test_top_k_is_the_exact_sort_however_it_is_cut_into_blocks(size: int) -> None:
    queries, documents = unit(5, seed=1), unit(100, seed=2)
    documents[60] = documents[3]  # a tie: the smaller id comes first
    queries[0] = documents[3]
    order = np.random.default_rng(0).permutation(100)
    blocks = [(order[i : i + size], documents[order[i : i + size]]) for i in range(0, 100, size)]
    scores, ids = top_k(queries, blocks, 12)
    exact = queries.astype(np.float64) @ documents.astype(np.float64).T
    for row in range(5):
        expected = sorted(range(100), key=lambda i, row=row: (-exact[row, i], i))[:12]  # type: ignore[misc]
        assert ids[row].tolist() == expected
        np.testing.assert_allclose(scores[row], exact[row, expected], atol=1e-6)
    assert ids[0, :2].tolist() == [3, 60]


def test_top_k_below_ceilings_is_the_sort_of_what_is_below() -> None:
    queries, documents = unit(4, seed=1), unit(60, seed=2)
    exact = queries @ documents.T
    ceilings = np.array([0.5, 0.0, -0.5, -2.0], np.float32)
    blocks = [(np.arange(i, i + 20), documents[i : i + 20]) for i in range(0, 60, 20)]
    scores, ids = top_k(queries, blocks, 9, ceilings_Q=ceilings)
    for row in range(4):
        expected = [int(i) for i in np.argsort(-exact[row], kind="stable") if exact[row, i] <= ceilings[row]][:9]
        found = np.isfinite(scores[row])
        assert ids[row, found].tolist() == expected
    assert not np.isfinite(scores[3]).any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_top_k_on_a_gpu_is_that_of_the_cpu() -> None:
    queries, documents = unit(50, 64, seed=1), unit(3000, 64, seed=2)
    blocks = [(np.arange(i, i + 500), documents[i : i + 500]) for i in range(0, 3000, 500)]
    scores, ids = top_k(queries, blocks, 20)
    on_gpu, ids_gpu = top_k(queries, blocks, 20, device="cuda")
    np.testing.assert_allclose(on_gpu, scores, atol=1e-5)
    assert (ids == ids_gpu).mean() > 0.999  # neighbours within rounding may change places


def test_top_k_of_fewer_documents_gives_them_all() -> None:
    scores, ids = top_k(unit(2), [(np.arange(3), unit(3, seed=1))], 10)
    assert scores.shape == ids.shape == (2, 3)


def test_corpus_keeps_each_content_once_and_removes_its_file(tmp_path: Path) -> None:
    with Corpus(tmp_path / "scratch") as corpus:
        corpus.add(["Größe", "zwei", "  GRÖSSE ", "zwei ", "", "日本語\nzwei"])
        assert len(corpus) == 3
        assert corpus[2] == "日本語\nzwei"
        assert corpus.duplicates == 3
        corpus.add(["vier"])
        assert list(corpus.texts(np.array([3, 0]))) == ["vier", "Größe"]
        with pytest.raises(IndexError):
            corpus[4]
    assert list(tmp_path.iterdir()) == []


# --- rules ------------------------------------------------------------------------------------------------------------

SCORES = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.1], np.float32)
HASHES = np.arange(10, 16)
OFF = {"positive_share": None}


def verdicts(positive: float = 0.75, **changes: object) -> list[Verdict]:
    settings = FilterSettings(**{**OFF, **changes})  # type: ignore[arg-type]
    return [Verdict(int(v)) for v in judge(SCORES, HASHES, 10, {12}, {14}, positive, settings)]


def test_content_of_query_positives_and_negatives_is_excluded_first() -> None:
    V = Verdict
    assert verdicts() == [V.SELF, V.PASSED, V.POSITIVE, V.PASSED, V.EXISTING, V.PASSED]
    # what is excluded already does not use up the first two
    assert verdicts(skip_first=2) == [V.SELF, V.SKIPPED, V.POSITIVE, V.SKIPPED, V.EXISTING, V.PASSED]


@pytest.mark.parametrize(
    ("changes", "dropped", "verdict"),
    [
        ({"max_score": 0.65}, {1}, Verdict.MAX_SCORE),
        ({"min_score": 0.2}, {5}, Verdict.MIN_SCORE),
        ({"positive_share": 0.95}, {1}, Verdict.POSITIVE_SHARE),  # bound 0.7125
        ({"positive_share": 0.7}, {1, 3}, Verdict.POSITIVE_SHARE),  # bound 0.525
        ({"margin": 0.2}, {1, 3}, Verdict.MARGIN),  # bound 0.55
    ],
)
def test_each_bound_drops_what_breaks_it(changes: dict[str, float], dropped: set[int], verdict: Verdict) -> None:
    found = verdicts(**changes)
    assert {place for place, value in enumerate(found) if value == verdict} == dropped
    assert sum(value == Verdict.PASSED for value in found) == 3 - len(dropped)


def test_share_of_a_negative_positive_score_lies_below_it() -> None:
    assert share_bound(0.8, 0.95) == pytest.approx(0.76)
    assert share_bound(-0.2, 0.95) == pytest.approx(-0.21)  # -0.2 * 0.95 = -0.19 would let better answers pass
    assert share_bound(0.0, 0.95) == 0
    scores = np.array([-0.1, -0.195, -0.205, -0.3], np.float32)
    found = judge(scores, np.arange(4), 99, set(), set(), -0.2, FilterSettings())
    assert found.tolist() == [Verdict.POSITIVE_SHARE] * 3 + [Verdict.PASSED]


def test_the_reranker_drops_answers() -> None:
    found = np.zeros(5, np.int8)
    verify(found, np.array([0, 2, 4]), np.array([0.9, 0.3, 0.45], np.float32), 0.5, VerifySettings(positive_share=0.8))
    assert found.tolist() == [Verdict.RERANKER, 0, 0, 0, Verdict.RERANKER]


def test_sampling_is_a_function_of_seed_and_record() -> None:
    places = np.arange(50)
    assert choose(places, 5, "top", 0, 1).tolist() == [0, 1, 2, 3, 4]
    one = choose(places, 5, "random", 0, -123)
    assert one.tolist() == sorted(set(one.tolist()))
    assert one.tolist() == choose(places, 5, "random", 0, -123).tolist()
    assert one.tolist() != choose(places, 5, "random", 1, -123).tolist()
    assert one.tolist() != choose(places, 5, "random", 0, 124).tolist()
    drawn = np.concatenate([choose(places, 5, "random", seed, 7) for seed in range(400)])
    assert np.bincount(drawn, minlength=50).std() < 12  # 40 expected each; binomial deviation is 6
    assert choose(places[:3], 5, "random", 0, 1).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"negatives": 0}, "negatives=0"),
        ({"depth": 5}, "no room"),
        ({"drop_below": 8}, "wanted 0 to negatives=7"),
        ({"filter": {"positive_share": 95.0}}, "0.95 is usual"),
        ({"filter": {"min_score": 0.5, "max_score": 0.4}}, "nothing would be left"),
        ({"tasks": ["qa"]}, "wanted one of"),
        ({"sampling": "best"}, "wanted one of 'top', 'random'"),
    ],
)
def test_settings_without_sense_are_refused(raw: dict[str, object], message: str) -> None:
    from qwen3_embedding.config import from_mapping

    with pytest.raises(ConfigError, match=message):
        from_mapping(raw, MiningSettings)
    with pytest.raises(ValueError, match=r"wanted a value in \[0, 1\]"):
        VerifySettings(max_score=1.5)
