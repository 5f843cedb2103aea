"""Any server that speaks the OpenAI chat protocol (vLLM, SGLang, Ollama, llama.cpp, DashScope, OpenAI …)."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Literal

from qwen3_embedding.errors import RemoteError
from qwen3_embedding.optional import require
from qwen3_embedding.synthesis.completion import (
    Completion,
    RefusedError,
    Request,
    UnavailableError,
    estimate_tokens,
)
from qwen3_embedding.synthesis.draws import Draws
from qwen3_embedding.synthesis.pace import Pace

Structured = Literal["auto", "json_schema", "json_object", "none"]
_WEAKER: dict[Structured, Structured] = {"json_schema": "json_object", "json_object": "none"}
_ENCODER = json.JSONEncoder(separators=(",", ":"))
_RETRIED = frozenset({408, 409, 425, 429})
_TOO_LONG = re.compile(r"context (?:length|window|size)|too long|too many tokens|prompt length", re.IGNORECASE)
_FATAL = frozenset({401, 402, 403, 404, 405})


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """Where the model is and how it is asked."""

    model: str
    url: str = "http://127.0.0.1:8000/v1"
    """Up to and without ``/chat/completions``."""
    temperature: float = 0.8
    top_p: float = 0.95
    max_tokens: int = 2048
    """Of one answer."""
    extra: dict[str, Any] | None = None
    """Further fields of the request body, for example ``chat_template_kwargs = {enable_thinking = false}``."""
    structured: Structured = "auto"
    """Let the server hold the answer to the schema; ``auto`` asks for the strongest form that the server takes."""
    concurrency: int = 32
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    timeout: float = 120.0
    """Seconds for one request from end to end."""
    retries: int = 6
    backoff: float = 1.0
    """Seconds before the first retry; doubled for every further one, with jitter."""
    backoff_limit: float = 60.0
    input_price: float = 0.0
    """Of a million tokens, in any currency."""
    output_price: float = 0.0
    proxy: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_tokens", "concurrency"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted 1 or more")
        for name in ("retries", "backoff", "backoff_limit", "temperature", "input_price", "output_price"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted 0 or more")
        for name in ("timeout", "requests_per_minute", "tokens_per_minute"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}; wanted more than 0")
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url is {self.url!r}; wanted http://… or https://…")

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """Price of so many tokens."""
        return (input_tokens * self.input_price + output_tokens * self.output_price) / 1e6


class _TryAgain(Exception):
    """One try failed in a way that another may not."""

    def __init__(self, reason: str, wait: float | None = None, free: bool = False) -> None:
        super().__init__(reason)
        self.wait = wait
        self.free = free
        """Does not count as a try: the request itself was changed."""


class ChatClient:
    """A :class:`~qwen3_embedding.synthesis.completion.LanguageModel` behind HTTP. An async context manager.

    Retries what may go better (no connection, time-out, 408, 409, 425, 429, 5xx, a body that is not the protocol's)
    with doubling waits; a ``Retry-After`` holds back all requests.  Never retries what will not (400, 413, 422).
    """

    def __init__(self, settings: EndpointSettings, api_key: str | None = None) -> None:
        self._http = require("aiohttp", extra="synthesis")
        self._settings = settings
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._pace = Pace(settings.requests_per_minute, settings.tokens_per_minute)
        self._mode: Structured = "json_schema" if settings.structured == "auto" else settings.structured
        self._settled = settings.structured != "auto"
        self._session: Any = None
        self._address = f"{settings.url.rstrip('/')}/chat/completions"
        self.retried: dict[str, int] = {}
        """How often a request was repeated, by reason."""

    @property
    def name(self) -> str:
        """The model's name at the server."""
        return self._settings.model

    @property
    def structured(self) -> str:
        """The form of structured output that the server takes; with a question mark as long as it is not known."""
        return self._mode if self._settled else f"{self._mode}?"

    async def __aenter__(self) -> ChatClient:
        http = self._http
        self._session = http.ClientSession(
            connector=http.TCPConnector(limit=self._settings.concurrency, keepalive_timeout=30),
            timeout=http.ClientTimeout(total=self._settings.timeout),
            headers=self._headers,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def complete(self, request: Request) -> Completion:
        """The answer to one request; see :class:`~qwen3_embedding.synthesis.completion.LanguageModel`."""
        if self._session is None:
            raise RuntimeError("the client is not open; use it in 'async with ChatClient(...) as client:'")
        failures, requests = 0, 0
        while True:
            requests += 1
            try:
                return await self._try(request, requests)
            except _TryAgain as trouble:
                reason = str(trouble)
                failures += not trouble.free
                if failures > self._settings.retries:
                    raise UnavailableError(
                        f"{self._settings.url}: {reason} ({requests} requests); the unit stays open and is asked again "
                        "when the command is repeated"
                    ) from trouble
                self.retried[reason] = self.retried.get(reason, 0) + 1
                if not trouble.free:
                    await asyncio.sleep(self._wait(request.key, failures) if trouble.wait is None else trouble.wait)

    def _wait(self, key: str, failures: int) -> float:
        longest = min(self._settings.backoff_limit, self._settings.backoff * 2.0 ** (failures - 1))
        return longest * (0.5 + 0.5 * Draws(key).uniform(f"backoff/{failures}"))

    async def _try(self, request: Request, number: int) -> Completion:
        # Counting signs takes an eighth of a request's work, and mostly the server counts.
        await self._pace.wait(_estimate(request) if self._settings.tokens_per_minute else 0)
        mode, start = self._mode, time.monotonic()
        body = _ENCODER.encode(self._body(request, mode)).encode()
        headers = {"X-Request-Id": request.key, "Idempotency-Key": request.key}
        try:
            async with self._session.post(
                self._address, data=body, headers=headers, proxy=self._settings.proxy
            ) as response:
                status, content, answered = response.status, await response.read(), response.headers
        except TimeoutError:
            raise _TryAgain("timeout") from None
        except (self._http.ClientError, OSError) as error:
            raise _TryAgain(f"connection: {type(error).__name__}") from None
        if status != 200:
            self._refuse(status, content, answered, mode)
        completion = _completion(content, request, number, time.monotonic() - start)
        self._settled = True
        return completion

    def _body(self, request: Request, mode: Structured) -> dict[str, Any]:
        settings = self._settings
        body: dict[str, Any] = {
            "model": settings.model,
            "messages": [{"role": "system", "content": request.system}, {"role": "user", "content": request.prompt}],
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_tokens": settings.max_tokens,
            "seed": request.seed,
            **(settings.extra or {}),
        }
        if mode == "json_schema":
            shape = {"name": request.name, "strict": True, "schema": request.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": shape}
        elif mode == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body

    def _refuse(self, status: int, content: bytes, headers: Mapping[str, str], mode: Structured) -> None:
        """Raise what a status means."""
        said = content[:300].decode("utf-8", "replace").strip()
        if status in _RETRIED or status >= 500:
            wait = _retry_after(headers.get("Retry-After"), self._settings.backoff_limit)
            if wait is not None:
                self._pace.hold(wait)
            raise _TryAgain(f"status {status}", wait)
        if status in _FATAL:
            raise RemoteError(f"{self._settings.url}: status {status}: {said}; check url, model and API key")
        if _TOO_LONG.search(said):
            raise RefusedError(f"status {status}: {said}")
        if mode != self._mode:
            raise _TryAgain(f"no {mode}", free=True)
        if not self._settled and mode in _WEAKER:
            self._mode = _WEAKER[mode]
            raise _TryAgain(f"no {mode}", free=True)
        if not self._settled:
            self._mode = "json_schema"
        raise RefusedError(f"status {status}: {said}")


def _estimate(request: Request) -> int:
    return estimate_tokens(request.system) + estimate_tokens(request.prompt)


def _completion(content: bytes, request: Request, tries: int, seconds: float) -> Completion:
    """The answer out of a response body; a body that is not the protocol's is worth another try."""
    try:
        body = json.loads(content)
        choice = body["choices"][0]
        text = choice["message"].get("content") or ""
        if not isinstance(text, str):
            raise TypeError("content is no string")
        usage = body.get("usage") or {}
        counted = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise _TryAgain("malformed body") from None
    sure = [count for count in counted if isinstance(count, int) and not isinstance(count, bool)]
    estimated = len(sure) < 2
    input_tokens, output_tokens = (_estimate(request), estimate_tokens(text)) if estimated else sure
    truncated = choice.get("finish_reason") == "length"
    return Completion(text, input_tokens, output_tokens, estimated, truncated, tries, seconds)


def _retry_after(value: str | None, limit: float) -> float | None:
    """Seconds out of a ``Retry-After`` (a number or a date), at most ``limit``; ``None`` where there is none."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(0.0, seconds), limit) if seconds == seconds else None
