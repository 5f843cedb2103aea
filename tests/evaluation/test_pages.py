"""The pages about reproduction and benchmarks: their snippets run and their numbers are those of the code."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from qwen3_embedding.evaluation.reproduce import reproduce

DOCS = Path(__file__).parents[2] / "docs"


def _snippets(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize(("page", "count"), [("reproduce.md", 1), ("benchmarks.md", 4)])
def test_snippets_run(page: str, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    snippets = _snippets(page)
    assert len(snippets) == count
    for snippet in snippets:
        exec(compile(snippet, page, "exec"), {"__name__": "snippet"})
    out = capsys.readouterr().out
    for comment in re.findall(r"print\(.*\)  # (.*)", "\n".join(snippets)):
        assert comment in out.splitlines()


def test_counts_on_the_page() -> None:
    counts = Counter(cell.status for cell in reproduce())
    text = (DOCS / "reproduce.md").read_text(encoding="utf-8")
    found = {
        status: int(count) for status, count in re.findall(r"^\| ([a-z ]+) \| .* \| (\d+) \|$", text, re.MULTILINE)
    }
    assert found == dict(counts)
