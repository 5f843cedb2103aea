"""The verb: a recipe in, a checkpoint out, exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from qwen3_embedding.cli import main
from qwen3_embedding.config import dump_toml
from tests.training.support import settings


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["qwen3-embedding", "train", *arguments])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_train(
    tmp_path: Path, embedder_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(dump_toml(settings(tmp_path, embedder_folder)))
    assert run(monkeypatch, str(recipe), "--steps", "2", "--output", str(tmp_path / "other"), "--json") == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert (result["folder"], result["steps"]) == (str(tmp_path / "other"), 2)
    assert "loss" in captured.err
    assert (tmp_path / "other" / "model.safetensors").exists()

    # Again: the output is there.
    assert run(monkeypatch, str(recipe), "--steps", "2", "--output", str(tmp_path / "other"), "--quiet") == 2
    assert "is there already" in capsys.readouterr().err


def test_mistakes_have_exit_codes(
    tmp_path: Path, embedder_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, str(tmp_path / "absent.toml")) == 2
    assert "no such file" in capsys.readouterr().err
    recipe = tmp_path / "recipe.toml"
    made = dump_toml(settings(tmp_path, embedder_folder))
    recipe.write_text(made.replace("pairs.jsonl.xz", "gone.jsonl.xz"))
    assert run(monkeypatch, str(recipe), "--quiet") == 3
    assert "gone.jsonl.xz" in capsys.readouterr().err
