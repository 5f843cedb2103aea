"""Token ids in, pooled rows out: batches by tokens, work shared, results checked, the caller's order kept."""

from __future__ import annotations

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
from qwen3_embedding.model.weights import load_backbone
from qwen3_embedding.types import FloatArray

DTypeName = Literal["auto", "float32", "bfloat16", "float16", "int8"]
DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
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

    int8, weights and activations, is for CPUs and never chosen by itself: it changes the vectors a little.
    """
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}; wanted auto, {', '.join(DTYPES)}")
    if dtype == "int8" and device.type != "cpu":
        raise ValueError(f"dtype='int8' runs on the CPU and the device is {device}; use bfloat16, or device='cpu'")
    return DTYPES[dtype]


def load(
    folder: Path, dtype: torch.dtype, device: torch.device, kernel: str = "auto"
) -> tuple[Backbone, dict[str, Tensor]]:
    """A backbone at a type of :data:`DTYPES` and what else its file holds; int8 is made from float32 weights."""
    library = choose_kernel(kernel, device, dtype)
    backbone, extra = load_backbone(folder, torch.float32 if dtype == torch.int8 else dtype, device)
    return use_kernel(backbone, library, dtype), extra


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


class Runner:
    """Runs a backbone over any number of token sequences."""

    def __init__(self, backbone: Backbone, finish: Finish, settings: RunSettings | None = None) -> None:
        self.backbone = backbone
        self.finish = finish
        self.settings = settings or RunSettings.for_device(backbone.device)

    def run(
        self,
        sequences: Sequence[Sequence[int]],
        groups: Sequence[int] | None = None,
        progress: str | None = None,
    ) -> FloatArray:
        """One result row a sequence, float32, in the caller's order.

        Equal sequences are computed once. A row that is not finite is computed again at wider types before giving up.

        Args:
            sequences: N non-empty lists of token ids, all below the vocabulary's size.
            groups: (N,) numbers of groups that share a beginning (a reranker's queries).
            progress: title of a progress bar on stderr, or ``None`` for none.

        Raises:
            NumericalError: rows that are not finite even in float32.
        """
        self._check_ids(sequences)
        distinct, place, group_of = _distinct(sequences, groups)
        lengths = np.asarray([len(sequence) for sequence in distinct])
        batches: Iterable[list[int]]
        if self.settings.reproducible and self.backbone.native is None:
            batches = ([number] for number in range(len(distinct)))
        else:
            batches = plan_batches(lengths, self.settings.batch_tokens, _shared_tokens(distinct), group_of)
        rows: FloatArray | None = None
        with _progress(progress, len(distinct)) as advance, torch.inference_mode():
            for batch in batches:
                result = self._batch([distinct[i] for i in batch])
                if rows is None:
                    rows = np.empty((len(distinct), *result.shape[1:]), dtype=np.float32)
                rows[batch] = result
                advance(len(batch))
        assert rows is not None
        return rows[place]

    def _batch(self, sequences: list[Sequence[int]]) -> FloatArray:
        packed = pack(sequences, share_prefixes=self.settings.share_prefixes)
        result = self._finished(self.backbone(packed))
        broken = np.flatnonzero(~np.isfinite(result.reshape(len(result), -1)).all(axis=1))
        if broken.size:
            result[broken] = self._wider([sequences[i] for i in broken])
        return result

    def _finished(self, pooled_ND: Tensor) -> FloatArray:
        # PyTorch's element-wise functions may round the rest of a batch otherwise than its full vectors.
        parts = pooled_ND.split(1) if self.settings.reproducible else (pooled_ND,)  # type: ignore[no-untyped-call]
        result: FloatArray = torch.cat([self.finish(part) for part in parts]).cpu().numpy()
        return result

    def _wider(self, sequences: list[Sequence[int]]) -> FloatArray:
        """Compute again where half precision overflowed: bfloat16 (fp16 only), then float32."""
        packed: PackedBatch = pack(sequences, share_prefixes=self.settings.share_prefixes)
        wider = [torch.float32]
        if self.backbone.dtype == torch.float16 and self.backbone.device.type == "cuda":
            wider.insert(0, torch.bfloat16)
        for dtype in wider:
            result = self._finished(self.backbone(packed, compute_dtype=dtype))
            if np.isfinite(result).all():
                return result
        raise NumericalError(
            f"{len(sequences)} texts give results that are not finite even in float32; the weights hold NaN or "
            "infinite values: run `qwen3-embedding verify` on this model"
        )

    def _check_ids(self, sequences: Sequence[Sequence[int]]) -> None:
        rows = self.backbone.config.vocab_size
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
def _progress(title: str | None, total: int) -> Iterator[Callable[[int], None]]:
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
