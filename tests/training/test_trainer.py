"""Runs: what they leave, that they go on exactly, that they stop in time."""

from __future__ import annotations

import importlib.util
import itertools
import json
import resource
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from qwen3_embedding.config import load_toml
from qwen3_embedding.data import write_records
from qwen3_embedding.errors import CheckpointError, MissingExtraError, NumericalError
from qwen3_embedding.training import checkpoint, trainer
from qwen3_embedding.training.config import (
    HeldOutSettings,
    OptimizerSettings,
    RunSettings,
    SourceSettings,
    TrainingSettings,
)
from qwen3_embedding.training.contrastive import ContrastiveSettings
from qwen3_embedding.training.distributed import Ranks
from qwen3_embedding.training.embedder import EmbedderObjective, settings_at
from qwen3_embedding.training.held_out import ranking_metrics
from qwen3_embedding.training.optimizer import make_optimizer, rate_factor
from qwen3_embedding.training.trainer import Run, train
from tests.training.support import pair_records, settings


def losses(run_folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (run_folder / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, embedder_folder: Path) -> TrainingSettings:
    """A run that nobody stopped."""
    made = settings(tmp_path_factory.mktemp("trained"), embedder_folder)
    train(made, show=False)
    return made


def test_the_output_is_a_checkpoint_that_loads(trained: TrainingSettings) -> None:
    from qwen3_embedding import Embedder

    embedder = Embedder.from_pretrained(trained.output)
    vectors = embedder.embed_documents(["the river is very old", "a letter"])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    before = Embedder.from_pretrained(trained.model).embed_documents(["the river is very old", "a letter"])
    assert not np.allclose(vectors, before, atol=1e-3)
    with (trained.output / "training.toml").open("rb") as file:
        assert tomllib.load(file)["run"]["steps"] == 8
    assert load_toml(trained.output / "training.toml", TrainingSettings) == trained


def test_the_output_loads_in_sentence_transformers(trained: TrainingSettings) -> None:
    from sentence_transformers import SentenceTransformer

    from qwen3_embedding import Embedder

    model = SentenceTransformer(str(trained.output), device="cpu", local_files_only=True)
    theirs = model.encode(["the river is very old"], prompt_name="query")
    ours = Embedder.from_pretrained(trained.output).embed_queries(["the river is very old"])
    assert np.allclose(theirs, ours, atol=1e-5)


def test_the_run_folder_says_what_was_done(trained: TrainingSettings) -> None:
    facts = json.loads((trained.folder / "facts.json").read_text())
    assert facts["version"]
    assert len(facts["data"]) == 3
    assert len(facts["model"]) == 64
    assert {"records": 90, "cut_queries": 0, "cut_documents": 0} in facts["sources"].values()
    lines = [json.loads(line) for line in (trained.folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    for line in lines:
        assert np.isfinite(line["loss"])
        assert 0 <= line["masked_fraction"] <= 1
        assert line["tokens_per_second"] > 0
        assert set(line["loss_by_dimension"]) == {"64", "32"}
    assert [path.name for path in checkpoint.all_checkpoints(trained.folder)] == ["step-00000008"]


def test_training_lowers_the_loss(tmp_path: Path, embedder_folder: Path) -> None:
    made = settings(tmp_path, embedder_folder, run={"steps": 40, "checkpoint_every": 40})
    made = replace(made, data=replace(made.data, sources=made.data.sources[:1]))
    train(made, show=False)
    values = [loss for _, loss in losses(made.folder)]
    assert np.mean(values[-5:]) < 0.8 * np.mean(values[:5])


@pytest.mark.parametrize("kind", ["embedder", "reranker"])
def test_retrieval_on_held_out_records_gets_better(
    tmp_path: Path, embedder_folder: Path, reranker_folder: Path, kind: str
) -> None:
    model = embedder_folder if kind == "embedder" else reranker_folder
    made = settings(tmp_path, model, kind, run={"steps": 30, "checkpoint_every": 30}, optimizer={"learning_rate": 2e-3})
    write_records(tmp_path / "held.jsonl", pair_records()[1::7])
    held_out = HeldOutSettings(sources=(SourceSettings(path=tmp_path / "held.jsonl"),), every=10)
    made = replace(made, data=replace(made.data, sources=made.data.sources[:1]), held_out=held_out)
    before = trainer.make_objective(made, torch.device("cpu")).measure(made.run)
    train(made, show=False)
    lines = [json.loads(line) for line in (made.folder / "held_out.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30]
    assert lines[-1]["held"]["mrr@10"] > before["held"]["mrr@10"]
    for line in lines:
        assert 0 <= line["held"]["recall@1"] <= line["held"]["mrr@10"] <= line["held"]["recall@10"] <= 1


def test_ranks_are_turned_into_metrics() -> None:
    assert ranking_metrics(np.array([1, 2, 11, 4])) == {"mrr@10": 0.4375, "recall@1": 0.25, "recall@10": 0.75}


def test_other_settings_do_not_go_on_with_a_run(tmp_path: Path, trained: TrainingSettings) -> None:
    changed = replace(
        trained, output=tmp_path / "out", run_folder=trained.folder, loss=replace(trained.loss, temperature=0.1)
    )
    with pytest.raises(CheckpointError, match="begun with loss="):
        train(changed, show=False)
    assert not changed.output.exists()


def test_a_torn_checkpoint_is_refused(tmp_path: Path, embedder_folder: Path) -> None:
    made = settings(tmp_path, embedder_folder, run={"steps": 2, "checkpoint_every": 1})
    train(made, show=False)
    (last,) = checkpoint.all_checkpoints(made.folder)
    file = last / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        train(replace(made, output=tmp_path / "again", run_folder=made.folder), show=False)


def test_an_output_that_is_there_is_not_overwritten(trained: TrainingSettings) -> None:
    before = weights(trained.output)
    with pytest.raises(ValueError, match="is there already"):
        train(trained, show=False)
    assert weights(trained.output) == before


def test_a_loss_that_is_not_finite_stops_the_run(
    tmp_path: Path, embedder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = settings(tmp_path, embedder_folder, run={"steps": 6, "checkpoint_every": 1})
    real = EmbedderObjective.backward

    def poisoned(self: EmbedderObjective, step: int, *rest: object) -> object:
        if step == 3:  # a weight overflows between two steps
            with torch.no_grad():
                self.backbone.norm.weight[0] = torch.inf
        return real(self, step, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(EmbedderObjective, "backward", poisoned)
    with pytest.raises(NumericalError, match=r"step 4 .*failed-step-00000003.json"):
        train(made, show=False)
    saved = json.loads((made.folder / "failed-step-00000003.json").read_text())
    assert saved["rows"][0]["query"]
    assert saved["loss"] == "nan"
    assert not made.output.exists()
    (last,) = checkpoint.all_checkpoints(made.folder)
    assert last.name == "step-00000003"
    assert all(torch.isfinite(t).all() for t in load_file(last / "weights.safetensors").values())
    assert [step for step, _ in losses(made.folder)] == [1, 2, 3]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Until then the system refuses to let a file grow beyond ``size`` bytes, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, embedder_folder: Path) -> None:
    made = settings(tmp_path, embedder_folder, run={"steps": 4, "checkpoint_every": 2})
    run = Run(made, trainer.make_objective(made, torch.device("cpu")), Ranks())
    run._step(0)
    run._step(1)
    size = (checkpoint.all_checkpoints(made.folder)[-1] / "weights.safetensors").stat().st_size
    with largest_file(size // 2), pytest.raises(CheckpointError, match=r"cannot be written: .*large.*make room"):
        train(made, show=False)
    assert [path.name for path in checkpoint.all_checkpoints(made.folder)] == ["step-00000002"]
    assert not made.output.exists()
    train(made, show=False)
    alone = replace(made, output=tmp_path / "alone")
    train(alone, show=False)
    assert weights(made.output) == weights(alone.output)


def test_an_export_to_a_full_disk_can_be_made_up(tmp_path: Path, embedder_folder: Path) -> None:
    made = settings(tmp_path, embedder_folder, run={"steps": 1})
    run = Run(made, trainer.make_objective(made, torch.device("cpu")), Ranks())
    run._step(0)
    with largest_file(100_000), pytest.raises(CheckpointError, match="cannot be written"):
        train(made, show=False)
    assert not made.output.exists()
    train(made, show=False)
    assert weights(made.output)


def test_the_margin_comes_down_while_it_warms_up() -> None:
    run = RunSettings(margin_warmup_steps=4)
    margins = [settings_at(ContrastiveSettings(margin=0.1), step, run).margin for step in (0, 2, 4, 9)]
    assert margins == pytest.approx([2.0, 1.05, 0.1, 0.1])  # cosines differ by 2 at most, so at first nothing is masked


def test_bf16_products_train_fp32_weights(tmp_path: Path, embedder_folder: Path) -> None:
    made = settings(tmp_path, embedder_folder, run={"precision": "bfloat16", "steps": 3})
    objective = EmbedderObjective(made, torch.device("cpu"))
    exact = trainer.make_objective(replace(made, run=replace(made.run, precision="float32")), torch.device("cpu"))
    one = objective.backward(0, made.run, Ranks())
    other = exact.backward(0, replace(made.run, precision="float32"), Ranks())
    assert one.loss == pytest.approx(other.loss, rel=0.02)
    for name, parameter in objective.parameters.items():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        wanted = exact.parameters[name].grad
        assert wanted is not None
        if wanted.norm() > 1e-3:
            assert torch.nn.functional.cosine_similarity(parameter.grad.flatten(), wanted.flatten(), dim=0) > 0.97, name


def test_bf16_weights_are_refused() -> None:
    layer = torch.nn.Linear(2, 2).bfloat16()
    with pytest.raises(ValueError, match="trained in float32"):
        make_optimizer(layer.named_parameters(), OptimizerSettings())


def test_the_learning_rate_warms_up_and_falls() -> None:
    made = OptimizerSettings(warmup_steps=4, final=0.1)
    factors = [rate_factor(step, 20, made) for step in range(20)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert all(a >= b for a, b in itertools.pairwise(factors[3:]))
    assert factors[12] == pytest.approx(0.1 + 0.9 * 0.5)
    assert rate_factor(20, 20, made) == pytest.approx(0.1)
    assert rate_factor(12, 20, replace(made, schedule="linear")) == pytest.approx(0.55)
    assert rate_factor(19, 20, replace(made, schedule="constant")) == 1.0


def test_figures_go_to_tensorboard(tmp_path: Path, embedder_folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = settings(tmp_path, embedder_folder, run={"steps": 3, "tensorboard": True})
    write_records(tmp_path / "held.jsonl", pair_records()[:8])
    held_out = HeldOutSettings(sources=(SourceSettings(path=tmp_path / "held.jsonl"),), every=3)
    train(replace(made, held_out=held_out), show=False)
    events = EventAccumulator(str(made.folder / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([loss for _, loss in losses(made.folder)])
    assert [event.step for event in events.Scalars("held/mrr@10")] == [3]


@pytest.mark.parametrize("behind", [False, True], ids=["before its checkpoint", "behind its checkpoint"])
def test_a_step_has_its_lines_once_wherever_the_run_stopped(
    tmp_path: Path, embedder_folder: Path, monkeypatch: pytest.MonkeyPatch, behind: bool
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    often = {"steps": 5, "checkpoint_every": 2, "masked_samples_every": 1, "tensorboard": True}
    write_records(tmp_path / "held.jsonl", pair_records()[:8])
    held_out = HeldOutSettings(sources=(SourceSettings(path=tmp_path / "held.jsonl"),), every=1)
    made = replace(settings(tmp_path, embedder_folder, loss={"margin": 0.0}, run=often), held_out=held_out)
    alone, stopped = replace(made, output=tmp_path / "alone"), replace(made, output=tmp_path / "stopped")
    train(alone, show=False)

    save = checkpoint.save

    def stopping(run_folder: Path, state: checkpoint.State, *rest: Any) -> Path:
        if behind:
            save(run_folder, state, *rest)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", stopping)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                train(stopped, show=False)
    train(stopped, show=False)
    assert losses(stopped.folder) == losses(alone.folder)
    for name in ("held_out.jsonl", "masked.jsonl"):
        assert (stopped.folder / name).read_text() == (alone.folder / name).read_text(), name
    events = EventAccumulator(str(stopped.folder / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_weights_and_biases_is_an_extra(tmp_path: Path, embedder_folder: Path) -> None:
    made = settings(tmp_path, embedder_folder, run={"steps": 1, "wandb": "mine"})
    with pytest.raises(MissingExtraError, match=r"qwen3-embedding\[wandb\]"):
        train(made, show=False)
    assert not made.output.exists()


def test_figures_go_to_weights_and_biases(
    tmp_path: Path, embedder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    made = settings(tmp_path, embedder_folder, run={"steps": 2, "wandb": "mine"})
    train(made, show=False)
    (file,) = (made.folder / "wandb").glob("offline-run-*/*.wandb")
    assert b"gradient_norm" in file.read_bytes()


def test_masked_pairs_are_sampled(tmp_path: Path, embedder_folder: Path) -> None:
    made = settings(tmp_path, embedder_folder, loss={"margin": 0.0}, run={"steps": 3, "masked_samples_every": 1})
    train(made, show=False)
    samples = [json.loads(line) for line in (made.folder / "masked.jsonl").read_text().splitlines()]
    assert samples
    assert all(sample["dropped_score"] > sample["own_score"] for sample in samples)
    assert all(sample["dropped"] != sample["own"] for sample in samples)
