"""The batching queue on a plain numpy compute function; nothing here knows HTTP or a model."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_embedding.serving.errors import (
    ComputeError,
    DeadlineError,
    EmptyInputError,
    OverloadedError,
    TooLargeError,
    UnavailableError,
)
from qwen3_embedding.serving.queue import (
    BatchReport,
    Lane,
    QueueSettings,
    Ticket,
    TokenQueue,
    WorkerDiedError,
    common_prefix,
)
from qwen3_embedding.types import FloatArray, IntArray

POISON, NAN_ONCE, NAN_ALWAYS, DEADLY, WORKER_LOST = 666, 777, 778, 999, 998


def features(ids: IntArray) -> FloatArray:
    """A row that depends on every token and on their order."""
    positions = np.arange(1, len(ids) + 1)
    return np.asarray([ids.sum(), (ids * positions).sum(), len(ids)], dtype=np.float32)


class Model:
    """Computes `features`, remembers its batches, and can be held at a gate."""

    def __init__(self) -> None:
        self.batches: list[list[list[int]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.seen_nan = False

    def __call__(self, sequences: list[list[int]]) -> FloatArray:
        self.batches.append([list(ids) for ids in sequences])
        self.entered.set()
        assert self.gate.wait(10)
        rows = []
        for ids in sequences:
            row = features(np.asarray(ids))
            if POISON in ids:
                raise RuntimeError("poison")
            if DEADLY in ids:
                raise SystemExit("killed")
            if WORKER_LOST in ids:
                raise WorkerDiedError("the process is gone")
            if NAN_ALWAYS in ids or (NAN_ONCE in ids and not self.seen_nan):
                self.seen_nan = self.seen_nan or NAN_ONCE in ids
                row = row * np.nan
            rows.append(row)
        return np.stack(rows)

    @property
    def computed(self) -> list[list[int]]:
        return [ids for batch in self.batches for ids in batch]


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def queues(model: Model) -> Iterator[list[TokenQueue]]:
    made: list[TokenQueue] = []
    yield made
    model.gate.set()
    for queue in made:
        queue.close(drain=False)


def make(queues: list[TokenQueue], model: Model, **options: object) -> TokenQueue:
    options.setdefault("batch_seconds", None)
    queue = TokenQueue(model, QueueSettings(**options))  # type: ignore[arg-type]
    queues.append(queue)
    return queue


def hold(queue: TokenQueue, model: Model) -> None:
    """Occupy the worker with a batch, so that what is submitted next waits."""
    model.gate.clear()
    model.entered.clear()
    queue.submit([[1]])
    assert model.entered.wait(5)


def test_rows_come_back_in_the_order_of_the_submission(model: Model, queues: list[TokenQueue]) -> None:
    queue = make(queues, model)
    sequences = [[5, 6], [1], [9, 9, 9], [5, 6]]
    rows = queue.submit(sequences).result(5)
    np.testing.assert_array_equal(rows, np.stack([features(np.asarray(s)) for s in sequences]))


def test_a_scalar_per_sequence_is_a_row_as_well() -> None:
    queue = TokenQueue(lambda sequences: np.asarray([len(ids) for ids in sequences], dtype=np.float32))
    assert queue.submit([[1, 2], [3]]).result(5).tolist() == [2.0, 1.0]
    queue.close()


def test_what_arrives_during_a_batch_makes_up_the_next_one(model: Model, queues: list[TokenQueue]) -> None:
    queue = make(queues, model)
    hold(queue, model)
    tickets = [queue.submit([[10 + i]], caller=str(i)) for i in range(50)]
    model.gate.set()
    for i, ticket in enumerate(tickets):
        assert ticket.result(5)[0, 0] == 10 + i
    assert [len(batch) for batch in model.batches] == [1, 50]


def test_batches_stay_within_the_token_budget(model: Model, queues: list[TokenQueue]) -> None:
    queue = make(queues, model, max_batch_tokens=100, short_tokens=10_000)
    hold(queue, model)
    # Lengths from 1 to 60 and one beyond the budget, which gets a batch of its own.
    sequences = [[2 + n] * (1 + n % 60) for n in range(120)] + [[7] * 500]
    ticket = queue.submit(sequences)
    model.gate.set()
    ticket.result(5)
    sizes = [(len(batch), sum(map(len, batch))) for batch in model.batches]
    assert all(tokens <= 100 or n == 1 for n, tokens in sizes)
    assert len(model.computed) == 122
    assert len(sizes) < 70  # filled, not one by one


def test_identical_inputs_in_flight_are_computed_once(model: Model, queues: list[TokenQueue]) -> None:
    queue = make(queues, model)
    hold(queue, model)
    waiting = [queue.submit([[42, 43]], caller=str(i)) for i in range(8)]
    model.entered.clear()
    model.gate.set()
    assert all(np.array_equal(ticket.result(5)[0], features(np.asarray([42, 43]))) for ticket in waiting)
    assert model.computed.count([42, 43]) == 1
    assert queue.stats().joined == 7
    # Also when the first one is running already.
    hold(queue, model)
    late = queue.submit([[1], [50]])
    model.gate.set()
    assert late.result(5)[:, 0].tolist() == [1.0, 50.0]
    assert model.computed.count([1]) == 2  # once for each `hold`, none for `late`


def test_a_short_submission_goes_before_bulk_and_bulk_is_not_starved(model: Model, queues: list[TokenQueue]) -> None:
    queue = make(queues, model, max_batch_tokens=40, short_tokens=10, bulk_share=0.25)
    hold(queue, model)
    bulk = queue.submit([[100 + i] * 10 for i in range(20)])
    queries = [queue.submit([[300 + i] * 3]) for i in range(30)]
    model.gate.set()
    bulk.result(5)
    for ticket in queries:
        ticket.result(5)
    kinds = [["query" if ids[0] >= 300 else "bulk" for ids in batch] for batch in model.batches[1:]]
    assert kinds[0].count("query") == 10  # 30 of 40 tokens
    assert kinds[0].count("bulk") == 1  # the quarter that is kept for bulk
    assert all("bulk" in batch for batch in kinds[:3])
    assert kinds[0].index("query") == 0


def test_a_query_does_not_wait_for_a_batch_filled_up_with_bulk(model: Model, queues: list[TokenQueue]) -> None:
    queue = make(queues, model, max_batch_tokens=40, short_tokens=10, bulk_share=0.25)
    hold(queue, model)
    bulk = queue.submit([[100 + i] * 10 for i in range(8)])
    query = queue.submit([[300] * 3])
    model.gate.set()
    query.result(5)
    bulk.result(5)
    assert [len(batch) for batch in model.batches[1:]] == [2, 4, 3]  # the query with its share of bulk, then bulk alone


def test_while_queries_come_batches_with_bulk_are_an_eighth_as_large(model: Model, queues: list[TokenQueue]) -> None:
    queue = TokenQueue(model, QueueSettings(max_batch_tokens=4000, batch_seconds=None, short_tokens=50))
    queues.append(queue)
    bulk = [queue.submit([[number] * 100 for number in range(start, start + 60)]) for start in (1, 101)]
    for ticket in bulk:
        ticket.result(10)
    assert max(len(batch) for batch in model.batches) == 40
    model.batches.clear()
    queue.submit([[5000]]).result(10)
    queue.submit([[number] * 100 for number in range(201, 261)]).result(10)
    assert max(len(batch) for batch in model.batches) == 5


def test_a_bulk_item_larger_than_what_queries_leave_gets_its_turn(model: Model, queues: list[TokenQueue]) -> None:
    queue = make(queues, model, max_batch_tokens=40, short_tokens=10, bulk_share=0.25)
    hold(queue, model)
    bulk = queue.submit([[100] * 35])
    queries = [queue.submit([[300 + i] * 5]) for i in range(60)]
    model.gate.set()
    bulk.result(5)
    for ticket in queries:
        ticket.result(5)
    place = next(n for n, batch in enumerate(model.batches) if [100] * 35 in batch)
    assert place <= 2


def test_callers_take_turns_by_tokens(model: Model, queues: list[TokenQueue]) -> None:
    queue = make(queues, model, max_batch_tokens=20, short_tokens=1)
    hold(queue, model)
    greedy = [queue.submit([[100 + i] * 10], caller="greedy") for i in range(20)]
    modest = queue.submit([[200] * 10, [201] * 10], caller="modest")
    model.gate.set()
    modest.result(5)
    for ticket in greedy:
        ticket.result(5)
    order = model.computed[1:]
    assert order.index([201] * 10) <= 4  # not behind the twenty that came first


def test_a_query_that_needs_a_waiting_bulk_item_pulls_it_forward(model: Model, queues: list[TokenQueue]) -> None:
    queue = make(queues, model, max_batch_tokens=20, short_tokens=10)
    hold(queue, model)
    bulk = queue.submit([[100 + i] * 10 for i in range(10)])
    query = queue.submit([[109] * 10])
    model.gate.set()
    assert query.result(5)[0, 0] == 1090
    assert bulk.result(5).shape == (10, 3)
    assert [109] * 10 in model.batches[1]
    assert model.computed.count([109] * 10) == 1


def test_a_repeated_bulk_request_does_not_overtake(model: Model, queues: list[TokenQueue]) -> None:
    queue = make(queues, model, max_batch_tokens=20, short_tokens=10)
    hold(queue, model)
    bulk = [[100 + i] * 10 for i in range(6)]
    first = queue.submit(bulk)
    other = queue.submit([[200 + i] * 10 for i in range(2)], caller="other")
    again = queue.submit(bulk, caller="again")
    model.gate.set()
    for ticket in (first, other, again):
        ticket.result(5)
    assert model.computed.index([201] * 10) <= 5


def test_past_the_bound_a_submission_is_refused_whole_and_recovery_is_immediate(
    model: Model, queues: list[TokenQueue]
) -> None:
    queue = make(queues, model, max_waiting_tokens=100)
    queue.submit([[2] * 50]).result(5)  # so that a speed is known
    hold(queue, model)
    accepted: list[Ticket] = []
    refused: list[OverloadedError] = []
    peak = 0
    for i in range(1000):
        try:
            accepted.append(queue.submit([[10 + i] * 10]))
        except OverloadedError as error:
            refused.append(error)
        peak = max(peak, queue.stats().waiting_tokens)
    assert (len(accepted), len(refused), peak) == (10, 990, 100)
    assert all(error.status == 429 and (error.retry_after_s or 0) >= 1 for error in refused)
    model.gate.set()
    for ticket in accepted:
        ticket.result(5)
    assert queue.submit([[5000]]).result(5)[0, 0] == 5000


def test_what_can_never_fit_is_told_so(model: Model, queues: list[TokenQueue]) -> None:
    queue = make(queues, model, max_waiting_tokens=100)
    with pytest.raises(TooLargeError, match="101 tokens"):
        queue.submit([[1] * 101])
    with pytest.raises(EmptyInputError):
        queue.submit([])
    with pytest.raises(EmptyInputError):
        queue.submit([[1], []])


def test_a_cancelled_submission_leaves_the_queue(model: Model, queues: list[TokenQueue]) -> None:
    queue = make(queues, model)
    hold(queue, model)
    gone = queue.submit([[70], [71]])
    stays = queue.submit([[71], [72]])
    gone.cancel()
    assert queue.stats().waiting_sequences == 2
    with pytest.raises(CancelledError):
        gone.result(1)
    model.gate.set()
    assert stays.result(5)[:, 0].tolist() == [71.0, 72.0]
    assert [70] not in model.computed


def test_cancelling_while_running_harms_nobody(model: Model, queues: list[TokenQueue]) -> None:
    queue = make(queues, model)
    model.gate.clear()
    gone = queue.submit([[70]])
    assert model.entered.wait(5)
    shared = queue.submit([[70]])
    gone.cancel()
    model.gate.set()
    assert shared.result(5)[0, 0] == 70
    assert queue.close(timeout=5)


def test_an_expired_submission_is_not_computed(model: Model, queues: list[TokenQueue]) -> None:
    queue = make(queues, model)
    hold(queue, model)
    late = queue.submit([[80]], deadline=time.monotonic() + 0.01)
    fine = queue.submit([[81]], deadline=time.monotonic() + 60)
    time.sleep(0.02)
    model.gate.set()
    assert fine.result(5)[0, 0] == 81
    with pytest.raises(DeadlineError):
        late.result(5)
    assert [80] not in model.computed
    assert queue.stats().waiting_tokens == 0


def test_a_failing_input_fails_alone(model: Model, queues: list[TokenQueue]) -> None:
    queue = make(queues, model)
    hold(queue, model)
    good = [queue.submit([[20 + i]]) for i in range(9)]
    bad = queue.submit([[30], [POISON]])
    model.gate.set()
    for i, ticket in enumerate(good):
        assert ticket.result(5)[0, 0] == 20 + i
    with pytest.raises(ComputeError, match="poison"):
        bad.result(5)
    assert queue.submit([[31]]).result(5)[0, 0] == 31
    assert queue.stats().restarts == 0


def test_a_row_that_is_not_finite_is_computed_again_then_refused(model: Model, queues: list[TokenQueue]) -> None:
    queue = make(queues, model)
    hold(queue, model)
    once, always, other = queue.submit([[NAN_ONCE]]), queue.submit([[NAN_ALWAYS]]), queue.submit([[3]])
    model.gate.set()
    assert once.result(5)[0, 0] == NAN_ONCE
    assert other.result(5)[0, 0] == 3
    with pytest.raises(ComputeError, match="not finite"):
        always.result(5)
    assert queue.stats().recomputed_rows == 2


@pytest.mark.parametrize("deadly", [DEADLY, WORKER_LOST])
def test_a_dying_worker_fails_its_batch_only(model: Model, queues: list[TokenQueue], deadly: int) -> None:
    queue = make(queues, model, max_batch_tokens=4)
    hold(queue, model)
    lost = queue.submit([[deadly, 1], [2, 2]])
    waits = queue.submit([[4, 4, 4]])
    model.gate.set()
    with pytest.raises(WorkerDiedError) as caught:
        lost.result(5)
    assert caught.value.status == 503
    assert waits.result(5)[0, 0] == 12
    assert queue.stats().restarts == (1 if deadly == DEADLY else 0)


def test_a_row_of_the_wrong_shape_is_an_error_not_a_wrong_answer() -> None:
    shapes = iter([(1, 3), (2, 3)])
    queue = TokenQueue(lambda sequences: np.zeros(next(shapes), dtype=np.float32))
    assert queue.submit([[3]]).result(5).shape == (1, 3)
    with pytest.raises(ComputeError, match="shape"):
        queue.submit([[1]], lane=Lane.BULK).result(5)
    queue.close()


def test_draining_answers_what_was_accepted_and_refuses_what_comes(model: Model, queues: list[TokenQueue]) -> None:
    queue = make(queues, model)
    hold(queue, model)
    accepted = [queue.submit([[60 + i]]) for i in range(20)]
    drained: list[bool] = []
    closer = threading.Thread(target=lambda: drained.append(queue.close(timeout=10)))
    closer.start()
    while queue.stats().accepting:
        time.sleep(0.001)
    with pytest.raises(UnavailableError):
        queue.submit([[99]])
    model.gate.set()
    closer.join(10)
    assert drained == [True]
    assert [int(ticket.result(0)[0, 0]) for ticket in accepted] == list(range(60, 80))


def test_a_drain_that_runs_out_of_time_says_so_and_answers_everyone(model: Model, queues: list[TokenQueue]) -> None:
    queue = make(queues, model)
    hold(queue, model)
    waiting = queue.submit([[61]])
    threading.Timer(0.2, model.gate.set).start()
    assert not queue.close(timeout=0.05)
    with pytest.raises(UnavailableError):
        waiting.result(1)


def test_the_cache_answers_repeats_and_keeps_its_bound(model: Model, queues: list[TokenQueue]) -> None:
    queue = make(queues, model, cache_bytes=2_000)
    first = queue.submit([[7, 8]]).result(5)
    again = queue.submit([[7, 8], [9]])
    np.testing.assert_array_equal(again.result(5)[0], first[0])
    assert again.computed == 1
    assert model.computed.count([7, 8]) == 1
    for i in range(100):
        queue.submit([[1000 + i]]).result(5)
    stats = queue.stats()
    assert stats.cache_hits == 1
    assert 0 < stats.cache_bytes <= 2_000
    queue.submit([[7, 8]]).result(5)
    assert model.computed.count([7, 8]) == 2  # it was the oldest and had to go


def test_batches_shrink_to_the_wanted_duration(queues: list[TokenQueue]) -> None:
    reports: list[BatchReport] = []

    def slow(sequences: list[list[int]]) -> FloatArray:
        time.sleep(sum(map(len, sequences)) / 20_000)  # 20,000 tokens a second
        return np.zeros(len(sequences), dtype=np.float32)

    queue = TokenQueue(slow, QueueSettings(max_batch_tokens=16_000, batch_seconds=0.05), on_batch=reports.append)
    queues.append(queue)
    queue.submit([[1] * 1000]).result(5)
    queue.submit([[2, i] * 50 for i in range(80)]).result(5)
    assert len(reports) > 5
    assert max(report.tokens for report in reports[1:]) <= 1_100
    assert all(report.failed == 0 for report in reports)


def test_shared_beginnings_count_once_in_a_batch(model: Model, queues: list[TokenQueue]) -> None:
    queue = make(queues, model, max_batch_tokens=200)
    hold(queue, model)
    prompt = list(range(100))
    ticket = queue.submit([[*prompt, 500 + i] for i in range(100)])
    model.gate.set()
    ticket.result(5)
    assert len(model.batches) == 2  # 100 shared and 100 own tokens fit one batch of 200


def test_timings_are_told(model: Model, queues: list[TokenQueue]) -> None:
    queue = make(queues, model)
    hold(queue, model)
    ticket = queue.submit([[5]])
    time.sleep(0.03)
    model.gate.set()
    ticket.result(5)
    assert ticket.queue_seconds >= 0.03
    assert 0 <= ticket.compute_seconds < ticket.queue_seconds
    assert (ticket.tokens, ticket.computed) == (1, 1)


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=8))
def test_common_prefix_is_the_longest_one_short_of_the_shortest(sequences: list[list[int]]) -> None:
    n = common_prefix([np.asarray(s) for s in sequences])
    if len(sequences) == 1:
        assert n == 0
        return
    limit = min(map(len, sequences)) - 1
    plain = max(k for k in range(limit + 1) if len({tuple(s[:k]) for s in sequences}) == 1)
    assert n == plain


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=12), min_size=1, max_size=6),
            st.sampled_from(["a", "b", "c"]),
            st.sampled_from([None, Lane.QUERY, Lane.BULK]),
            st.booleans(),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_any_mixture_of_submissions_is_answered_rightly(
    submissions: list[tuple[list[list[int]], str, Lane | None, bool]],
) -> None:
    model = Model()
    queue = TokenQueue(model, QueueSettings(max_batch_tokens=16, short_tokens=8, batch_seconds=None, cache_bytes=500))
    try:
        tickets = [queue.submit(s, caller=caller, lane=lane) for s, caller, lane, _ in submissions]
        for ticket, (_, _, _, cancel) in zip(tickets, submissions, strict=True):
            if cancel:
                ticket.cancel()
        for ticket, (sequences, _, _, _) in zip(tickets, submissions, strict=True):
            if isinstance(ticket.outcome, CancelledError):
                continue
            wanted = np.stack([features(np.asarray(ids)) for ids in sequences])
            np.testing.assert_array_equal(ticket.result(5), wanted)
        assert queue.close(timeout=5)
        stats = queue.stats()
        assert (stats.waiting_tokens, stats.waiting_sequences, stats.running_tokens) == (0, 0, 0)
    finally:
        queue.close(drain=False)


def test_many_threads_at_once(model: Model, queues: list[TokenQueue]) -> None:
    queue = make(queues, model, max_batch_tokens=64)
    wrong: list[object] = []

    def client(number: int) -> None:
        generator = np.random.default_rng(number)
        for _ in range(40):
            ids = generator.integers(0, 50, size=generator.integers(1, 9)).tolist()
            ticket = queue.submit([ids], caller=str(number))
            if generator.random() < 0.2:
                ticket.cancel()
            elif not np.array_equal(ticket.result(10)[0], features(np.asarray(ids))):
                wrong.append(ids)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == []
    assert queue.close(timeout=5)
    assert queue.stats().waiting_tokens == 0


@pytest.mark.parametrize(
    "bad",
    [
        {"max_batch_tokens": 0},
        {"max_waiting_tokens": 0},
        {"bulk_share": 1.0},
        {"batch_seconds": 0.0},
        {"cache_bytes": -1},
    ],
)
def test_settings_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        QueueSettings(**bad)  # type: ignore[arg-type]
