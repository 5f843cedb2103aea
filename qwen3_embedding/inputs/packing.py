"""Token sequences into packed batches: no padding anywhere, what sequences share is there once.

The sequences of a batch form a trie.  A *segment* is an edge of it: a run of tokens that one or more sequences have in
common, behind the same *context* (the segments above it).  An instruction shared by a hundred queries, or the
reranker's system prompt + instruction + query shared by a hundred documents, is one segment, so its tokens are
computed once in every layer, attention included.  Equal sequences are one row.  Attention is causal, so sharing
changes no result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise

import numpy as np
import numpy.typing as npt

from qwen3_embedding.types import IntArray

TokenIds = Sequence[int] | npt.NDArray[np.integer]

MIN_SAVED_TOKENS = 16
"""A shared run becomes a segment of its own only where it saves this many tokens; below, the bookkeeping costs more."""


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """Sequences laid end to end, with what they share stored once. T tokens, S segments, N sequences.

    Segments stand in topological order: level by level (a parent before its children), within a level by
    (context length, own length), so that segments of equal shape are neighbours and attention can run them as one.
    """

    token_ids: IntArray
    """(T,) the ids."""
    positions: IntArray
    """(T,) position of each token in its sequence, from 0."""
    segment_starts: IntArray
    """(S + 1,) segment s is the rows ``segment_starts[s]:segment_starts[s + 1]``; none is empty."""
    segment_parents: IntArray
    """(S,) the segment that a segment continues, always an earlier one; -1 at the root."""
    pooled_rows: IntArray
    """(N,) the row of each sequence's last token, in the caller's order; equal sequences have the same row."""
    sequence_lengths: IntArray
    """(N,) tokens of each sequence, as if nothing was shared."""

    @property
    def n_tokens(self) -> int:
        """T, the tokens that are computed."""
        return len(self.token_ids)

    @property
    def n_sequences(self) -> int:
        """N."""
        return len(self.pooled_rows)

    @property
    def n_segments(self) -> int:
        """S."""
        return len(self.segment_parents)

    @property
    def n_tokens_unshared(self) -> int:
        """The tokens that separate sequences would cost."""
        return int(self.sequence_lengths.sum())

    @cached_property
    def segment_lengths(self) -> IntArray:
        """(S,) own tokens of each segment."""
        return np.diff(self.segment_starts)

    @cached_property
    def context_lengths(self) -> IntArray:
        """(S,) tokens above each segment."""
        return self.positions[self.segment_starts[:-1]]

    def context_rows(self, segment: int) -> IntArray:
        """Rows of all tokens above ``segment``, in order of position."""
        parts: list[IntArray] = []
        parent = int(self.segment_parents[segment])
        while parent >= 0:
            parts.append(np.arange(self.segment_starts[parent], self.segment_starts[parent + 1]))
            parent = int(self.segment_parents[parent])
        return np.concatenate(parts[::-1]) if parts else np.empty(0, dtype=np.int64)

    def sequence_rows(self, sequence: int) -> IntArray:
        """Rows of all tokens of one sequence, in order of position."""
        last = int(self.pooled_rows[sequence])
        segment = int(np.searchsorted(self.segment_starts, last, side="right")) - 1
        own = np.arange(self.segment_starts[segment], last + 1)
        return np.concatenate([self.context_rows(segment), own])


def pack(
    sequences: Sequence[TokenIds], share_prefixes: bool = True, min_saved_tokens: int = MIN_SAVED_TOKENS
) -> PackedBatch:
    """Pack token sequences into one batch.

    Args:
        sequences: N non-empty sequences of token ids.
        share_prefixes: store common beginnings once. ``False`` gives one segment a sequence, for comparison.
        min_saved_tokens: share a common beginning only where that saves at least so many tokens.

    Raises:
        ValueError: no sequence, or an empty one.
    """
    if len(sequences) == 0:
        raise ValueError("nothing to pack: got no sequence, wanted at least one")
    flat = _flatten(sequences)
    share = share_prefixes and len(sequences) > 1
    edges = _share(flat, min_saved_tokens) if share else _separate(flat.lengths)
    return _lay_out(flat, edges)


@dataclass(frozen=True, eq=False)
class _Flat:
    """Sequences end to end, so that what is done to all of them is a few array operations and not a loop of texts."""

    ids: IntArray
    starts: IntArray
    """(N,)"""
    lengths: IntArray
    """(N,)"""


def _flatten(sequences: Sequence[TokenIds]) -> _Flat:
    if all(type(sequence) is list for sequence in sequences):
        try:
            ids = np.fromiter(chain.from_iterable(sequences), dtype=np.int64)
        except TypeError as error:
            raise ValueError(f"a sequence holds what is no token id ({error}); wanted whole numbers") from None
        lengths = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences))
    else:
        arrays = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
        for index, array in enumerate(arrays):
            if array.ndim != 1:
                raise ValueError(f"sequence {index} has shape {array.shape}; wanted a non-empty run of token ids")
        ids = np.concatenate(arrays)
        lengths = np.array([len(array) for array in arrays], dtype=np.int64)
    if not lengths.all():
        empty = int(np.flatnonzero(lengths == 0)[0])
        raise ValueError(f"sequence {empty} has shape (0,); wanted a non-empty run of token ids")
    return _Flat(ids, np.cumsum(lengths) - lengths, lengths)


@dataclass(slots=True)
class _Edges:
    """The trie before it is laid out: parallel lists, one entry a segment, parents before children."""

    source: list[int]
    """A sequence that runs through the segment."""
    begin: list[int]
    end: list[int]
    parent: list[int]
    level: list[int]
    last_segment: list[int]
    """(N,) the segment in which each sequence ends."""

    def add(self, source: int, begin: int, end: int, parent: int) -> int:
        self.source.append(source)
        self.begin.append(begin)
        self.end.append(end)
        self.parent.append(parent)
        self.level.append(0 if parent < 0 else self.level[parent] + 1)
        return len(self.source) - 1


def _separate(lengths: IntArray) -> _Edges:
    n = len(lengths)
    return _Edges(list(range(n)), [0] * n, lengths.tolist(), [-1] * n, [0] * n, list(range(n)))


def _share(flat: _Flat, min_saved: int) -> _Edges:
    """Build the trie from the sorted sequences and the common lengths of neighbours."""
    # Big-endian bytes sort as the ids do, and bytes compare at C speed.
    raw, bounds = flat.ids.astype(">u4").tobytes(), (4 * flat.starts).tolist()
    keys = [raw[begin:end] for begin, end in zip(bounds, [*bounds[1:], len(raw)], strict=True)]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    common = _common_prefixes(flat, np.asarray(order))
    lengths: list[int] = flat.lengths.tolist()

    edges = _Edges([], [], [], [], [], [-1] * len(order))
    stack: list[tuple[int, int, int, int]] = [(0, len(order), 0, -1)]
    while stack:
        low, high, depth, parent = stack.pop()
        first = order[low]
        if high - low == 1:
            edges.last_segment[first] = edges.add(first, depth, lengths[first], parent)
            continue
        shortest = int(common[low + 1 : high].min())
        all_equal = shortest == lengths[first] == lengths[order[high - 1]]
        if shortest > depth and (all_equal or (shortest - depth) * (high - low - 1) >= min_saved):
            parent = edges.add(first, depth, shortest, parent)
            depth = shortest
        # Sequences that are spent here end in the segment just added; the others go on, split where they part.
        while low < high and lengths[order[low]] == depth:
            edges.last_segment[order[low]] = parent
            low += 1
        if low == high:
            continue
        cuts = [low, *(np.flatnonzero(common[low + 1 : high] <= shortest) + low + 1).tolist(), high]
        stack.extend((a, b, depth, parent) for a, b in pairwise(cuts))
    return edges


def _common_prefixes(flat: _Flat, order: IntArray) -> IntArray:
    """(N,) tokens that each sequence shares with the one before it in ``order``; 0 for the first."""
    before, after = order[:-1], order[1:]
    sizes = np.minimum(flat.lengths[before], flat.lengths[after])
    ends = np.cumsum(sizes)
    begins = ends - sizes
    within = np.arange(int(sizes.sum())) - np.repeat(begins, sizes)
    left = flat.ids[np.repeat(flat.starts[before], sizes) + within]
    right = flat.ids[np.repeat(flat.starts[after], sizes) + within]
    different = np.append(np.flatnonzero(left != right), len(within))
    first = different[np.searchsorted(different, begins)]  # the first place from its begin on where a pair parts
    return np.concatenate([[0], np.minimum(first, ends) - begins])


def _lay_out(flat: _Flat, edges: _Edges) -> PackedBatch:
    begin, end = np.asarray(edges.begin), np.asarray(edges.end)
    order = np.lexsort((end - begin, begin, np.asarray(edges.level)))
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    lengths = (end - begin)[order]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    parents = np.asarray(edges.parent)[order]
    last_segment = place[np.asarray(edges.last_segment)]
    within = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
    positions = within + np.repeat(begin[order], lengths)
    return PackedBatch(
        token_ids=flat.ids[positions + np.repeat(flat.starts[np.asarray(edges.source)[order]], lengths)],
        positions=positions,
        segment_starts=starts.astype(np.int64),
        segment_parents=np.where(parents < 0, -1, place[np.maximum(parents, 0)]).astype(np.int64),
        pooled_rows=(starts[last_segment + 1] - 1).astype(np.int64),
        sequence_lengths=flat.lengths,
    )


def plan_batches(
    lengths: Sequence[int] | IntArray,
    max_tokens: int,
    shared_tokens: int = 0,
    groups: Sequence[int] | IntArray | None = None,
) -> Iterator[list[int]]:
    """Split sequences into batches of at most ``max_tokens`` tokens, longest first.

    Longest first, so that memory is at its peak in the first batch and equal lengths meet in one batch.

    Args:
        lengths: (N,) tokens of each sequence.
        max_tokens: budget of a batch; a longer sequence gets a batch of its own.
        shared_tokens: tokens at the beginning that all of them share; they count once a batch.
        groups: (N,) a number for each sequence; those of a group (documents of one query) stay neighbours, longest
            first
            within it, so that what they share is computed in as few batches as can be.

    Yields:
        Indices into ``lengths``; every index is in exactly one batch.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens={max_tokens}; wanted at least 1")
    sizes = np.asarray(lengths, dtype=np.int64)
    batch: list[int] = []
    used = shared_tokens
    order = np.argsort(-sizes, kind="stable") if groups is None else np.lexsort((-sizes, np.asarray(groups)))
    for index in order.tolist():
        own = int(sizes[index]) - shared_tokens
        if batch and used + own > max_tokens:
            yield batch
            batch, used = [], shared_tokens
        batch.append(index)
        used += own
    if batch:
        yield batch
