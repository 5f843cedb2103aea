"""When the next request may go out: rate limits, and waits that a server asks for."""

from __future__ import annotations

import asyncio
import time


class Pace:
    """Spaces requests evenly: no bursts, so that a minute's budget is not spent in its first second."""

    def __init__(self, requests_per_minute: float | None = None, tokens_per_minute: float | None = None) -> None:
        self._request_seconds = 60 / requests_per_minute if requests_per_minute else 0.0
        self._token_seconds = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._next = 0.0
        self._held_until = 0.0

    async def wait(self, tokens: int) -> None:
        """Return when a request of about so many tokens may go out."""
        now = time.monotonic()
        slot = max(now, self._next)
        self._next = slot + max(self._request_seconds, tokens * self._token_seconds)
        if slot > now:
            await asyncio.sleep(slot - now)
        while self._held_until > time.monotonic():
            await asyncio.sleep(self._held_until - time.monotonic())

    def hold(self, seconds: float) -> None:
        """Let nothing out for so long: the server asked for it."""
        self._held_until = max(self._held_until, time.monotonic() + seconds)
