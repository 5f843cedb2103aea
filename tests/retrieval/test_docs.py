"""The page on search says what is: its snippets run, one behind the other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "search.md"


def test_search_page(capsys: pytest.CaptureFixture[str]) -> None:
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(snippets) == 2
    names: dict[str, Any] = {}
    for snippet in snippets:
        exec(compile(snippet, "docs/search.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "bridge" in printed
    assert [line.split()[0] for line in printed.splitlines() if " ms" in line] == [
        "embed", "candidates", "text", "fetch", "total",
    ]  # fmt: skip
