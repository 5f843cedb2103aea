"""Two Ray workers give what one process gives, byte for byte, also where one of them is killed on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from qwen3_embedding.corpus.chunker import Chunk, ChunkSettings
from qwen3_embedding.corpus.encode import Progress, encode
from qwen3_embedding.corpus.ledger import Place
from qwen3_embedding.corpus.ray import RayEngine, RaySettings, _sequences, pack_window, unpack_window
from qwen3_embedding.corpus.window import Row, Window
from qwen3_embedding.errors import DataError
from qwen3_embedding.inference.embedder import Embedder
from tests.corpus.support import content, files_of, repeating, same, small, write_jsonl

ray = pytest.importorskip("ray")
SHARE = 0.25
"""Of a processor, a worker: Ray starts a process ahead for every processor that it is given."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # Ray starts many processes


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
        patch.setenv("RAY_worker_niceness", "0")  # 15 is Ray's own: on a busy machine the workers would stand still
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 1024 * 1024)
        yield
        with warnings.catch_warnings():  # Ray kills its processes and does not wait for them
            warnings.simplefilter("ignore", ResourceWarning)
            ray.shutdown()
            gc.collect()


def _worker_pids() -> list[int]:
    """Ray workers of this test's own cluster that hold the model: children of the raylet that this process started."""
    raylets = [pid for pid in _children(os.getpid()) if "raylet" in _command(pid)]
    return [pid for raylet in raylets for pid in _children(raylet) if "MapWorker(MapBatches(Worker))" in _command(pid)]


def _children(parent: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(status.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(status.parent.name))
    return found


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    return ""


def test_two_workers_one_of_them_killed(cluster: None, tmp_path: Path, embedder: Embedder) -> None:
    settings = small(rows=8, chunk=ChunkSettings(40))
    documents = [*repeating(120, 90), ("long", " ".join(f"Sentence {i} is here." for i in range(60)))]
    source = write_jsonl(tmp_path / "c.jsonl", documents)
    encode(source, tmp_path / "one", embedder, settings)

    killed: list[int] = []

    def kill_one(progress: Progress) -> None:
        if not killed:
            killed.extend(_worker_pids()[:1])
            os.kill(killed[0], signal.SIGKILL)

    engine = RayEngine(RaySettings(workers=2, device="cpu", cpus_per_worker=SHARE))
    result = encode(source, tmp_path / "two", embedder, settings, report=kill_one, engine=engine)
    assert killed
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")
    assert result.manifest.complete


def test_an_error_on_a_worker_is_told_as_here(cluster: None, tmp_path: Path, embedder: Embedder) -> None:
    source = tmp_path / "c.jsonl"
    source.write_text('{"id": "a", "text": "b"}\n{broken\n')
    with pytest.raises(DataError, match=r"c\.jsonl:2: not a usable JSON record"):
        encode(
            source,
            tmp_path / "out",
            embedder,
            small(rows=1),
            engine=RayEngine(RaySettings(workers=1, device="cpu", cpus_per_worker=SHARE)),
        )


def test_many_workers_write_and_index_one_lance_table(cluster: None, tmp_path: Path, embedder: Embedder) -> None:
    lancedb = pytest.importorskip("lancedb")
    pytest.importorskip("lance_ray")
    from qwen3_embedding.corpus.ray_lance import build_index, write_lance

    source = write_jsonl(tmp_path / "c.jsonl", [(f"d{i}", f"text number {i} of {i * i}") for i in range(700)])
    encode(source, tmp_path / "out", embedder, small(rows=256))
    address = f"{tmp_path / 'db'}#documents"
    table = write_lance(tmp_path / "out", address, workers=2)
    assert (table.rows, table.fragments) == (700, 3)
    assert build_index(address, workers=2) == 700

    opened = lancedb.connect(tmp_path / "db").open_table("documents")
    wanted = content(tmp_path / "out")
    rows = opened.to_arrow().to_pylist()
    assert same({row["id"]: np.asarray(row["vector"], np.float32) for row in rows}, wanted)
    for identity in ("d3", "d699"):
        search = opened.search(wanted[identity], vector_column_name="vector").distance_type("cosine")
        found = search.nprobes(9).refine_factor(10).limit(3).to_list()
        assert identity in {row["id"] for row in found}
    assert any("vector" in index.columns for index in opened.list_indices())


def test_a_window_travels_whole(tmp_path: Path, embedder: Embedder) -> None:
    place = Place(b"c" * 16, 1, 2, 3, 4, 5)
    window = Window(
        number=7, shard=3, rows=[Row("d#1", Chunk("d", 1, 5, 9, "text"), b"k" * 16, place, -1, (1, 2))],
        sequences=[[1, 2, 3], [4]], cut_tokens=[0, 2], unchanged=[(b"u" * 16, place)], obsolete=[(0, 4)],
        progress={3: (5, 1, 77)}, finished=[1, 2], skips=[(1, 9, "why")], fraction=0.5,
    )  # fmt: skip
    (row,) = pack_window(window).to_pylist()
    assert _sequences(row) == window.sequences
    arrived = unpack_window(row["plan"])
    assert [len(sequence) for sequence in arrived.sequences] == [3, 1]
    blank = dataclasses.replace(window.rows[0], chunk=dataclasses.replace(window.rows[0].chunk, text=""))
    assert dataclasses.replace(arrived, sequences=window.sequences) == dataclasses.replace(window, rows=[blank])
