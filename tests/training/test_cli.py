"""The verb: a recipe in, a checkpoint out, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

from qwen3_embedding.config import dump_toml
from tests.support.command_line import CommandLine
from tests.training.support import settings


def test_train(tmp_path: Path, embedder_folder: Path, q3e: CommandLine) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(dump_toml(settings(tmp_path, embedder_folder)))
    done = q3e("train", str(recipe), "--steps", "2", "--output", str(tmp_path / "other"), "--json")
    assert done.code == 0
    result = json.loads(done.out)
    assert (result["folder"], result["steps"]) == (str(tmp_path / "other"), 2)
    assert "loss" in done.err
    assert (tmp_path / "other" / "model.safetensors").exists()

    # Again: the output is there.
    again = q3e("train", str(recipe), "--steps", "2", "--output", str(tmp_path / "other"), "--quiet")
    assert again.code == 2
    assert "is there already" in again.err


def test_mistakes_have_exit_codes(tmp_path: Path, embedder_folder: Path, q3e: CommandLine) -> None:
    done = q3e("train", str(tmp_path / "absent.toml"))
    assert done.code == 2
    assert "no such file" in done.err
    recipe = tmp_path / "recipe.toml"
    made = dump_toml(settings(tmp_path, embedder_folder))
    recipe.write_text(made.replace("pairs.jsonl.xz", "gone.jsonl.xz"))
    done = q3e("train", str(recipe), "--quiet")
    assert done.code == 3
    assert "gone.jsonl.xz" in done.err
