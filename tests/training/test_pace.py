"""Steps that fit a time, and a smaller cut of the records, for a pipeline on a machine that one does not know."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from qwen3_embedding import Embedder
from qwen3_embedding.data import write_records
from qwen3_embedding.data.files import read_records
from qwen3_embedding.inference.source import resolve
from qwen3_embedding.inputs.tokenizer import Tokenizer
from tests.support.recipes import RECIPES, load_recipe
from tests.training.support import pair_records, settings

PIPELINE = RECIPES / "pipeline"


def script(name: str) -> ModuleType:
    return load_recipe(f"pipeline/{name}")


def test_steps_follow_from_the_time_and_stay(tmp_path: Path, embedder_folder: Path) -> None:
    write_records(tmp_path / "pairs.jsonl.xz", pair_records())
    run = settings(
        tmp_path,
        embedder_folder,
        "language_model",
        language_model={"learn": "texts"},
        data={"sources": [{"path": str(tmp_path / "pairs.jsonl.xz")}], "batch_size": 4},
    )
    pace = script("pace")
    steps = pace.Steps(tmp_path / "steps.json")
    few = steps.of("short", run, 1e-6, 1.0)
    many = steps.of("long", run, 0.5, 1.0)
    assert few == pace.FEWEST
    assert many > 5 * few
    assert steps.of("long", run, 100.0, 1.0) == many  # a run that goes on has as many as before
    assert json.loads((tmp_path / "steps.json").read_text()) == {"short": few, "long": many}
    assert not run.output.exists()
    assert not list(tmp_path.glob("*.pace*"))


def test_a_try_out_takes_a_share_of_the_recipe(tmp_path: Path, embedder_folder: Path) -> None:
    run = settings(tmp_path, embedder_folder, run={"steps": 500}, data={"sources": [{"path": "unread.jsonl"}]})
    steps = script("pace").Steps(tmp_path / "steps.json")
    assert steps.of("stage-1", run, None, 0.1) == 50
    assert steps.of("stage-2", run, None, 0.001) == script("pace").FEWEST


def test_a_cut_is_smaller_and_the_same_again(tmp_path: Path) -> None:
    write_records(tmp_path / "all" / "pairs.jsonl", pair_records())
    write_records(tmp_path / "all" / "left-out.jsonl", pair_records())
    cuts = []
    for name in ("one", "two"):
        wanted = ["--characters", "8", "--only", "pairs=5", "left-out=0"]
        command = [sys.executable, str(PIPELINE / "cut.py"), str(tmp_path / "all"), str(tmp_path / name), *wanted]
        subprocess.run(command, check=True, capture_output=True)
        assert [path.name for path in (tmp_path / name).iterdir()] == ["pairs.jsonl"]
        cuts.append(list(read_records(tmp_path / name / "pairs.jsonl")))
    assert cuts[0] == cuts[1]
    assert len(cuts[0]) == 5
    assert max(len(text) for record in cuts[0] for text in (record.query, *record.positives)) == 8


def test_an_unknown_file_is_named(tmp_path: Path) -> None:
    write_records(tmp_path / "all" / "pairs.jsonl", pair_records())
    command = [sys.executable, str(PIPELINE / "cut.py"), str(tmp_path / "all"), str(tmp_path / "out")]
    done = subprocess.run([*command, "--only", "pears=5"], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "pears; there are pairs" in done.stderr


def test_a_random_base_takes_the_named_tokenizer(tmp_path: Path) -> None:
    pipeline = script("run")
    narrow = {"hidden_size": 16, "intermediate_size": 16, "layers": 1, "heads": 1, "head_dim": 8}
    base = pipeline.BaseRecipe(tokenizer="nano-embedding", **narrow)
    pipeline.random_base(base, tmp_path, tmp_path / "base")
    bundled = resolve("nano-embedding")
    assert Tokenizer.from_folder(tmp_path / "base").token_ids(["water"]) == Tokenizer.from_folder(bundled).token_ids(
        ["water"]
    )
    assert Embedder.from_pretrained(tmp_path / "base").dimensions == 16
