"""The benchmarks run, and what they report is what happened."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.cases import SHAPES, cases, random_backbone, tokenizer
from benchmarks.prefix_sharing import compare
from benchmarks.runner import load, run
from qwen3_embedding.cli.bench import command
from qwen3_embedding.inference.embedder import Embedder
from qwen3_embedding.inference.reranker import Reranker
from qwen3_embedding.inference.speed import (
    count_tokens,
    interleave,
    matrix_operations,
    mixed_lengths,
    random_texts,
    time_by_part,
)
from qwen3_embedding.model.backbone import Backbone
from tests.support.checkpoints import tiny_config


@pytest.mark.parametrize(("name", "parameters"), [("0.6B", 595_776_512), ("4B", 4_021_774_336), ("8B", 7_567_295_488)])
def test_the_shapes_are_the_published_ones(name: str, parameters: int) -> None:
    assert SHAPES[name].parameters == parameters


def test_operations_of_a_token_are_counted_from_the_layers() -> None:
    with torch.device("meta"):
        backbone = Backbone(tiny_config(100))
    linears = [module for module in backbone.modules() if isinstance(module, torch.nn.Linear)]
    assert matrix_operations(backbone.config) == 2 * sum(linear.weight.numel() for linear in linears)
    assert matrix_operations(SHAPES["0.6B"]) == 880_803_840


def test_texts_have_the_lengths_asked_for() -> None:
    words, lengths = tokenizer(), mixed_lengths(50, mean=40, longest=90)
    assert abs(np.mean(lengths) - 40) < 6
    got = [len(ids) for ids in words.encode_documents(random_texts(words, lengths)).ids]
    assert got == lengths


def test_rounds_are_interleaved_after_a_warm_up() -> None:
    calls: list[str] = []
    timings = interleave({"a": lambda: calls.append("a"), "b": lambda: time.sleep(0.02)}, 3)
    assert calls == ["a"] * 4
    assert len(timings["b"].seconds) == 3
    assert 0.02 <= timings["b"].median < 1
    with pytest.raises(ValueError, match="rounds=0"):
        interleave({}, 0)


def test_sharing_is_counted_and_changes_nothing(reranker: Reranker, embedder: Embedder) -> None:
    documents = [f"number {n} of the documents" for n in range(20)]
    found = compare(reranker, lambda: reranker.score("a query", documents), rounds=1)
    sequences = reranker.tokenizer.encode_pairs(["a query"] * 20, documents).ids
    assert found["tokens_separate"] == sum(map(len, sequences))
    assert found["tokens_shared"] < 0.5 * found["tokens_separate"]
    assert found["largest_difference"] <= 1e-5
    assert count_tokens(embedder.backbone, lambda: embedder.embed_documents(["a b c"])) == len(
        embedder.tokenizer.encode_documents(["a b c"]).ids[0]
    )


def test_a_case_runs_on_every_engine(embedder_folder: Path) -> None:
    encoders = load(embedder_folder, ["ours-float32", "ours-int8", "sentence-transformers"])
    result = run(cases(0.01)["short"], embedder_folder, encoders, rounds=1)
    assert list(result["engines"]) == ["ours-float32", "ours-int8", "sentence-transformers"]
    assert result["engines"]["sentence-transformers"]["lowest_cosine"] >= 0.99999
    assert result["engines"]["ours-int8"]["lowest_cosine"] >= 0.99
    assert all(row["tokens_per_second"] > 0 for row in result["engines"].values())


def test_parts_add_up_to_the_whole(embedder: Embedder) -> None:
    begin = time.perf_counter()
    parts = time_by_part(embedder, ["some words " * 30] * 3)
    assert sum(parts.values()) <= time.perf_counter() - begin
    assert parts["matrix products"] > 0
    assert parts["attention"] > 0


def test_the_verb_prints_one_json_object(embedder_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(str(embedder_folder), texts=4, tokens=20, rounds=1, profile=True, dtype="int8", as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["dtype"] == "int8"
    assert found["texts"] == 4
    assert found["tokens_per_second"] == pytest.approx(found["tokens"] / found["seconds"][0])
    assert found["parts"]["quantise"] > 0
    command(str(embedder_folder), texts=4, tokens=20, rounds=1)
    assert "tokens per second" in capsys.readouterr().out


def test_random_backbones_are_the_same_for_a_seed() -> None:
    first, second = (random_backbone(tiny_config(50), seed=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
