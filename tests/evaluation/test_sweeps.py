"""Sweeps over dimensions, precisions and instructions on a world whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from qwen3_embedding.cli import app
from qwen3_embedding.evaluation.collection import Collection
from qwen3_embedding.evaluation.figures import save_figure
from qwen3_embedding.evaluation.sweeps import (
    PARAPHRASES,
    default_instructions,
    halves,
    plot_sweep,
    sweep_dimensions,
    sweep_instructions,
)
from qwen3_embedding.inference.precision import from_precision, to_precision
from qwen3_embedding.types import FloatArray, Precision
from tests.support.tasks import write_task

D = 64


class TopicEncoder:
    """``"t 7 q"`` lies near ``"t 7"``; an instruction with the word "search" halves the noise, none doubles it."""

    name, dimensions = "topics", D

    def __init__(self) -> None:
        self.encoded = 0

    def embed_queries(
        self, texts: Any, instruction: Any = None, dimensions: Any = None, precision: Any = None, progress: bool = False
    ) -> FloatArray:
        return self._embed(texts, 1.0 if "search" in (instruction or "") else 2.0)

    def embed_documents(
        self, texts: Any, dimensions: Any = None, precision: Any = None, progress: bool = False
    ) -> FloatArray:
        return self._embed(texts, 4.0)

    def _embed(self, texts: Any, noise: float) -> FloatArray:
        self.encoded += len(texts)
        rows = []
        for text in texts:
            topic = int(text.split()[1])
            row = np.random.default_rng(topic).normal(size=D)
            if text.endswith("q"):
                row = row + noise * np.random.default_rng(1000 + topic).normal(size=D)
            rows.append(row / np.linalg.norm(row))
        return np.array(rows, dtype=np.float32)


def _collection(count: int = 120) -> Collection:
    return Collection(
        documents={f"d{i}": f"t {i}" for i in range(count)},
        queries={f"q{i}": f"t {i} q" for i in range(count)},
        qrels={f"q{i}": {f"d{i}": 1} for i in range(count)},
    )


def _round_trip(vectors_ND: FloatArray, precision: Precision) -> FloatArray:
    return from_precision(to_precision(vectors_ND, precision), precision)


def test_quality_by_dimensions_and_precision(tmp_path: Path) -> None:
    encoder = TopicEncoder()
    cells = sweep_dimensions(
        _collection(), encoder, _round_trip, [8, 16, 32, 64], ["float32", "float16", "int8", "binary"]
    )
    assert encoder.encoded == 240, "each text once"
    score = {(cell.dimensions, cell.precision): cell for cell in cells}
    assert len(score) == 16
    full = score[64, "float32"]
    assert full.kept == 1.0
    assert full.bytes_per_vector == 256
    assert score[64, "binary"].bytes_per_vector == 8
    assert score[32, "int8"].bytes_per_vector == 32
    by_size = [score[size, "float32"].score for size in (8, 16, 32, 64)]
    assert by_size == sorted(by_size)
    assert by_size[0] < by_size[-1] / 2
    assert abs(score[64, "int8"].score - full.score) < 0.02
    assert abs(score[64, "float16"].score - full.score) < 0.005
    assert score[64, "binary"].score < full.score
    svg = save_figure(plot_sweep(cells, "topics"), tmp_path, "sweep")[1].read_text()
    assert all(text in svg for text in ("binary", "dimensions", "ndcg@10", "topics"))


def test_cut_vectors_are_the_encoders_own() -> None:
    """Cutting here gives what a run at that size gives."""
    encoder = TopicEncoder()
    (cell,) = sweep_dimensions(_collection(), encoder, _round_trip, [16], ["float32"])
    documents = encoder.embed_documents([f"t {i}" for i in range(120)])[:, :16]
    queries = encoder.embed_queries([f"t {i} q" for i in range(120)])[:, :16]
    cosines = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ (
        documents / np.linalg.norm(documents, axis=1, keepdims=True)
    ).T
    ranks = (cosines > np.diag(cosines)[:, None]).sum(axis=1)
    assert cell.score == pytest.approx(np.where(ranks < 10, 1 / np.log2(ranks + 2), 0).mean(), abs=1e-6)


def test_instruction_sensitivity() -> None:
    encoder = TopicEncoder()
    instructions = default_instructions("Please search the topics")
    assert list(instructions) == ["tuned", "paraphrase 1", "paraphrase 2", "paraphrase 3", "none"]
    assert set(PARAPHRASES) < set(instructions.values())
    found = {result.name: result for result in sweep_instructions(_collection(), encoder, instructions)}
    assert found["tuned"].p_value == 1.0
    assert found["tuned"].difference == 0.0
    assert found["none"].score.value < found["paraphrase 1"].score.value < found["tuned"].score.value
    assert found["none"].p_value < 0.01
    assert found["none"].difference == pytest.approx(found["none"].score.value - found["tuned"].score.value)
    assert found["none"].score.low < found["none"].score.value < found["none"].score.high


def test_sizes() -> None:
    assert halves(1024) == [32, 64, 128, 256, 512, 1024]
    assert halves(96) == [48, 96]
    assert halves(24) == [24]


def test_command_line(tmp_path: Path, embedder_folder: Path) -> None:
    documents = {f"d{i}": f"document number {i}" for i in range(6)}
    queries = {f"q{i}": f"number {i}" for i in range(6)}
    place = write_task(tmp_path / "task", documents, queries, dict(zip(queries, documents, strict=True)))
    run = [str(place), "--embedder", str(embedder_folder), "--json"]

    def sweep(*more: str) -> Any:
        return CliRunner().invoke(app, ["sweep", *run, *more])

    cells = json.loads(sweep("--figure", str(tmp_path / "f")).stdout)
    assert {cell["precision"] for cell in cells} == {"float32", "int8", "binary"}
    assert cells[-3]["kept"] == 1.0
    assert (tmp_path / "f" / "sweep.svg").exists()
    assert [result["name"] for result in json.loads(sweep("--instructions").stdout)][:2] == ["tuned", "paraphrase 1"]
    assert "precision='int3'" in str(sweep("--precision", "int3").exception)


def test_what_is_refused() -> None:
    encoder = TopicEncoder()
    with pytest.raises(ValueError, match="dimensions=65; wanted 1 to 64"):
        sweep_dimensions(_collection(), encoder, _round_trip, [65])
    with pytest.raises(ValueError, match="precision='int4'"):
        sweep_dimensions(_collection(), encoder, _round_trip, [8], ["int4"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="no instructions"):
        sweep_instructions(_collection(), encoder, {})
