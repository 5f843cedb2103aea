"""The whole recipe: base, stage 1, mining, stage 2, merge, reranker, merge, evaluation, ablation card.

    python recipes/pipeline/run.py recipes/pipeline/debug
    python recipes/pipeline/run.py recipes/pipeline/nano --data RECORDS --evaluation TASKS
    python recipes/pipeline/run.py recipes/pipeline/gpu --data RECORDS --evaluation TASKS --scale 0.02   # a try-out

The folder of recipes holds ``pipeline.toml`` and one file a stage: ``stage-1.toml``, ``mine-*.toml``,
``stage-2-*.toml``, ``reranker-*.toml`` (and ``pretrain.toml`` where the base is first trained on plain texts).  Paths
in them are relative to the pipeline's folder, but for ``data/``, which is the folder of records.  A stage whose output
is there is skipped; a killed one goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).resolve().parent
FULL, BM25 = "full", "BM25"
Models = tuple[str, str | None]
"""Folders of an embedder and of a reranker behind it."""


@dataclass(frozen=True)
class BaseRecipe:
    """The model that stage 1 starts from."""

    start: Literal["random", "words"] = "random"
    """Random weights as Qwen3 is initialised, or weights that retrieve by shared words (training/base.py)."""
    tokenizer: str = ""
    """Of random weights: a checkpoint folder or bundled name whose tokenizer is taken; empty: one is trained on the
    records."""
    vocab_size: int = 40000
    hidden_size: int = 384
    intermediate_size: int = 384
    layers: int = 2
    """Of random weights; those that retrieve by words have two."""
    heads: int = 6
    head_dim: int = 64
    context: int = 32768
    seed: int = 0


@dataclass(frozen=True)
class PipelineRecipe:
    """What ``pipeline.toml`` says."""

    folder: Path
    base: BaseRecipe = field(default_factory=BaseRecipe)
    merge: Literal["linear", "spherical-mean"] = "spherical-mean"
    reranker_start: Literal["embedder", "matching"] = "embedder"
    """The merged embedder itself, or layers that match words (training/matching.py)."""
    reranker_meaning: float = 0.005
    """Of layers that match words: how loud they compare the two texts' meanings beside their words."""
    made: bool = False
    """Records and task in a made-up language (made.py), in place of ``--data`` and ``--evaluation``."""
    instruction: str | None = None
    """Of the evaluation, in place of the tasks' own."""
    max_queries: int | None = None
    candidates: int = 100
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the models while they mine and are evaluated."""
    jobs: int = 1
    """Rows of the card that are evaluated at the same time, each by a process of its own."""
    minutes: dict[str, float] = field(default_factory=dict)
    """How long a recipe trains (``stage-1 = 4.0``), in place of its number of steps: a try-out of some steps says how
    many fit.  The number is kept in ``steps.json``."""


def main() -> None:
    """Run what is missing."""
    from qwen3_embedding.config import load_toml

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", type=Path, help="folder of pipeline.toml and the stages' files")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of training records")
    parser.add_argument("--evaluation", type=Path, nargs="*", default=[], help="held-out tasks, or folders of them")
    parser.add_argument("--folder", type=Path, help="where to work, in place of the recipe's folder")
    parser.add_argument("--scale", type=float, default=1.0, help="share of every training run's steps, for a try-out")
    parser.add_argument("--threads", type=int, default=2, help="of torch; part of what makes the files the same")
    arguments = parser.parse_args()

    import torch

    torch.set_num_threads(arguments.threads)
    recipe = load_toml(arguments.recipes / "pipeline.toml", PipelineRecipe)
    if arguments.folder:
        recipe = dataclasses.replace(recipe, folder=arguments.folder)
    if not recipe.made and not (arguments.data.is_dir() and arguments.evaluation):
        parser.error("--data wants the folder of training records, --evaluation one or more held-out tasks")
    recipes = sorted(path.stem for path in arguments.recipes.glob("*.toml"))
    if unknown := sorted(recipe.minutes.keys() - set(recipes)):
        parser.error(
            f"minutes of {', '.join(unknown)}: no such recipe in {arguments.recipes}; there are {', '.join(recipes)}"
        )
    if not 0 < arguments.scale <= 1:
        parser.error(f"--scale {arguments.scale}; wanted a share, above 0 and up to 1")
    pipeline = Pipeline(recipe, arguments.recipes, arguments.data, arguments.evaluation, arguments.scale)
    pipeline.run()


@dataclass(frozen=True)
class Stage:
    """A step that leaves a file or folder."""

    name: str
    output: Path
    make: Callable[[], object]


class Pipeline:
    """The stages of a folder of recipes."""

    def __init__(
        self, recipe: PipelineRecipe, recipes: Path, data: Path, tasks: list[Path], scale: float = 1.0
    ) -> None:
        self.recipe, self.recipes, self.folder, self.scale = recipe, recipes, recipe.folder, scale
        self.data = self.folder / "data" if recipe.made else data
        self.tasks = [self.data / "held-out"] if recipe.made else tasks
        self.times = self.folder / "seconds.json"
        self.start = self.folder / ("reranker-start" if recipe.reranker_start == "matching" else "embedder")

    def run(self) -> None:
        """Every stage that is missing, then the card."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for stage in self.stages():
            if stage.output.exists():
                print(f"{stage.name}: {stage.output} is there", file=sys.stderr)
                continue
            started = time.monotonic()
            stage.make()
            self._note(stage.name, time.monotonic() - started)
        print((self.folder / "ablation.md").read_text(encoding="utf-8"))

    def stages(self) -> Iterator[Stage]:
        """All stages in order."""
        if self.recipe.made:
            yield Stage("data", self.data, self._make_data)
        base = self.folder / "base"
        yield Stage("base", base, lambda: self._make_base(base))
        if (self.recipes / "pretrain.toml").exists():
            yield self._training("pretrain", base, "pretrained")
            base = self.folder / "pretrained"
        yield self._training("stage-1", base, "stage-1")
        for path in sorted(self.recipes.glob("mine-*.toml")):
            yield self._mining(path)
        yield from self._runs_and_merge("stage-2", self.folder / "stage-1", "", "embedder")
        yield from self._runs_and_merge("stage-2", base, "-without-stage-1", "without-stage-1")
        if self.recipe.reranker_start == "matching":
            yield Stage("reranker-start", self.start, lambda: self._matching_start(self.start))
        yield from self._runs_and_merge("reranker", self.start, "", "reranker")
        yield Stage("ablation", self.folder / "ablation.md", self._make_card)

    def names(self, kind: str) -> list[str]:
        """The stage files of a kind."""
        return sorted(path.stem for path in self.recipes.glob(f"{kind}-*.toml"))

    def _runs_and_merge(self, kind: str, model: Path, suffix: str, merged: str) -> Iterator[Stage]:
        """Differently weighted runs of one kind from one model, and their merge."""
        for name in self.names(kind):
            yield self._training(name, model, name + suffix)
        sources = [self.folder / (name + suffix) for name in self.names(kind)]
        yield Stage(f"merge {merged}", self.folder / merged, lambda: self._merge(sources, self.folder / merged))

    def _training(self, recipe: str, model: Path, output: str) -> Stage:
        return Stage(output, self.folder / output, lambda: self._train(recipe, model, self.folder / output))

    def _train(self, recipe: str, model: Path, output: Path) -> None:
        from qwen3_embedding.training.config import load_settings
        from qwen3_embedding.training.trainer import train

        settings = load_settings(self.recipes / f"{recipe}.toml")
        data = dataclasses.replace(
            settings.data,
            sources=tuple(dataclasses.replace(s, path=self._placed(s.path)) for s in settings.data.sources),
            cache=self.folder / "token-cache",
        )
        settings = dataclasses.replace(settings, model=model, output=output, data=data)
        steps = self._steps(recipe, settings)
        run = dataclasses.replace(
            settings.run, steps=steps, margin_warmup_steps=min(settings.run.margin_warmup_steps, steps)
        )
        train(dataclasses.replace(settings, run=run), show=sys.stderr.isatty())

    def _steps(self, recipe: str, settings: Any) -> int:
        """The recipe's number of steps, where neither ``minutes`` nor ``--scale`` say otherwise."""
        minutes = self.recipe.minutes.get(recipe)
        if minutes is None and self.scale == 1.0:
            return int(settings.run.steps)
        sys.path.insert(0, str(HERE))
        from pace import Steps

        return Steps(self.folder / "steps.json").of(recipe, settings, minutes, self.scale)

    def _placed(self, path: Path) -> Path:
        """A path of a recipe: ``data/...`` among the records, others in the pipeline's folder."""
        if path.is_absolute():
            return path
        return self.data / Path(*path.parts[1:]) if path.parts[0] == "data" else self.folder / path

    def _mining(self, path: Path) -> Stage:
        from qwen3_embedding.config import load_toml
        from qwen3_embedding.mining.recipe import MineRecipe

        recipe = load_toml(path, MineRecipe)
        placed = dataclasses.replace(
            recipe,
            records=tuple(map(self._placed, recipe.records)),
            output=self._placed(recipe.output),
            cache=self.folder / "mining-cache",
        )
        return Stage(path.stem, placed.output, lambda: self._mine(placed))

    def _mine(self, recipe: Any) -> None:
        from qwen3_embedding.cli.mine import models
        from qwen3_embedding.mining.recipe import run

        model = str(self._placed(Path(recipe.encoder.model)))
        encoder = dataclasses.replace(recipe.encoder, model=model, dtype=self.recipe.dtype)
        run(recipe, models(dataclasses.replace(recipe, encoder=encoder)))

    def _make_data(self) -> None:
        sys.path.insert(0, str(HERE))
        import made

        made.make(self.data)

    def _make_base(self, output: Path) -> None:
        from qwen3_embedding.training.base import BaseSettings, make_base

        values = {
            k: v for k, v in dataclasses.asdict(self.recipe.base).items() if k not in ("start", "layers", "tokenizer")
        }
        if self.recipe.base.start == "words":
            make_base(BaseSettings(output=output, data=self.data, **values))
        else:
            random_base(self.recipe.base, self.data, output)

    def _matching_start(self, output: Path) -> None:
        from qwen3_embedding.training.matching import MatchingSettings, matching_start

        source, meaning = self.folder / "embedder", self.recipe.reranker_meaning
        matching_start(MatchingSettings(source=source, output=output, meaning=meaning))

    def _merge(self, sources: list[Path], output: Path) -> None:
        from qwen3_embedding.merging.merge import merge
        from qwen3_embedding.merging.settings import MergeSettings, Source

        merge(MergeSettings(self.recipe.merge, tuple(map(Source, sources)), output))

    def _make_card(self) -> None:
        """Evaluate every row, and write ``ablation.json`` and ``ablation.md``."""
        from qwen3_embedding.evaluation.ablation import ablation_card
        from qwen3_embedding.whole import write_text

        first, rerankers = self.names("stage-2")[0], self.names("reranker")
        before = "pretrained" if (self.folder / "pretrained").exists() else "base"
        rows = {
            BM25: ("embedder", None, "bm25"),
            "before training": (before, None, "embedder"),
            "stage 1 only": ("stage-1", None, "embedder"),
            "without stage 1": ("without-stage-1", None, "embedder"),
            "without merging": (first, None, "embedder"),
            **{f"without merging, {name}": (name, None, "embedder") for name in self.names("stage-2")[1:]},
            FULL: ("embedder", None, "embedder"),
            "full with BM25": ("embedder", None, "hybrid"),
            "full, reranked before training": ("embedder", self.start.name, "reranker"),
            **{f"full, reranked by {name}": ("embedder", name, "reranker") for name in rerankers},
            "full, reranked by the merged reranker": ("embedder", "reranker", "reranker"),
        }
        evaluations = self._evaluate({(embedder, reranker) for embedder, reranker, _ in rows.values()})
        reports = {
            name: evaluations[embedder, reranker].report(column) for name, (embedder, reranker, column) in rows.items()
        }
        notes = {
            "runs merged": ", ".join(self.names("stage-2")) + "; " + ", ".join(rerankers),
            "merged by": self.recipe.merge,
            "hard negatives": "mined by the model of stage 1, in every row",
            "seconds": json.dumps(json.loads(self.times.read_text())),
        }
        card = ablation_card(reports, FULL, notes)
        for name, text in (("json", json.dumps(card.to_mapping(), indent=2) + "\n"), ("md", card.to_markdown())):
            write_text(self.folder / f"ablation.{name}", text)

    def _evaluate(self, pairs: set[Models]) -> dict[Models, Any]:
        """The evaluation of each pair of embedder and reranker, several at a time where the recipe says so."""
        ordered = sorted(pairs, key=str)
        parts = (itertools.repeat(part) for part in (self.recipe, self.folder, self.tasks))
        if self.recipe.jobs == 1:
            return dict(zip(ordered, map(evaluation, ordered, *parts), strict=True))
        with ProcessPoolExecutor(self.recipe.jobs, get_context("spawn")) as pool:
            return dict(zip(ordered, pool.map(evaluation, ordered, *parts), strict=True))

    def _note(self, name: str, seconds: float) -> None:
        times = json.loads(self.times.read_text()) if self.times.exists() else {}
        times[name] = round(times.get(name, 0) + seconds, 1)
        self.times.write_text(json.dumps(times, indent=2) + "\n")
        print(f"{name}: {seconds:.0f} s", file=sys.stderr)


def evaluation(models: Models, recipe: PipelineRecipe, folder: Path, tasks: list[Path]) -> Any:
    """An embedder, and a reranker over what it finds, on the held-out tasks; what is there is not computed again."""
    from qwen3_embedding import Embedder, Reranker
    from qwen3_embedding.evaluation.run import evaluate
    from qwen3_embedding.evaluation.tasks import TaskSettings

    embedder, reranker = models
    encoder = Embedder.from_pretrained(folder / embedder, dtype=recipe.dtype)
    scorer = Reranker.from_pretrained(folder / reranker, dtype=recipe.dtype) if reranker else None
    settings = TaskSettings(
        candidates=recipe.candidates, instruction=recipe.instruction, max_queries=recipe.max_queries
    )
    name = embedder + (f"+{reranker}" if reranker else "")
    # Processes that run at the same time keep their vectors apart.
    cache = folder / "evaluation" / (f"{name}.sqlite" if recipe.jobs > 1 else "cache.sqlite")
    return evaluate(tasks, encoder, scorer, settings, folder / "evaluation" / name, cache)


def random_base(recipe: BaseRecipe, data: Path, output: Path) -> None:
    """A vocabulary, trained on the records or that of another checkpoint, and random weights."""
    from qwen3_embedding.inference.source import resolve
    from qwen3_embedding.inputs.tokenizer import Tokenizer
    from qwen3_embedding.model.backbone import Backbone
    from qwen3_embedding.model.config import BackboneConfig
    from qwen3_embedding.training.export import export_embedder
    from qwen3_embedding.whole import whole_folder

    vocabulary = output.with_name(output.name + ".vocabulary")
    if recipe.tokenizer:
        vocabulary = resolve(recipe.tokenizer)
    else:
        own_vocabulary(data, recipe.vocab_size, vocabulary)
    tokenizer = Tokenizer.from_folder(vocabulary)
    config = BackboneConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=recipe.head_dim,
        max_position_embeddings=recipe.context,
    )
    with whole_folder(output) as beside:
        export_embedder(beside, Backbone(config).initialize(recipe.seed), vocabulary, "float32", tokenizer.end_id)


def own_vocabulary(data: Path, size: int, folder: Path) -> None:
    """A tokenizer trained on the beginnings of the records' texts."""
    from qwen3_embedding.data.files import read_records, record_files
    from qwen3_embedding.training.vocabulary import train_vocabulary, write_tokenizer

    records = (record for file in record_files(data) for record in itertools.islice(read_records(file), 40_000))
    texts = (text[:400] for record in records for text in (record.query, record.positives[0]))
    write_tokenizer(folder, train_vocabulary(texts, size))


if __name__ == "__main__":
    main()
