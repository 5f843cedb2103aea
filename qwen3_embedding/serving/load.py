"""How much a server of any make carries: concurrency and text length swept in closed loops, bounded in time and count.

Each worker sends its next request when the last is answered, so ``concurrency`` requests are under way at any time.
Every text is new, so that no cache answers. The client shares the machine with the server when both run on one; then
its own work counts against the server.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import aiohttp
import numpy as np
import orjson

from qwen3_embedding.errors import RemoteError
from qwen3_embedding.serving.anyserver import AnyServer, EmbedRoute, RerankRoute

WORDS = """
alpha beta gamma delta river mountain coffee engine market theory winter garden bread stone letter harbour signal
orchard velvet copper lantern meadow thunder canvas ribbon compass barrel saddle pepper anchor mirror candle
"""
KNEE_SHARE = 0.9
"""The knee is the lowest concurrency that reaches this share of the best rate of its length: beyond it requests wait
longer and hardly more are served."""


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """What is sent, and when it ends.

    Attributes:
        concurrency: requests under way at once, one run each.
        tokens: lengths of a text in tokens, about; one run each.
        per_request: texts of a request (documents, for a reranker).
        seconds: a run sends for this long.
        requests: and so many requests at most.
        total_s: no run begins after this many seconds.
        timeout_s: seconds a request may take.
        seed: of the texts; ``None`` makes new ones each time.
    """

    concurrency: tuple[int, ...] = (1, 4, 16, 64)
    tokens: tuple[int, ...] = (16, 128, 512)
    per_request: int = 1
    seconds: float = 3.0
    requests: int = 1_000
    total_s: float = 120.0
    timeout_s: float = 60.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("concurrency", "tokens"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                raise ValueError(f"{name}={list(values)}; wanted numbers from 1")
        if max(self.concurrency) > 4096:
            raise ValueError(f"concurrency={max(self.concurrency)}; wanted at most 4096")
        for name in ("per_request", "requests", "seconds", "total_s", "timeout_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}; wanted more than 0")


@dataclass(frozen=True, slots=True)
class Run:
    """One length at one concurrency."""

    tokens: int
    """Wanted length of a text."""
    concurrency: int
    requests: int
    """Answered well."""
    errors: dict[str, int]
    """The others, by status or kind of failure."""
    seconds: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    requests_per_s: float
    tokens_per_s: float
    """As the server counts them, prompts included."""
    knee: bool = False


@dataclass(frozen=True)
class Load:
    """All runs against one server."""

    url: str
    route: str
    model: str | None
    kind: str
    per_request: int
    tokens_counted: bool
    """Whether the server told its tokens; otherwise they are the wanted ones."""
    runs: list[Run]
    left_out: list[tuple[int, int]] = field(default_factory=list)
    """(tokens, concurrency) for which no time was left."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measure_load(
    server: AnyServer,
    settings: LoadSettings,
    rerank: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Load:
    """Sweep lengths and concurrencies.

    Args:
        server: whom to ask; its routes are found first.
        settings: see :class:`LoadSettings`.
        rerank: its reranker instead of its embedder; ``None`` takes the embedder if there is one.
        progress: called with the runs done and all of them.

    Raises:
        RemoteError: the server cannot be reached, has no such route, or answers nothing well.
    """
    route: EmbedRoute | RerankRoute | None = None if rerank else server.find_embeddings()
    if route is None and rerank is not False:
        route = server.find_reranking()
    if route is None:
        raise RemoteError(f"{server.url}: no route for {'reranking' if rerank else 'embeddings'} was found")
    return asyncio.run(_Sweep(server, route, settings).all(progress))


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


class _Sweep:
    def __init__(self, server: AnyServer, route: EmbedRoute | RerankRoute, settings: LoadSettings) -> None:
        self.server, self.route, self.settings = server, route, settings
        self.random = random.Random(settings.seed)
        self.words_a_token = 1.0
        self.counted = True

    async def all(self, progress: Callable[[int, int], None] | None) -> Load:
        settings, runs, left_out = self.settings, [], []
        wanted = [(tokens, concurrency) for tokens in settings.tokens for concurrency in settings.concurrency]
        # With 64 requests under way httpx would be the one that is measured: it carries 250 a second, aiohttp 1,800.
        async with aiohttp.ClientSession(
            headers={**self.server.headers, "content-type": "application/json"},
            connector=aiohttp.TCPConnector(limit=max(settings.concurrency)),
            timeout=aiohttp.ClientTimeout(settings.timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=True,
        ) as http:
            await self._calibrate(http)
            until = time.monotonic() + settings.total_s
            for number, (tokens, concurrency) in enumerate(wanted):
                if time.monotonic() >= until:
                    left_out.append((tokens, concurrency))
                else:
                    runs.append(await self._run(http, tokens, concurrency, until))
                if progress is not None:
                    progress(number + 1, len(wanted))
        kind = "embed" if isinstance(self.route, EmbedRoute) else "rerank"
        return Load(
            self.server.url,
            self.route.path,
            self.route.model,
            kind,
            settings.per_request,
            self.counted,
            mark_knees(runs),
            left_out,
        )

    async def _calibrate(self, http: aiohttp.ClientSession) -> None:
        """Learn how many tokens a word is, from two texts of known length."""
        counts = []
        for words in (20, 120):
            answer = await self._post(http, self._body(words, one=True))
            if not answer.is_success:
                text = answer.content[:200].decode(errors="replace")
                raise RemoteError(f"{self.server.url}{self.route.path}: {answer.status}: {text}")
            counts.append(_tokens_of(answer))
        short, long = counts
        if short is None or long is None or long <= short:
            self.counted = False
        else:
            self.words_a_token = 100 / (long - short)

    async def _run(self, http: aiohttp.ClientSession, tokens: int, concurrency: int, until: float) -> Run:
        settings, words = self.settings, max(1, round(tokens * self.words_a_token))
        latencies: list[float] = []
        errors: Counter[str] = Counter()
        sent = told = 0
        began = time.monotonic()
        stop = min(began + settings.seconds, until)

        async def worker() -> None:
            nonlocal sent, told
            while time.monotonic() < stop and sent < settings.requests:
                sent += 1
                body = self._body(words)
                asked = time.monotonic()
                try:
                    answer = await self._post(http, body)
                except (aiohttp.ClientError, TimeoutError) as error:
                    errors[type(error).__name__] += 1
                    await asyncio.sleep(0.05)
                    continue
                if answer.is_success:
                    latencies.append(time.monotonic() - asked)
                    told += _tokens_of(answer) or tokens * settings.per_request
                else:
                    errors[str(answer.status)] += 1
                    await asyncio.sleep(min(_wait_of(answer), max(stop - time.monotonic(), 0.0)))

        await asyncio.gather(*(worker() for _ in range(concurrency)))
        seconds = time.monotonic() - began
        p50, p95, p99 = np.percentile(np.asarray(latencies or [np.nan]) * 1000, [50, 95, 99]).tolist()
        rates = len(latencies) / seconds, told / seconds
        return Run(tokens, concurrency, len(latencies), dict(errors), seconds, p50, p95, p99, *rates)

    def _text(self, words: int) -> str:
        return " ".join(self.random.choices(WORDS.split(), k=words))

    def _body(self, words: int, one: bool = False) -> dict[str, Any]:
        texts = [self._text(words) for _ in range(1 if one else self.settings.per_request)]
        if isinstance(self.route, EmbedRoute):
            more = {"encoding_format": "base64"} if self.route.dialect == "openai" else {}
            return self.route.body(texts, **more)
        return self.route.body(self._text(6), texts)

    async def _post(self, http: aiohttp.ClientSession, body: dict[str, Any]) -> _Answer:
        async with http.post(self.server.url + self.route.path, data=orjson.dumps(body)) as answer:
            return _Answer(answer.status, answer.headers, await answer.read())


def mark_knees(runs: Sequence[Run]) -> list[Run]:
    """The runs, with the knee of each length marked: the lowest concurrency near the best rate of tokens."""
    marked = list(runs)
    for tokens in {run.tokens for run in runs}:
        mine = sorted((run.concurrency, place) for place, run in enumerate(runs) if run.tokens == tokens)
        most = max(runs[place].tokens_per_s for _, place in mine)
        near = [place for _, place in mine if most > 0 and runs[place].tokens_per_s >= KNEE_SHARE * most]
        if near:
            marked[near[0]] = replace(runs[near[0]], knee=True)
    return marked


def _tokens_of(answer: _Answer) -> int | None:
    """Tokens of a request, as the server tells them in its headers (TEI) or in ``usage`` (the others)."""
    said = answer.headers.get("x-compute-tokens", "")
    if said.isdigit():
        return int(said)
    try:
        body = orjson.loads(answer.content)
    except ValueError:
        return None
    usage = body.get("usage") if isinstance(body, dict) else None
    count = usage.get("total_tokens", usage.get("prompt_tokens")) if isinstance(usage, dict) else None
    return count if isinstance(count, int) else None


def _wait_of(answer: _Answer) -> float:
    said = answer.headers.get("retry-after", "")
    return min(float(said), 5.0) if said.isdigit() else 0.05
