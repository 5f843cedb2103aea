"""Two processes are one: the same gradients, the same trajectory, for embedders and rerankers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qwen3_embedding.config import dump_toml
from qwen3_embedding.training.config import SourceSettings, TrainingSettings
from qwen3_embedding.training.distributed import Ranks
from qwen3_embedding.training.trainer import train
from tests.training import two_ranks
from tests.training.support import settings

TOLERANCE = 1e-5
"""Largest difference over largest value: the order of fp32 sums differs."""


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, embedder_folder: Path, reranker_folder: Path
) -> dict[str, TrainingSettings]:
    """An embedder, a reranker and a language model, each trained by two processes."""
    made = {}
    models = {"embedder": embedder_folder, "reranker": reranker_folder, "language_model": embedder_folder}
    for kind, model in models.items():
        folder = tmp_path_factory.mktemp(kind)
        run = settings(folder, model, kind, run={"steps": 4, "checkpoint_every": 2}, data={"batch_size": 15})
        if kind == "reranker":
            run = replace(run, data=replace(run.data, sources=run.data.sources[:1]))
        if kind == "language_model":
            run = replace(run, data=replace(run.data, sources=(SourceSettings(run.data.sources[0].path, weight=1.0),)))
        (folder / "recipe.toml").write_text(dump_toml(run))
        made[kind] = run
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", two_ranks.__file__]
    done = subprocess.run(
        [*command, *(str(run.output.parent) for run in made.values())],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(two_ranks.__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=270,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return made


@pytest.mark.parametrize("kind", ["embedder", "reranker", "language_model"])
def test_two_ranks_are_one(runs: dict[str, TrainingSettings], kind: str) -> None:
    made = runs[kind]
    folder = made.output.parent
    for step in range(two_ranks.STEPS):
        got = load_file(folder / f"gradients-{step}.safetensors")
        wanted = two_ranks.gradients(made, Ranks(), step)
        assert got.keys() == wanted.keys()
        largest = max(float(g.abs().max()) for name, g in wanted.items() if name != "loss")
        for name, gradient in got.items():
            scale = max(float(wanted[name].abs().max()), 1e-3 * largest)
            assert float((gradient - wanted[name]).abs().max()) <= TOLERANCE * scale, (step, name)
    alone = replace(made, output=folder / "alone")
    train(alone, show=False)
    losses = [
        [json.loads(line)["loss"] for line in (run.folder / "log.jsonl").read_text().splitlines()]
        for run in (made, alone)
    ]
    assert len(losses[0]) == 4
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)  # Adam divides small differences by small gradients
    assert (made.output / "model.safetensors").exists()


def test_shares_follow_each_other_and_cover_all() -> None:
    for count in (0, 1, 7, 16):
        shares = [Ranks(rank, 3).share(count) for rank in range(3)]
        assert [row for share in shares for row in share] == list(range(count))
        assert max(len(s) for s in shares) - min(len(s) for s in shares) <= 1


def test_alone_nothing_is_sent() -> None:
    tensor = torch.ones(3)
    assert Ranks().sum(tensor) is tensor
    assert Ranks().first
