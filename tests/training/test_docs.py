"""The page on training: its snippets run, its recipes load, its numbers of settings exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qwen3_embedding.config import from_mapping
from qwen3_embedding.training.config import LoraSettings, load_settings

ROOT = Path(__file__).parents[2]
PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.S | re.M)


def test_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    exec(compile(code, "docs/training.md", "exec"), {})
    assert capsys.readouterr().out.split("\n")[:2] == ["1 Counter({'same': 1})", "1"]


def test_recipes_load(tmp_path: Path) -> None:
    recipe, language_model, adapter = blocks("toml")
    path = tmp_path / "recipe.toml"
    path.write_text(recipe + adapter)
    settings = load_settings(path)
    assert settings.loss.dimensions == (512, 256, 128)
    assert settings.lora == from_mapping({"rank": 32, "alpha": 64}, LoraSettings)
    path.write_text(language_model)
    assert load_settings(path).language_model.separator == "\nQuery:"


def test_every_pitfall_has_its_test() -> None:
    section = PAGE.split("## Known pitfalls")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ") and "`tests/" in line]
    assert len(rows) == 21
    for row in rows:
        found = re.findall(r"`(tests/\S+\.py)::(test_\w+)`", row)
        assert found, row
        for file, name in found:
            assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{name}"
