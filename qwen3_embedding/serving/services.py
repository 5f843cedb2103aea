"""A model behind its queue: texts in, rows out, with what it took and what was cut."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Executor
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from qwen3_embedding.inputs.prompts import (
    END_OF_TEXT,
    RERANKER_PREFIX,
    RERANKER_SUFFIX,
    query_prompt,
    reranker_body,
    reranker_head,
)
from qwen3_embedding.inputs.tokenizer import Encoded
from qwen3_embedding.serving.auth import Caller
from qwen3_embedding.serving.engines import Engine
from qwen3_embedding.serving.errors import BadRequestError, DeadlineError, OverloadedError, TooLargeError, TooLongError
from qwen3_embedding.serving.loops import PerLoop
from qwen3_embedding.serving.prompts import Prompt
from qwen3_embedding.serving.queue import Lane, Ticket, TokenQueue
from qwen3_embedding.serving.settings import Truncation
from qwen3_embedding.types import FloatArray

CHARACTERS_PER_TOKEN = 250
"""No text of more characters a token is turned into tokens: it is cut (or refused) before, as its end cannot count."""

INLINE_CHARACTERS = 2_000
"""Up to here tokenising is cheaper than handing it to another thread."""

INLINE_SEQUENCES = 64
"""Up to here queueing is."""


@dataclass(frozen=True, slots=True)
class Limit:
    """How long an input may be, and what happens beyond."""

    policy: Truncation
    max_tokens: int | None = None
    """``None``: the model's own."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A text that lost its end."""

    index: int
    tokens: int
    """Length before the cut."""
    kept: int


@dataclass(slots=True)
class Work:
    """One request's computation: who asks and how urgently, and, filled on the way, what it took."""

    caller: Caller
    deadline: float | None = None
    lane: Lane | None = None
    model: str = ""
    compute_type: str = "cpu"
    kind: str = "embed"
    """What text-embeddings-inference calls it: ``embed`` or ``predict``."""
    items: int = 0
    characters: int = 0
    tokens: int = 0
    lengths: list[int] = field(default_factory=list)
    tokenization_s: float = 0.0
    queue_s: float = 0.0
    inference_s: float = 0.0
    cuts: list[Cut] = field(default_factory=list)
    steps: list[tuple[str, float, float]] = field(default_factory=list)
    """Name, beginning and end (``time.monotonic()``) of what was done, for traces."""
    rows_at: float = 0.0
    """When the last row was there."""

    def step(self, name: str, began: float, ended: float) -> None:
        """Something was done."""
        self.steps.append((name, began, ended))
        self.rows_at = ended


class ModelService:
    """What both kinds of models have in common."""

    kind = "embed"

    def __init__(self, engine: Engine, name: str, queue: TokenQueue, threads: Executor) -> None:
        self.engine = engine
        self.name = name
        self.tokenizer = engine.tokenizer
        self.max_tokens = engine.facts.max_tokens
        self.queue = queue
        self.created = int(time.time())
        self._threads = threads

    @property
    def dtype(self) -> str:
        """Type of the weights."""
        return self.engine.facts.dtype

    @property
    def device(self) -> str:
        """Where the weights are."""
        return self.engine.facts.device

    def _begin(self, work: Work) -> None:
        work.model, work.compute_type, work.kind = self.name, self.engine.facts.device_type, self.kind

    async def _rows(self, work: Work, encode: Callable[[], Encoded], characters: int, limit: Limit) -> FloatArray:
        """Tokenise, check, queue, wait."""
        began = time.monotonic()
        if characters <= INLINE_CHARACTERS:
            encoded = _encode(encode)
        else:
            encoded = await asyncio.get_running_loop().run_in_executor(self._threads, _encode, encode)
        encoded_at = time.monotonic()
        work.tokenization_s += encoded_at - began
        work.step("tokenise", began, encoded_at)
        self._begin(work)
        work.characters += characters
        self._note_cuts(work, encoded, limit)
        work.items += len(encoded.ids)
        lengths = [len(ids) for ids in encoded.ids]
        work.lengths += lengths
        work.tokens += sum(lengths)
        work.caller.charge(sum(lengths))
        ticket = await self._submit(encoded.ids, work)
        rows = await _wait(ticket, work.deadline)
        work.queue_s += ticket.queue_seconds
        work.inference_s += ticket.compute_seconds
        computed_from = ticket.submitted_at + ticket.queue_seconds
        work.step("queue", ticket.submitted_at, computed_from)
        work.step("compute", computed_from, computed_from + ticket.compute_seconds)
        return rows

    async def _submit(self, sequences: list[list[int]], work: Work) -> Ticket:
        """Queue the sequences; many of them beside the event loop, which has short requests to answer meanwhile."""
        submit = partial(self.queue.submit, sequences, lane=work.lane, deadline=work.deadline, caller=work.caller.name)
        if len(sequences) <= INLINE_SEQUENCES:
            return submit()
        submitting = asyncio.get_running_loop().run_in_executor(self._threads, submit)
        try:
            return await asyncio.shield(submitting)
        except asyncio.CancelledError:
            submitting.add_done_callback(_withdraw)
            raise

    def _note_cuts(self, work: Work, encoded: Encoded, limit: Limit) -> None:
        most = self._most(limit)
        for index, lost in enumerate(encoded.cut_tokens):
            if lost:
                kept = len(encoded.ids[index])
                if limit.policy == "error":
                    raise too_long(index, kept + lost, most)
                work.cuts.append(Cut(work.items + index, kept + lost, kept))

    def _most(self, limit: Limit) -> int:
        return self.max_tokens if limit.max_tokens is None else min(limit.max_tokens, self.max_tokens)

    def _bounded(self, texts: Sequence[str], limit: Limit) -> list[str]:
        """The texts, none so long that tokenising it would be waste."""
        most = self._most(limit) * CHARACTERS_PER_TOKEN
        if limit.policy == "error":
            for index, text in enumerate(texts):
                if len(text) > most:
                    raise BadRequestError(
                        f"text {index} has {len(text)} characters, more than {self._most(limit)} tokens can hold; "
                        "split it, or ask for truncation"
                    )
        return [text if len(text) <= most else text[:most] for text in texts]


class EmbedderService(ModelService):
    """An embedder behind its queue."""

    def __init__(self, engine: Engine, name: str, queue: TokenQueue, threads: Executor) -> None:
        super().__init__(engine, name, queue, threads)
        self._one_at_a_time = asyncio.Lock()
        self._token_waiters = 0

    @property
    def dimensions(self) -> int:
        """Full vector size D."""
        return self.engine.facts.dimensions

    async def embed(self, texts: Sequence[str], prompt: Prompt, limit: Limit, work: Work) -> FloatArray:
        """(N, D) pooled rows, not yet normalised, in the order of the texts."""
        bounded = self._bounded(texts, limit)
        return await self._rows(work, lambda: self._encode(bounded, prompt, limit), sum(map(len, bounded)), limit)

    async def embed_every_token(
        self, texts: Sequence[str], prompt: Prompt, limit: Limit, work: Work
    ) -> list[FloatArray]:
        """Hidden states (T, D) of every token of each text, the end token included.

        They are as many rows as tokens, so they do not go through the queue of rows; one request at a time runs
        beside it.
        """
        bounded = self._bounded(texts, limit)
        encoded = await asyncio.get_running_loop().run_in_executor(
            self._threads, _encode, lambda: self._encode(bounded, prompt, limit)
        )
        self._note_cuts(work, encoded, limit)
        self._begin(work)
        work.items = len(encoded.ids)
        work.tokens = sum(map(len, encoded.ids))
        if work.tokens > max(self.queue.settings.max_batch_tokens, self.max_tokens):
            raise TooLargeError(f"{work.tokens} token vectors were asked for; ask for fewer texts at once")
        if self._token_waiters >= 16:
            raise OverloadedError("Model is overloaded: 16 requests for token vectors wait already", retry_after_s=1.0)
        work.caller.charge(work.tokens)
        self._token_waiters += 1
        began = time.monotonic()
        try:
            async with self._one_at_a_time:
                return await asyncio.to_thread(self.engine.hidden_states, encoded.ids)
        finally:
            self._token_waiters -= 1
            work.inference_s += time.monotonic() - began
            work.step("compute", began, time.monotonic())

    def _encode(self, texts: list[str], prompt: Prompt, limit: Limit) -> Encoded:
        most = self._most(limit)
        if prompt.role == "query":
            return self.tokenizer.encode_queries(texts, prompt.instruction, most)
        return self.tokenizer.encode_documents(texts, most)

    def rendered(self, text: str, prompt: Prompt) -> str:
        """Exactly what the model reads, before any cut."""
        return (query_prompt(text, prompt.instruction) if prompt.role == "query" else text) + END_OF_TEXT


class RerankerService(ModelService):
    """A reranker behind its queue."""

    kind = "predict"

    async def logits(
        self, queries: Sequence[str], documents: Sequence[str], instruction: str | None, limit: Limit, work: Work
    ) -> FloatArray:
        """(N,) log-odds of "yes" for the pairs."""
        texts = self._bounded(documents, limit)
        characters = sum(map(len, texts)) + sum(map(len, set(queries)))
        most = self._most(limit)
        return await self._rows(
            work, lambda: self.tokenizer.encode_pairs(queries, texts, instruction, most), characters, limit
        )

    def limit_per_document(self, query: str, instruction: str | None, tokens: int, limit: Limit) -> Limit:
        """The limit of a whole prompt that leaves ``tokens`` to the document; going over it is cut, as asked for."""
        head = self.tokenizer.token_ids([reranker_head(query, instruction)])[0]
        around = len(self.tokenizer.reranker_prefix_ids) + len(self.tokenizer.reranker_suffix_ids)
        return Limit("end", min(len(head) + around + tokens, self._most(limit)))

    def rendered(self, query: str, document: str, instruction: str | None) -> str:
        """Exactly what the model reads, before any cut."""
        return RERANKER_PREFIX + reranker_body(query, document, instruction) + RERANKER_SUFFIX


def unit(rows_ND: FloatArray, dimensions: int | None = None) -> FloatArray:
    """Cut to the first ``dimensions`` components, then normalise."""
    short = rows_ND if dimensions is None else rows_ND[:, :dimensions]
    norms = np.linalg.norm(short, axis=-1, keepdims=True)
    return np.asarray(short / np.maximum(norms, 1e-12), dtype=np.float32)


def sigmoid(logits: FloatArray) -> FloatArray:
    """Probability of "yes", computed in double and rounded once."""
    return np.asarray(1.0 / (1.0 + np.exp(-logits.astype(np.float64))), dtype=np.float32)


def too_long(index: int, tokens: int, most: int) -> TooLongError:
    """The refusal of a text beyond the model's context."""
    return TooLongError(
        f"text {index} must have at most {most} tokens, prompt and end token included. Given: {tokens}; split it, or "
        'ask for truncation ("truncation": "end")'
    )


def _encode(encode: Callable[[], Encoded]) -> Encoded:
    try:
        return encode()
    except (ValueError, TypeError) as error:
        raise BadRequestError(str(error)) from error


async def _wait(ticket: Ticket, deadline: float | None) -> FloatArray:
    """The ticket's rows; whoever stops waiting takes the ticket out of the queue."""
    waiter = Mailbox.of_running_loop().delivered(ticket)
    timer = None
    if deadline is not None:
        timer = waiter.get_loop().call_later(max(deadline - time.monotonic(), 0.0), _too_late, waiter)
    try:
        return await waiter
    finally:
        if timer is not None:
            timer.cancel()
        if ticket.finished_at is None:
            ticket.cancel()


def _withdraw(submitted: asyncio.Future[Ticket]) -> None:
    """Who submitted left meanwhile."""
    if not submitted.cancelled() and submitted.exception() is None:
        submitted.result().cancel()


def _too_late(waiter: asyncio.Future[FloatArray]) -> None:
    if not waiter.done():
        waiter.set_exception(
            DeadlineError("the result was not there in time; ask for less at once, or allow more time")
        )


class Mailbox(PerLoop):
    """Brings finished tickets from the queues' threads to an event loop: one wake-up for all of a batch.

    A wake-up for each would cost more than a short text takes.
    """

    def __init__(self) -> None:
        self._loop = weakref.ref(asyncio.get_running_loop())
        self._lock = threading.Lock()
        self._arrived: list[tuple[asyncio.Future[FloatArray], Ticket]] = []

    def delivered(self, ticket: Ticket) -> asyncio.Future[FloatArray]:
        """The ticket's rows or error, for the event loop."""
        waiter: asyncio.Future[FloatArray] = asyncio.get_running_loop().create_future()
        ticket.when_done(partial(self._arrive, waiter))
        return waiter

    def _arrive(self, waiter: asyncio.Future[FloatArray], finished: Ticket) -> None:
        with self._lock:
            self._arrived.append((waiter, finished))
            if len(self._arrived) > 1:
                return  # it has been woken already
        loop = self._loop()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            if loop is not None:
                loop.call_soon_threadsafe(self._hand_over)

    def _hand_over(self) -> None:
        with self._lock:
            arrived, self._arrived = self._arrived, []
        for waiter, finished in arrived:
            outcome = finished.outcome
            if waiter.done() or outcome is None:
                continue
            if isinstance(outcome, CancelledError):
                waiter.cancel()
            elif isinstance(outcome, BaseException):
                waiter.set_exception(outcome)
            else:
                waiter.set_result(outcome)
