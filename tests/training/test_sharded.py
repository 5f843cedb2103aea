"""A model in parts, one a process, is the whole model: gradients, checkpoints, what it ends in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qwen3_embedding.config import dump_toml
from qwen3_embedding.errors import CheckpointError
from qwen3_embedding.training import checkpoint
from qwen3_embedding.training.config import TrainingSettings
from qwen3_embedding.training.distributed import Ranks
from qwen3_embedding.training.trainer import Run, make_objective, train
from tests.training import sharded_ranks
from tests.training.support import settings
from tests.training.two_ranks import gradients

TOLERANCE = 1e-5
"""Largest difference over largest value: the order of fp32 sums differs."""
KINDS = ("embedder", "adapter", "reranker")
ADAPTER = {"rank": 4, "alpha": 16.0}


def launch(ranks: int, folders: list[Path]) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run(
        [*command, sharded_ranks.__file__, *map(str, folders)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(sharded_ranks.__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=270,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, embedder_folder: Path, reranker_folder: Path
) -> dict[str, TrainingSettings]:
    """Runs in two parts, that stopped at their checkpoint after two of four steps and went on.

    Chunks are small, so that the processes need different numbers of passes, and some activations are kept.
    """
    made = {}
    shape = {"steps": 4, "checkpoint_every": 2, "shard": True, "chunk_tokens": 150, "kept_tokens": 200}
    for name in KINDS:
        folder = tmp_path_factory.mktemp(name)
        kind = "reranker" if name == "reranker" else "embedder"
        model = reranker_folder if name == "reranker" else embedder_folder
        changes = {"lora": ADAPTER} if name == "adapter" else {}
        run = settings(folder, model, kind, run=shape, data={"batch_size": 9}, **changes)
        run = replace(run, data=replace(run.data, sources=run.data.sources[:1]))
        (folder / "recipe.toml").write_text(dump_toml(run))
        made[name] = run
    launch(2, [run.output.parent for run in made.values()])
    return made


@pytest.mark.parametrize("name", KINDS)
def test_gradients_are_those_of_the_whole_model(runs: dict[str, TrainingSettings], name: str) -> None:
    made = runs[name]
    got = load_file(made.output.parent / "gradients.safetensors")
    wanted = gradients(made, Ranks(), 0)
    assert got.keys() == wanted.keys() - {"loss"}
    largest = max(float(wanted[key].abs().max()) for key in got)
    for key, gradient in got.items():
        scale = max(float(wanted[key].abs().max()), 1e-3 * largest)
        assert float((gradient - wanted[key]).abs().max()) <= TOLERANCE * scale, key


@pytest.fixture(scope="module")
def alone(runs: dict[str, TrainingSettings]) -> dict[str, Path]:
    """The same runs, whole and uninterrupted, in one process."""
    found = {}
    for name, made in runs.items():
        found[name] = made.output.with_name("alone")
        train(replace(made, output=found[name]), show=False)
    return found


def moved(made: TrainingSettings, name: str) -> TrainingSettings:
    """The stopped run once more, to go on with in another folder."""
    copy = replace(made, output=made.output.with_name(name))
    shutil.copytree(made.output.with_name("stopped.run"), copy.folder)
    return copy


def assert_alike(one: Path, other: Path) -> None:
    """Weights after Adam, which divides small differences by small gradients."""
    ours, theirs = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        assert torch.allclose(tensor, theirs[key], atol=2e-4), key


@pytest.mark.parametrize("name", KINDS)
def test_one_process_goes_on_from_the_parts(
    runs: dict[str, TrainingSettings], alone: dict[str, Path], name: str
) -> None:
    made = moved(runs[name], "one")
    (last,) = checkpoint.all_checkpoints(made.folder)
    files = sorted(path.name for path in last.iterdir())
    assert len([file for file in files if file.endswith(".safetensors")]) == 2
    assert "state.json" in files
    assert not [file for file in files if not file.endswith((".safetensors", ".json"))]  # no pickled index
    train(made, show=False)
    assert_alike(made.output, alone[name])


@pytest.mark.parametrize("name", KINDS)
def test_two_processes_go_on_from_the_parts(
    runs: dict[str, TrainingSettings], alone: dict[str, Path], name: str
) -> None:
    assert_alike(runs[name].output, alone[name])


def test_three_processes_go_on_from_the_parts_of_two(runs: dict[str, TrainingSettings], alone: dict[str, Path]) -> None:
    made = moved(runs["reranker"], "three")
    (made.output.parent / "recipe.toml").write_text(dump_toml(made))
    launch(3, [made.output.parent])
    assert_alike(made.output, alone["reranker"])
    steps = [json.loads(line)["step"] for line in (made.folder / "log.jsonl").read_text().splitlines()]
    assert steps == [3, 4]


def test_a_torn_part_is_refused(runs: dict[str, TrainingSettings]) -> None:
    made = moved(runs["embedder"], "torn")
    (last,) = checkpoint.all_checkpoints(made.folder)
    part = sorted(last.glob("*.safetensors"))[1]
    part.write_bytes(part.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="cannot be read"):
        train(made, show=False)
    part.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        Run(made, make_objective(made, torch.device("cpu")), Ranks()).go(show=False)
    assert not made.output.exists()
