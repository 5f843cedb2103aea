"""What a language model is asked, what it answers, and anything that can answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from qwen3_embedding.errors import RemoteError
from qwen3_embedding.types import TextGenerator


class UnavailableError(RemoteError):
    """A request got no answer, also after all retries; it may be asked again later."""


class RefusedError(RemoteError):
    """The server will not serve this one request (too long, filtered); asking again would not help."""


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a model."""

    prompt: str
    system: str
    seed: int
    schema: Mapping[str, Any]
    name: str
    """Of the template, for the server's structured output."""
    key: str
    """The same for the same question: sent as ``X-Request-Id`` and ``Idempotency-Key``."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer."""

    text: str
    input_tokens: int
    output_tokens: int
    estimated: bool = False
    """The server did not count the tokens; the numbers are :func:`estimate_tokens`."""
    truncated: bool = False
    """The answer stopped at the token limit."""
    tries: int = 1
    """HTTP requests that it took."""
    seconds: float = 0.0


class LanguageModel(Protocol):
    """Answers requests, many at a time."""

    @property
    def name(self) -> str:
        """Name of the model, for provenance."""
        ...

    async def complete(self, request: Request) -> Completion:
        """The answer to one request.

        Raises:
            UnavailableError: no answer after all retries.
            RefusedError: this request will never be answered.
            RemoteError: no request will be answered (wrong key, wrong address, unknown model).
        """
        ...


class OneAtATime:
    """A :class:`LanguageModel` out of any :class:`~qwen3_embedding.types.TextGenerator`, in a thread of its own."""

    def __init__(self, generator: TextGenerator) -> None:
        self._generator = generator
        self._free = asyncio.Lock()

    @property
    def name(self) -> str:
        """The generator's name."""
        return self._generator.name

    async def complete(self, request: Request) -> Completion:
        """The generator's answer; the tokens are estimates."""
        async with self._free:
            start = time.monotonic()
            text = await asyncio.to_thread(
                self._generator.generate, request.prompt, system=request.system, seed=request.seed
            )
        asked = estimate_tokens(request.system) + estimate_tokens(request.prompt)
        return Completion(text, asked, estimate_tokens(text), estimated=True, seconds=time.monotonic() - start)


def estimate_tokens(text: str) -> int:
    """About how many tokens a text has: four ASCII characters to a token, five others to three.

    Within a third of Qwen3's own count for running text in most languages; for planning, not for billing.
    """
    ascii_count = len(text.encode("ascii", "ignore"))
    return round(ascii_count / 4 + (len(text) - ascii_count) * 0.6)
