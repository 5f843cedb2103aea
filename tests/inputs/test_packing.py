"""Packing: every sequence is whole, in the caller's order, and what is shared is there once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_embedding.inputs.packing import pack, plan_batches

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=30)


@given(SEQUENCES, st.sampled_from([1, 4, 16]))
@settings(max_examples=150, deadline=None)
def test_every_sequence_is_found_again(sequences: list[list[int]], min_saved: int) -> None:
    batch = pack(sequences, min_saved_tokens=min_saved)
    for number, sequence in enumerate(sequences):
        rows = batch.sequence_rows(number)
        assert batch.token_ids[rows].tolist() == sequence
        assert batch.positions[rows].tolist() == list(range(len(sequence)))
        assert rows[-1] == batch.pooled_rows[number]
    assert (batch.segment_parents < np.arange(batch.n_segments)).all()
    assert (batch.segment_lengths > 0).all()
    contexts = [len(batch.context_rows(segment)) for segment in range(batch.n_segments)]
    assert batch.context_lengths.tolist() == contexts
    assert batch.n_tokens_unshared == sum(map(len, sequences))


@given(SEQUENCES)
@settings(max_examples=50, deadline=None)
def test_without_sharing_every_sequence_is_a_segment(sequences: list[list[int]]) -> None:
    batch = pack(sequences, share_prefixes=False)
    assert batch.n_tokens == batch.n_tokens_unshared
    assert batch.n_segments == len(sequences)


def test_a_shared_beginning_is_there_once() -> None:
    head = list(range(60))
    sequences = [[*head, 100 + n, 200 + n] for n in range(50)]
    batch = pack(sequences)
    assert batch.n_tokens == 60 + 2 * 50
    assert batch.n_tokens_unshared == 62 * 50


def test_nested_beginnings_are_shared_level_by_level() -> None:
    system, query_a, query_b = list(range(40)), list(range(100, 120)), list(range(200, 220))
    sequences = [[*system, *query, 1000 + n] for query in (query_a, query_b) for n in range(10)]
    assert pack(sequences).n_tokens == 40 + 20 + 20 + 20


def test_equal_sequences_are_one_row() -> None:
    batch = pack([[5, 6], [7], [5, 6], [5, 6]])
    assert batch.n_tokens == 3
    assert len({int(batch.pooled_rows[n]) for n in (0, 2, 3)}) == 1


def test_a_sequence_that_is_the_beginning_of_another() -> None:
    long = list(range(40))
    batch = pack([long, long[:30], long[:30]])
    assert batch.n_tokens == 40
    assert batch.positions[batch.pooled_rows].tolist() == [39, 29, 29]


def test_a_short_common_beginning_is_not_worth_a_segment() -> None:
    assert pack([[1, 2, 3], [1, 2, 4]]).n_segments == 2


@pytest.mark.parametrize("bad", [[], [[1], []], [[[1]]]])
def test_nothing_to_pack_is_an_error(bad: list) -> None:
    with pytest.raises(ValueError, match="wanted"):
        pack(bad)


@given(st.lists(st.integers(1, 50), min_size=0, max_size=60), st.integers(1, 120), st.integers(0, 3))
def test_batches_hold_every_text_once_and_keep_the_budget(lengths: list[int], budget: int, groups: int) -> None:
    group = [n % groups for n in range(len(lengths))] if groups else None
    batches = list(plan_batches(lengths, budget, groups=group))
    assert sorted(n for batch in batches for n in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or sum(lengths[n] for n in batch) <= budget for batch in batches)
    if group is None:
        flat = [lengths[n] for batch in batches for n in batch]
        assert flat == sorted(flat, reverse=True)


def test_what_all_share_counts_once_a_batch() -> None:
    assert len(list(plan_batches([22] * 10, max_tokens=40, shared_tokens=20))) == 1
    assert len(list(plan_batches([22] * 10, max_tokens=40))) == 10


def test_a_budget_below_one_is_an_error() -> None:
    with pytest.raises(ValueError, match="max_tokens=0"):
        list(plan_batches([1], 0))
