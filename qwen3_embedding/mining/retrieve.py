"""Exact top-k over vectors that are read from disk block by block."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from qwen3_embedding.types import FloatArray, IntArray


def top_k(
    queries_QD: FloatArray,
    blocks: Iterable[tuple[IntArray, FloatArray]],
    k: int,
    device: str = "cpu",
    ceilings_Q: FloatArray | None = None,
) -> tuple[FloatArray, IntArray]:
    """The k documents with the highest inner product for each query; equal scores in order of id.

    Args:
        queries_QD: unit vectors.
        blocks: ids and unit vectors of documents, each document in one block.
        k: how many; fewer where there are fewer documents.
        device: where to compute.
        ceilings_Q: take only documents that score no higher than this.

    Returns:
        scores (Q, k) float32 and ids (Q, k) int64, best first. Where too few documents are below a ceiling, the last
        scores are -inf.
    """
    queries = torch.from_numpy(queries_QD).to(device)
    scores = torch.empty((len(queries), 0), device=device)
    ids = torch.empty((len(queries), 0), dtype=torch.int64, device=device)
    ceilings = None if ceilings_Q is None else torch.from_numpy(ceilings_Q).to(device)[:, None]
    for block_ids, vectors in blocks:
        found = queries @ torch.from_numpy(np.ascontiguousarray(vectors)).to(device).T
        if ceilings is not None:
            found.masked_fill_(found > ceilings, -torch.inf)
        best, places = found.topk(min(k, found.shape[1]), dim=1)
        new_ids = torch.from_numpy(block_ids).to(device)[places]
        scores, ids = _best(torch.cat([scores, best], 1), torch.cat([ids, new_ids], 1), k)
    return scores.cpu().numpy(), ids.cpu().numpy()


def _best(scores: torch.Tensor, ids: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    by_id = ids.argsort(dim=1, stable=True)
    scores, ids = scores.gather(1, by_id), ids.gather(1, by_id)
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return scores.gather(1, order), ids.gather(1, order)
