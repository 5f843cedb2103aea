"""Vectors and scores kept on disk, so that an evaluation that was killed or is repeated computes nothing twice."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from qwen3_embedding.errors import DataError, NumericalError
from qwen3_embedding.retrieval.search import unit_vectors
from qwen3_embedding.types import Encoder, FloatArray, Precision, Scorer

Embed = Callable[[list[str]], FloatArray]

_PROBE = "One text, to see whether this is still the same model. 同一个模型吗？"
_SAME_MODEL = 0.98

_LOOKUP = 500
"""Keys asked for in one statement: under SQLite's limit of 999 variables in old builds."""


class ArrayCache:
    """Float32 arrays under 32-byte keys in one SQLite file; what :meth:`put` has returned from outlives the process."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._database = sqlite3.connect(path, timeout=60)
        try:
            # the log is not forced to the disk at every step: what a power cut may lose can be computed again
            self._run("PRAGMA journal_mode = WAL")
            self._run("PRAGMA synchronous = NORMAL")
            self._run("CREATE TABLE IF NOT EXISTS arrays (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")
        except DataError:
            self._database.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def get(self, keys: Sequence[bytes]) -> dict[bytes, FloatArray]:
        """Those of the keys that are there.

        Raises:
            DataError: the file is no such cache, or torn.
        """
        found: dict[bytes, FloatArray] = {}
        for start in range(0, len(keys), _LOOKUP):
            some = keys[start : start + _LOOKUP]
            marks = ",".join("?" * len(some))
            for key, value in self._run(f"SELECT key, value FROM arrays WHERE key IN ({marks})", some):
                found[key] = np.frombuffer(value, dtype=np.float32)
        return found

    def put(self, keys: Sequence[bytes], values: Sequence[FloatArray]) -> None:
        """Keep arrays."""
        rows = [(k, np.ascontiguousarray(v, dtype=np.float32).tobytes()) for k, v in zip(keys, values, strict=True)]
        with self._database:
            self._database.executemany("INSERT OR REPLACE INTO arrays VALUES (?, ?)", rows)

    def _run(self, statement: str, values: Sequence[bytes] = ()) -> list[tuple[bytes, bytes]]:
        try:
            return self._database.execute(statement, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise DataError(f"{self.path}: no usable cache: {error}; delete it, it can be computed again") from None


@dataclass(slots=True)
class Stopwatch:
    """What was computed (not taken from the cache) and how long that took."""

    items: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float | None:
        """Items a second; ``None`` where nothing was computed."""
        return self.items / self.seconds if self.items and self.seconds else None


class CachedEncoder:
    """An encoder whose vectors are kept, by model, side, instruction, size and text."""

    def __init__(self, encoder: Encoder, cache: ArrayCache, batch_size: int = 2048) -> None:
        self.encoder, self.cache, self.batch_size = encoder, cache, batch_size
        self.identity = identity(encoder)
        self.queries, self.documents = Stopwatch(), Stopwatch()

    @property
    def name(self) -> str:
        """The encoder's name."""
        return self.encoder.name

    @property
    def fingerprint(self) -> str | None:
        """The encoder's, or ``None`` where it is known by its name alone."""
        return None if self.identity.startswith("name:") else self.identity

    @property
    def dimensions(self) -> int:
        """The encoder's size."""
        return self.encoder.dimensions

    def embed_queries(
        self,
        texts: Sequence[str],
        instruction: str | None = None,
        dimensions: int | None = None,
        precision: Precision = "float32",
        progress: bool = False,
    ) -> FloatArray:
        """As the encoder; float32 alone."""
        size = _size(self.encoder, dimensions, precision)
        prefix = f"query\0{size}\0{'default' if instruction is None else 'task:' + instruction}"

        def embed(missing: list[str]) -> FloatArray:
            found = self.encoder.embed_queries(missing, instruction, dimensions=size, progress=progress)
            return unit_vectors(found, len(missing), size, self.name)

        return self._through(texts, prefix, size, embed, self.queries)

    def embed_documents(
        self,
        texts: Sequence[str],
        dimensions: int | None = None,
        precision: Precision = "float32",
        progress: bool = False,
    ) -> FloatArray:
        """As the encoder; float32 alone."""
        size = _size(self.encoder, dimensions, precision)

        def embed(missing: list[str]) -> FloatArray:
            return self._documents(missing, size, progress)

        return self._through(texts, f"document\0{size}", size, embed, self.documents)

    def embed_passages(self, texts: Sequence[str], dimensions: int | None = None) -> FloatArray:
        """(P, dimensions) as :meth:`embed_documents`, and nothing is kept: they are many more than documents."""
        started = time.perf_counter()
        found = self._documents(texts, _size(self.encoder, dimensions, "float32"))
        self.documents.seconds += time.perf_counter() - started
        return found

    def _documents(self, texts: Sequence[str], size: int, progress: bool = False) -> FloatArray:
        found = self.encoder.embed_documents(texts, dimensions=size, progress=progress)
        return unit_vectors(found, len(texts), size, self.name)

    def _through(self, texts: Sequence[str], prefix: str, size: int, embed: Embed, watch: Stopwatch) -> FloatArray:
        keys = [_key(self.identity, prefix, text) for text in texts]
        found = self.cache.get(list(dict.fromkeys(keys)))
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        for chunk in _chunks(list(missing), self.batch_size):
            started = time.perf_counter()
            vectors_ND = embed([missing[key] for key in chunk])
            watch.seconds += time.perf_counter() - started
            watch.items += len(chunk)
            self.cache.put(chunk, list(vectors_ND))
            found.update(zip(chunk, vectors_ND, strict=True))
        if not keys:
            return np.empty((0, size), dtype=np.float32)
        return np.stack([found[key] for key in keys])


class CachedScorer:
    """A scorer whose scores are kept, by model, instruction, query and document."""

    def __init__(self, scorer: Scorer, cache: ArrayCache) -> None:
        self.scorer, self.cache = scorer, cache
        self.identity = identity(scorer)
        self.pairs = Stopwatch()

    @property
    def name(self) -> str:
        """The scorer's name."""
        return self.scorer.name

    def score(self, query: str, documents: Sequence[str], instruction: str | None = None) -> FloatArray:
        """As the scorer."""
        task = "default" if instruction is None else "task:" + instruction
        keys = [_key(self.identity, f"score\0{task}\0{query}", document) for document in documents]
        found = self.cache.get(list(dict.fromkeys(keys)))
        missing = {key: document for key, document in zip(keys, documents, strict=True) if key not in found}
        if missing:
            started = time.perf_counter()
            scores_M = np.asarray(self.scorer.score(query, list(missing.values()), instruction=instruction))
            self.pairs.seconds += time.perf_counter() - started
            self.pairs.items += len(missing)
            _check_scores(scores_M, len(missing), self.name)
            values = [np.array([score], dtype=np.float32) for score in scores_M]
            self.cache.put(list(missing), values)
            found.update(zip(missing, values, strict=True))
        return np.array([found[key][0] for key in keys], dtype=np.float32)

    def score_pairs(
        self, queries: Sequence[str], documents: Sequence[str], instruction: str | None = None
    ) -> FloatArray:
        """As the scorer."""
        scores = [
            self.score(query, [document], instruction)[0] for query, document in zip(queries, documents, strict=True)
        ]
        return np.array(scores, dtype=np.float32)


def check_same_model(encoder: Encoder, cache: ArrayCache) -> None:
    """Refuse an encoder known by its name alone (a server, say) that gives other vectors than those in the cache.

    Raises:
        ValueError: another model under the same name.
    """
    if not identity(encoder).startswith("name:"):
        return
    key = _key(identity(encoder), "probe", _PROBE)
    vector_D = unit_vectors(encoder.embed_documents([_PROBE]), 1, encoder.dimensions, encoder.name)[0]
    kept = cache.get([key]).get(key)
    if kept is None:
        cache.put([key], [vector_D])
    elif kept.shape != vector_D.shape or float(kept @ vector_D) < _SAME_MODEL:
        raise ValueError(
            f"{encoder.name!r} gives other vectors than when {cache.path} was filled; it is another model now: "
            "use another cache and another folder for the results"
        )


def identity(model: Encoder | Scorer) -> str:
    """What a model is known by: the hash of its files where it has one, else its name."""
    found = getattr(model, "fingerprint", None)
    return found if isinstance(found, str) else f"name:{model.name}"


def _size(encoder: Encoder, dimensions: int | None, precision: Precision) -> int:
    if precision != "float32":
        raise ValueError(f"precision={precision!r}; the cache keeps float32 vectors alone")
    return encoder.dimensions if dimensions is None else dimensions


def _check_scores(scores_M: FloatArray, count: int, name: str) -> None:
    if scores_M.shape != (count,):
        raise ValueError(f"scorer {name!r} gave scores of shape {scores_M.shape} for {count} documents")
    if not np.isfinite(scores_M).all():
        raise NumericalError(f"scorer {name!r} gave scores that are not finite; load it at a wider dtype")


def _key(model: str, prefix: str, text: str) -> bytes:
    return hashlib.sha256(f"{model}\0{prefix}\0{text}".encode()).digest()


def _chunks(items: list[bytes], size: int) -> Iterator[list[bytes]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
