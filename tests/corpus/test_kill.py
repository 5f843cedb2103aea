"""Killed at any instant, the finished output equals that of a run that was never interrupted, byte for byte."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from qwen3_embedding.corpus.encode import encode
from qwen3_embedding.corpus.manifest import read_manifest
from qwen3_embedding.inference.embedder import Embedder
from tests.corpus.support import content, files_of, repeating, same, small, write_jsonl

RANDOM_KILLS = 6
STEPS = (3, 22, 41)
UPDATE_STEPS = (12, 24, 30)
WINDOW = 16


def _serve(model: Path, pipe: Any) -> None:
    """Forks a child for every request, from a process that has the model loaded: a run costs half a second."""
    torch.set_num_threads(1)
    embedder = Embedder.from_pretrained(model)
    while (request := pipe.recv()) is not None:
        source, out, die_at, kill_after = request
        child = os.fork()
        if child == 0:
            _child(embedder, source, out, die_at)
        pipe.send(_wait(child, kill_after))


def _child(embedder: Embedder, source: Path, out: Path, die_at: int | None) -> NoReturn:
    """Encode in a process group of its own; with ``die_at``, die at that file operation on the output."""
    code = 1
    try:
        os.setpgid(0, 0)
        if die_at is not None:
            _die_at(out, die_at)
        encode(source, out, embedder, small(rows=WINDOW))
        code = 0
    finally:
        os._exit(code)


def _die_at(out: Path, step: int) -> None:
    """SIGKILL before the ``step``-th opening, renaming or removing of a file of the output."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in ("open", "os.rename", "os.remove") and str(arguments[0]).startswith(str(out)):
            seen += 1
            if seen == step:
                os.killpg(0, signal.SIGKILL)

    sys.addaudithook(hook)


def _wait(child: int, kill_after: float | None) -> int:
    if kill_after is not None:
        time.sleep(kill_after)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


Run = Callable[..., int]


@pytest.fixture(scope="module")
def run(embedder_folder: Path) -> Iterator[Run]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=_serve, args=(embedder_folder, there), daemon=True)
    server.start()

    def ask(source: Path, out: Path, die_at: int | None = None, kill_after: float | None = None) -> int:
        here.send((source, out, die_at, kill_after))
        return int(here.recv())

    yield ask
    here.send(None)
    server.join(30)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, run: Run) -> tuple[Path, Path, float]:
    folder = tmp_path_factory.mktemp("kill")
    source = write_jsonl(folder / "corpus.jsonl", repeating(96, 60))
    assert run(source, folder / "warm") == 0  # the server starts
    began = time.monotonic()
    assert run(source, folder / "whole") == 0
    assert files_of(folder / "whole") == files_of(folder / "warm")
    return source, folder / "whole", time.monotonic() - began


def test_killed_at_random_instants(uninterrupted: tuple[Path, Path, float], run: Run, tmp_path: Path) -> None:
    source, whole, seconds = uninterrupted
    out = tmp_path / "out"
    chance = random.Random(20261124)
    killed = 0
    for _ in range(RANDOM_KILLS):
        before = _rows(out)
        killed += run(source, out, kill_after=chance.uniform(0.05, 0.5) * seconds) == -signal.SIGKILL
        assert _rows(out) >= before, "what was listed stays"
    assert killed > 0
    assert run(source, out) == 0
    assert files_of(out) == files_of(whole)
    assert same(content(out), content(whole))


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_a_file_operation(
    step: int, uninterrupted: tuple[Path, Path, float], run: Run, tmp_path: Path
) -> None:
    source, whole, _ = uninterrupted
    out = tmp_path / "out"
    assert run(source, out, die_at=step) == -signal.SIGKILL
    listed = _rows(out)
    began = (out / "ledger.sqlite").exists()
    assert run(source, out) == 0
    assert began or listed == 0
    assert files_of(out) == files_of(whole)


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory, run: Run) -> tuple[Path, Path, Path]:
    """A source that has changed since it was encoded, the output before, and the output of an uninterrupted update."""
    folder = tmp_path_factory.mktemp("changed")
    source = write_jsonl(folder / "corpus.jsonl", repeating(96, 60))
    assert run(source, folder / "before") == 0
    documents = [
        (id_, text + (" new" if number % 11 == 0 else "")) for number, (id_, text) in enumerate(repeating(96, 60))
    ]
    write_jsonl(source, [*documents[:50], *documents[55:], ("added", "more")])
    shutil.copytree(folder / "before", folder / "whole")
    assert run(source, folder / "whole") == 0
    assert read_manifest(folder / "whole").rows == 92
    return source, folder / "before", folder / "whole"


@pytest.mark.parametrize("step", UPDATE_STEPS)
def test_an_update_is_killed_while_it_takes_rows_out(
    step: int, changed: tuple[Path, Path, Path], run: Run, tmp_path: Path
) -> None:
    source, before, whole = changed
    shutil.copytree(before, tmp_path / "out")
    assert run(source, tmp_path / "out", die_at=step) == -signal.SIGKILL
    assert run(source, tmp_path / "out") == 0
    assert files_of(tmp_path / "out") == files_of(whole)


def test_a_resumed_run_computes_at_most_one_window_again(
    uninterrupted: tuple[Path, Path, float], run: Run, tmp_path: Path, embedder: Embedder
) -> None:
    source, whole, _ = uninterrupted
    out = tmp_path / "out"
    assert run(source, out, die_at=40) == -signal.SIGKILL
    shards = len(list(out.glob("shard-*.parquet")))  # written, the last of them perhaps not listed
    assert shards >= 2
    progress = encode(source, out, embedder, small(rows=WINDOW)).progress
    assert progress.rows <= read_manifest(whole).rows - (shards - 1) * WINDOW


def _rows(out: Path) -> int:
    return read_manifest(out).rows if (out / "manifest.json").exists() else 0
