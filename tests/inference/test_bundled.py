"""The bundled pair: it loads by name without a network, is whole, and other libraries read the same folder."""

from __future__ import annotations

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer

from qwen3_embedding import Embedder, Reranker
from qwen3_embedding.inference.source import ASSETS, BUNDLED
from qwen3_embedding.inference.verify import verify
from qwen3_embedding.inputs.prompts import RERANKER_PREFIX, RERANKER_SUFFIX, reranker_body
from qwen3_embedding.types import DEFAULT_INSTRUCTION

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


def test_the_model_cards_code_gives_the_same_scores() -> None:
    """The published way: the pair's ids as the tokenizer gives them, and the template's ends added to them."""
    folder = ASSETS / "nano-reranker"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ends = [tokenizer.encode(end, add_special_tokens=False) for end in (RERANKER_PREFIX, RERANKER_SUFFIX)]
    answers = [tokenizer.convert_tokens_to_ids(word) for word in ("no", "yes")]
    wanted = []
    for text in TEXTS:
        ids = tokenizer(reranker_body("what is gravity", text, DEFAULT_INSTRUCTION))["input_ids"]
        with torch.inference_mode():
            logits = model(torch.tensor([[*ends[0], *ids, *ends[1]]])).logits[0, -1]
        wanted.append(float(logits[answers].softmax(0)[1]))
    ours = Reranker.from_pretrained("nano-reranker", offline=True).score("what is gravity", TEXTS)
    assert np.abs(ours - wanted).max() <= 1e-5


def test_the_pair_prefers_the_document_with_the_words_asked_for() -> None:
    documents = ["Newton described gravity as a force between two bodies.", "Bread is baked from flour and water."]
    embedder = Embedder.from_pretrained("nano-embedding", offline=True)
    scores = embedder.similarity(embedder.embed_queries(["what is gravity"]), embedder.embed_documents(documents))[0]
    assert scores[0] > scores[1]
    reranked = Reranker.from_pretrained("nano-reranker", offline=True).score("what is gravity", documents)
    assert reranked[0] > reranked[1]
    assert np.isfinite(reranked).all()
