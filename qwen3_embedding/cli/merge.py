"""``merge``: checkpoints into one checkpoint."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from qwen3_embedding.merging.recipe import MergeRecipe, SearchRecipe
    from qwen3_embedding.merging.report import MergeReport
    from qwen3_embedding.merging.search import Trial


def command(
    recipe: Annotated[Path, typer.Argument(help="TOML recipe: method, output, sources (docs/merging.md).")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Merge checkpoints: linear, slerp, spherical mean of n, or task vectors; with a report of angles.

    With a table [search] the weights are searched on held-out tasks. Repeat the command to resume a search.
    """
    from qwen3_embedding.config import load_toml
    from qwen3_embedding.merging.merge import merge
    from qwen3_embedding.merging.recipe import MergeRecipe

    settings = load_toml(recipe, MergeRecipe)
    if settings.search:
        report = _search(settings, settings.search)
    else:
        report = merge(settings, _show if sys.stderr.isatty() else None)
    print(f"wrote {settings.output}", file=sys.stderr)
    print(json.dumps(report.summary(), indent=2) if as_json else "\n".join(report.lines()))


def _show(done: int, total: int, name: str) -> None:
    print(f"\r{done + 1}/{total} {name:60.60}", end="\n" if done + 1 == total else "", file=sys.stderr, flush=True)


def _show_trial(trial: Trial) -> None:
    weights = " ".join(f"{weight:.4f}" for weight in trial.weights)
    print(f"{trial.score:.5f}  {weights}", file=sys.stderr, flush=True)


def _search(settings: MergeRecipe, search: SearchRecipe) -> MergeReport:
    from qwen3_embedding.evaluation.run import find_tasks
    from qwen3_embedding.evaluation.tasks import data_hash
    from qwen3_embedding.merging.search import search_merge

    tasks = {info.name: data_hash(folder) for folder, info in find_tasks(search.folders)}
    about = {"tasks": tasks, "model": search.model, "max_queries": search.max_queries, "dtype": search.dtype}
    objective = json.dumps(about, sort_keys=True)
    report, found = search_merge(
        settings, search, lambda folder: _held_out_score(folder, search), objective, settings.ledger, _show_trial
    )
    weights = " ".join(f"{weight:.4f}" for weight in found.best.weights)
    print(f"best of {len(found.trials)}: {found.best.score:.5f} with weights {weights}", file=sys.stderr)
    return report


def _held_out_score(folder: Path, search: SearchRecipe) -> float:
    """Mean of the tasks' main metrics."""
    from qwen3_embedding import Embedder, Reranker
    from qwen3_embedding.evaluation.run import evaluate
    from qwen3_embedding.evaluation.tasks import TaskSettings

    encoder = scorer = None
    if search.model == "embedder":
        encoder = Embedder.from_pretrained(folder, search.device, search.dtype)
    else:
        scorer = Reranker.from_pretrained(folder, search.device, search.dtype)
    options = TaskSettings(max_queries=search.max_queries, first_stage="embedder" if encoder else "bm25")
    with tempfile.TemporaryDirectory() as scratch:  # the vectors of a trial are of no use to the next
        found = evaluate(search.folders, encoder, scorer, options, Path(scratch) / "trial")
    return fmean(task.scores[search.model][task.main_metric] for task in found.tasks)
