"""The pages of this room say what is: their snippets run and their options exist."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest

from qwen3_embedding.cli.encode import command
from qwen3_embedding.corpus.planner import Corpus, Rates, estimate

DOCS = Path(__file__).resolve().parents[2] / "docs"


def _snippets(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


def test_corpus_page(
    tmp_path: Path, embedder_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"id": str(i), "title": f"T{i}", "text": f"Text {i}."}) for i in range(20)]
    Path("corpus.jsonl").write_text("\n".join(lines))
    *reading, writing = _snippets("corpus.md")
    assert len(reading) == 2
    for snippet in (writing, *reading):
        exec(compile(snippet.replace("nano-embedding", str(embedder_folder)), "docs/corpus.md", "exec"), {})
    assert (tmp_path / "matrix" / "vectors.npy").exists()
    assert "20 (20, 64) float16" in capsys.readouterr().out


def test_scale_page(capsys: pytest.CaptureFixture[str]) -> None:
    (snippet,) = _snippets("scale.md")
    exec(compile(snippet, "docs/scale.md", "exec"), {})
    assert "2.05 TB of vectors, 778 worker-hours, 1,944 to pay" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("column", "dimensions", "precision"), [(0, 1024, "float32"), (2, 1024, "int8"), (4, 1024, "binary")]
)
def test_scale_table(column: int, dimensions: int, precision: str) -> None:
    page = (DOCS / "scale.md").read_text(encoding="utf-8").partition("\n## Bytes\n")[2]
    units = {"GB": 1e9, "TB": 1e12}
    for power in (6, 9, 11):
        row = re.search(rf"^\| 10\^{power} \|(.*)\|$", page, re.MULTILINE)
        assert row is not None
        number, unit = row.group(1).split("|")[column].split()
        plan = estimate(Corpus(10**power, 1), Rates(1), dimensions, precision)  # type: ignore[arg-type]
        assert float(number) * units[unit] == pytest.approx(plan.vector_bytes, rel=0.025)


@pytest.mark.parametrize(("column", "tokens_per_s"), [(0, 482_196), (1, 58_448), (2, 30_574), (3, 1_747.8)])
def test_hours_table(column: int, tokens_per_s: float) -> None:
    page = (DOCS / "scale.md").read_text(encoding="utf-8").partition("\n## Hours and machines\n")[2]
    for power in (6, 9, 11):
        row = re.search(rf"^\| 10\^{power} \|(.*)\|$", page, re.MULTILINE)
        assert row is not None
        said = re.match(r"([\d.,]+)( million)?[^(]*(?:\(([\d,]+)\))?", row.group(1).split("|")[column].strip())
        assert said is not None
        hours = float(said[1].replace(",", "")) * (1e6 if said[2] else 1)
        plan = estimate(Corpus(10**power, 200), Rates(tokens_per_s, 0.9), 1024)
        assert hours == pytest.approx(plan.worker_hours, rel=0.06)
        assert said[3] is None or int(said[3].replace(",", "")) == plan.workers(24)


@pytest.mark.parametrize("page", ["corpus.md", "scale.md"])
def test_options_on_the_pages_exist(page: str) -> None:
    known = {"--" + name.replace("_", "-") for name in inspect.signature(command).parameters} | {"--json"}
    text = re.sub(r"^python .*$", "", (DOCS / page).read_text(encoding="utf-8"), flags=re.MULTILINE)  # other programs
    assert set(re.findall(r"--[a-z][a-z-]+", text)) <= known
