"""The bundled pair: it loads by name without a network, is whole, and other libraries read the same folder."""

from __future__ import annotations

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from qwen3_embedding import Embedder, Reranker
from qwen3_embedding.inference.source import ASSETS, BUNDLED
from qwen3_embedding.inference.verify import verify

TEXTS = ["gravity pulls", "重力", "def f(x): return x", "Où est la gare ?"]


def test_every_bundled_model_passes_verification() -> None:
    for name in BUNDLED:
        assert [check for check in verify(name, offline=True) if check.outcome == "fail"] == []


def test_the_pair_is_small() -> None:
    files = [file for name in BUNDLED for file in (ASSETS / name).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 64e6


def test_sentence_transformers_reads_the_same_vectors() -> None:
    embedder = Embedder.from_pretrained("nano-embedding", offline=True)
    peer = SentenceTransformer(str(ASSETS / "nano-embedding"), device="cpu", model_kwargs={"dtype": torch.float32})
    assert (embedder.embed_documents(TEXTS) * peer.encode(TEXTS)).sum(1).min() >= 0.99999
    queries = (embedder.embed_queries(TEXTS) * peer.encode(TEXTS, prompt_name="query")).sum(1)
    assert queries.min() >= 0.99999


def test_the_pair_prefers_the_document_with_the_words_asked_for() -> None:
    documents = ["Newton described gravity as a force between two bodies.", "Bread is baked from flour and water."]
    embedder = Embedder.from_pretrained("nano-embedding", offline=True)
    scores = embedder.similarity(embedder.embed_queries(["what is gravity"]), embedder.embed_documents(documents))[0]
    assert scores[0] > scores[1]
    reranked = Reranker.from_pretrained("nano-reranker", offline=True).score("what is gravity", documents)
    assert reranked[0] > reranked[1]
    assert np.isfinite(reranked).all()
