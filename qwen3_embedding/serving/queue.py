"""Continuous batching by tokens, across callers. No HTTP and no torch: token ids in, one row of numbers each out.

Two threads for each ``compute`` take turns: one runs a batch, the other delivers the rows of the batch before, and then
takes its turn with whatever has arrived meanwhile. So ``compute`` never waits for deliveries, nothing waits for a
timer, a lone request runs at once, and the batches grow with the load. What a batch shares (the
same prompt, the same query before many documents) ``compute`` finds itself: it sees the sequences of all callers.

- Two lanes: short submissions go before bulk; bulk keeps a share of every batch, so neither starves.
- Within a lane callers take turns by the tokens they were served (start-time fair queuing), not by who asked most.
- An input that is waiting or running is not computed again: the second caller waits for the first one's row.
- Waiting tokens are bounded. Past the bound a submission is refused whole, with the seconds after which to try again.
- A cancelled or expired submission leaves the queue, unless somebody else waits for the same input.
- A failing batch is halved until the input at fault stands alone; only its callers see the error.
- A row that is not finite is computed once more on its own, then refused.
- A worker that dies fails its running batch (503), is replaced, and what waited goes on, meanwhile with the others.
"""

from __future__ import annotations

import enum
import hashlib
import math
import threading
import time
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from qwen3_embedding.serving.errors import (
    ComputeError,
    DeadlineError,
    EmptyInputError,
    OverloadedError,
    ServingError,
    TooLargeError,
    UnavailableError,
)
from qwen3_embedding.types import FloatArray, IntArray

Compute = Callable[[list[list[int]]], FloatArray]
"""Token-id sequences in, float32 of shape (N,) or (N, D) out, in the same order. Runs on the worker thread only."""

MIN_BATCH_TOKENS = 512
"""A large model on a slow machine takes longer than it should for these, but smaller batches waste it: all weights pass
through the processor for each."""
MIN_BESIDE_QUERIES = 128
QUERIES_COME_S = 1.0
"""For so long after a query, batches that hold bulk are smaller: the next query waits for one."""
BESIDE_QUERIES = 1 / 8
"""Of the tokens that a batch has otherwise."""
THREADS = 2
"""Of each worker; see above."""
BROKEN_AFTER = 2
"""So many failed starts in a row, and what waits for this worker is refused instead of kept."""
LONGEST_PAUSE_S = 30.0
"""Between two attempts to start a worker; the first pause is a second and each next one twice as long."""
RATE_MEMORY = 0.9
"""How much of the measured tokens and seconds the next batch inherits; about the last ten batches count."""


class WorkerDiedError(UnavailableError):
    """The worker was lost while it computed this; it is being replaced."""


@runtime_checkable
class Restartable(Protocol):
    """A ``compute`` that runs elsewhere and can be lost: a process."""

    def __call__(self, sequences: list[list[int]]) -> FloatArray:
        """See :data:`Compute`."""
        ...

    @property
    def alive(self) -> bool:
        """Whether it could compute now."""
        ...

    @property
    def restarts(self) -> int:
        """How often it was started again."""
        ...

    def prepare(self) -> None:
        """Start it if it is not running; blocks until it can compute.

        Raises:
            Exception: it cannot be started.
        """
        ...


class Lane(enum.IntEnum):
    """Which of the two lanes a submission rides."""

    QUERY = 0
    BULK = 1


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """How the queue batches and where it stops.

    Attributes:
        max_batch_tokens: tokens of a batch at most; a longer sequence gets a batch of its own.
        max_waiting_tokens: bound of the queue; a submission past it is refused.
        short_tokens: a submission of at most so many tokens rides the query lane, unless it names its lane.
        bulk_share: part of a batch that bulk gets beside queries, in [0, 1); without queries it gets all.
        batch_seconds: aim at batches of about this duration, by the measured speed, so that a short query never waits
            long for the batch before it. ``None`` fills every batch up to ``max_batch_tokens``. Either way a batch with
            bulk has an eighth of that while queries come.
        cache_bytes: keep finished rows up to this size and answer repeated inputs from them; 0 keeps none.
    """

    max_batch_tokens: int = 16_384
    max_waiting_tokens: int = 1_000_000
    short_tokens: int = 1_024
    bulk_share: float = 0.25
    batch_seconds: float | None = 0.25
    cache_bytes: int = 0

    def __post_init__(self) -> None:
        for name in ("max_batch_tokens", "max_waiting_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; wanted at least 1")
        if not 0 <= self.bulk_share < 1:
            raise ValueError(f"bulk_share={self.bulk_share}; wanted a share from 0 to below 1")
        if self.batch_seconds is not None and self.batch_seconds <= 0:
            raise ValueError(f"batch_seconds={self.batch_seconds}; wanted more than 0, or None")
        if self.short_tokens < 0 or self.cache_bytes < 0:
            raise ValueError("short_tokens and cache_bytes are counts; wanted 0 or more")


@dataclass(frozen=True, slots=True)
class BatchReport:
    """One call of ``compute``, for metrics."""

    sequences: int
    tokens: int
    """Tokens of the sequences, shared ones counted once a group."""
    seconds: float
    failed: int


@dataclass(frozen=True, slots=True)
class QueueStats:
    """A snapshot, for ``/info``, metrics and tests."""

    waiting_tokens: int
    waiting_sequences: int
    running_tokens: int
    tokens_per_second: float
    batches: int
    computed_tokens: int
    joined: int
    """Inputs that were answered by a row somebody else was waiting for."""
    cache_hits: int
    cache_bytes: int
    restarts: int
    recomputed_rows: int
    """Rows that were not finite at first."""
    running_seconds: float
    """How long the longest running batch has been running; 0 when idle."""
    accepting: bool
    workers: int
    workers_alive: int


@dataclass(slots=True, eq=False)
class _Job:
    """One distinct input, with everybody who waits for it."""

    key: bytes
    ids: list[int]
    cost: int
    """Tokens it adds when its group is in the batch already."""
    shared: int
    group: object
    lane: Lane
    caller: str
    waiters: list[tuple[Ticket, int]] = field(default_factory=list)
    running: bool = False
    dropped: bool = False


class _Worker:
    """One ``compute``, the threads that feed it, and the batches that they are at."""

    def __init__(self, compute: Compute | Restartable) -> None:
        self.compute = compute
        self._restartable = compute if isinstance(compute, Restartable) else None
        self.turn = threading.Lock()
        """Held by the thread that computes; the other delivers."""
        self.batches: dict[int, tuple[list[_Job], float]] = {}
        """By thread: what it computes or delivers, and since when."""
        self.failed_starts = 0
        self.failure = ""
        self.threads: set[threading.Thread] = set()

    @property
    def busy(self) -> bool:
        """Whether a batch is not delivered yet."""
        return bool(self.batches)

    @property
    def alive(self) -> bool:
        return self._restartable is None or self._restartable.alive

    @property
    def restarts(self) -> int:
        return 0 if self._restartable is None else self._restartable.restarts

    def prepare(self) -> None:
        if self._restartable is not None:
            self._restartable.prepare()


class Ticket:
    """A submission: wait for its ``result`` or be told ``when_done``; ``cancel`` when nobody wants it any more."""

    def __init__(self, queue: TokenQueue, n: int, deadline: float | None) -> None:
        self.submitted_at = time.monotonic()
        self.started_at: float | None = None
        self.finished_at: float | None = None
        self.deadline = deadline
        self.tokens = 0
        """Tokens of all sequences of the submission."""
        self.computed = 0
        """Sequences that were computed for it; the others were joined or cached."""
        self._queue = queue
        self._rows: FloatArray | None = None
        self._n = n
        self._remaining = n
        self._jobs: list[_Job] = []
        # A Future of the standard library costs a short text as much as its place in the queue.
        self._guard = threading.Lock()
        self._outcome: FloatArray | BaseException | None = None
        self._tell: Callable[[Ticket], None] | None = None
        self._waiting: threading.Event | None = None

    @property
    def queue_seconds(self) -> float:
        """From the submission to the beginning of its first batch."""
        return 0.0 if self.started_at is None else max(0.0, self.started_at - self.submitted_at)

    @property
    def compute_seconds(self) -> float:
        """From the beginning of its first batch to the last row."""
        if self.started_at is None or self.finished_at is None:
            return 0.0
        return max(0.0, self.finished_at - self.started_at)

    def result(self, timeout: float | None = None) -> FloatArray:
        """(N,) or (N, D) float32 in the order of the submission; blocks.

        Raises:
            ServingError: what went wrong.
            TimeoutError: not there after ``timeout`` seconds; the ticket goes on.
        """
        with self._guard:
            if self._outcome is None and self._waiting is None:
                self._waiting = threading.Event()
        if self._outcome is None and self._waiting is not None and not self._waiting.wait(timeout):
            raise TimeoutError(f"no result after {timeout} seconds")
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        assert self._outcome is not None
        return self._outcome

    @property
    def outcome(self) -> FloatArray | BaseException | None:
        """Rows or what went wrong; ``None`` while neither is there."""
        return self._outcome

    def when_done(self, tell: Callable[[Ticket], None]) -> None:
        """Call ``tell`` once, as soon as there is an outcome: in the queue's thread, or at once. One can be told."""
        with self._guard:
            if self._outcome is None:
                self._tell = tell
                return
        tell(self)

    def cancel(self) -> None:
        """Leave the queue. What only this ticket wanted and has not begun is not computed."""
        self._queue._cancel(self)

    def _fill(self, row: int, values: FloatArray) -> bool:
        """Take one row; true when it was the last."""
        if self._rows is None:
            self._rows = np.empty((self._n, *np.shape(values)), dtype=np.float32)
        self._rows[row] = values
        self._remaining -= 1
        return self._remaining == 0

    def _finish(self) -> None:
        assert self._rows is not None
        self._settle(self._rows)

    def _fail(self, error: BaseException) -> None:
        self._settle(error)

    def _settle(self, outcome: FloatArray | BaseException) -> None:
        """The first outcome counts: a ticket can be cancelled or fail between its last row and here."""
        with self._guard:
            if self._outcome is not None:
                return
            self.finished_at = time.monotonic()
            self._outcome = outcome
        if self._waiting is not None:
            self._waiting.set()
        if self._tell is not None:
            self._tell(self)


class _FairLane:
    """Jobs of one lane: first come first served within a caller, callers by the tokens they were served."""

    def __init__(self, wanted: Callable[[_Job], bool]) -> None:
        self._wanted = wanted
        self._queues: dict[str, deque[_Job]] = {}
        self._served: dict[str, float] = {}
        self._now = 0.0

    def push(self, job: _Job) -> None:
        queue = self._queues.get(job.caller)
        if queue is None:
            queue = self._queues[job.caller] = deque()
            # A caller who was away gets no credit for it.
            self._served[job.caller] = max(self._served.get(job.caller, 0.0), self._now)
        queue.append(job)

    def peek(self) -> _Job | None:
        """The next job whose turn it is, or ``None``."""
        while self._queues:
            caller = min(self._queues, key=self._served.__getitem__)
            queue = self._queues[caller]
            while queue and not self._wanted(queue[0]):
                queue.popleft()
            if queue:
                return queue[0]
            del self._queues[caller]
        # Nobody waits: everybody is even again, and the table does not grow with the callers ever seen.
        self._served.clear()
        self._now = 0.0
        return None

    def take(self, job: _Job, cost: int) -> None:
        """Remove the job that :meth:`peek` gave and charge its caller."""
        self._now = self._served[job.caller]
        self._served[job.caller] += cost
        self._queues[job.caller].popleft()


class _RowCache:
    """Finished rows by token ids, least recently used out first. The token ids contain prompt and text."""

    ENTRY_OVERHEAD = 200

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes
        self._rows: OrderedDict[bytes, FloatArray] = OrderedDict()
        self.size = 0

    def get(self, key: bytes) -> FloatArray | None:
        row = self._rows.get(key)
        if row is not None:
            self._rows.move_to_end(key)
        return row

    def put(self, key: bytes, row: FloatArray) -> None:
        entry = self._entry(key, row)
        if key in self._rows or entry > self._capacity:
            return
        self._rows[key] = np.array(row, dtype=np.float32, copy=True)
        self.size += entry
        while self.size > self._capacity:
            old_key, old_row = self._rows.popitem(last=False)
            self.size -= self._entry(old_key, old_row)

    def _entry(self, key: bytes, row: FloatArray) -> int:
        return len(key) + int(np.asarray(row).nbytes) + self.ENTRY_OVERHEAD


class TokenQueue:
    """Runs ``compute`` on the inputs of many callers, batch after batch.

    Args:
        compute: token-id sequences to one float32 row each, see :data:`Compute`; or several that do the same (one a
            GPU), each fed by a thread of its own. One that is :class:`Restartable` is started again when it is lost.
        settings: see :class:`QueueSettings`.
        name: for the thread's name and messages.
        on_batch: called after every batch, on the worker thread; must be quick and must not raise.
    """

    def __init__(
        self,
        compute: Compute | Sequence[Compute | Restartable],
        settings: QueueSettings | None = None,
        name: str = "queue",
        on_batch: Callable[[BatchReport], None] | None = None,
    ) -> None:
        self.settings = settings or QueueSettings()
        self.name = name
        self._on_batch = on_batch
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._idle = threading.Condition(self._lock)
        self._lanes = {lane: _FairLane(self._still_wanted) for lane in Lane}
        self._jobs: dict[bytes, _Job] = {}
        self._expired: list[Ticket] = []
        self._waiting_tokens = 0
        self._waiting_sequences = 0
        self._bulk_passed_over = False
        self._last_query = -math.inf
        self._cache = _RowCache(self.settings.cache_bytes) if self.settings.cache_bytes else None
        self._rate_tokens = 0.0
        self._rate_seconds = 0.0
        self._batches = self._computed_tokens = self._joined = self._cache_hits = self._restarts = self._recomputed = 0
        self._accepting = True
        self._closed = False
        self._workers = [_Worker(one) for one in ([compute] if callable(compute) else compute)]
        if not self._workers:
            raise ValueError("a queue needs at least one worker")
        for worker in self._workers:
            for _ in range(THREADS):
                self._start(worker)

    # -- callers ------------------------------------------------------------------------------------------------------

    def submit(
        self,
        sequences: Sequence[list[int]],
        *,
        lane: Lane | None = None,
        deadline: float | None = None,
        caller: str = "",
    ) -> Ticket:
        """Queue token-id sequences; returns at once.

        Args:
            sequences: N non-empty sequences.
            lane: ``None`` picks it by size.
            deadline: ``time.monotonic()`` after which the answer is worthless.
            caller: who asks, for turns between callers.

        Raises:
            EmptyInputError: no sequence, or an empty one.
            TooLargeError: the submission alone passes the queue's bound.
            OverloadedError: the queue is full; carries ``retry_after_s``.
            UnavailableError: the queue is closing.
        """
        if not sequences or not all(sequences):
            raise EmptyInputError("nothing to compute: got no input, or one without tokens")
        arrays = [array("q", sequence) for sequence in sequences]
        keys = [hashlib.blake2b(ids, digest_size=32).digest() for ids in arrays]
        ticket = Ticket(self, len(sequences), deadline)
        ticket.tokens = sum(map(len, sequences))
        shared = common_prefix([np.frombuffer(ids, dtype=np.int64) for ids in arrays]) if len(arrays) > 1 else 0
        with self._lock:
            finished = self._admit(ticket, dict(zip(keys, sequences, strict=True)), keys, shared, lane, caller)
            if self._waiting_sequences:
                self._wake.notify()
        if finished:
            ticket._finish()
        return ticket

    def stats(self) -> QueueStats:
        """What is going on now."""
        now = time.monotonic()
        with self._lock:
            return QueueStats(
                waiting_tokens=self._waiting_tokens,
                waiting_sequences=self._waiting_sequences,
                running_tokens=sum(
                    len(job.ids) for worker in self._workers for batch, _ in worker.batches.values() for job in batch
                ),
                tokens_per_second=self._rate() * len(self._workers),
                batches=self._batches,
                computed_tokens=self._computed_tokens,
                joined=self._joined,
                cache_hits=self._cache_hits,
                cache_bytes=self._cache.size if self._cache else 0,
                restarts=self._restarts + sum(worker.restarts for worker in self._workers),
                recomputed_rows=self._recomputed,
                running_seconds=max(
                    (now - since for worker in self._workers for _, since in worker.batches.values()), default=0.0
                ),
                accepting=self._accepting,
                workers=len(self._workers),
                workers_alive=sum(worker.alive for worker in self._workers),
            )

    def close(self, drain: bool = True, timeout: float | None = None) -> bool:
        """Stop accepting; finish what was accepted (``drain``) or fail it; stop the worker.

        Returns:
            Whether everything accepted was answered within ``timeout`` seconds.
        """
        with self._lock:
            self._accepting = False
            if drain:
                drained = self._idle.wait_for(self._is_idle, timeout)
            else:
                drained = not self._waiting_sequences
            leftover = self._drop_all_waiting()
            self._closed = True
            self._wake.notify_all()
        for ticket in leftover:
            ticket._fail(UnavailableError("the server is shutting down before this was computed; try another replica"))
        for worker in self._workers:
            for thread in worker.threads - {threading.current_thread()}:
                thread.join(timeout=5.0)
        return drained

    def nudge(self) -> None:
        """A worker was lost: let its thread notice, also if it waits for work."""
        with self._lock:
            self._wake.notify_all()

    def _is_idle(self) -> bool:
        return not self._waiting_sequences and not any(worker.busy for worker in self._workers)

    # -- admission ----------------------------------------------------------------------------------------------------

    def _admit(
        self,
        ticket: Ticket,
        sequences: dict[bytes, list[int]],
        keys: list[bytes],
        shared: int,
        lane: Lane | None,
        caller: str,
    ) -> bool:
        """Queue what is new of a submission, join what is under way. True if everything was cached."""
        if not self._accepting:
            raise UnavailableError(f"{self.name} is shutting down; try again later", retry_after_s=5.0)
        if self._workers[0].failed_starts and all(worker.failed_starts >= BROKEN_AFTER for worker in self._workers):
            raise self._broken()
        cached: dict[bytes, FloatArray] = {}
        new: dict[bytes, list[int]] = {}
        for key, sequence in sequences.items():
            row = self._cache.get(key) if self._cache and key not in self._jobs else None
            if row is not None:
                cached[key] = row
            elif key not in self._jobs:
                new[key] = sequence
        cost = sum(len(sequence) - shared for sequence in new.values()) + (shared if new else 0)
        self._check_room(cost)
        if lane is None:
            # By what was asked, not by what is new: a bulk request sent twice must not overtake.
            asked = ticket.tokens - shared * (len(keys) - 1)
            lane = Lane.QUERY if asked <= self.settings.short_tokens else Lane.BULK
        group = object()
        for key, sequence in new.items():
            own = len(sequence) - shared if len(new) > 1 else len(sequence)
            job = _Job(key, sequence, own, len(sequence) - own, group, lane, caller)
            self._jobs[key] = job
            self._lanes[lane].push(job)
            self._waiting_tokens += job.cost
            self._waiting_sequences += 1
        ticket.computed = len(new)
        hits = sum(key in cached for key in keys) if cached else 0
        self._cache_hits += hits
        self._joined += len(keys) - hits - len(new)
        finished = False
        for row_number, key in enumerate(keys):
            if key in cached:
                finished = ticket._fill(row_number, cached[key])
                continue
            job = self._jobs[key]
            job.waiters.append((ticket, row_number))
            ticket._jobs.append(job)
            if job.running and ticket.started_at is None:
                ticket.started_at = ticket.submitted_at
            if lane < job.lane and not job.running:
                self._promote(job, lane)
        return finished

    def _check_room(self, cost: int) -> None:
        bound = self.settings.max_waiting_tokens
        if cost > bound:
            raise TooLargeError(
                f"the request has {cost} tokens, and this server queues {bound} at most; send fewer texts a request"
            )
        if self._waiting_tokens + cost > bound:
            raise OverloadedError(
                f"Model is overloaded: {self._waiting_tokens} tokens wait and {cost} more would pass the bound of "
                f"{bound}; try again later",
                retry_after_s=self._retry_after(cost),
            )

    def _retry_after(self, cost: int) -> float:
        """Seconds until there is room for ``cost`` tokens, by the measured speed."""
        over = self._waiting_tokens + cost - self.settings.max_waiting_tokens
        rate = self._rate() * max(1, sum(worker.alive for worker in self._workers))
        return 1.0 if rate <= 0 else min(max(over / rate, 1.0), 300.0)

    def _promote(self, job: _Job, lane: Lane) -> None:
        """Someone in a faster lane wants a waiting job as well: it moves over."""
        twin = _Job(job.key, job.ids, job.cost, job.shared, job.group, lane, job.caller, job.waiters)
        for ticket, _ in job.waiters:
            ticket._jobs = [twin if other is job else other for other in ticket._jobs]
        job.dropped = True
        self._jobs[job.key] = twin
        self._lanes[lane].push(twin)

    def _cancel(self, ticket: Ticket) -> None:
        with self._lock:
            self._leave(ticket)
        ticket._fail(CancelledError())

    def _leave(self, ticket: Ticket) -> None:
        """Take a ticket out of all its jobs; jobs nobody waits for any more leave the queue."""
        for job in set(ticket._jobs):
            job.waiters = [(other, row) for other, row in job.waiters if other is not ticket]
            if not job.waiters and not job.running and not job.dropped:
                self._drop(job)
        ticket._jobs = []
        if self._is_idle():
            self._idle.notify_all()

    def _drop(self, job: _Job) -> None:
        job.dropped = True
        del self._jobs[job.key]
        self._waiting_tokens -= job.cost
        self._waiting_sequences -= 1

    def _drop_all_waiting(self) -> list[Ticket]:
        tickets = []
        for job in [job for job in self._jobs.values() if not job.running]:
            tickets += [ticket for ticket, _ in job.waiters]
            self._drop(job)
        return list(dict.fromkeys(tickets))

    # -- the worker ---------------------------------------------------------------------------------------------------

    def _start(self, worker: _Worker) -> None:
        number = self._workers.index(worker)
        thread = threading.Thread(target=self._work, args=(worker,), name=f"{self.name}-worker-{number}", daemon=True)
        worker.threads.add(thread)
        thread.start()

    def _work(self, worker: _Worker) -> None:
        try:
            while self._serve_batch(worker):
                pass
        except BaseException as error:
            self._replace(worker, error)

    def _serve_batch(self, worker: _Worker) -> bool:
        """Compute a batch in turn with the worker's other thread, and deliver it; false when the queue is closed."""
        with worker.turn:
            if not self._prepare(worker):
                return False
            batch = self._next_batch(worker)
            if batch is None:
                return False
            began = time.monotonic()
            outcomes = list(self._attempt(worker, batch)) if batch else []
            seconds = time.monotonic() - began
        failed = 0
        for part, outcome in outcomes:
            if isinstance(outcome, ServingError):
                failed += len(part)
                self._fail(part, outcome)
            else:
                self._deliver(part, outcome)
        if batch:
            self._account(worker, batch, seconds, failed)
        return True

    def _prepare(self, worker: _Worker) -> bool:
        """Have the worker running; false when the queue closed meanwhile. What cannot be started is tried again."""
        while not worker.alive:
            try:
                worker.prepare()
            except Exception as error:
                if not self._pause(worker, error):
                    return False
        worker.failed_starts = 0
        return True

    def _pause(self, worker: _Worker, error: Exception) -> bool:
        """After a failed start; false when the queue closed meanwhile. If no worker starts, nobody is kept waiting."""
        refused: list[Ticket] = []
        with self._lock:
            worker.failed_starts += 1
            worker.failure = str(error)
            if all(other.failed_starts >= BROKEN_AFTER for other in self._workers):
                refused = self._drop_all_waiting()
                self._idle.notify_all()
        for ticket in refused:
            ticket._fail(self._broken())
        with self._lock:
            self._wake.wait_for(lambda: self._closed, min(2.0 ** (worker.failed_starts - 1), LONGEST_PAUSE_S))
            return not self._closed

    def _broken(self) -> UnavailableError:
        return UnavailableError(
            f"no worker of {self.name} can be started ({self._workers[0].failure}); the server keeps trying",
            retry_after_s=10.0,
        )

    def _replace(self, worker: _Worker, error: BaseException) -> None:
        """A worker's thread died: its batch is answered with 503, what waits goes on with a new thread."""
        with self._lock:
            worker.threads.discard(threading.current_thread())
            lost, _ = worker.batches.pop(threading.get_ident(), ([], 0.0))
            tickets = self._take_waiters(lost)
            self._restarts += 1
            if not self._closed:
                self._start(worker)
            self._idle.notify_all()
        for ticket in tickets:
            ticket._fail(
                WorkerDiedError(
                    f"the worker was lost while it computed this ({type(error).__name__}); try again, it is replaced",
                    retry_after_s=1.0,
                )
            )

    def _next_batch(self, worker: _Worker) -> list[_Job] | None:
        """Wait for work; ``None`` when the queue is closed and empty, no job when the worker was lost meanwhile."""
        with self._lock:
            while not self._waiting_sequences:
                if self._closed:
                    return None
                if not worker.alive:
                    return []
                self._wake.wait()
            batch = self._choose(worker)
            expired, self._expired = self._expired, []
            now = time.monotonic()
            for job in batch:
                job.running = True
                self._waiting_tokens -= job.cost
                self._waiting_sequences -= 1
                for ticket, _ in job.waiters:
                    if ticket.started_at is None:
                        ticket.started_at = now
            if batch:
                worker.batches[threading.get_ident()] = (batch, now)
            if self._waiting_sequences:
                self._wake.notify()  # another worker may be idle
            if self._is_idle():
                self._idle.notify_all()
        for ticket in expired:
            ticket._fail(
                DeadlineError("the deadline passed while this waited; ask for less at once, or allow more time")
            )
        return batch

    def _still_wanted(self, job: _Job) -> bool:
        """Whether to compute the job whose turn it is; those whose deadline has passed leave it first."""
        if job.dropped or job.running:
            return False
        now = time.monotonic()
        for ticket in {ticket for ticket, _ in job.waiters if ticket.deadline is not None and ticket.deadline <= now}:
            self._leave(ticket)
            self._expired.append(ticket)
        return not job.dropped

    def _choose(self, worker: _Worker) -> list[_Job]:
        """The next batch: queries first, a share for bulk beside them; all of it for bulk where no query waits."""
        budget = self._budget(worker)
        query, bulk = self._lanes[Lane.QUERY], self._lanes[Lane.BULK]
        bulk_waits = bulk.peek() is not None
        if query.peek() is not None:
            self._last_query = time.monotonic()
        if bulk_waits and time.monotonic() - self._last_query < QUERIES_COME_S:
            budget = self._budget(worker, BESIDE_QUERIES)
        picker = _Picker(budget)
        if self._bulk_passed_over:
            # Its next job did not fit beside the queries last time: it goes first, once.
            picker.fill(bulk, int(budget * self.settings.bulk_share))
        picker.fill(query, int(budget * (1 - self.settings.bulk_share)) if bulk_waits else budget)
        # Beside queries bulk gets its share and no more, as the queries wait for the whole batch.
        picker.fill(bulk, picker.used + int(budget * self.settings.bulk_share) if picker.batch else budget)
        self._bulk_passed_over = bulk_waits and not any(job.lane is Lane.BULK for job in picker.batch)
        picker.fill(query, budget)
        return picker.batch

    def _budget(self, worker: _Worker, share: float = 1.0) -> int:
        """Tokens of the next batch: this share of a full one."""
        rate, seconds, most = self._rate(), self.settings.batch_seconds, self.settings.max_batch_tokens
        if seconds is not None and rate > 0:
            most = int(min(max(rate * seconds, MIN_BATCH_TOKENS), most))
        if share < 1:
            most = max(int(most * share), min(most, MIN_BESIDE_QUERIES))
        idle = sum(other.alive and not other.busy for other in self._workers if other is not worker)
        if idle and not self._closed:
            # What waits is shared out, so that no worker stands by while another takes it all.
            most = min(most, max(-(-self._waiting_tokens // (idle + 1)), MIN_BATCH_TOKENS))
        return most

    def _rate(self) -> float:
        """Tokens per second of one worker in the last batches; 0 before the first."""
        return self._rate_tokens / self._rate_seconds if self._rate_seconds > 0 else 0.0

    def _attempt(self, worker: _Worker, batch: list[_Job]) -> Iterator[tuple[list[_Job], FloatArray | ServingError]]:
        """Compute a batch; what fails is halved until the input at fault is alone."""
        parts = [batch]
        while parts:
            part = parts.pop()
            try:
                rows = self._rows(worker, part)
            except WorkerDiedError as error:
                yield [job for lost in (part, *parts) for job in lost], error
                return
            except Exception as error:
                if len(part) > 1:
                    middle = len(part) // 2
                    parts += [part[middle:], part[:middle]]
                else:
                    yield part, error if isinstance(error, ServingError) else _wrap(error)
            else:
                yield from self._guard(worker, part, rows)

    def _rows(self, worker: _Worker, part: list[_Job]) -> FloatArray:
        rows = np.asarray(worker.compute([job.ids for job in part]), dtype=np.float32)
        if rows.ndim not in (1, 2) or len(rows) != len(part):
            raise ComputeError(f"compute gave shape {rows.shape} for {len(part)} sequences; wanted one row each")
        return rows

    def _guard(
        self, worker: _Worker, part: list[_Job], rows: FloatArray
    ) -> Iterator[tuple[list[_Job], FloatArray | ServingError]]:
        """Let finite rows pass; compute the others once more, each on its own, then refuse them."""
        finite = np.asarray(np.isfinite(rows.reshape(len(part), -1)).all(axis=1))
        if finite.all():
            yield part, rows
            return
        yield [job for job, good in zip(part, finite, strict=True) if good], rows[finite]
        for index in np.flatnonzero(~finite):
            with self._lock:
                self._recomputed += 1
            row = self._again(worker, part[index])
            if isinstance(row, ServingError) or np.isfinite(row).all():
                yield [part[index]], row
            else:
                yield (
                    [part[index]],
                    ComputeError(
                        f"the result for an input of {len(part[index].ids)} tokens is not finite, also when computed "
                        "alone; serve the model with dtype float32 or bfloat16"
                    ),
                )

    def _again(self, worker: _Worker, job: _Job) -> FloatArray | ServingError:
        try:
            return self._rows(worker, [job])
        except Exception as error:
            return error if isinstance(error, ServingError) else _wrap(error)

    def _deliver(self, part: list[_Job], rows: FloatArray) -> None:
        finished: list[Ticket] = []
        with self._lock:
            for job, row in zip(part, rows, strict=True):
                self._jobs.pop(job.key, None)
                if self._cache is not None:
                    self._cache.put(job.key, row)
                finished += [ticket for ticket, number in job.waiters if ticket._fill(number, row)]
        for ticket in finished:
            ticket._finish()

    def _fail(self, part: list[_Job], error: ServingError) -> None:
        with self._lock:
            tickets = self._take_waiters(part)
        for ticket in tickets:
            ticket._fail(error)

    def _take_waiters(self, part: list[_Job]) -> list[Ticket]:
        """Everybody who waits for these jobs; their other jobs lose them as well."""
        tickets: dict[Ticket, None] = {}
        for job in part:
            if self._jobs.get(job.key) is job:
                del self._jobs[job.key]
            tickets |= dict.fromkeys(ticket for ticket, _ in job.waiters)
        for ticket in tickets:
            self._leave(ticket)
        return list(tickets)

    def _account(self, worker: _Worker, batch: list[_Job], seconds: float, failed: int) -> None:
        groups = {id(job.group): job.shared for job in batch}
        tokens = sum(job.cost for job in batch) + sum(groups.values())
        with self._lock:
            self._batches += 1
            self._computed_tokens += tokens
            self._rate_tokens = RATE_MEMORY * self._rate_tokens + tokens
            self._rate_seconds = RATE_MEMORY * self._rate_seconds + seconds
            worker.batches.pop(threading.get_ident(), None)
            if self._is_idle():
                self._idle.notify_all()
        if self._on_batch is not None:
            self._on_batch(BatchReport(len(batch), tokens, seconds, failed))


class _Picker:
    """Fills one batch from the lanes within a budget of tokens."""

    def __init__(self, budget: int) -> None:
        self.batch: list[_Job] = []
        self._budget = budget
        self.used = 0
        self._groups: set[int] = set()

    def fill(self, lane: _FairLane, up_to: int) -> None:
        """Take jobs in the lane's order while the batch stays within ``up_to``; the very first job always fits."""
        up_to = min(up_to, self._budget)
        while (job := lane.peek()) is not None:
            cost = job.cost + (0 if id(job.group) in self._groups else job.shared)
            if self.batch and self.used + cost > up_to:
                return
            lane.take(job, cost)
            job.running = True
            self.batch.append(job)
            self.used += cost
            self._groups.add(id(job.group))


def common_prefix(arrays: Sequence[IntArray]) -> int:
    """Tokens at the beginning that all sequences share, short of the shortest by one; 0 for a single sequence."""
    if len(arrays) < 2:
        return 0
    n = min(map(len, arrays)) - 1
    first = arrays[0][:n]
    for other in arrays[1:]:
        different = np.flatnonzero(other[:n] != first[:n])
        if different.size:
            n = int(different[0])
            if n == 0:
                return 0
    return n


def _wrap(error: Exception) -> ComputeError:
    wrapped = ComputeError(f"the model failed on this input: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
