"""A model on several devices at once: one process a device, each with its own copy, texts shared out between them.

The parent cuts the texts into parts of like length, longest first, and gives the next part to whichever device is
free, so that a slow device holds nobody up.  Results are the single model's: a text has one vector, wherever computed.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Generic, Self, TypeVar

import numpy as np

from qwen3_embedding.errors import Qwen3EmbeddingError
from qwen3_embedding.optional import require
from qwen3_embedding.types import Encoder, FloatArray, Precision, Scorer, Vectors

Model = TypeVar("Model", bound=Encoder | Scorer)
Load = Callable[[str], Any]
"""Device → model there. Goes to other processes by name: a function of a module, or ``functools.partial`` of one."""

PART_CHARACTERS = 200_000
"""Of one part at most: small enough to share out evenly, large enough to fill a batch."""

_model: Any = None


class _Devices(Generic[Model]):
    """The processes, and how work gets to them."""

    def __init__(self, load: Load, devices: Sequence[str]) -> None:
        if len(set(devices)) != len(devices) and set(devices) != {"cpu"}:
            raise ValueError(f"devices={list(devices)}; wanted each once")
        if not devices:
            raise ValueError("no device; wanted at least one, such as cuda:0")
        self.devices = list(devices)
        context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
        threads = max(1, _cores() // len(devices))
        self._pools = [
            ProcessPoolExecutor(1, mp_context=context, initializer=_load, initargs=(load, device, threads))
            for device in devices
        ]
        try:
            with self._alive():
                facts = [pool.submit(_facts) for pool in self._pools]
                self.name, self.fingerprint, self._dimensions = facts[0].result()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)

    def _share_out(self, method: str, lengths: Sequence[int], arguments: Callable[[list[int]], tuple[Any, ...]]) -> Any:
        """Rows in the caller's order; ``arguments`` gives what the method gets for the rows of a part."""
        parts = _parts(lengths, max(1, min(PART_CHARACTERS, sum(lengths) // len(self._pools))))
        left: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        for part in parts:
            left.put(part)

        def serve(pool: ProcessPoolExecutor) -> list[tuple[list[int], Any]]:
            done: list[tuple[list[int], Any]] = []
            while True:
                try:
                    part = left.get_nowait()
                except queue.Empty:
                    return done
                done.append((part, self._ask(pool, method, arguments(part))))

        with ThreadPoolExecutor(len(self._pools)) as threads:
            found = [item for several in threads.map(serve, self._pools) for item in several]
        rows = np.concatenate([np.asarray(values) for _, values in found])
        order = np.argsort(np.concatenate([part for part, _ in found]), kind="stable")
        return rows[order]

    def _ask(self, pool: ProcessPoolExecutor, method: str, arguments: tuple[Any, ...]) -> Any:
        with self._alive():
            return pool.submit(_call, method, arguments).result()

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """Say what to do where a process ended, whether that is seen before it is asked or while it answers."""
        try:
            yield
        except BrokenProcessPool:
            raise Qwen3EmbeddingError(
                f"a process on one of {', '.join(self.devices)} ended without a word (killed, or out of memory); "
                "run the same command again to go on from what is kept"
            ) from None


class DeviceEncoder(_Devices[Encoder]):
    """An ``Encoder`` on several devices. Use it as a context manager, or call :meth:`close`.

    Args:
        load: makes the encoder on a device.
        devices: such as ``["cuda:0", "cuda:1"]``; ``cpu`` may come several times, and the cores are then shared out.
    """

    @property
    def dimensions(self) -> int:
        """Full vector size D."""
        return int(self._dimensions)

    def embed_queries(
        self,
        texts: Sequence[str],
        instruction: str | None = None,
        dimensions: int | None = None,
        precision: Precision = "float32",
        progress: bool = False,
    ) -> Vectors:
        """(N, dimensions) vectors in the caller's order."""
        return self._embed("embed_queries", texts, (instruction, dimensions, precision))

    def embed_documents(
        self,
        texts: Sequence[str],
        dimensions: int | None = None,
        precision: Precision = "float32",
        progress: bool = False,
    ) -> Vectors:
        """(N, dimensions) vectors in the caller's order."""
        return self._embed("embed_documents", texts, (dimensions, precision))

    def _embed(self, method: str, texts: Sequence[str], more: tuple[Any, ...]) -> Vectors:
        if not texts:
            return np.asarray(self._ask(self._pools[0], method, ([], *more)))
        found = self._share_out(method, [len(text) for text in texts], lambda part: ([texts[i] for i in part], *more))
        return np.asarray(found)


class DeviceScorer(_Devices[Scorer]):
    """A ``Scorer`` on several devices; see :class:`DeviceEncoder`."""

    def score(self, query: str, documents: Sequence[str], instruction: str | None = None) -> FloatArray:
        """(N,) scores in the caller's order."""
        return self.score_pairs([query] * len(documents), documents, instruction)

    def score_pairs(
        self, queries: Sequence[str], documents: Sequence[str], instruction: str | None = None
    ) -> FloatArray:
        """(N,) scores in the caller's order."""
        if len(queries) != len(documents):
            raise ValueError(f"{len(queries)} queries and {len(documents)} documents; wanted pairs")
        if not queries:
            return np.empty(0, dtype=np.float32)
        lengths = [len(q) + len(d) for q, d in zip(queries, documents, strict=True)]
        found = self._share_out(
            "score_pairs",
            lengths,
            lambda part: ([queries[i] for i in part], [documents[i] for i in part], instruction),
        )
        return np.asarray(found, dtype=np.float32)


def parse_devices(text: str) -> list[str]:
    """``cuda:0,cuda:1`` as a list; ``all`` is every CUDA device.

    Raises:
        ValueError: ``all`` on a machine without CUDA, or nothing named.
    """
    if text.strip() == "all":
        count = require("torch", extra="eval").cuda.device_count()
        if not count:
            raise ValueError("devices='all' and this machine has no CUDA device; leave it out, or use cpu")
        return [f"cuda:{number}" for number in range(count)]
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise ValueError(f"devices={text!r}; wanted a list such as cuda:0,cuda:1, or all")
    return found


def _parts(lengths: Sequence[int], characters: int) -> list[list[int]]:
    """Row numbers, longest texts first, cut where a part would hold more than ``characters``."""
    parts: list[list[int]] = []
    filled = characters
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if filled + lengths[row] > characters:
            parts.append([])
            filled = 0
        parts[-1].append(row)
        filled += lengths[row]
    return parts


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _load(load: Load, device: str, threads: int) -> None:
    """In the new process: its model, and on a CPU its share of the cores."""
    global _model
    if device == "cpu":
        require("torch", extra="eval").set_num_threads(threads)
    try:
        _model = load(device)
    except Exception as error:
        _model = error  # a pool whose start fails says nothing of why; the first call does


def _facts() -> tuple[str, str | None, int]:
    model = _loaded()
    fingerprint = getattr(model, "fingerprint", None)
    return model.name, fingerprint if isinstance(fingerprint, str) else None, getattr(model, "dimensions", 0)


def _call(method: str, arguments: tuple[Any, ...]) -> Any:
    return getattr(_loaded(), method)(*arguments)


def _loaded() -> Any:
    if isinstance(_model, Exception):
        raise _model
    return _model
