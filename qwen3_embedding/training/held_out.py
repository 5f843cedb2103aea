"""Retrieval on held-out records while training: every query against the first positives of all of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from qwen3_embedding.training import grad_cache
from qwen3_embedding.training.batches import Ids
from qwen3_embedding.training.config import RunSettings, TrainingSettings
from qwen3_embedding.training.token_store import TokenStore, open_store
from qwen3_embedding.types import IntArray


class HeldOut:
    """The held-out sources of a run as token ids."""

    def __init__(self, settings: TrainingSettings, end_id: int) -> None:
        self.settings, self.end_id = settings, end_id
        data, held_out = settings.data, settings.held_out
        longest = max(data.max_query_tokens, data.max_document_tokens)
        self.stores: dict[str, TokenStore] = {}
        for source in held_out.sources if held_out else ():
            store = open_store(source, settings.model, data.cache, settings.run.seed, longest)
            self.stores[source.path.name.split(".")[0]] = store

    def measure(self, encode: grad_cache.Encode, run: RunSettings) -> dict[str, dict[str, float]]:
        """MRR@10 and recall at 1 and 10 of each source; equal documents are one, any known positive counts."""
        return {name: ranking_metrics(self._ranks(store, encode, run)) for name, store in self.stores.items()}

    def _ranks(self, store: TokenStore, encode: grad_cache.Encode, run: RunSettings) -> IntArray:
        """(n,) place of the best known positive of each query, from 1."""
        data = self.settings.data
        documents = {store.hash(store.positives(r)[0]): store.positives(r)[0] for r in range(len(store))}
        place = {key: number for number, key in enumerate(documents)}
        queries = [self._cut(store.ids(store.query(r)), data.max_query_tokens) for r in range(len(store))]
        texts = [self._cut(store.ids(text), data.max_document_tokens) for text in documents.values()]
        vectors = unit_vectors(encode, [*queries, *texts], run)
        ranks = []
        for begin, scores in _blocks(vectors[: len(queries)], vectors[len(queries) :]):
            for row, of_row in enumerate(scores, start=begin):
                known = [place[key] for key in map(store.hash, store.positives(row)) if key in place]
                ranks.append(int((of_row >= of_row[known].max()).sum()))  # ties count against it
        return np.array(ranks)

    def _cut(self, ids: Ids, limit: int) -> Ids:
        return np.append(ids[: limit - 1], np.int32(self.end_id))


def _blocks(queries: Tensor, documents: Tensor, rows: int = 512) -> Iterator[tuple[int, Tensor]]:
    for begin in range(0, len(queries), rows):
        yield begin, queries[begin : begin + rows] @ documents.T


def unit_vectors(encode: grad_cache.Encode, sequences: list[Ids], run: RunSettings) -> Tensor:
    """(n, D) vectors in the caller's order, without gradients."""
    chunks = grad_cache.forward_chunks(encode, sequences, grad_cache.Budget(run.chunk_tokens, 0))
    return nn.functional.normalize(grad_cache.gather(chunks), dim=-1)


def ranking_metrics(ranks: IntArray) -> dict[str, float]:
    """Mean reciprocal rank at 10, recall at 1 and 10, from places that count from 1."""
    found = np.where(ranks <= 10, 1.0 / ranks, 0.0)
    return {
        "mrr@10": round(float(found.mean()), 5),
        "recall@1": round(float((ranks <= 1).mean()), 5),
        "recall@10": round(float((ranks <= 10).mean()), 5),
    }


def candidate_ranks(log_odds_QC: Tensor, present_QC: Tensor) -> IntArray:
    """(Q,) place of the positive, in column 0, among the candidates of each query; ties count against it."""
    scores = log_odds_QC.masked_fill(~present_QC.to(log_odds_QC.device), -torch.inf)
    places: IntArray = (scores >= scores[:, :1]).sum(dim=1).cpu().numpy()
    return places
