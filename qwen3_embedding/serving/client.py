"""An asynchronous client for servers that speak OpenAI's embeddings and Cohere's reranking: batches, retries, progress.

``RemoteEmbedder`` and ``RemoteReranker`` put it behind the protocols ``Encoder`` and ``Scorer``, so that evaluation,
mining and corpus encoding run against a server as they do against a model.
"""

from __future__ import annotations

import asyncio
import base64
import email.utils
import random
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import numpy as np

from qwen3_embedding.errors import RemoteError
from qwen3_embedding.inference.precision import to_precision
from qwen3_embedding.inputs.prompts import check_text, check_texts
from qwen3_embedding.types import FloatArray, Precision, Vectors

T = TypeVar("T")
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
Progress = Callable[[int, int], None]
"""Called with the texts done and the texts asked for."""


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """How the client asks.

    Attributes:
        batch_texts: texts of one request at most.
        batch_characters: characters of one request at most; a longer text goes alone.
        concurrency: requests under way at once.
        retries: how often a request is tried again after a refusal, a server's fault or a lost connection.
        timeout_s: seconds a request may take.
        longest_wait_s: a server that asks to wait longer than this is given up.
    """

    batch_texts: int = 64
    batch_characters: int = 100_000
    concurrency: int = 8
    retries: int = 6
    timeout_s: float = 120.0
    longest_wait_s: float = 120.0

    def __post_init__(self) -> None:
        for name in ("batch_texts", "batch_characters", "concurrency"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; wanted at least 1")
        if self.retries < 0:
            raise ValueError(f"retries={self.retries}; wanted 0 or more")


class Client:
    """A connection pool to one server. Use it as an asynchronous context manager.

    Args:
        url: base of the server, without ``/v1``.
        model: name of the model there; ``None`` is its first.
        api_key: sent as a bearer token.
        settings: see :class:`ClientSettings`.
    """

    def __init__(
        self, url: str, model: str | None = None, api_key: str | None = None, settings: ClientSettings | None = None
    ) -> None:
        self.model = model
        self.settings = settings or ClientSettings()
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx.Limits(max_connections=self.settings.concurrency)
        timeout = httpx.Timeout(self.settings.timeout_s, pool=None)
        self._http = httpx.AsyncClient(
            base_url=url.rstrip("/").removesuffix("/v1"), headers=headers, timeout=timeout, limits=limits
        )
        self._gate = asyncio.Semaphore(self.settings.concurrency)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def embed_queries(
        self,
        texts: Sequence[str],
        instruction: str | None = None,
        dimensions: int | None = None,
        progress: Progress | None = None,
    ) -> FloatArray:
        """(N, D) unit vectors of queries, in the caller's order; ``instruction`` as for ``Embedder.embed_queries``."""
        asked: dict[str, Any] = {"input_type": "query", "dimensions": dimensions}
        return await self._embed(texts, asked | ({} if instruction is None else {"instruction": instruction}), progress)

    async def embed_documents(
        self, texts: Sequence[str], dimensions: int | None = None, progress: Progress | None = None
    ) -> FloatArray:
        """(N, D) unit vectors of documents, in the caller's order."""
        return await self._embed(texts, {"dimensions": dimensions}, progress)

    async def score(
        self, query: str, documents: Sequence[str], instruction: str | None = None, progress: Progress | None = None
    ) -> FloatArray:
        """(N,) relevance of the documents to the query, in the caller's order."""
        question, texts = check_text(query, "query"), check_texts(documents, "documents")

        async def ask(batch: list[str]) -> FloatArray:
            body = self._body(query=question, documents=batch, instruction=instruction)
            results = (await self.post("/v1/rerank", body))["results"]
            scores = np.full(len(batch), np.nan, dtype=np.float32)
            for result in results:
                scores[result["index"]] = result["relevance_score"]
            return _checked(scores, len(batch))

        return await self._in_batches(texts, ask, progress)

    async def get(self, path: str) -> Any:
        """The JSON answer to a GET."""
        return (await self._try(lambda: self._http.get(path))).json()

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON answer to a POST, tried again where that can help.

        Raises:
            RemoteError: the server refused, failed or could not be reached, also after the retries.
        """
        async with self._gate:
            return (await self._try(lambda: self._http.post(path, json=body))).json()

    async def _embed(self, texts: Sequence[str], asked: dict[str, Any], progress: Progress | None) -> FloatArray:
        async def ask(batch: list[str]) -> FloatArray:
            answer = await self.post("/v1/embeddings", self._body(input=batch, encoding_format="base64", **asked))
            rows = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in answer["data"]]
            order = np.argsort([item["index"] for item in answer["data"]], kind="stable")
            return _checked(np.stack(rows)[order] if rows else np.empty((0, 0), np.float32), len(batch))

        return await self._in_batches(check_texts(texts), ask, progress)

    async def _in_batches(
        self, texts: list[str], ask: Callable[[list[str]], Awaitable[FloatArray]], progress: Progress | None
    ) -> FloatArray:
        """Equal texts are asked for once; long ones first, so that no straggler is last."""
        distinct = sorted(dict.fromkeys(texts), key=len, reverse=True)
        place = {text: number for number, text in enumerate(distinct)}
        counts = np.bincount([place[text] for text in texts], minlength=len(distinct)) if texts else np.empty(0)
        batches = self._cut(distinct)
        done = 0

        async def one(batch: range) -> FloatArray:
            nonlocal done
            rows = await ask([distinct[number] for number in batch])
            done += int(counts[batch.start : batch.stop].sum())
            if progress is not None:
                progress(done, len(texts))
            return rows

        if not batches:
            return np.empty((0,), dtype=np.float32)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(batch)) for batch in batches]
        rows = np.concatenate([task.result() for task in tasks])
        return np.asarray(rows[[place[text] for text in texts]], dtype=np.float32)

    def _cut(self, texts: list[str]) -> list[range]:
        batches, start, characters = [], 0, 0
        for number, text in enumerate(texts):
            full = (
                number - start >= self.settings.batch_texts or characters + len(text) > self.settings.batch_characters
            )
            if number > start and full:
                batches.append(range(start, number))
                start, characters = number, 0
            characters += len(text)
        return [*batches, range(start, len(texts))] if texts else []

    def _body(self, **fields: Any) -> dict[str, Any]:
        return {name: value for name, value in fields.items() if value is not None} | (
            {"model": self.model} if self.model else {}
        )

    async def _try(self, ask: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
        for attempt in range(self.settings.retries + 1):
            last = attempt == self.settings.retries
            try:
                answer = await ask()
            except httpx.TransportError as error:
                if last:
                    raise RemoteError(f"{self._http.base_url}: {type(error).__name__}: {error}") from error
                await asyncio.sleep(_backoff(attempt))
                continue
            if answer.is_success:
                return answer
            if last or answer.status_code not in RETRIED:
                raise RemoteError(f"{answer.request.url}: {answer.status_code}: {answer.text[:500]}")
            wait = _asked_wait(answer)
            if wait is not None and wait > self.settings.longest_wait_s:
                raise RemoteError(f"{answer.request.url}: asks to wait {wait:.0f} s: {answer.text[:500]}")
            # A little more than asked for, so that not everybody comes back in the same moment.
            await asyncio.sleep(_backoff(attempt) if wait is None else wait * random.uniform(1.0, 1.1))
        raise AssertionError("unreachable")  # pragma: no cover


class _Remote:
    """Runs a client's coroutines from synchronous code, on a loop of its own."""

    def __init__(
        self, url: str, model: str | None = None, api_key: str | None = None, settings: ClientSettings | None = None
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="remote", daemon=True)
        self._thread.start()
        self.client = Client(url, model, api_key, settings)
        self._url = url

    @property
    def name(self) -> str:
        """Name of the model, or the server's address where none was named."""
        return self.client.model or self._url

    def close(self) -> None:
        """Close the connections and stop the thread."""
        if self._loop.is_closed():
            return
        self._wait(self.client.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result()
        except BaseExceptionGroup as group:  # of the first batch that failed
            raise group.exceptions[0] from None

    def _asked(self, work: Callable[[Progress | None], Coroutine[Any, Any, T]], title: str | None) -> T:
        if title is None:
            return self._wait(work(None))
        from rich.console import Console
        from rich.progress import Progress as Bars

        with Bars(console=Console(stderr=True)) as bars:
            task = bars.add_task(title, total=None)
            return self._wait(work(lambda done, total: bars.update(task, completed=done, total=total)))


class RemoteEmbedder(_Remote):
    """An ``Encoder`` that is a server: see :class:`Client` for the arguments."""

    _dimensions: int | None = None

    @property
    def dimensions(self) -> int:
        """Full vector size D; asked from the server once, by embedding a letter."""
        if self._dimensions is None:
            self._dimensions = int(self.embed_documents(["a"]).shape[1])
        return self._dimensions

    def embed_queries(
        self,
        texts: Sequence[str],
        instruction: str | None = None,
        dimensions: int | None = None,
        precision: Precision = "float32",
        progress: bool = False,
    ) -> Vectors:
        """(N, dimensions) vectors of queries."""
        title = "queries" if progress else None
        vectors = self._asked(lambda tell: self.client.embed_queries(texts, instruction, dimensions, tell), title)
        return self._shaped(vectors, dimensions, precision)

    def embed_documents(
        self,
        texts: Sequence[str],
        dimensions: int | None = None,
        precision: Precision = "float32",
        progress: bool = False,
    ) -> Vectors:
        """(N, dimensions) vectors of documents."""
        title = "documents" if progress else None
        vectors = self._asked(lambda tell: self.client.embed_documents(texts, dimensions, tell), title)
        return self._shaped(vectors, dimensions, precision)

    def _shaped(self, vectors: FloatArray, dimensions: int | None, precision: Precision) -> Vectors:
        whole = vectors if vectors.ndim == 2 else np.empty((0, dimensions or self.dimensions), dtype=np.float32)
        return to_precision(whole, precision)


class RemoteReranker(_Remote):
    """A ``Scorer`` that is a server: see :class:`Client` for the arguments."""

    def score(
        self, query: str, documents: Sequence[str], instruction: str | None = None, progress: bool = False
    ) -> FloatArray:
        """(N,) relevance in [0, 1], in the caller's order."""
        return self._asked(
            lambda tell: self.client.score(query, documents, instruction, tell), "pairs" if progress else None
        )

    def score_pairs(
        self, queries: Sequence[str], documents: Sequence[str], instruction: str | None = None, progress: bool = False
    ) -> FloatArray:
        """(N,) relevance of the pairs; documents of one query go together."""
        questions, texts = check_texts(queries, "queries"), check_texts(documents, "documents")
        if len(questions) != len(texts):
            raise ValueError(f"{len(questions)} queries and {len(texts)} documents; wanted pairs")
        places: dict[str, list[int]] = {}
        for place, question in enumerate(questions):
            places.setdefault(question, []).append(place)
        scores = np.empty(len(texts), dtype=np.float32)

        async def all_of_them(tell: Progress | None) -> None:
            done = 0

            async def one(question: str, mine: list[int]) -> None:
                nonlocal done
                scores[mine] = await self.client.score(question, [texts[place] for place in mine], instruction)
                done += len(mine)
                if tell is not None:
                    tell(done, len(texts))

            async with asyncio.TaskGroup() as group:
                for question, mine in places.items():
                    group.create_task(one(question, mine))

        self._asked(all_of_them, "pairs" if progress else None)
        return scores


def _checked(rows: FloatArray, wanted: int) -> FloatArray:
    if len(rows) != wanted or not np.isfinite(rows).all():
        raise RemoteError(f"the server gave {len(rows)} usable rows for {wanted} texts")
    return rows


def _backoff(attempt: int) -> float:
    return float(min(0.25 * 2**attempt, 20.0) * random.uniform(0.5, 1.0))


def _asked_wait(answer: httpx.Response) -> float | None:
    """Seconds of ``Retry-After``, which is a number or a date."""
    value = answer.headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except ValueError:
        return None
