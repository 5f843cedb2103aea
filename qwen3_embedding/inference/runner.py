"""Token ids in, pooled rows out: batches by tokens, work shared, results checked, the caller's order kept."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from qwen3_embedding.errors import NumericalError
from qwen3_embedding.inference.kernel import choose_kernel, use_kernel
from qwen3_embedding.inputs.packing import PackedBatch, pack, plan_batches
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.fp8 import E4M3, check_device, quantize_fp8_
from qwen3_embedding.model.fused import compile_, fuse_
from qwen3_embedding.model.graphs import TextGraphs
from qwen3_embedding.model.transfer import HostCopy
from qwen3_embedding.model.weights import load_backbone
from qwen3_embedding.types import FloatArray

DTypeName = Literal["auto", "float32", "bfloat16", "float16", "int8", "fp8"]
DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
    "fp8": torch.float8_e4m3fn,
}

CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 2048, 65536
"""Default token budgets: on CPU the activations of a batch should stay near the caches; on GPU the chip must be
filled."""

Finish = Callable[[Tensor], Tensor]
"""Pooled hidden states (N, D) to the result rows (N, …), in fp32."""


def choose_device(device: str | torch.device) -> torch.device:
    """``auto`` is the first CUDA device where there is one, else the CPU."""
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device={device!r}; wanted auto, cpu, cuda, cuda:N or mps") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r} was asked for and this machine has no CUDA device; use cpu or auto")
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 on GPU and float32 on CPU (bf16 products are slower than fp32 on most CPUs).

    int8 (CPU) and fp8 (GPU), weights and activations, are never chosen by themselves: they change the vectors a little.
    """
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}; wanted auto, {', '.join(DTYPES)}")
    if dtype == "int8" and device.type != "cpu":
        raise ValueError(f"dtype='int8' runs on the CPU and the device is {device}; use bfloat16, or device='cpu'")
    if dtype == "fp8":
        check_device(device)
    return DTYPES[dtype]


def load(
    folder: Path, dtype: torch.dtype, device: torch.device, kernel: str = "auto"
) -> tuple[Backbone, dict[str, Tensor]]:
    """A backbone at a type of :data:`DTYPES` and what else its file holds; int8 is made from float32 weights."""
    library = choose_kernel(kernel, device, dtype)
    if device.type == "cuda":
        backbone, extra = load_backbone(folder, torch.bfloat16 if dtype == E4M3 else dtype, device)
        return (quantize_fp8_ if dtype == E4M3 else fuse_)(backbone), extra
    backbone, extra = load_backbone(folder, torch.float32 if dtype == torch.int8 else dtype, device)
    return use_kernel(backbone, library, dtype), extra


def batches_ahead(device: torch.device) -> int:
    """Batches that a GPU has queued while the host packs another; a CPU does one thing after the other."""
    return 2 if device.type == "cuda" else 0


@dataclass(frozen=True)
class RunSettings:
    """How a runner cuts work into batches."""

    batch_tokens: int
    """Tokens of a batch; a longer text gets a batch of its own."""
    share_prefixes: bool = True
    """Compute common beginnings once. Off only for comparison."""
    reproducible: bool = False
    """A text's result is equal to the last bit alone and in any batch. Our own kernel computes so in any case;
    PyTorch's kernels get one text at a time."""

    @classmethod
    def for_device(
        cls, device: torch.device, batch_tokens: int | None = None, reproducible: bool = False
    ) -> RunSettings:
        """The default budget of a device, unless another is given."""
        default = CPU_BATCH_TOKENS if device.type == "cpu" else GPU_BATCH_TOKENS
        return cls(default if batch_tokens is None else batch_tokens, reproducible=reproducible)


@dataclass
class _Window:
    """Sequences that are batched together, and the rows that are there so far."""

    distinct: list[Sequence[int]]
    place: list[int]
    """Where each of the caller's sequences is among them."""
    rows: FloatArray | None = None
    done: int = 0

    @property
    def repeats(self) -> int:
        """Sequences that are equal to an earlier one."""
        return len(self.place) - len(self.distinct)

    def add(self, batch: list[int], result: FloatArray) -> bool:
        """Keep a batch's rows; whether it was the last."""
        if self.rows is None:
            self.rows = np.empty((len(self.distinct), *result.shape[1:]), dtype=np.float32)
        self.rows[batch] = result
        self.done += len(batch)
        return self.done == len(self.distinct)

    def result(self) -> FloatArray:
        """One row for each of the caller's sequences."""
        assert self.rows is not None
        return np.asarray(self.rows[self.place])


class Runner:
    """Runs a backbone over any number of token sequences."""

    def __init__(self, backbone: Backbone, finish: Finish, settings: RunSettings | None = None) -> None:
        self.backbone = backbone
        self.finish = finish
        self.settings = settings or RunSettings.for_device(backbone.device)
        self.graphs: TextGraphs | None = None
        self._process, self._threads = os.getpid(), torch.get_num_threads()

    def run(
        self,
        sequences: Sequence[Sequence[int]],
        groups: Sequence[int] | None = None,
        progress: str | None = None,
        advance: Callable[[int], None] | None = None,
    ) -> FloatArray:
        """One result row a sequence, float32, in the caller's order.

        Equal sequences are computed once. A row that is not finite is computed again at wider types before giving up.

        Args:
            sequences: N non-empty lists of token ids, all below the vocabulary's size.
            groups: (N,) numbers of groups that share a beginning (a reranker's queries).
            progress: title of a progress bar on stderr, or ``None`` for none.
            advance: told how many sequences are done, instead of a bar of this call's own.

        Raises:
            NumericalError: rows that are not finite even in float32.
        """
        rows: list[FloatArray] = []
        with show_progress(progress, len(sequences)) as shown:
            self.run_windows([(sequences, groups)], rows.append, advance or shown)
        return rows[0]

    def run_windows(
        self,
        windows: Iterable[tuple[Sequence[Sequence[int]], Sequence[int] | None]],
        emit: Callable[[FloatArray], None],
        advance: Callable[[int], None],
    ) -> None:
        """Like :meth:`run` for several lists of sequences and their groups, one after the other: ``emit`` gets each
        one's rows, in order. A GPU goes on from one to the next without a break: the next list is asked for while the
        chip computes the last batches of the one before."""
        self._mind_forks()
        with torch.inference_mode():
            for window, batch, result in self._results(self._work(windows)):
                advance(len(batch))
                if window.add(batch, result):
                    advance(window.repeats)
                    emit(window.result())

    def _mind_forks(self) -> None:
        """PyTorch's threads do not outlive a fork, and a child that asked for them would wait for ever. There PyTorch
        computes with one thread, and our own kernel, which starts its threads anew, with as many as before."""
        if self._process == os.getpid():
            self._threads = torch.get_num_threads()
            return
        self._process = os.getpid()
        if self.backbone.device.type != "cpu" or self._threads == 1:
            return
        torch.set_num_threads(1)
        if self.backbone.native is not None:
            self.backbone.native.threads = self.backbone.native.threads or self._threads
            return
        warnings.warn(
            "this process was forked from one that computed with PyTorch, whose threads do not outlive a fork, so it "
            "computes with one; load the model in the child, or start processes with 'spawn'",
            RuntimeWarning,
            stacklevel=2,
        )

    def _work(
        self, windows: Iterable[tuple[Sequence[Sequence[int]], Sequence[int] | None]]
    ) -> Iterator[tuple[_Window, list[int]]]:
        """The batches of each window."""
        for sequences, groups in windows:
            self._check_ids(sequences)
            distinct, place, group_of = _distinct(sequences, groups)
            window = _Window(distinct, place)
            if self.settings.reproducible and self.backbone.native is None:
                yield from ((window, [number]) for number in range(len(distinct)))
                continue
            lengths = np.asarray([len(sequence) for sequence in distinct])
            for batch in plan_batches(lengths, self.settings.batch_tokens, _shared_tokens(distinct), group_of):
                yield window, batch

    def _results(self, work: Iterable[tuple[_Window, list[int]]]) -> Iterator[tuple[_Window, list[int], FloatArray]]:
        """Each batch and its rows. On a GPU some batches are under way at a time: the host packs the next ones while
        the chip computes, and waits only for the oldest one's copy."""
        ahead = batches_ahead(self.backbone.device)
        under_way: deque[tuple[_Window, list[int], HostCopy]] = deque()
        for window, batch in work:
            under_way.append((window, batch, self._start([window.distinct[i] for i in batch])))
            if len(under_way) > ahead:
                yield self._finished(*under_way.popleft())
        while under_way:
            yield self._finished(*under_way.popleft())

    def _start(self, sequences: list[Sequence[int]]) -> HostCopy:
        if self.graphs is not None and len(sequences) == 1 and self.graphs.takes(len(sequences[0])):
            return HostCopy(self._rows(self.graphs.hidden(sequences[0])))
        packed = pack(sequences, share_prefixes=self.settings.share_prefixes)
        return HostCopy(self._rows(self.backbone(packed)))

    def _finished(self, window: _Window, batch: list[int], copy: HostCopy) -> tuple[_Window, list[int], FloatArray]:
        result = copy.wait()
        broken = np.flatnonzero(~np.isfinite(result.reshape(len(result), -1)).all(axis=1))
        if broken.size:
            result[broken] = self._wider([window.distinct[batch[i]] for i in broken])
        return window, batch, result

    def compile(self, graphs: bool = True) -> None:
        """Compile the layers for this GPU, and record the pass of single short texts; see :mod:`model.fused`.

        Raises:
            ValueError: the model is not on a GPU.
        """
        if self.backbone.device.type != "cuda":
            raise ValueError(f"compile is for GPUs and this model is on {self.backbone.device}")
        compile_(self.backbone)
        self.graphs = TextGraphs(self.backbone) if graphs else None

    def _rows(self, pooled_ND: Tensor) -> Tensor:
        # PyTorch's element-wise functions may round the rest of a batch otherwise than its full vectors.
        parts = pooled_ND.split(1) if self.settings.reproducible else (pooled_ND,)  # type: ignore[no-untyped-call]
        return torch.cat([self.finish(part) for part in parts])

    def _wider(self, sequences: list[Sequence[int]]) -> FloatArray:
        """Compute again where half precision overflowed: bfloat16 (fp16 only), then float32."""
        packed: PackedBatch = pack(sequences, share_prefixes=self.settings.share_prefixes)
        wider = [torch.float32]
        if self.backbone.dtype == torch.float16 and self.backbone.device.type == "cuda":
            wider.insert(0, torch.bfloat16)
        for dtype in wider:
            result = self._rows(self.backbone(packed, compute_dtype=dtype)).cpu().numpy()
            if np.isfinite(result).all():
                return result
        raise NumericalError(
            f"{len(sequences)} texts give results that are not finite even in float32; the weights hold NaN or "
            "infinite values: run `qwen3-embedding verify` on this model"
        )

    def _check_ids(self, sequences: Sequence[Sequence[int]]) -> None:
        rows = self.backbone.config.vocab_size
        if all(map(len, sequences)) and max(map(max, sequences)) < rows and min(map(min, sequences)) >= 0:
            return  # the loop below is for finding who is wrong
        for number, sequence in enumerate(sequences):
            if len(sequence) == 0:
                raise ValueError(f"sequence {number} is empty; wanted at least the end token")
            if max(sequence) >= rows or min(sequence) < 0:
                raise ValueError(
                    f"sequence {number} has token id {max(sequence)} and this model has {rows} embedding rows; the "
                    "tokenizer gives ids (of special tokens) that the weights do not have"
                )


def _distinct(
    sequences: Sequence[Sequence[int]], groups: Sequence[int] | None
) -> tuple[list[Sequence[int]], list[int], list[int] | None]:
    """The different sequences, where each of the caller's is among them, and their groups."""
    seen: dict[tuple[int, ...], int] = {}
    place = [seen.setdefault(tuple(sequence), len(seen)) for sequence in sequences]
    first: list[int] = [0] * len(seen)
    for number in range(len(sequences) - 1, -1, -1):
        first[place[number]] = number
    distinct = [sequences[number] for number in first]
    return distinct, place, None if groups is None else [groups[number] for number in first]


def _shared_tokens(sequences: list[Sequence[int]]) -> int:
    """Tokens at the beginning that all sequences share (an instruction)."""
    if len(sequences) < 2:
        return 0
    low, high = min(map(tuple, sequences)), max(map(tuple, sequences))
    shared = 0
    for a, b in zip(low, high, strict=False):
        if a != b:
            break
        shared += 1
    return shared


@contextmanager
def show_progress(title: str | None, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr with this title, or none; what it gives is told how many more are done."""
    if title is None:
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns: Iterable[object] = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:  # type: ignore[arg-type]
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)
