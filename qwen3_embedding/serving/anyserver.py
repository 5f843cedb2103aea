"""Asking a server of any make: which dialects it speaks, and vectors and scores through each of them.

OpenAI's and TEI's embeddings; Cohere's, Jina's and TEI's reranking; vLLM's score. What is sent is what every server of
that dialect takes; a query's prompt is written by the caller, as most servers add none.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import httpx
import numpy as np

from qwen3_embedding.errors import RemoteError
from qwen3_embedding.types import FloatArray

EmbedDialect = Literal["openai", "tei"]
RerankDialect = Literal["rerank", "tei", "score"]
Encoding = Literal["float", "base64"]


class Refused(RemoteError):
    """The server answered with an error, or with something that is not of the dialect."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


RETRIES, LONGEST_WAIT_S = 4, 10.0
"""A busy server (429, 503) is asked again, after the seconds it says."""


@dataclass(frozen=True, slots=True)
class EmbedRoute:
    """Where and how to ask for vectors."""

    path: str
    dialect: EmbedDialect
    model: str | None = None

    def body(self, texts: Sequence[str], **more: Any) -> dict[str, Any]:
        """A request for vectors of the texts."""
        name = {"model": self.model} if self.model else {}
        return {"input" if self.dialect == "openai" else "inputs": list(texts)} | name | more


@dataclass(frozen=True, slots=True)
class RerankRoute:
    """Where and how to ask for scores."""

    path: str
    dialect: RerankDialect
    model: str | None = None

    def body(self, query: str, documents: Sequence[str], **more: Any) -> dict[str, Any]:
        """A request for scores of the documents."""
        names = {"rerank": ("query", "documents"), "tei": ("query", "texts"), "score": ("text_1", "text_2")}
        ask, found = names[self.dialect]
        return {ask: query, found: list(documents)} | ({"model": self.model} if self.model else {}) | more


EMBED_ROUTES: tuple[tuple[str, EmbedDialect], ...] = (
    ("/v1/embeddings", "openai"),
    ("/embeddings", "openai"),
    ("/embed", "tei"),
)
RERANK_ROUTES: tuple[tuple[str, RerankDialect], ...] = (
    ("/v1/rerank", "rerank"),
    ("/v2/rerank", "rerank"),
    ("/rerank", "rerank"),
    ("/rerank", "tei"),
    ("/score", "score"),
    ("/v1/score", "score"),
)


@dataclass(frozen=True, slots=True)
class Scored:
    """An answer to a reranking request, as it came."""

    indices: list[int]
    scores: list[float]

    def in_order(self, count: int) -> FloatArray:
        """(count,) scores in the order asked; NaN where one is missing."""
        scores = np.full(count, np.nan, dtype=np.float32)
        for index, score in zip(self.indices, self.scores, strict=True):
            if 0 <= index < count:
                scores[index] = score
        return scores


class AnyServer:
    """Connections to one server. Use it as a context manager.

    Args:
        url: its address; a path before the routes (``/v1`` aside) is kept.
        api_key: sent as a bearer token.
        model: the model's name there; ``None`` takes what the server lists.
        timeout_s: seconds that a request may take.
    """

    def __init__(self, url: str, api_key: str | None = None, model: str | None = None, timeout_s: float = 60.0) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url={url!r}; wanted an address that begins with http:// or https://")
        self.url = url.rstrip("/").removesuffix("/v1")
        self.model = model
        self.headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(headers=self.headers, timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str) -> Any:
        """The JSON answer to a GET.

        Raises:
            Refused: an error, or not JSON.
            RemoteError: the server cannot be reached.
        """
        return self._json(lambda: self._http.get(self.url + path))

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON answer to a POST; raises as :meth:`get`."""
        return self._json(lambda: self._http.post(self.url + path, json=body))

    def _json(self, ask: Callable[[], httpx.Response]) -> Any:
        for attempt in range(RETRIES + 1):
            try:
                answer = ask()
            except httpx.TransportError as error:
                raise RemoteError(f"{self.url}: {type(error).__name__}: {error}") from error
            if answer.status_code not in (429, 503) or attempt == RETRIES:
                break
            said = answer.headers.get("retry-after", "")
            time.sleep(min(float(said) if said.isdigit() else 0.5 * 2**attempt, LONGEST_WAIT_S))
        if answer.status_code in (401, 403):
            raise RemoteError(f"{self.url}: {answer.status_code}: the server wants an API key; give --api-key")
        if not answer.is_success:
            raise Refused(f"{answer.status_code}: {answer.text[:200]}", answer.status_code)
        try:
            return answer.json()
        except ValueError:
            raise Refused(f"the answer is not JSON: {answer.text[:100]!r}") from None

    def models(self) -> list[str]:
        """Names that the server lists, or that TEI's ``/info`` says; empty where it tells none."""
        for path, names in (("/v1/models", _listed), ("/info", _informed)):
            try:
                found = names(self.get(path))
            except Refused:
                continue
            if found:
                return found
        return []

    def find_embeddings(self) -> EmbedRoute | None:
        """The first route that gives vectors."""
        for path, dialect in EMBED_ROUTES:
            for model in self._names(dialect == "tei"):
                route = EmbedRoute(path, dialect, model)
                try:
                    self.embed(route, ["a"])
                except Refused as error:
                    if _no_such_route(error):
                        break
                else:
                    return route
        return None

    def find_reranking(self) -> RerankRoute | None:
        """The first route that gives scores."""
        for path, dialect in RERANK_ROUTES:
            for model in self._names(dialect == "tei"):
                route = RerankRoute(path, dialect, model)
                try:
                    self.score(route, "a", ["b", "c"])
                except Refused as error:
                    if _no_such_route(error):
                        break
                else:
                    return route
        return None

    def _names(self, may_be_unsaid: bool) -> list[str | None]:
        if self.model is not None:
            return [self.model]
        named: list[str | None] = [*self.models()]
        return [None, *named] if may_be_unsaid or not named else [*named, None]

    def embed(
        self, route: EmbedRoute, texts: Sequence[str], encoding: Encoding | None = None, **more: Any
    ) -> FloatArray:
        """(N, D) vectors, in the order asked.

        Raises:
            Refused: an error, or an answer that is not of the dialect.
        """
        said = {"encoding_format": encoding} if encoding and route.dialect == "openai" else {}
        answer = self.post(route.path, route.body(texts, **said, **more))
        try:
            rows = answer if route.dialect == "tei" else _in_place(answer["data"])
            vectors = np.asarray([_vector(row) for row in rows], dtype=np.float32)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise Refused(f"the answer is not one of embeddings ({type(error).__name__}: {error})") from None
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise Refused(f"the answer has shape {vectors.shape} for {len(texts)} texts")
        return vectors

    def score(self, route: RerankRoute, query: str, documents: Sequence[str], **more: Any) -> Scored:
        """Indices and scores as the server orders them.

        Raises:
            Refused: an error, or an answer that is not of the dialect.
        """
        answer = self.post(route.path, route.body(query, documents, **more))
        try:
            if route.dialect == "score":
                rows = answer["data"]
            else:
                rows = answer if isinstance(answer, list) else answer["results"]
            key = "relevance_score" if route.dialect == "rerank" and not isinstance(answer, list) else "score"
            return Scored([int(row["index"]) for row in rows], [float(row[key]) for row in rows])
        except (KeyError, TypeError, ValueError) as error:
            raise Refused(f"the answer is not one of scores ({type(error).__name__}: {error})") from None

    def scores(self, route: RerankRoute, query: str, documents: Sequence[str], **more: Any) -> FloatArray:
        """(N,) scores in the order asked; NaN where the server gave none."""
        return self.score(route, query, documents, **more).in_order(len(documents))


def _listed(answer: Any) -> list[str]:
    rows = answer.get("data", []) if isinstance(answer, dict) else []
    return [row["id"] for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]


def _informed(answer: Any) -> list[str]:
    name = answer.get("model_id") if isinstance(answer, dict) else None
    return [name] if isinstance(name, str) else []


def _no_such_route(error: Refused) -> bool:
    """404 is also said of models; frameworks say of routes no more than "Not Found"."""
    if error.status in (405, 501):
        return True
    said = str(error).removeprefix("404: ").strip().lower()
    return error.status == 404 and (not said or ("not found" in said and "model" not in said))


def _in_place(rows: list[dict[str, Any]]) -> list[Any]:
    ordered: list[Any] = [None] * len(rows)
    for row in rows:
        ordered[row["index"]] = row["embedding"]
    return ordered


def _vector(row: Any) -> Any:
    if isinstance(row, str):
        raw = base64.b64decode(row)
        if len(raw) % 4:
            raise ValueError(f"base64 of {len(raw)} bytes is not float32")
        return np.frombuffer(raw, dtype="<f4")
    return row
