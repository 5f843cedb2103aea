"""The card: means with intervals, differences to the reference, as Markdown and JSON."""

from __future__ import annotations

import json

import pytest

from qwen3_embedding.evaluation.ablation import ablation_card
from qwen3_embedding.evaluation.results import Report, TaskResult


def report(name: str, *scores: list[float]) -> Report:
    tasks = []
    for number, values in enumerate(scores):
        per_query = {f"q{n}": value for n, value in enumerate(values)}
        metrics = {"ndcg_at_10": sum(values) / len(values)}
        tasks.append(
            TaskResult(f"task-{number}", "retrieval", "ndcg_at_10", metrics, "same", len(values), {}, per_query)
        )
    return Report(name, tuple(tasks))


def test_rows_are_means_and_differences() -> None:
    reports = {
        "full": report("a", [0.5, 1.0, 0.0, 0.5], [1.0, 1.0]),
        "less": report("b", [0.5, 0.5, 0.0, 0.0], [1.0, 1.0]),
    }
    card = ablation_card(reports, "full", {"merged": "three runs"}, resamples=500)
    full, less = card.rows
    assert full.mean.value == pytest.approx((0.5 + 1.0) / 2)
    assert full.mean.low < full.mean.value < full.mean.high
    assert full.difference is None
    assert less.difference is not None
    assert less.difference.value == pytest.approx((0.25 + 1.0) / 2 - 0.75)
    assert less.difference.low <= less.difference.value <= less.difference.high <= 0
    assert less.p_value is not None
    assert 0 < less.p_value <= 1
    assert json.loads(json.dumps(card.to_mapping()))["rows"][1]["tasks"] == {"task-0": 0.25, "task-1": 1.0}
    lines = card.to_markdown().splitlines()
    assert lines[0] == "| run | mean [95%] | against full [95%] | p | task-0 | task-1 |"
    assert lines[2].startswith("| full | 75.0 [")
    assert "| 25.0 | 100.0 |" in lines[3]
    assert lines[-1] == "- merged: three runs"


def test_what_cannot_be_compared_is_refused() -> None:
    one = report("a", [0.5, 1.0])
    with pytest.raises(ValueError, match="is no row; there are one"):
        ablation_card({"one": one}, "full")
    with pytest.raises(ValueError, match="only"):
        ablation_card({"one": one, "two": report("b", [0.5, 1.0], [1.0])}, "one")
