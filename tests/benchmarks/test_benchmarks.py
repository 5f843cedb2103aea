"""The benchmarks run, and what they report is what happened."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.cases import SHAPES, Case, cases, random_backbone, tokenizer
from benchmarks.engines import Padded, make, padded_batches
from benchmarks.export import plain_decoder
from benchmarks.peers import EngineError, Process, why_missing
from benchmarks.prefix_sharing import compare
from benchmarks.runner import TARGETS, add_shares, run, start, targets
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
from qwen3_embedding.inputs.tokenizer import Tokenizer
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


def test_every_case_has_the_tokens_it_says(embedder: Embedder) -> None:
    words = tokenizer()
    mean = {name: Case.work(case, words).tokens / len(case.lengths) for name, case in cases(0.05).items()}
    assert mean.pop("mixed") == pytest.approx(120, rel=0.15)
    assert 2 <= mean.pop("one-word") < 2.5
    wanted = {"short": 24, "queries": 36, "512": 512, "2048": 2048, "8192": 8192, "single": 39}
    assert mean == {**wanted, "rerank-100x100": 186, "rerank-64x160": 160}
    assert len(set(cases()["one-word"].texts(words))) == 10_000
    assert len(set(Case("", (2,) * 9000, distinct=True).texts(embedder.tokenizer))) == 9000  # a smaller vocabulary


def test_prompts_for_other_engines_are_ours(embedder_folder: Path) -> None:
    words = Tokenizer.from_folder(embedder_folder, parse_special=True)
    for name in ("queries", "rerank-64x160"):
        work = cases(0.05)[name].work(words)
        end = [] if work.kind == "pairs" else [words.end_id]
        assert [[*ids, *end] for ids in words.token_ids(work.prompts)] == work.ids


def test_engines_take_turns_in_processes_of_their_own(embedder_folder: Path) -> None:
    case, words = cases(0.01)["short"], Tokenizer.from_folder(embedder_folder)
    engines = {name: Process(name, embedder_folder, None, None, 1) for name in ("ours-float32", "ours-int8")}
    try:
        result = run(case, case.work(words), engines, rounds=2)
        pairs = cases(0.02)["rerank-64x160"]
        scores = run(pairs, pairs.work(words), engines, rounds=1)
        with pytest.raises(EngineError, match="do='dance'"):
            engines["ours-int8"].ask("dance")
    finally:
        for engine in engines.values():
            engine.close()
    add_shares(result, tiny_config(100))
    assert [len(row["seconds"]) for row in result["engines"].values()] == [2, 2]
    assert result["engines"]["ours-int8"]["lowest_cosine"] >= 0.99
    assert all(row["share_of_gemm"] > 0 and row["peak_mib"] > 100 for row in result["engines"].values())
    assert scores["engines"]["ours-int8"]["lowest_cosine"] is None
    assert targets([result]) == {}
    with pytest.raises(EngineError, match="no model"):
        Process("ours-int8", embedder_folder / "nowhere", None, None, 1)


def test_sentence_transformers_and_the_exported_graph_give_our_vectors(
    embedder: Embedder, embedder_folder: Path
) -> None:
    texts = random_texts(embedder.tokenizer, [5, 1, 30, 12])
    wanted = embedder.embed_documents(texts)
    peer = make("sentence-transformers", embedder_folder, None, 1)
    assert peer.warm_up(texts) == "32 texts"
    assert (peer.run(texts) * wanted).sum(1).min() >= 0.99999

    class Plain(Padded):
        graph = plain_decoder(embedder_folder)

        def infer(self, ids: np.ndarray, last: np.ndarray) -> np.ndarray:
            found: torch.Tensor = self.graph(torch.from_numpy(ids), torch.from_numpy(last))
            return found.numpy()

    plain = Plain(embedder_folder)
    plain.warm_up(texts)
    for plain.batch_tokens in (0, 24, 2048):
        assert (plain.run(texts) * wanted).sum(1).min() >= 0.99999


def test_padded_batches_hold_every_text_once_within_the_budget() -> None:
    lengths = [3, 9, 1, 4, 4, 20, 2]
    batches = list(padded_batches(lengths, 12))
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert batches[0] == [5]
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 12 for batch in batches)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    assert why_missing("ours-int8", None) is None
    assert "--peers" in str(why_missing("openvino-int8", None))
    assert "make it with" in str(why_missing("openvino-int8", tmp_path))
    engines, left_out = start(["llama.cpp-q8"], tmp_path, tmp_path, 1)
    assert engines == {}
    assert list(left_out) == ["llama.cpp-q8"]


def test_targets_come_from_the_figures() -> None:
    def result(case: str, **speed: float) -> dict[str, Any]:
        rows = {name: {"tokens_per_second": rate, "share_of_gemm": 0.5} for name, rate in speed.items()}
        return {"case": case, "engines": rows}

    found = targets(
        [
            result("mixed", **{"ours-int8": 600.0, "sentence-transformers": 100.0, "openvino-int8": 300.0}),
            result("512", **{"ours-int8": 500.0}),
            result("2048", **{"ours-int8": 400.0}),
        ]
    )
    assert found == {
        "int8 against sentence-transformers": 6,
        "int8 against the best other engine": 2,
        "int8 share of the library's rate": 0.5,
        "int8 at 2,048 tokens against 512": 0.8,
    }
    assert set(found) <= {name for name, _ in TARGETS}


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
