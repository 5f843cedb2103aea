"""The report file: written, read back, and refused when it is something else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwen3_embedding.errors import DataError
from qwen3_embedding.evaluation.results import Report, TaskResult, library_versions, now


def _report() -> Report:
    first = TaskResult(
        "scifact", "retrieval", "ndcg_at_10", {"ndcg_at_10": 0.5, "map": 0.4}, per_query={"q1": 0.25, "q2": 0.75}
    )
    second = TaskResult("sts", "sts", "spearman", {"spearman": 0.9}, subsets={"en": {"spearman": 0.9}}, notes=("n",))
    return Report(
        "nano", (first, second), "abc", settings={"dimensions": 64}, versions=library_versions(), created=now()
    )


def test_saved_and_loaded_is_equal(tmp_path: Path) -> None:
    report = _report()
    report.save(tmp_path / "deep" / "report.json")
    assert Report.load(tmp_path / "deep" / "report.json") == report
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["report.json"]


def test_mean_and_access() -> None:
    report = _report()
    assert report.mean_task == pytest.approx(0.7)
    assert report.task("sts").score == 0.9
    assert report.scores()["scifact"] == {"ndcg_at_10": 0.5, "map": 0.4}
    with pytest.raises(KeyError, match="'x' is not in the report"):
        report.task("x")
    with pytest.raises(ValueError, match="holds no task"):
        Report("nano", ()).mean_task  # noqa: B018


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_are_finite(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        TaskResult("t", "sts", "spearman", {"spearman": value})
    with pytest.raises(ValueError, match="finite"):
        TaskResult("t", "sts", "spearman", {"spearman": 0.1}, per_query={"q": value})


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match="main metric 'map'"):
        TaskResult("t", "sts", "map", {"spearman": 0.1})
    with pytest.raises(ValueError, match="seen_in_training='maybe'"):
        TaskResult("t", "sts", "map", {"map": 0.1}, seen_in_training="maybe")
    task = TaskResult("t", "sts", "map", {"map": 0.1})
    with pytest.raises(ValueError, match="tasks come twice: t"):
        Report("nano", (task, task))


def test_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(DataError, match="cannot be read"):
        Report.load(path)
    path.write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        Report.load(path)
    path.write_text("[]")
    with pytest.raises(DataError, match="not an evaluation report of format 1"):
        Report.load(path)
    path.write_text(json.dumps({"format": 1, "model": "m", "tasks": [{"name": "t"}]}))
    with pytest.raises(DataError, match="not an evaluation report"):
        Report.load(path)
