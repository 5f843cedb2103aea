"""First passes that are kept beside the table: always what the table holds, whatever was added, replaced or torn."""

from __future__ import annotations

import errno
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3_embedding.errors import IndexCorruptError
from qwen3_embedding.retrieval.binary import BinaryCodes
from qwen3_embedding.retrieval.index import SearchIndex
from qwen3_embedding.retrieval.manifest import FirstPass, IndexSettings
from qwen3_embedding.retrieval.search import DenseQuery
from qwen3_embedding.retrieval.snapshot import Snapshot, newest
from tests.support.hashing import HashEncoder

DIMENSIONS = 96


def vectors(count: int, seed: int = 0) -> np.ndarray:
    """Unit vectors in clusters, no two alike."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((20, DIMENSIONS))
    found = centres[rng.integers(0, 20, count)] + 0.7 * rng.standard_normal((count, DIMENSIONS))
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), dtype=np.float32)


def documents(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"id": f"d{n}", "text": f"text {n}", "even": n % 2 == 0} for n in range(start, start + count)]


def make(folder: Path, first_pass: FirstPass, count: int = 600) -> SearchIndex:
    settings = IndexSettings(first_pass=first_pass, oversample=8)
    index = SearchIndex.create(folder, HashEncoder(DIMENSIONS), settings=settings)
    index.add(documents(count), vectors=vectors(count))
    return index


@pytest.fixture(scope="module", params=["binary", "hnsw-sq"])
def prototype(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("snapshot") / "index", request.param).folder


@pytest.fixture
def index(prototype: Path, tmp_path: Path) -> SearchIndex:
    shutil.copytree(prototype, tmp_path / "index")
    return SearchIndex.open(tmp_path / "index", HashEncoder(DIMENSIONS))


def agrees(index: SearchIndex, at_least: float = 0.97, top_k: int = 10) -> None:
    """Ids, and scores in float32, are those of the exact search over the table."""
    shares = []
    for vector in vectors(20, seed=5):
        found = index.retrieve_dense(vector[None, :], DenseQuery(top_k))[0]
        wanted = dict(index.exact(vector, len(index)))
        assert len(found) == min(top_k, len(index))
        assert [score for _, score in found] == pytest.approx([wanted[identity] for identity, _ in found], abs=1e-5)
        shares.append(len(dict(found).keys() & dict(list(wanted.items())[:top_k]).keys()) / len(found))
    assert np.mean(shares) >= at_least


def test_it_finds_what_the_exact_search_finds(index: SearchIndex) -> None:
    snapshot = newest(index.folder)
    assert snapshot is not None
    assert Snapshot.open(snapshot).about.rows == 600
    agrees(index)


def test_what_came_later_is_found_without_a_new_snapshot(index: SearchIndex) -> None:
    before = newest(index.folder)
    wanted = vectors(3, seed=8)
    index.upsert(documents(1, 17) + documents(2, 600), vectors=wanted)
    index.delete(["d3", "d4", "d5"])
    assert newest(index.folder) == before
    assert len(index) == 599
    agrees(index)
    for vector, identity in zip(wanted, ["d17", "d600", "d601"], strict=True):
        ((best, score),) = index.retrieve_dense(vector[None, :], DenseQuery(1))[0]
        assert best == identity
        assert score == pytest.approx(1.0, abs=1e-5)
    everything = dict(index.retrieve_dense(vectors(1), DenseQuery(600, effort=600))[0])
    assert not {"d3", "d4", "d5"} & everything.keys()


def test_compacting_takes_changes_in(index: SearchIndex) -> None:
    index.upsert(documents(5, 598), vectors=vectors(5, seed=8))
    index.delete([f"d{n}" for n in range(50)])
    index.optimize()
    path = newest(index.folder)
    assert path is not None
    assert Snapshot.open(path).about.rows == len(index) == 553
    assert [found.name for found in index.folder.glob("snapshot-*")] == [path.name]
    agrees(index)
    index.delete([f"d{n}" for n in range(50, 250)])  # a graph that has lost so much is built anew
    index.optimize()
    about = Snapshot.open(newest(index.folder) or path).about
    assert (about.rows, about.removed) == (353, 0)
    agrees(index)


def test_another_process_sees_changes_at_once(index: SearchIndex) -> None:
    reader = SearchIndex.open(index.folder, HashEncoder(DIMENSIONS))
    agrees(reader)
    new = vectors(1, seed=9)
    index.add([{"id": "new", "text": "new"}], vectors=new)
    assert reader.retrieve_dense(new, DenseQuery(1))[0][0][0] == "new"
    index.delete(["new"])
    assert reader.retrieve_dense(new, DenseQuery(1))[0][0][0] != "new"
    index.optimize()
    agrees(reader)


def test_two_writers_by_turns_never_give_a_number_twice(index: SearchIndex) -> None:
    other = SearchIndex.open(index.folder, HashEncoder(DIMENSIONS))
    assert index.add(["a"], vectors=vectors(1)) == ["600"]
    assert other.add(["b"], vectors=vectors(1)) == ["601"]
    assert index.add(["c"], vectors=vectors(1)) == ["602"]
    numbers = index._numbers()
    assert len(set(numbers.tolist())) == len(index) == 603


def test_conditions_are_exact(index: SearchIndex) -> None:
    hits = index.search("anything", 40, 40, where={"even": True}, rerank=False)
    assert len(hits) == 40
    assert all(hit.metadata["even"] for hit in hits)


def test_an_index_that_shrinks_to_nothing(index: SearchIndex) -> None:
    index.delete([f"d{n}" for n in range(600)])
    assert index.search("anything", rerank=False) == []
    index.optimize()
    assert index.search("anything", rerank=False) == []
    index.add(["again"])
    assert [hit.text for hit in index.search("again", rerank=False)] == ["again"]


@pytest.mark.parametrize("how", ["cut", "gone", "foreign"])
def test_a_torn_snapshot_is_named_and_compacting_repairs_it(index: SearchIndex, how: str) -> None:
    folder = newest(index.folder)
    assert folder is not None
    victims = [path for path in folder.iterdir() if path.name != "snapshot.json"]
    for victim in victims:
        whole = victim.read_bytes()
        victim.unlink()
        if how != "gone":
            victim.write_bytes(whole[: len(whole) // 2] if how == "cut" else b"something else")
        opened = SearchIndex.open(index.folder, HashEncoder(DIMENSIONS))
        with pytest.raises(IndexCorruptError, match=r"optimize\(\)"):
            opened.retrieve_dense(vectors(1), DenseQuery(5))
        victim.write_bytes(whole)
    victims[0].unlink()
    index = SearchIndex.open(index.folder, HashEncoder(DIMENSIONS))
    index.optimize()
    agrees(index)


def test_killed_while_it_writes_a_snapshot_the_old_one_stays(tmp_path: Path) -> None:
    index = make(tmp_path / "index", "hnsw-sq")
    script = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from qwen3_embedding.retrieval import snapshot
        from qwen3_embedding.retrieval.index import SearchIndex

        def die(*arguments):
            os.kill(os.getpid(), signal.SIGKILL)

        snapshot._write_pass = die
        index = SearchIndex.open(Path(sys.argv[1]))
        index.delete(["d7"])
        index.optimize()
        """
    )
    done = subprocess.run([sys.executable, "-c", script, str(index.folder)], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(index.folder.glob("*.part*")), "what it left"
    again = SearchIndex.open(index.folder, HashEncoder(DIMENSIONS))
    assert len(again) == 599
    agrees(again)
    again.optimize()
    assert not list(index.folder.glob("*.part*"))
    agrees(again)


def test_no_room_for_a_snapshot_keeps_the_old_one(index: SearchIndex) -> None:
    before = newest(index.folder)
    index.delete(["d7"])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # less than the vectors take
    try:
        with pytest.raises(OSError, match="large") as caught:
            index._write_snapshot()
        assert caught.value.errno == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert newest(index.folder) == before
    assert not list(index.folder.glob("*.part*"))
    agrees(index)


def test_signs_are_compared_bit_by_bit(tmp_path: Path) -> None:
    found = vectors(1000)
    BinaryCodes.write(tmp_path, iter([found[:300], found[300:]]), 1000, DIMENSIONS)
    codes = BinaryCodes.open(tmp_path, 1000, DIMENSIONS)
    for query in vectors(5, seed=3):
        distances = ((found > 0) != (query > 0)).sum(axis=1)
        rows = codes.nearest(query, 50, 0)
        assert set(rows) == set(np.flatnonzero(distances <= np.sort(distances)[49]))
    assert len(codes.nearest(found[0], 5000, 0)) == 1000


def test_product_quantisation_finds_most(tmp_path: Path) -> None:
    index = make(tmp_path / "pq", "ivf-pq", 4200)
    agrees(index, at_least=0.9)
    assert index._table.index_stats("vector_idx") is not None
    narrow = index.retrieve_dense(vectors(1, seed=5), DenseQuery(10, effort=1))[0]
    assert len(narrow) == 10


@pytest.mark.parametrize("first_pass", ["none", "hnsw-sq"])
def test_check_prints_recall_against_the_exact_search(tmp_path: Path, first_pass: FirstPass) -> None:
    index = make(tmp_path / "i", first_pass)
    recall = index.check(sample=50)
    assert (recall.queries, recall.top_k) == (50, 10)
    assert recall.recall >= 0.97
    assert 0 < recall.p50_ms <= recall.p95_ms <= recall.p99_ms
    if first_pass == "none":
        assert recall.recall == recall.worst == 1.0
    assert index.check(vectors(7, seed=4), top_k=3).queries == 7


def test_check_counts_what_is_missed(tmp_path: Path) -> None:
    index = make(tmp_path / "i", "hnsw-sq")
    while index._state() is None:  # just behind a change the snapshot is opened anew for every search
        time.sleep(0.01)
    snapshot = index._snapshot()
    assert snapshot is not None

    class Blind:
        def nearest(self, vector: Any, count: int, effort: int) -> Any:
            return np.arange(300)  # sees the first half only

    object.__setattr__(snapshot.snapshot, "first_pass", Blind())
    wanted = [dict(index.exact(vector, 10)).keys() for vector in vectors(20, seed=4)]
    share = np.mean([len({i for i in ids if int(i[1:]) < 300}) / 10 for ids in wanted])
    assert index.check(vectors(20, seed=4)).recall == pytest.approx(share)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.ones((2, DIMENSIONS), np.float32), "shape"),
        (np.ones((1, DIMENSIONS - 1), np.float32), "shape"),
        (np.ones((1, DIMENSIONS), np.int8), "int8"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(index: SearchIndex, given: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        index.add(["x"], vectors=given)
    assert len(index) == 600


def test_wider_vectors_are_cut_then_normalised(tmp_path: Path) -> None:
    index = SearchIndex.create(tmp_path / "i", HashEncoder(DIMENSIONS), settings=IndexSettings(dimensions=32))
    index.add(documents(5), vectors=vectors(5))
    short = vectors(5)[:, :32]
    short /= np.linalg.norm(short, axis=1, keepdims=True)
    ((best, score),) = index.exact(short[2], 1)
    assert best == "d2"
    assert score == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("first_pass", ["binary", "hnsw-sq"])
def test_ids_in_any_script_and_numbers_with_gaps(tmp_path: Path, first_pass: FirstPass) -> None:
    """Every row is its own nearest, under ids of one to many bytes a letter, behind rows that were taken out."""
    rows = {f"{'é文😀x'[n % 4] * (1 + n % 5)}{n}": vector for n, vector in enumerate(vectors(400))}
    names = list(rows)
    settings = IndexSettings(first_pass=first_pass, oversample=8)
    index = SearchIndex.create(tmp_path / "i", HashEncoder(DIMENSIONS), settings=settings)
    index.add([{"id": name, "text": "text"} for name in names], vectors=vectors(400))
    for gone in ([], names[:7], names[100:300:5]):
        index.delete(gone)
        index.optimize()
        names = [name for name in names if name not in gone]
        for name in names[::13]:
            assert index.retrieve_dense(rows[name][None, :], DenseQuery(1))[0][0][0] == name
