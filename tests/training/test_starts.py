"""Where small embedders start from: weights that retrieve by shared words before the first step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from qwen3_embedding import Embedder
from qwen3_embedding.data import Record, write_records
from qwen3_embedding.training.base import BaseSettings, make_base

THINGS = ("river", "engine", "garden", "market", "letter", "window", "bridge", "planet", "doctor", "forest")
DOCUMENTS = [f"the {thing} of the old town is what people talk about" for thing in THINGS]
QUERIES = [f"tell me about the {thing}" for thing in THINGS]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    pairs = zip(QUERIES * 5, DOCUMENTS * 5, strict=True)
    write_records(folder / "records.jsonl", [Record(q, (d,), "retrieval", "made") for q, d in pairs])
    return make_base(BaseSettings(output=folder / "base", data=folder / "records.jsonl", vocab_size=700, context=2048))


def test_the_base_retrieves_by_shared_words(base: Path) -> None:
    embedder = Embedder.from_pretrained(base)
    scores = embedder.embed_queries(QUERIES) @ embedder.embed_documents(DOCUMENTS).T
    assert (scores.argmax(axis=1) == np.arange(len(THINGS))).all()


def test_the_base_loads_in_transformers_with_the_same_vectors(base: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    with torch.no_grad():
        theirs = model(**tokenizer(DOCUMENTS[0], return_tensors="pt")).last_hidden_state[0, -1]
    theirs = theirs / theirs.norm()
    ours = Embedder.from_pretrained(base, dtype="float32").embed_documents(DOCUMENTS[:1])[0]
    assert np.allclose(ours, theirs.numpy(), atol=1e-5)
