"""The loop, and what stands around it: run folder, checkpoints, log, export."""

from __future__ import annotations

import json
import math
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qwen3_embedding import __version__
from qwen3_embedding.config import dump_toml, to_mapping
from qwen3_embedding.errors import NumericalError
from qwen3_embedding.model.weights import fingerprint, write_json
from qwen3_embedding.training import checkpoint
from qwen3_embedding.training.config import TrainingSettings
from qwen3_embedding.training.distributed import Ranks, joined
from qwen3_embedding.training.objective import Objective, StepReport
from qwen3_embedding.training.optimizer import clip_gradients, make_optimizer, rate_factor, set_rate
from qwen3_embedding.training.progress import Display, Logs, TensorBoard, WeightsAndBiases, Writer
from qwen3_embedding.training.repeatable import fixed_order, seed_step
from qwen3_embedding.whole import whole_folder

MASKED_SAMPLES = 20
NO_MATTER = {
    *("checkpoint_every", "keep_checkpoints", "log_every", "masked_samples_every"),
    *("tensorboard", "wandb", "shard"),
}
"""Run settings that may change when a run goes on."""


@dataclass(frozen=True)
class Trained:
    """What a run left."""

    folder: Path
    """The trained checkpoint."""
    run_folder: Path
    steps: int
    final_loss: float
    """Mean loss of the last tenth of the steps."""
    seconds: float
    """Of this process; a resumed run counts from where it took over."""


def make_objective(settings: TrainingSettings, device: torch.device) -> Objective:
    """The embedder, reranker or language model to train."""
    if settings.kind == "embedder":
        from qwen3_embedding.training.embedder import EmbedderObjective

        return EmbedderObjective(settings, device)
    if settings.kind == "language_model":
        from qwen3_embedding.training.language_model import LanguageModelObjective

        return LanguageModelObjective(settings, device)
    if settings.kind == "bag":
        from qwen3_embedding.training.bag import BagObjective

        return BagObjective(settings, device)
    from qwen3_embedding.training.reranker import RerankerObjective

    return RerankerObjective(settings, device)


def train(
    settings: TrainingSettings,
    show: bool = True,
    make: Callable[[TrainingSettings, torch.device], Objective] = make_objective,
) -> Trained:
    """Train as the settings say, from the newest checkpoint of the run folder if there is one, and export the result.

    Under ``torchrun`` every process calls this; the batch is spread over them and the result is the same.

    Args:
        settings: the run.
        show: progress on stderr.
        make: the thing that is trained, from settings and device.

    Raises:
        ValueError: ``output`` is there already.
        NumericalError: a loss or gradient that is not finite; the batch is in ``failed-step-*.json`` of the run folder,
            and neither weights nor checkpoints were touched.
        CheckpointError, DataError: what is to be read is missing, torn or foreign, or the disk is full.
    """
    if settings.output.exists():
        raise ValueError(f"{settings.output} is there already; choose another output or remove it")
    with joined() as ranks:
        gpu = torch.cuda.is_available()
        device = torch.device("cuda", ranks.rank % torch.cuda.device_count()) if gpu else torch.device("cpu")
        with fixed_order(device):
            return Run(settings, make(settings, device), ranks).go(show)


class Run:
    """One training run."""

    def __init__(self, settings: TrainingSettings, objective: Objective, ranks: Ranks) -> None:
        self.settings, self.objective, self.ranks = settings, objective, ranks
        self.folder = settings.folder
        self.sharded = settings.run.shard and ranks.size > 1
        if self.sharded:
            objective.shard()
        self.parameters = {name: p for name, p in objective.parameters.items() if p.requires_grad}
        self.optimizer = make_optimizer(self.parameters.items(), settings.optimizer)
        self.logs: Logs | None = None
        self.display: Display | None = None
        self.trained = checkpoint.Trained(self.parameters, self.optimizer, ranks, self.sharded)
        self.identity = run_identity(settings, objective.data_hashes)

    def go(self, show: bool) -> Trained:
        """All steps that are left, then the export."""
        started = time.monotonic()
        done = self._resume()
        steps = self.settings.run.steps
        if self.ranks.first:
            write_run_folder(self.folder, self.settings, self.objective)
            self.logs = Logs(self.folder, done)
            with Display(steps, done, show, self._writers(done)) as self.display:
                for step in range(done, steps):
                    self._step(step)
        else:
            for step in range(done, steps):
                self._step(step)
        self._export()
        return Trained(self.settings.output, self.folder, steps, final_loss(self.folder), time.monotonic() - started)

    def _writers(self, done: int) -> list[Writer]:
        run = self.settings.run
        writers: list[Writer] = [TensorBoard(self.folder, done)] if run.tensorboard else []
        if run.wandb:
            writers.append(WeightsAndBiases(run.wandb, self.folder, to_mapping(self.settings)))
        return writers

    def _resume(self) -> int:
        """Steps done before."""
        found = checkpoint.all_checkpoints(self.folder)
        if not found:
            return 0
        return checkpoint.load(found[-1], self.identity, self.trained).step

    def _step(self, step: int) -> None:
        """One step, its lines, then its checkpoint, so that a run killed between them does the step again."""
        self._record(step, self._update(step))
        if self._due(step, self.settings.run.checkpoint_every):
            state = checkpoint.State(step + 1, self.identity)
            checkpoint.save(self.folder, state, self.trained, self.settings.run.keep_checkpoints)

    def _due(self, step: int, every: int) -> bool:
        """Whether a thing done every so many steps, and behind the last, is to be done."""
        return (step + 1) % every == 0 or step + 1 == self.settings.run.steps

    def _update(self, step: int) -> dict[str, Any]:
        """Gradients, their sum over the ranks, new weights."""
        run = self.settings.run
        began = time.monotonic()
        factor = rate_factor(step, run.steps, self.settings.optimizer)
        rate = set_rate(self.optimizer, factor)
        self.optimizer.zero_grad(set_to_none=True)
        seed_step(run.seed, step, self.ranks.rank)
        report = self.objective.backward(step, run, self.ranks)
        norm = self._finish_gradients()
        if not (math.isfinite(report.loss) and math.isfinite(norm)):
            self._stop(step, report, norm)
        self.optimizer.step()
        return log_entry(step, report, rate, norm, time.monotonic() - began)

    def _record(self, step: int, entry: dict[str, Any]) -> None:
        """The step's lines: what it computed, measures on held-out records, samples of the mask."""
        run, held_out = self.settings.run, self.settings.held_out
        if self.logs and self._due(step, run.log_every):
            self.logs.steps.write(entry)
        takes_part = self.ranks.first or self.sharded  # parts of a model compute together
        if held_out and takes_part and self._due(step, held_out.every):
            self._measure(step)
        if run.masked_samples_every and takes_part and (step + 1) % run.masked_samples_every == 0:
            self._sample_masked(step)
        if self.display:
            self.display.update(entry)

    def _finish_gradients(self) -> float:
        """Sum over the ranks and clip; returns the norm before."""
        parameters, limit = self.parameters.values(), self.settings.optimizer.clip
        if self.sharded:  # summed in the backward pass
            from qwen3_embedding.training.distributed.sharding import clip_sharded

            return float(clip_sharded(parameters, limit))
        self.ranks.sum_gradients(parameters)
        return float(clip_gradients(parameters, limit))

    def _measure(self, step: int) -> None:
        measured = self.objective.measure(self.settings.run)
        if self.logs and self.display:
            figures = {f"{source}/{metric}": v for source, metrics in measured.items() for metric, v in metrics.items()}
            self.display.write(step + 1, figures)
            self.logs.held_out.write({"step": step + 1, **measured})

    def _sample_masked(self, step: int) -> None:
        samples = self.objective.masked_samples(step, self.settings.run, MASKED_SAMPLES)
        if self.logs:
            for sample in samples:
                self.logs.masked.write({"step": step + 1, **sample})

    def _stop(self, step: int, report: StepReport, norm: float) -> None:
        path = self.folder / f"failed-step-{step:08d}.json"
        if self.ranks.first:
            facts = {"loss": str(report.loss), "gradient_norm": str(norm)}
            write_json(path, {**facts, **self.objective.describe_batch(step)})
        raise NumericalError(
            f"step {step + 1} ({report.group}): loss {report.loss}, gradient norm {norm}; the batch is in {path}; "
            "weights and checkpoints are as before the step. Look at the batch, lower the learning rate, or use "
            "precision = 'float32', then run again"
        )

    def _export(self) -> None:
        """Write the checkpoint folder beside, then rename."""
        if self.sharded:
            self.objective.gather(self.ranks.first)
        if self.ranks.first:
            output = self.settings.output
            with checkpoint.writing(output), whole_folder(output) as beside:
                self.objective.export(beside)
                (beside / "training.toml").write_text(dump_toml(self.settings), encoding="utf-8")
        self.ranks.wait()


def log_entry(step: int, report: StepReport, rate: float, norm: float, seconds: float) -> dict[str, Any]:
    """A line of the log."""
    return {
        "step": step + 1,
        "group": report.group,
        "epoch": report.epoch,
        "loss": report.loss,
        "loss_by_dimension": {str(size): loss for size, loss in report.by_dimension.items()},
        "masked_fraction": report.masked_fraction,
        "masked": dict(report.masked),
        "saturated_fraction": report.saturated_fraction,
        "candidates": dict(report.candidates),
        "gradient_norm": norm,
        "learning_rate": rate,
        "tokens": report.tokens,
        "texts": report.texts,
        "seconds": round(seconds, 4),
        "tokens_per_second": round(report.tokens / max(seconds, 1e-9), 1),
    }


def final_loss(run_folder: Path) -> float:
    """Mean logged loss of the last tenth of the steps."""
    lines = (run_folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    losses: list[float] = [json.loads(line)["loss"] for line in lines[-max(1, len(lines) // 10) :]]
    return sum(losses) / max(1, len(losses))


def run_identity(settings: TrainingSettings, data_hashes: Mapping[str, str]) -> dict[str, Any]:
    """What must be the same when a run goes on: everything that changes weights, not how often is written or shown."""
    plain = to_mapping(settings)
    for key in ("output", "run_folder", "export_dtype", "model", "held_out"):
        plain.pop(key, None)
    if settings.kind != "language_model":
        plain.pop("language_model")
    run = dict(plain["run"])
    for key in NO_MATTER:
        run.pop(key)
    data = {key: value for key, value in plain["data"].items() if key != "cache"}
    return {
        **plain,
        "run": run,
        "data": data,
        "files": sorted(data_hashes.values()),
        "model": fingerprint(settings.model),
    }


def write_run_folder(folder: Path, settings: TrainingSettings, objective: Objective) -> None:
    """Resolved settings, versions, hashes and what is cut, before the first step."""
    trained = [parameter for parameter in objective.parameters.values() if parameter.requires_grad]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.toml").write_text(dump_toml(settings), encoding="utf-8")
    facts = {
        "version": __version__,
        "git_commit": git_commit(),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "trained_parameters": sum(parameter.numel() for parameter in trained),
        "model": fingerprint(settings.model),
        "data": dict(objective.data_hashes),
        "sources": {path: dict(facts) for path, facts in objective.data_facts.items()},
    }
    write_json(folder / "facts.json", facts)


def git_commit() -> str | None:
    """The commit of the working directory, with ``+`` behind it if files differ; ``None`` outside a repository."""
    try:
        where = Path(__file__).parent
        commit = _git(where, "rev-parse", "HEAD")
        return commit + ("+" if _git(where, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()
