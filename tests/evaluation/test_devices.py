"""A model on two devices (here: two CPU processes) is the same model."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from qwen3_embedding.errors import ModelNotFoundError, Qwen3EmbeddingError
from qwen3_embedding.evaluation.devices import DeviceEncoder, DeviceScorer, _parts, parse_devices
from qwen3_embedding.evaluation.run import evaluate
from qwen3_embedding.evaluation.tasks import TaskSettings
from qwen3_embedding.inference.embedder import Embedder
from qwen3_embedding.inference.reranker import Reranker
from qwen3_embedding.types import Encoder, Scorer
from tests.evaluation.collections import write_retrieval

TEXTS = [f"text {i} {'word ' * (i % 9)}" for i in range(60)]
CLOSE = 2e-5


@pytest.fixture(scope="module")
def encoder(embedder_folder: Path) -> Iterator[DeviceEncoder]:
    with DeviceEncoder(partial(Embedder.from_pretrained, embedder_folder), ["cpu", "cpu"]) as encoder:
        yield encoder


def test_vectors_scores_and_a_whole_evaluation_are_those_of_one_device(
    encoder: DeviceEncoder, embedder: Embedder, reranker: Reranker, reranker_folder: Path, tmp_path: Path
) -> None:
    assert isinstance(encoder, Encoder)
    facts = (encoder.name, encoder.dimensions, encoder.fingerprint)
    assert facts == (embedder.name, embedder.dimensions, embedder.fingerprint)
    np.testing.assert_allclose(encoder.embed_documents(TEXTS), embedder.embed_documents(TEXTS), atol=CLOSE)
    wanted = embedder.embed_queries(TEXTS, "Find it", dimensions=32)
    np.testing.assert_allclose(encoder.embed_queries(TEXTS, "Find it", dimensions=32), wanted, atol=CLOSE)
    assert encoder.embed_documents(TEXTS[:1]).shape == (1, 64)
    assert encoder.embed_documents([]).shape == (0, 64)
    assert encoder.embed_documents(TEXTS[:9], precision="ubinary").dtype == np.uint8
    folder = write_retrieval(tmp_path / "set")
    with DeviceScorer(partial(Reranker.from_pretrained, reranker_folder), ["cpu", "cpu"]) as scorer:
        assert isinstance(scorer, Scorer)
        np.testing.assert_allclose(scorer.score("q", TEXTS, "t"), reranker.score("q", TEXTS, "t"), atol=CLOSE)
        assert scorer.score("q", []).shape == (0,)
        settings = TaskSettings(candidates=5)
        one = evaluate([folder], embedder, reranker, settings, tmp_path / "one" / "out")
        two = evaluate([folder], encoder, scorer, settings, tmp_path / "two" / "out")
    assert two.settings == one.settings
    for column, scores in one.tasks[0].scores.items():
        assert two.tasks[0].scores[column] == pytest.approx(scores, abs=1e-9)


def test_what_goes_wrong_in_a_process_is_said(encoder: DeviceEncoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dimensions"):
        encoder.embed_documents(["a"], dimensions=10**6)
    with pytest.raises(ModelNotFoundError):
        DeviceEncoder(partial(Embedder.from_pretrained, tmp_path / "nothing"), ["cpu"])
    # last: this ends one of the module's processes
    (victim, *_) = encoder._pools[0]._processes
    os.kill(victim, signal.SIGKILL)
    for _ in range(2):  # while it answers or before it is asked, and certainly before
        with pytest.raises(Qwen3EmbeddingError, match=r"ended without a word .* run the same command again"):
            encoder.embed_documents(TEXTS)


def test_parts_hold_every_row_once_longest_first() -> None:
    lengths = [3, 9, 1, 0, 7, 20]
    parts = _parts(lengths, 10)
    assert sorted(row for part in parts for row in part) == list(range(6))
    assert parts[0] == [5]
    assert all(sum(lengths[row] for row in part) <= 10 for part in parts[1:])
    assert _parts([], 10) == []


@pytest.mark.parametrize(
    ("text", "found"), [("cuda:0,cuda:1", ["cuda:0", "cuda:1"]), (" cpu , cpu ", ["cpu", "cpu"]), ("cuda", ["cuda"])]
)
def test_devices_are_parsed(text: str, found: list[str]) -> None:
    assert parse_devices(text) == found


def test_devices_that_cannot_be_are_refused() -> None:
    import torch

    with pytest.raises(ValueError, match="wanted a list"):
        parse_devices(" , ")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device"):
            parse_devices("all")
    with pytest.raises(ValueError, match="each once"):
        DeviceEncoder(partial(Embedder.from_pretrained, "x"), ["cuda:0", "cuda:0"])
