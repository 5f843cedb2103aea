"""The Python of docs/serving.md runs against a server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "serving.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippet(url: str, snippet: str) -> None:
    for module in re.findall(r"^(?:from|import) (openai|cohere)\b", snippet, re.MULTILINE):
        pytest.importorskip(module)
    here = snippet.replace("http://127.0.0.1:8080", url).replace("nano-", "tiny-")
    namespace: dict[str, object] = {}
    try:
        exec(compile(here, str(PAGE), "exec"), namespace)
    finally:
        client = namespace.get("client")
        if client is not None and hasattr(client, "close"):
            client.close()


def test_the_page_has_snippets() -> None:
    assert len(SNIPPETS) >= 4
