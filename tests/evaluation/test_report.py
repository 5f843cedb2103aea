"""The page of saved runs: what stands in it, that it needs no other file, and what it refuses to compare."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from qwen3_embedding.evaluation.report import build_page, run_names, to_html, to_markdown, write_page
from qwen3_embedding.evaluation.results import Report, TaskResult
from qwen3_embedding.evaluation.statistics import bootstrap_interval, randomisation_p_value

RNG = np.random.default_rng(0)
BASE = {name: RNG.random(50) for name in ("ret <a>", "ret|b", "ret c")}


def _report(model: str, shift: float, **changes: object) -> Report:
    tasks = []
    for name, values in BASE.items():
        moved = np.clip(values + shift, 0, None)
        tasks.append(
            TaskResult(
                name,
                "retrieval",
                "ndcg_at_10",
                {"ndcg_at_10": float(moved.mean())},
                definition="0123456789abcdef",
                samples=50,
                per_query={f"q{i}": float(value) for i, value in enumerate(moved)},
                instruction="Find it",
                seconds=1.5,
            )
        )
    tasks.append(
        TaskResult(
            "sts",
            "sts",
            "spearman",
            {"spearman": 0.5 + shift},
            subsets={"de": {"spearman": 0.4 + shift}, "zh": {"spearman": 0.6 + shift}},
            seen_in_training="yes",
            contamination=0.125,
        )
    )
    report = Report(
        model,
        tuple(tasks),
        commit="c0ffee1234567",
        settings={"dimensions": 64, "precision": "float32"},
        versions={"torch": "2.13"},
        hardware="2 cores",
        created="2026-01-01T00:00:00+00:00",
        seconds=6.0,
        costs={"documents": 1000.0},
    )
    return replace(report, **changes)  # type: ignore[arg-type]


class _Checker(HTMLParser):
    """Counts tags, and what would be loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br", "img", "link"):
            self.open.append(tag)
        if tag in ("script", "link", "img", "iframe"):
            self.outside.append(tag)
        self.outside += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v and not v.startswith("#")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_of_one_run() -> None:
    report = _report("nano", 0.0)
    text = to_markdown(build_page([report], "My run", plots=False))
    assert text.startswith("# My run\n")
    interval = bootstrap_interval([report.tasks[0].per_query[q] for q in sorted(report.tasks[0].per_query)])
    expected = f"{100 * report.tasks[0].score:.2f} [{100 * interval.low:.2f}, {100 * interval.high:.2f}]"
    assert f"| ret &lt;a> | retrieval | ndcg_at_10 | 50 | {expected} |" in text
    assert "| ret\\|b |" in text
    assert f"| Mean(Task) |  |  | 4 | {100 * report.mean_task:.2f} |" in text
    assert "| Mean of retrieval | retrieval |  | 3 |" in text
    assert "| sts | de | 40.00 |" in text
    assert "yes; 12.50 %" in text
    assert "unknown; not checked" in text
    assert "| dimensions | 64 |" in text
    assert "| commit | c0ffee1234567 |" in text
    assert "| version of torch | 2.13 |" in text
    assert "| seconds, all tasks | 6.0 |" in text
    assert "| documents | 1000 |" in text
    assert "against" not in text


def test_page_of_two_runs() -> None:
    first, second = _report("nano", 0.0), _report("better", 0.1)
    text = to_markdown(build_page([first, second], plots=False))
    assert "## better against nano" in text
    row = next(line for line in text.splitlines() if line.startswith("| ret c |") and "better" in line)
    assert "| +10.00 [+10.00, +10.00] | 50/0/0 | 0.0001 | 0.0003 | better |" in row
    p = randomisation_p_value([0.1] * 50)
    assert p == pytest.approx(0.0001, abs=1e-6)
    worse = to_markdown(build_page([second, first], plots=False))
    assert "| -10.00 [-10.00, -10.00] | 0/0/50 |" in worse
    same = to_markdown(build_page([first, _report("twin", 0.0)], plots=False))
    assert "| +0.00 [+0.00, +0.00] | 0/50/0 | 1.0000 | 1.0000 | no difference shown |" in same


def test_html_is_whole_and_alone() -> None:
    html = to_html(build_page([_report("nano", 0.0), _report("<b>x</b>", 0.1)], "Runs & <tags>"))
    checker = _Checker()
    checker.feed(html.replace("<!doctype html>", ""))
    checker.close()
    assert checker.open == []
    assert checker.outside == []
    assert "<svg" in html
    assert "Runs &amp; &lt;tags&gt;" in html
    assert "&lt;b&gt;x&lt;/b&gt;" in html
    assert "<b>x</b>" not in html


def test_runs_of_other_definitions_are_refused() -> None:
    first, second = _report("a", 0.0), _report("b", 0.1)
    changed = replace(second, tasks=(replace(second.tasks[0], definition="other"), *second.tasks[1:]))
    with pytest.raises(ValueError, match="ret <a>: one run was on definition 0123456789abcdef, the other on other"):
        build_page([first, changed])
    with pytest.raises(ValueError, match="1 tasks are in one report only, such as 'sts'"):
        build_page([first, replace(second, tasks=second.tasks[:-1])])
    fewer = replace(second.tasks[0], per_query={"q0": 0.5})
    with pytest.raises(ValueError, match="49 queries are in one run only"):
        build_page([first, replace(second, tasks=(fewer, *second.tasks[1:]))])
    with pytest.raises(ValueError, match="no report"):
        build_page([])


def test_names_tell_runs_apart() -> None:
    small = _report("nano", 0.0, settings={"dimensions": 32, "precision": "float32"})
    reranked = _report("nano", 0.0, reranker="r")
    assert run_names([_report("nano", 0.0), small, reranked]) == [
        "nano (dimensions=64)",
        "nano (dimensions=32)",
        "nano + r",
    ]
    later = _report("nano", 0.1, commit="beef")
    assert run_names([_report("nano", 0.0), later]) == ["nano (commit=c0ffee1234)", "nano (commit=beef)"]
    with pytest.raises(ValueError, match="two runs are both 'nano'"):
        run_names([_report("nano", 0.0), _report("nano", 0.0)])


def test_files_and_command_line(tmp_path: Path) -> None:
    _report("a", 0.0).save(tmp_path / "a.json")
    _report("b", 0.1).save(tmp_path / "b.json")
    run = [sys.executable, "-m", "qwen3_embedding", "report", "a.json", "b.json"]
    out = subprocess.run([*run, "--title", "T"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert out.stdout.startswith("# T\n")
    files = ["--out", "r/page.html", "--out", "r/page.md"]
    done = subprocess.run([*run, *files], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "wrote r/page.html" in done.stderr
    assert (tmp_path / "r" / "page.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "r" / "page.md").read_text().startswith("# Evaluation\n")
    assert len(list((tmp_path / "r").iterdir())) == 2
    _report("c", 0.1, tasks=_report("c", 0.1).tasks[:2]).save(tmp_path / "b.json")
    refused = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "tasks are in one report only" in refused.stderr
    (tmp_path / "b.json").write_text("{}")
    refused = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert refused.returncode == 3
    with pytest.raises(ValueError, match=r"is \.html or \.md"):
        write_page(build_page([_report("a", 0.0)], plots=False), tmp_path / "x.pdf")
