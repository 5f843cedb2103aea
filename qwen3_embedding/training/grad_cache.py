"""GradCache (Gao et al. 2021) in three phases: batches of any size in the memory of one chunk.

1. Forward by chunks of a token budget.  Activations are kept for the first chunks, as far as they fit; the others leave
   only their vectors.
2. The loss over all vectors, and its gradient for each vector.
3. Backward by chunks: kept ones at once; the others forward again, now with activations.

What fits costs nothing: one forward and one backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from qwen3_embedding.inputs.packing import PackedBatch, TokenIds, pack, plan_batches

Encode = Callable[[PackedBatch], Tensor]
"""A packed batch to one pooled vector (N, D) or score (N,) a sequence."""


NOTHING = (0,)
"""What an empty chunk computes, without use."""


@dataclass(frozen=True)
class Budget:
    """Tokens of one forward pass, and tokens whose activations are kept."""

    chunk_tokens: int
    kept_tokens: int


@dataclass
class Chunk:
    """Some sequences of the batch, packed, and what their forward pass left."""

    sequences: list[int]
    packed: PackedBatch
    output: Tensor
    """(n, D); with its graph if it was kept."""
    random_state: tuple[Tensor, ...] | None
    """State of the random number generators before the forward pass, where it has to be run again (dropout)."""


class HasLoss(Protocol):
    """A result with a scalar ``loss``."""

    @property
    def loss(self) -> Tensor:
        """Scalar, differentiable."""
        ...


R = TypeVar("R", bound=HasLoss)


Agree = Callable[[int, int], tuple[int, int]]
"""Chunks and kept chunks of this process to those that all processes make."""


def forward_chunks(
    encode: Encode,
    sequences: Sequence[TokenIds],
    budget: Budget,
    plan: Iterable[list[int]] | None = None,
    agree: Agree | None = None,
) -> list[Chunk]:
    """Phase 1.

    Args:
        encode: the model.
        sequences: token ids; none gives one empty chunk.
        budget: of tokens.
        plan: which sequences make a chunk; without one they are cut by length and budget.
        agree: where all processes must make equally many passes; empty chunks fill up what this one lacks.
    """
    cut = list(plan if plan is not None else plan_batches([len(ids) for ids in sequences], budget.chunk_tokens)) or [[]]
    packs = [pack([sequences[index] for index in indices] or [NOTHING]) for indices in cut]
    kept = int((np.cumsum([packed.n_tokens for packed in packs]) <= budget.kept_tokens).sum())
    if agree is not None:
        wanted, kept = agree(len(cut), kept)
        packs += [pack([NOTHING])] * (wanted - len(cut))
        cut += [[]] * (wanted - len(cut))
    chunks: list[Chunk] = []
    for number, (indices, packed) in enumerate(zip(cut, packs, strict=True)):
        keep = number < kept
        state = None if keep else random_state()
        with torch.set_grad_enabled(keep):
            chunks.append(Chunk(indices, packed, encode(packed), state))
    return chunks


def gather(chunks: Sequence[Chunk]) -> Tensor:
    """What the forward passes gave, without graph, in the caller's order."""
    outputs = torch.cat([chunk.output.detach()[: len(chunk.sequences)] for chunk in chunks])
    order = torch.tensor([index for chunk in chunks for index in chunk.sequences], device=outputs.device)
    vectors = torch.empty_like(outputs)
    vectors[order] = outputs
    return vectors


def vector_gradients(chunks: Sequence[Chunk], loss_of: Callable[[Tensor], R]) -> tuple[R, Tensor]:
    """Phase 2: the loss over the vectors of all chunks, in the caller's order, and its gradient for them."""
    vectors = gather(chunks).requires_grad_()
    result = loss_of(vectors)
    (gradient,) = torch.autograd.grad(result.loss, vectors)
    return result, gradient


def backward_chunks(encode: Encode, chunks: Sequence[Chunk], gradient: Tensor) -> None:
    """Phase 3: adds to the gradients of the parameters."""
    for chunk in chunks:
        output = chunk.output
        if chunk.random_state is not None:
            now = random_state()
            set_random_state(chunk.random_state)
            with torch.enable_grad():
                output = encode(chunk.packed)
            set_random_state(now)
        wanted = gradient[chunk.sequences] if chunk.sequences else torch.zeros_like(output)
        torch.autograd.backward(output, wanted.to(output.dtype))
        chunk.output = output.detach()  # frees the graph


def random_state() -> tuple[Tensor, ...]:
    """State of the generators of CPU and, if there is one, the current GPU."""
    if torch.cuda.is_available():
        return torch.get_rng_state(), torch.cuda.get_rng_state()
    return (torch.get_rng_state(),)


def set_random_state(state: tuple[Tensor, ...]) -> None:
    """Back to a state of :func:`random_state`."""
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state(state[1])
