"""The contrastive loss of the Qwen3 Embedding report (arXiv 2506.05176, Eq. 1), in tiles.

For query i with positive d_i+ and temperature t, over unit vectors::

    L = -1/N sum_i log( e^{s(q_i, d_i+)/t} / Z_i )
    Z_i = e^{s(q_i, d_i+)/t}                              the positive
        + sum_k   m_ik e^{s(q_i, d_ik-)/t}                own hard negatives
        + sum_j!=i m_ij e^{s(q_i, q_j)/t}                 other queries
        + sum_j!=i m_ij e^{s(d_i+, d_j)/t}                other documents, against the positive
        + sum_j!=i m_ij e^{s(q_i, d_j)/t}                 other documents, against the query
    m_ij = 0 if s_ij > s(q_i, d_i+) + 0.1 or d_j = d_i+, else 1

What the report leaves open is a setting here (:class:`ContrastiveSettings`), and the default is its literal reading.

Similarities and loss are fp32 whatever the vectors are.  Rows are gone through a tile at a time.  Where the columns of
a tile fit the budget, its logits are computed once and give loss and gradient; else the columns are tiled as well, with
a running log-sum-exp, and computed a second time for the gradient.  So no matrix of batch by batch is ever held.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

GROUPS = ("own_negatives", "query_query", "document_document", "query_document")


@dataclass(frozen=True)
class ContrastiveSettings:
    """The terms of the loss and the scope of the mask."""

    temperature: float = 0.02
    own_negatives: bool = True
    """The query's own hard negatives."""
    query_query: bool = True
    """Other queries against the query."""
    document_document: bool = True
    """Other documents against the positive."""
    query_document: bool = True
    """Other documents against the query."""
    others_negatives: bool = True
    """Whether "other documents" are also the hard negatives of other queries (the report says "other in-batch
    documents", its first edition "positive and negative documents")."""
    mask_by_margin: bool = True
    """Drop what scores above the own positive by more than ``margin``."""
    margin: float = 0.1
    mask_own_negatives: bool = True
    """Whether the margin drops own hard negatives as well (the report's m_ik); off where they were curated."""
    mask_document_document: Literal["query", "document", "none"] = "query"
    """By which score a document against the positive is dropped: s(q_i, d_j) as the report defines s_ij, the term's own
    s(d_i+, d_j), or never."""
    mask_equal_texts: bool = True
    """Drop items with the same query, or whose document is a known positive of this query, by hash of the text."""
    both_ways: bool = False
    """Half the loss, and half the same with queries and positives changing places (the query is to be found among the
    batch's queries by its document), without hard negatives; not in the report."""
    dimensions: tuple[int, ...] = ()
    """Matryoshka: shorter vector sizes trained beside the full one. Masks always come from the full one."""
    dimension_weights: tuple[float, ...] = ()
    """Weight of each of ``dimensions``; the full size has 1. Empty: all 1."""
    tile_elements: int = 1 << 24
    """Similarities held at once, for each vector size; the memory of the loss is a few times 4 bytes of it."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature}; wanted a positive number (0.01 to 0.1 is usual)")
        if self.margin < 0:
            raise ValueError(f"margin={self.margin}; wanted at least 0")
        if self.dimension_weights and len(self.dimension_weights) != len(self.dimensions):
            raise ValueError(
                f"{len(self.dimension_weights)} dimension_weights for {len(self.dimensions)} dimensions; wanted as many"
            )
        if any(size < 1 for size in self.dimensions):
            raise ValueError(f"dimensions={self.dimensions}; wanted positive numbers")
        if self.tile_elements < 1:
            raise ValueError(f"tile_elements={self.tile_elements}; wanted at least 1")

    @property
    def weights(self) -> tuple[float, ...]:
        """Weight of the full size, then of ``dimensions``."""
        return (1.0, *(self.dimension_weights or (1.0,) * len(self.dimensions)))

    @property
    def in_batch(self) -> bool:
        """Whether anything but own hard negatives is in the denominator."""
        return self.query_query or self.document_document or self.query_document


@dataclass(frozen=True)
class Items:
    """Which text is which: 64-bit hashes of the texts of the global batch, and who owns each hard negative."""

    query_ids: Tensor
    """(N,)"""
    positive_ids: Tensor
    """(N, E): in column 0 the positive of this batch, then the query's other known positives, or column 0 again."""
    negative_ids: Tensor
    """(M,)"""
    negative_owners: Tensor
    """(M,) the row of each hard negative's query."""

    def __post_init__(self) -> None:
        n, m = len(self.query_ids), len(self.negative_ids)
        if self.positive_ids.ndim != 2 or len(self.positive_ids) != n or len(self.negative_owners) != m:
            raise ValueError(
                f"query_ids {tuple(self.query_ids.shape)}, positive_ids {tuple(self.positive_ids.shape)}, negative_ids "
                f"{tuple(self.negative_ids.shape)}, negative_owners {tuple(self.negative_owners.shape)}; wanted (N,), "
                "(N, E), (M,), (M,)"
            )

    def to(self, device: torch.device) -> Items:
        """The same on another device."""
        return Items(
            self.query_ids.to(device),
            self.positive_ids.to(device),
            self.negative_ids.to(device),
            self.negative_owners.to(device),
        )


@dataclass(frozen=True)
class Vectors:
    """Vectors of the global batch, or gradients of them."""

    queries_ND: Tensor
    positives_ND: Tensor
    """The positive of each query."""
    negatives_MD: Tensor
    """All hard negatives; M may be 0."""

    def __post_init__(self) -> None:
        if self.queries_ND.shape != self.positives_ND.shape or self.queries_ND.shape[1:] != self.negatives_MD.shape[1:]:
            raise ValueError(
                f"queries {tuple(self.queries_ND.shape)}, positives {tuple(self.positives_ND.shape)}, negatives "
                f"{tuple(self.negatives_MD.shape)}; wanted (N, D), (N, D), (M, D)"
            )

    @property
    def size(self) -> int:
        """D."""
        return self.queries_ND.shape[-1]

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, positives, negatives."""
        return self.queries_ND, self.positives_ND, self.negatives_MD

    def of(self, kind: str) -> Tensor:
        """The tensor of queries ``q``, positives ``p`` or negatives ``n``."""
        return {"q": self.queries_ND, "p": self.positives_ND, "n": self.negatives_MD}[kind]

    def unit(self, size: int) -> Vectors:
        """The first ``size`` components, at unit length, in fp32 or wider."""
        return Vectors(*(_unit(tensor, size) for tensor in self.tensors))


@dataclass(frozen=True)
class LossReport:
    """A loss and what went into it."""

    loss: Tensor
    """Scalar, differentiable."""
    by_dimension: dict[int, float] = field(default_factory=dict)
    """The loss at each vector size, unweighted."""
    candidates: dict[str, int] = field(default_factory=dict)
    """Negatives of each group before masking."""
    masked: dict[str, int] = field(default_factory=dict)
    """How many of them the margin or equal texts dropped."""

    @property
    def masked_fraction(self) -> float:
        """Dropped negatives over all; 0 where there are none."""
        return sum(self.masked.values()) / max(1, sum(self.candidates.values()))


def contrastive_loss(
    vectors: Vectors, items: Items, settings: ContrastiveSettings, rows: range | None = None
) -> LossReport:
    """Eq. 1 over pooled vectors of any length and float type.

    Args:
        vectors: pooled vectors of the global batch, not normalised.
        items: which text is which.
        settings: terms, mask, temperature, vector sizes.
        rows: the queries whose loss this is (one rank's share); ``None`` is all. The sum of the shares' losses is the
            loss of the whole, and so are the gradients.

    Raises:
        ValueError: shapes that do not fit, or a vector size not below D.
    """
    if settings.both_ways:
        one_way = replace(settings, both_ways=False)
        there = contrastive_loss(vectors, items, one_way, rows)
        back = contrastive_loss(*_swapped(vectors, items), one_way, rows)
        return _mean(there, back)
    sizes = check_fit(vectors, items, settings)
    rows = rows if rows is not None else range(len(items.query_ids))
    with torch.autocast(vectors.queries_ND.device.type, enabled=False):
        tensors = [tensor for size in sizes for tensor in vectors.unit(size).tensors]
        counts = _Counts()
        losses_K: Tensor = _Contrastive.apply(items, settings, rows, counts, *tensors)  # type: ignore[no-untyped-call]
        loss = (losses_K * torch.tensor(settings.weights, dtype=losses_K.dtype, device=losses_K.device)).sum()
    return LossReport(
        loss=loss,
        by_dimension=dict(zip(sizes, losses_K.tolist(), strict=True)),
        candidates=counts.candidates(),
        masked=counts.masked(),
    )


def _swapped(vectors: Vectors, items: Items) -> tuple[Vectors, Items]:
    """Documents that ask for their queries."""
    none = vectors.negatives_MD[:0]
    return (
        Vectors(vectors.positives_ND, vectors.queries_ND, none),
        Items(items.positive_ids[:, 0], items.query_ids[:, None], items.negative_ids[:0], items.negative_owners[:0]),
    )


def _mean(there: LossReport, back: LossReport) -> LossReport:
    """Both directions' loss as one, the second's counts under names of their own."""
    behind = "_backwards"
    return LossReport(
        loss=(there.loss + back.loss) / 2,
        by_dimension={size: (loss + back.by_dimension[size]) / 2 for size, loss in there.by_dimension.items()},
        candidates=there.candidates | {group + behind: count for group, count in back.candidates.items()},
        masked=there.masked | {group + behind: count for group, count in back.masked.items()},
    )


def check_fit(vectors: Vectors, items: Items, settings: ContrastiveSettings) -> tuple[int, ...]:
    """The vector sizes to train, the full one first.

    Raises:
        ValueError: as many ids as vectors were wanted, or a vector size below the full one.
    """
    got = (len(vectors.queries_ND), len(vectors.negatives_MD))
    wanted = (len(items.query_ids), len(items.negative_ids))
    if got != wanted:
        raise ValueError(f"vectors of {got} queries and negatives, ids of {wanted}")
    if any(size >= vectors.size for size in settings.dimensions):
        raise ValueError(
            f"dimensions={settings.dimensions} are trained beside the full {vectors.size}; wanted smaller ones"
        )
    return (vectors.size, *settings.dimensions)


def _unit(vectors: Tensor, size: int) -> Tensor:
    wide = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    return F.normalize(wide[:, :size], dim=-1)


class _Counts:
    """Candidates and masked negatives, group by group."""

    def __init__(self) -> None:
        self._counts: dict[str, Tensor] = {}

    def add(self, group: str, candidates: Tensor, kept_RC: Tensor) -> None:
        pair = torch.stack([candidates, candidates - kept_RC.count_nonzero()])
        self._counts[group] = self._counts[group] + pair if group in self._counts else pair

    def candidates(self) -> dict[str, int]:
        return {group: int(pair[0]) for group, pair in self._counts.items()}

    def masked(self) -> dict[str, int]:
        return {group: int(pair[1]) for group, pair in self._counts.items()}


@dataclass(frozen=True)
class _Block:
    """Similarities of anchors (rows) and columns that enter the denominator where ``keep_RC`` is true."""

    anchors: str
    columns: str
    span: slice
    keep_RC: Tensor
    full_RC: Tensor
    """The cosines at the full size, which the mask was made from."""


class _Contrastive(torch.autograd.Function):
    """Loss (K,) at each vector size; the gradients are worked out with it and handed over in backward."""

    @staticmethod
    def forward(
        ctx: Any, items: Items, settings: ContrastiveSettings, rows: range, counts: _Counts, *tensors: Tensor
    ) -> Tensor:
        views = [Vectors(*tensors[at : at + 3]) for at in range(0, len(tensors), 3)]
        grads = None
        if any(ctx.needs_input_grad):
            grads = [Vectors(*(torch.zeros_like(tensor) for tensor in view.tensors)) for view in views]
        total_K = tensors[0].new_zeros(len(views))
        for tile in _row_tiles(items, settings, rows):
            total_K += _Tile(items, settings, views, tile, counts).run(grads)
        n = len(items.query_ids)
        ctx.grads = (
            [g / n for grad in grads for g in (grad.queries_ND, grad.positives_ND, grad.negatives_MD)]
            if grads
            else None
        )
        return total_K / n

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> Any:
        (outer_K,) = outer
        return None, None, None, None, *(grad * outer_K[number // 3] for number, grad in enumerate(ctx.grads))


def _row_tiles(items: Items, settings: ContrastiveSettings, rows: range) -> Iterator[slice]:
    """Rows whose similarities with all columns fit the budget, but at least 16 at a time."""
    columns = 3 * len(items.query_ids) + 2 * len(items.negative_ids)
    step = max(16, settings.tile_elements // columns)
    for begin in range(rows.start, rows.stop, step):
        yield slice(begin, min(begin + step, rows.stop))


class _Tile:
    """Some rows of the batch against all columns."""

    def __init__(
        self, items: Items, settings: ContrastiveSettings, views: Sequence[Vectors], rows: slice, counts: _Counts
    ) -> None:
        self.items, self.settings, self.views, self.rows, self.counts = items, settings, views, rows, counts
        self.row_R1 = torch.arange(rows.start, rows.stop, device=items.query_ids.device)[:, None]
        full = views[0]
        own_R1 = (full.queries_ND[rows] * full.positives_ND[rows]).sum(-1, keepdim=True)
        self.limit_R1 = own_R1 + settings.margin if settings.mask_by_margin else torch.full_like(own_R1, torch.inf)

    def run(self, grads: Sequence[Vectors] | None) -> Tensor:
        """(K,) summed losses of the rows; adds to ``grads``."""
        scale = 1.0 / self.settings.temperature
        positive_KR = torch.stack(
            [(v.queries_ND[self.rows] * v.positives_ND[self.rows]).sum(-1) * scale for v in self.views]
        )
        lse_KR = positive_KR.clone()
        whole = len(self._spans()) <= 2  # at most one tile of items and one of negatives: keep, do not recompute
        kept: list[tuple[_Block, list[Tensor]]] = []
        for block in self._blocks(count=True):
            logits = [self._logits(block, number) for number in range(len(self.views))]
            for number, logits_RC in enumerate(logits):
                lse_KR[number] = torch.logaddexp(lse_KR[number], logits_RC.logsumexp(-1))
            if whole and grads is not None:
                kept.append((block, logits))
        if grads is not None:
            self._positive_gradient(positive_KR, lse_KR, grads)
            for block, logits in kept if whole else self._again():
                for number, logits_RC in enumerate(logits):
                    self._gradient(block, number, logits_RC, lse_KR[number], grads[number])
        return (lse_KR - positive_KR).sum(-1)

    def _again(self) -> Iterator[tuple[_Block, list[Tensor]]]:
        for block in self._blocks(count=False):
            yield block, [self._logits(block, number) for number in range(len(self.views))]

    def _logits(self, block: _Block, number: int) -> Tensor:
        view = self.views[number]
        if number == 0:
            cosine_RC = block.full_RC
        else:
            cosine_RC = view.of(block.anchors)[self.rows] @ view.of(block.columns)[block.span].T
        return (cosine_RC / self.settings.temperature).masked_fill_(~block.keep_RC, -torch.inf)

    def _positive_gradient(self, positive_KR: Tensor, lse_KR: Tensor, grads: Sequence[Vectors]) -> None:
        """d loss / d s(q_i, d_i+) = (softmax of the positive - 1) / temperature."""
        slope_KR1 = ((positive_KR - lse_KR).exp() - 1.0)[..., None] / self.settings.temperature
        for slope_R1, view, grad in zip(slope_KR1, self.views, grads, strict=True):
            grad.queries_ND[self.rows] += slope_R1 * view.positives_ND[self.rows]
            grad.positives_ND[self.rows] += slope_R1 * view.queries_ND[self.rows]

    def _gradient(self, block: _Block, number: int, logits_RC: Tensor, lse_R: Tensor, grad: Vectors) -> None:
        """d loss / d s_ij = softmax_ij / temperature."""
        view = self.views[number]
        slope_RC = logits_RC.sub_(lse_R[:, None]).exp_().div_(self.settings.temperature)
        grad.of(block.anchors)[self.rows] += slope_RC @ view.of(block.columns)[block.span]
        grad.of(block.columns)[block.span] += slope_RC.T @ view.of(block.anchors)[self.rows]

    def _spans(self) -> list[tuple[str, slice]]:
        """Columns in tiles: items (queries and positives together), then hard negatives."""
        n, m = len(self.items.query_ids), len(self.items.negative_ids)
        step = max(16, self.settings.tile_elements // (3 * (self.rows.stop - self.rows.start)))
        if 3 * n + 2 * m <= self.settings.tile_elements // (self.rows.stop - self.rows.start):
            step = max(n, m)
        spans: list[tuple[str, slice]] = []
        if self.settings.in_batch:
            spans += [("items", slice(at, min(at + step, n))) for at in range(0, n, step)]
        if self.settings.own_negatives or (self.settings.others_negatives and self.settings.in_batch):
            spans += [("negatives", slice(at, min(at + step, m))) for at in range(0, m, step)]
        return spans

    def _blocks(self, count: bool) -> Iterator[_Block]:
        for kind, span in self._spans():
            yield from self._items_blocks(span, count) if kind == "items" else self._negatives_blocks(span, count)

    def _cosines(self, anchors: str, columns: str, span: slice) -> Tensor:
        return self.views[0].of(anchors)[self.rows] @ self.views[0].of(columns)[span].T

    def _known_positive(self, ids_C: Tensor) -> Tensor:
        """(R, C) whether a column's document is a known positive of the row's query."""
        known_RE = self.items.positive_ids[self.rows]
        same_RC = known_RE[:, :1] == ids_C
        for extra in range(1, known_RE.shape[1]):
            same_RC |= known_RE[:, extra : extra + 1] == ids_C
        return same_RC

    def _items_blocks(self, span: slice, count: bool) -> Iterator[_Block]:
        """Other queries and other positives."""
        settings, items = self.settings, self.items
        column_C = torch.arange(span.start, span.stop, device=items.query_ids.device)
        other_RC = self.row_R1 != column_C
        free_RC = other_RC
        if settings.mask_equal_texts:
            same_RC = items.query_ids[self.rows][:, None] == items.query_ids[span]
            same_RC |= self._known_positive(items.positive_ids[span, 0])
            free_RC = other_RC & ~same_RC
        candidates = other_RC.count_nonzero()

        def block(group: str, anchors: str, columns: str, keep_RC: Tensor, full_RC: Tensor) -> _Block:
            if count:
                self.counts.add(group, candidates, keep_RC)
            return _Block(anchors, columns, span, keep_RC, full_RC)

        against_query_RC = self._cosines("q", "p", span)
        below_RC = free_RC & (against_query_RC <= self.limit_R1)
        if settings.query_document:
            yield block("query_document", "q", "p", below_RC, against_query_RC)
        if settings.document_document:
            cosine_RC = self._cosines("p", "p", span)
            keep_RC = self._document_keep(free_RC, below_RC, cosine_RC)
            yield block("document_document", "p", "p", keep_RC, cosine_RC)
        if settings.query_query:
            cosine_RC = self._cosines("q", "q", span)
            yield block("query_query", "q", "q", free_RC & (cosine_RC <= self.limit_R1), cosine_RC)

    def _negatives_blocks(self, span: slice, count: bool) -> Iterator[_Block]:
        """Hard negatives: the own ones, and those of others as further documents."""
        settings, items = self.settings, self.items
        own_RC = self.row_R1 == items.negative_owners[span]
        free_RC = torch.ones_like(own_RC)
        if settings.mask_equal_texts:
            free_RC = ~self._known_positive(items.negative_ids[span])
        against_query_RC = self._cosines("q", "n", span)
        below_RC = free_RC & (against_query_RC <= self.limit_R1)
        own_keep_RC = own_RC & (below_RC if settings.mask_own_negatives else free_RC)
        others = settings.others_negatives
        keep_RC = torch.zeros_like(own_RC)
        if settings.own_negatives:
            keep_RC |= own_keep_RC
        if settings.query_document and others:
            keep_RC |= below_RC & ~own_RC
        if count:
            self._count_negatives(own_RC, own_keep_RC, below_RC & ~own_RC)
        yield _Block("q", "n", span, keep_RC, against_query_RC)
        if settings.document_document and others:
            cosine_RC = self._cosines("p", "n", span)
            document_keep_RC = self._document_keep(free_RC, below_RC, cosine_RC) & ~own_RC
            if count:
                self.counts.add("document_document", (~own_RC).count_nonzero(), document_keep_RC)
            yield _Block("p", "n", span, document_keep_RC, cosine_RC)

    def _count_negatives(self, own_RC: Tensor, own_keep_RC: Tensor, others_keep_RC: Tensor) -> None:
        if self.settings.own_negatives:
            self.counts.add("own_negatives", own_RC.count_nonzero(), own_keep_RC)
        if self.settings.query_document and self.settings.others_negatives:
            self.counts.add("query_document", (~own_RC).count_nonzero(), others_keep_RC)

    def _document_keep(self, free_RC: Tensor, below_RC: Tensor, cosine_RC: Tensor) -> Tensor:
        scope = self.settings.mask_document_document
        if scope == "query":
            return below_RC
        return free_RC & (cosine_RC <= self.limit_R1) if scope == "document" else free_RC
