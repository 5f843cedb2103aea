"""The exact twin of the index, in memory, for tests and small collections."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from qwen3_embedding.retrieval.analysis import analyze
from qwen3_embedding.retrieval.bm25 import Bm25
from qwen3_embedding.retrieval.documents import Document, DocumentLike, check_texts, to_documents
from qwen3_embedding.retrieval.filters import Condition, matches
from qwen3_embedding.retrieval.fusion import Ranking
from qwen3_embedding.retrieval.search import DenseQuery, Searchable, top_ranking, unit_vectors
from qwen3_embedding.types import Encoder, FloatArray, Scorer


class ExactIndex(Searchable):
    """Documents, their vectors and a BM25, all in memory; the same search as :class:`SearchIndex`.

    Args:
        embedder: any encoder; ``None`` for text search alone.
        reranker: any scorer.
        dimensions: size of the stored vectors (cut, then normalised); ``None`` the encoder's own.
        k1: BM25's saturation. The defaults are those of Anserini and of the published BEIR baselines.
        b: BM25's length normalisation.
    """

    def __init__(
        self,
        embedder: Encoder | None,
        reranker: Scorer | None = None,
        dimensions: int | None = None,
        k1: float = 0.9,
        b: float = 0.4,
    ) -> None:
        self.embedder, self.reranker = embedder, reranker
        self.k1, self.b = k1, b
        self._dimensions = dimensions if dimensions is not None else embedder.dimensions if embedder else 0
        self._documents: dict[str, Document] = {}
        self._vectors: dict[str, FloatArray] = {}
        self._tokens: dict[str, list[str]] = {}
        self._next_id = 0
        self._bm25: Bm25 | None = None
        self._matrix_ND: FloatArray | None = None

    def __len__(self) -> int:
        return len(self._documents)

    @property
    def stored_dimensions(self) -> int:
        """Size of the vectors."""
        return self._dimensions

    def add(self, documents: Iterable[DocumentLike]) -> list[str]:
        """Add documents and return their ids; see :meth:`SearchIndex.add`."""
        checked = to_documents(documents, self._next_id)
        known = [document.id for document in checked if document.id in self._documents]
        if known:
            raise ValueError(f"{len(known)} ids are in the index already, such as {known[0]!r}; use upsert to replace")
        return self._put(checked)

    def upsert(self, documents: Iterable[DocumentLike]) -> list[str]:
        """Add documents, those of known ids in place of the old."""
        return self._put(to_documents(documents, self._next_id))

    def delete(self, ids: Sequence[str]) -> int:
        """Remove documents; how many were there."""
        known = [identity for identity in dict.fromkeys(check_texts(ids, "ids")) if identity in self._documents]
        for identity in known:
            del self._documents[identity], self._tokens[identity]
            self._vectors.pop(identity, None)
        self._forget()
        return len(known)

    def fetch(self, ids: Sequence[str]) -> dict[str, Document]:
        """The documents of these ids."""
        return {identity: self._documents[identity] for identity in ids if identity in self._documents}

    def retrieve_dense(self, vectors_QD: FloatArray, query: DenseQuery) -> list[Ranking]:
        """Cosine similarity to every document."""
        if not self._documents:
            return [[] for _ in vectors_QD]
        with query.timing.spent("candidates"):
            if self._matrix_ND is None:
                self._matrix_ND = np.stack(list(self._vectors.values()))
            masked = self._masked(query.conditions)
            ids = list(self._documents)
            return [
                top_ranking(ids, np.where(masked, -np.inf, self._matrix_ND @ vector_D).astype(np.float32), query.limit)
                for vector_D in vectors_QD
            ]

    def retrieve_text(self, queries: Sequence[str], limit: int, conditions: list[Condition]) -> list[Ranking]:
        """BM25 of every document."""
        if not self._documents:
            return [[] for _ in queries]
        if self._bm25 is None:
            self._bm25 = Bm25(list(self._tokens.values()), self.k1, self.b)
        masked = self._masked(conditions)
        ids = list(self._documents)
        return [
            top_ranking(ids, np.where(masked, 0, self._bm25.scores(analyze(query))), limit, above=0.0)
            for query in queries
        ]

    def _put(self, documents: list[Document]) -> list[str]:
        if self.embedder is not None and documents:
            vectors = self.embedder.embed_documents([d.text for d in documents], dimensions=self._dimensions)
            vectors_ND = unit_vectors(vectors, len(documents), self._dimensions, self.embedder.name)
            self._vectors.update(zip((d.id for d in documents), vectors_ND, strict=True))
        for document in documents:
            self._documents[document.id] = document
            self._tokens[document.id] = analyze(document.text)
        self._next_id += len(documents)
        self._forget()
        return [document.id for document in documents]

    def _masked(self, conditions: list[Condition]) -> np.ndarray:
        return np.array(
            [not matches(document.metadata, conditions) for document in self._documents.values()], dtype=bool
        )

    def _forget(self) -> None:
        self._bm25 = self._matrix_ND = None
