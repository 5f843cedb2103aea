"""Many requests at once: a language model that is asked in batches, as clusters and bulk services want it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from qwen3_embedding.errors import RemoteError
from qwen3_embedding.synthesis.completion import Completion, Request, UnavailableError

Engine = Callable[[Sequence[Request]], Sequence[Completion | None]]
"""Requests to answers, in their order; ``None`` for one that got no answer."""


class Batched:
    """A :class:`~qwen3_embedding.synthesis.completion.LanguageModel` over an engine that takes batches.

    Requests are gathered until there are ``size`` of them, or none has come for ``settle`` seconds.  A unit's second
    question follows its first answer, so with as many units at a time as a batch is large, questions of both stages
    share batches, and the ledger is as up to date as the last batch.

    Args:
        name: of the model, for provenance.
        engine: answers; runs in a thread of its own, one batch at a time.
        size: of a batch.
        settle: seconds.
    """

    def __init__(self, name: str, engine: Engine, size: int, settle: float = 0.2) -> None:
        if size < 1:
            raise ValueError(f"size={size}; wanted at least 1")
        self._name, self._engine, self._size, self._settle = name, engine, size, settle
        self._waiting: list[tuple[Request, asyncio.Future[Completion]]] = []
        self._serving: asyncio.Task[None] | None = None
        self._came = asyncio.Event()

    @property
    def name(self) -> str:
        """The model's name."""
        return self._name

    async def complete(self, request: Request) -> Completion:
        """The answer, when its batch was answered."""
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        self._came.set()
        if self._serving is None or self._serving.done():
            self._serving = asyncio.create_task(self._serve())
        return await future

    async def _serve(self) -> None:
        """Batch after batch, until nobody waits."""
        while self._waiting:
            await self._gather()
            batch, self._waiting = self._waiting[: self._size], self._waiting[self._size :]
            try:
                answers = await asyncio.to_thread(self._engine, [request for request, _ in batch])
                if len(answers) != len(batch):
                    raise RemoteError(f"{self._name}: {len(answers)} answers to {len(batch)} requests")
            except Exception as error:
                # Nobody would see it here: it belongs to those who wait.
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (request, future), answer in zip(batch, answers, strict=True):
                if future.done():
                    continue
                if answer is None:
                    future.set_exception(UnavailableError(f"{self._name}: no answer to {request.key}"))
                else:
                    future.set_result(answer)

    async def _gather(self) -> None:
        """Until a batch is full or nothing more comes."""
        while len(self._waiting) < self._size:
            self._came.clear()
            try:
                await asyncio.wait_for(self._came.wait(), self._settle)
            except TimeoutError:
                return
