"""The loss against a float64 loop written from the report's equation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from qwen3_embedding.training.contrastive import ContrastiveSettings, Items, Vectors, contrastive_loss

N, M, D = 13, 21, 24
TOLERANCE = 1e-5
"""Largest difference over largest value, fp32 against float64."""


def make_items(seed: int = 0) -> Items:
    generator = torch.Generator().manual_seed(seed)
    query_ids = torch.arange(100, 100 + N)
    query_ids[3] = query_ids[7]  # the same query twice, with two positives
    positive_ids = torch.arange(200, 200 + N)[:, None].repeat(1, 2)
    positive_ids[5, 0] = positive_ids[9, 0]  # two queries of one document
    positive_ids[2, 1] = positive_ids[4, 0]  # a second known positive is another query's
    negative_ids = torch.arange(300, 300 + M)
    owners = torch.randint(0, N - 1, (M,), generator=generator)  # the last query has none
    negative_ids[4] = positive_ids[owners[4], 0]  # an own "negative" that is the positive
    negative_ids[6] = positive_ids[(owners[6] + 1) % N, 0]
    return Items(query_ids, positive_ids, negative_ids, owners)


def make_vectors(seed: int = 0, spread: float = 0.7) -> Vectors:
    """Vectors with a common part, so that the margin has something to mask."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(D, generator=generator, dtype=torch.float64)
    return Vectors(*(common + spread * torch.randn(n, D, generator=generator, dtype=torch.float64) for n in (N, N, M)))


def leaves(vectors: Vectors, dtype: torch.dtype = torch.float32) -> Vectors:
    return Vectors(*(tensor.detach().to(dtype).requires_grad_() for tensor in vectors.tensors))


NONE = torch.tensor([], dtype=torch.long)


def by_the_equation(vectors: Vectors, items: Items, s: ContrastiveSettings) -> tuple[Tensor, dict[str, int]]:
    """Eq. 1 as loops over rows and columns; every setting spelled out."""
    queries, positives, negatives = vectors.tensors
    masked = dict.fromkeys(("own_negatives", "query_query", "document_document", "query_document"), 0)
    total = torch.zeros((), dtype=torch.float64)
    sizes = [(D, 1.0), *zip(s.dimensions, s.dimension_weights or (1.0,) * len(s.dimensions), strict=True)]
    documents = [("p", j) for j in range(N)] + ([("n", j) for j in range(M)] if s.others_negatives else [])

    def unit(x: Tensor, size: int) -> Tensor:
        return nn.functional.normalize(x[:size], dim=0)

    def text(kind: str, j: int) -> tuple[Tensor, int, int]:
        if kind == "p":
            return positives[j], int(items.positive_ids[j, 0]), j
        return negatives[j], int(items.negative_ids[j]), int(items.negative_owners[j])

    for number, (size, weight) in enumerate(sizes):

        def cos(a: Tensor, b: Tensor, size: int = size) -> Tensor:
            return unit(a, size) @ unit(b, size)

        for i in range(N):
            known = items.positive_ids[i].tolist()
            limit = (unit(queries[i], D) @ unit(positives[i], D)).item() + s.margin

            def too_high(a: Tensor, b: Tensor, limit: float = limit) -> bool:
                return s.mask_by_margin and (unit(a, D) @ unit(b, D)).item() > limit

            def same(j: int, kind: str, i: int = i, known: list[int] = known) -> bool:
                if not s.mask_equal_texts:
                    return False
                if kind == "n":
                    return int(items.negative_ids[j]) in known
                return int(items.query_ids[i]) == int(items.query_ids[j]) or int(items.positive_ids[j, 0]) in known

            terms = [cos(queries[i], positives[i])]

            def add(
                group: str, drop: bool, a: Tensor, b: Tensor, terms: list[Tensor] = terms, first: bool = number == 0
            ) -> None:
                if drop:
                    masked[group] += first
                else:
                    terms.append(cos(a, b))

            for k in range(M):
                if int(items.negative_owners[k]) == i and s.own_negatives:
                    drop = same(k, "n") or (s.mask_own_negatives and too_high(queries[i], negatives[k]))
                    add("own_negatives", drop, queries[i], negatives[k])
            for j in range(N):
                if j != i and s.query_query:
                    drop = same(j, "p") or too_high(queries[i], queries[j])
                    add("query_query", drop, queries[i], queries[j])
            for kind, j in documents:
                vector, _, owner = text(kind, j)
                if owner == i:
                    continue
                by_query = same(j, kind) or too_high(queries[i], vector)
                if s.query_document:
                    add("query_document", by_query, queries[i], vector)
                if s.document_document:
                    drop = {
                        "query": by_query,
                        "document": same(j, kind) or too_high(positives[i], vector),
                        "none": same(j, kind),
                    }[s.mask_document_document]
                    add("document_document", drop, positives[i], vector)
            logits = torch.stack(terms) / s.temperature
            total = total + weight * (torch.logsumexp(logits, 0) - logits[0]) / N
    return total, masked


def gradients(loss: Tensor, inputs: Vectors) -> list[Tensor]:
    found = torch.autograd.grad(loss, inputs.tensors, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs.tensors, strict=True)]


def difference(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).abs().max() / other.double().abs().max().clamp_min(1e-12))


LITERAL = ContrastiveSettings(temperature=0.05)
VARIANTS = {
    "literal": LITERAL,
    "no own negatives": replace(LITERAL, own_negatives=False),
    "no query-query": replace(LITERAL, query_query=False),
    "no document-document": replace(LITERAL, document_document=False),
    "no query-document": replace(LITERAL, query_document=False),
    "only own negatives": replace(LITERAL, query_query=False, document_document=False, query_document=False),
    "plain InfoNCE": replace(LITERAL, query_query=False, document_document=False, mask_by_margin=False),
    "positives of others only": replace(LITERAL, others_negatives=False),
    "curated negatives": replace(LITERAL, mask_own_negatives=False),
    "documents masked by their own score": replace(LITERAL, mask_document_document="document"),
    "documents never masked": replace(LITERAL, mask_document_document="none"),
    "no margin": replace(LITERAL, mask_by_margin=False),
    "margin 0": replace(LITERAL, margin=0.0),
    "no texts": replace(LITERAL, mask_equal_texts=False),
    "cold": replace(LITERAL, temperature=0.01),
    "matryoshka": replace(LITERAL, dimensions=(16, 8, 3), dimension_weights=(0.5, 0.25, 0.125)),
}


@pytest.mark.parametrize("tile", [1 << 24, 700, 40], ids=["dense", "rows in tiles", "rows and columns in tiles"])
@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
def test_value_gradient_and_masks_are_the_equation(settings: ContrastiveSettings, tile: int) -> None:
    items, vectors = make_items(), make_vectors()
    exact = leaves(vectors, torch.float64)
    wanted, masked = by_the_equation(exact, items, settings)
    inputs = leaves(vectors)
    report = contrastive_loss(inputs, items, replace(settings, tile_elements=tile))
    assert report.loss.dtype == torch.float32
    assert difference(report.loss.detach(), wanted.detach()) <= TOLERANCE
    for got, want in zip(gradients(report.loss, inputs), gradients(wanted, exact), strict=True):
        assert difference(got, want) <= TOLERANCE
    assert {group: report.masked.get(group, 0) for group in masked} == masked


def test_the_fixture_masks_something_in_every_group() -> None:
    report = contrastive_loss(make_vectors(), make_items(), LITERAL)
    assert all(0 < report.masked[group] < report.candidates[group] for group in report.candidates)
    assert len(report.candidates) == 4
    assert report.masked_fraction == sum(report.masked.values()) / sum(report.candidates.values())


def test_shares_of_rows_add_up() -> None:
    items = make_items()
    inputs = leaves(make_vectors())
    whole = contrastive_loss(inputs, items, LITERAL)
    parts = [contrastive_loss(inputs, items, LITERAL, rows=r) for r in (range(0, 5), range(5, N))]
    together = torch.stack([part.loss for part in parts]).sum()
    assert difference(together.detach(), whole.loss.detach()) <= TOLERANCE
    for got, want in zip(gradients(together, inputs), gradients(whole.loss, inputs), strict=True):
        assert difference(got, want) <= TOLERANCE
    assert sum(p.masked["query_query"] for p in parts) == whole.masked["query_query"]


def test_bf16_vectors_are_compared_in_fp32_also_under_autocast() -> None:
    """At temperature 0.01 a similarity in bf16 would move a logit in steps of 0.39."""
    items = make_items()
    rounded = Vectors(*(v.bfloat16() for v in make_vectors().tensors))
    exact = Vectors(*(v.double() for v in rounded.tensors))
    wanted, _ = by_the_equation(exact, items, replace(LITERAL, temperature=0.01))
    with torch.autocast("cpu", torch.bfloat16):
        report = contrastive_loss(rounded, items, replace(LITERAL, temperature=0.01))
    assert difference(report.loss, wanted) <= TOLERANCE


def test_no_matrix_of_batch_by_batch_is_held() -> None:
    """Peak memory grows with the batch, not with its square."""
    n, d = 1500, 8
    items = Items(torch.arange(n), torch.arange(n)[:, None], NONE, NONE)
    inputs = leaves(Vectors(torch.randn(n, d), torch.randn(n, d), torch.zeros(0, d)))
    settings = ContrastiveSettings(temperature=0.1, tile_elements=1 << 17)
    with torch.profiler.profile(profile_memory=True) as profile:
        gradients(contrastive_loss(inputs, items, settings).loss, inputs)
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest < n * n  # bytes: a matrix of one byte an entry would already be more


def test_without_negatives_of_any_kind_the_loss_is_zero() -> None:
    one = torch.randn(1, D)
    items = Items(
        torch.tensor([1]), torch.tensor([[2]]), torch.tensor([], dtype=torch.long), torch.tensor([], dtype=torch.long)
    )
    report = contrastive_loss(Vectors(one, torch.randn(1, D), torch.zeros(0, D)), items, LITERAL)
    assert float(report.loss) == 0.0
    assert report.masked_fraction == 0.0


def test_an_orthogonal_batch_has_the_loss_one_can_work_out() -> None:
    eye = torch.eye(4)
    items = Items(torch.arange(4), torch.arange(10, 14)[:, None], NONE, NONE)
    settings = ContrastiveSettings(temperature=0.5)
    report = contrastive_loss(Vectors(eye, eye, torch.zeros(0, 4)), items, settings)
    assert math.isclose(float(report.loss), math.log(1 + 9 * math.exp(-2)), rel_tol=1e-6)


def test_bad_input_is_refused() -> None:
    queries, positives, negatives = make_vectors().tensors
    items = make_items()
    with pytest.raises(ValueError, match="queries"):
        Vectors(queries[1:], positives, negatives)
    with pytest.raises(ValueError, match=r"ids of \(13, 21\)"):
        contrastive_loss(Vectors(queries, positives, negatives[1:]), items, LITERAL)
    with pytest.raises(ValueError, match="beside the full 24"):
        contrastive_loss(make_vectors(), items, replace(LITERAL, dimensions=(24,)))
    for bad in ({"temperature": 0.0}, {"margin": -1.0}, {"dimensions": (8,), "dimension_weights": (1.0, 2.0)}):
        with pytest.raises(ValueError, match="wanted"):
            ContrastiveSettings(**bad)
