"""An evaluation: any encoder and scorer over folders of local tasks, resumable, with predictions kept."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

from qwen3_embedding.config import from_mapping
from qwen3_embedding.errors import ConfigError, DataError
from qwen3_embedding.evaluation.cache import ArrayCache, CachedEncoder, CachedScorer, check_same_model, identity
from qwen3_embedding.evaluation.collection import TaskInfo, read_info
from qwen3_embedding.evaluation.contamination import training_overlap
from qwen3_embedding.evaluation.environment import commit, hardware
from qwen3_embedding.evaluation.results import Report, TaskResult, library_versions, now
from qwen3_embedding.evaluation.tasks import COLUMNS, Predictions, TaskScores, TaskSettings, data_hash, run_task
from qwen3_embedding.types import Encoder, Scorer
from qwen3_embedding.whole import write_text

FORMAT = "qwen3-embedding-evaluation-1"
_REPORT_TYPES = {"pair_classification": "pair"}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The scores of all tasks and what they were measured with."""

    embedder: str | None
    reranker: str | None
    settings: Mapping[str, Any]
    tasks: tuple[TaskScores, ...]
    environment: Mapping[str, Any]
    per_query: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]
    """Task → column → metric → query id → value; kept in files of their own."""
    contamination: Mapping[str, float] = field(default_factory=dict)
    """Task → share of its test texts found in the training records; empty where none were given."""

    def means(self) -> dict[str, dict[str, float]]:
        """Kind → column → mean of the main metrics, over the tasks of that kind; no column of samples."""
        found: dict[str, dict[str, list[float]]] = {}
        for task in self.tasks:
            whole = {column: scores for column, scores in task.scores.items() if not task.sampled(column)}
            for column, scores in whole.items():
                found.setdefault(task.kind, {}).setdefault(column, []).append(scores[task.main_metric])
        return {kind: {c: math.fsum(v) / len(v) for c, v in columns.items()} for kind, columns in found.items()}

    def mean(self, metric: str, kind: str = "retrieval") -> dict[str, float]:
        """Column → mean of a metric over the tasks of a kind; empty where there is no such task."""
        tasks = [task for task in self.tasks if task.kind == kind]
        columns = [
            c
            for c in COLUMNS
            if tasks and all(metric in task.scores.get(c, {}) and not task.sampled(c) for task in tasks)
        ]
        return {c: math.fsum(task.scores[c][metric] for task in tasks) / len(tasks) for c in columns}

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, for ``report.json``."""
        return {
            "format": FORMAT,
            "embedder": self.embedder,
            "reranker": self.reranker,
            "settings": dict(self.settings),
            "environment": dict(self.environment),
            "means": self.means(),
            "contamination": dict(self.contamination),
            "tasks": [asdict(task) for task in self.tasks],
        }

    def report(self, column: str, ranking_only: bool = False) -> Report:
        """One column as the report that ``q3e report`` compares: all its tasks, or those that every column has."""
        tasks = tuple(
            self._task_result(task, column)
            for task in self.tasks
            if column in task.scores and (not ranking_only or "bm25" in task.scores)
        )
        name = "BM25" if column == "bm25" else f"{self.embedder or 'BM25'}{' + BM25' if column == 'hybrid' else ''}"
        return Report(
            model=name,
            tasks=tasks,
            commit=self.environment["commit"],
            reranker=self.reranker if column == "reranker" else None,
            settings={**self.settings, "column": column},
            versions=self.environment["versions"],
            hardware=self.environment["hardware"],
            created=self.environment["created"],
            seconds=math.fsum(task.seconds for task in self.tasks),
            costs=_speeds(tasks, self.tasks, column),
        )

    def _task_result(self, task: TaskScores, column: str) -> TaskResult:
        main = metric_key(task.main_metric)
        per_query = self.per_query.get(task.name, {}).get(column, {}).get(task.main_metric, {})
        return TaskResult(
            name=task.name,
            type=_REPORT_TYPES.get(task.kind, task.kind),
            main_metric=main,
            metrics={metric_key(metric): value for metric, value in task.scores[column].items()},
            definition=task.definition,
            samples=task.counts.get("queries", task.counts.get("pairs", task.counts.get("texts", 0))),
            subsets={language: {main: value} for language, value in task.per_language.get(column, {}).items()},
            per_query=per_query,
            interval=() if per_query else tuple(task.intervals.get(column, ())),
            instruction=task.instruction,
            contamination=self.contamination.get(task.name) if column != "bm25" else None,
            seconds=task.seconds,
        )


def _speeds(tasks: Sequence[TaskResult], scores: Sequence[TaskScores], column: str) -> dict[str, float]:
    """Median speeds over the tasks of a column, where they were measured."""
    names = {task.name for task in tasks}
    found = {}
    for key, label in ((f"queries_per_s/{column}", "queries a second"), ("documents_per_s", "documents a second")):
        values = [speed for task in scores if task.name in names and (speed := task.speed.get(key))]
        if values and not (column == "bm25" and key == "documents_per_s"):
            found[f"{label} (median over tasks)"] = median(values)
    return found


def metric_key(metric: str) -> str:
    """``ndcg@10`` as reports spell it: ``ndcg_at_10``."""
    return metric.replace("@", "_at_")


def evaluate(
    folders: Sequence[str | Path],
    encoder: Encoder | None,
    scorer: Scorer | None,
    settings: TaskSettings,
    out: str | Path,
    cache: str | Path | None = None,
    log: Callable[[str], None] = lambda line: None,
    training: Sequence[str | Path] = (),
) -> Evaluation:
    """Score the models on every task in the folders; what ``out`` holds already is not computed again.

    Args:
        folders: tasks, or folders of tasks.
        encoder: the embedder; ``None`` measures BM25 alone.
        scorer: the reranker.
        settings: what the scores depend on.
        out: gets ``report.json``, a report a column, and a folder a task with its scores and TREC run files.
        cache: file of the vectors and scores kept; ``None`` is ``cache.sqlite`` beside ``out``, shared by several runs.
        log: takes lines of progress.
        training: record files, or folders of them, that the models learnt from: how much of the test texts they hold
            is reported.

    Raises:
        DataError: data that cannot be read, lacks something, or changed since ``out`` was begun.
        ValueError: ``out`` holds an evaluation of other models or settings; another model under a known name.
        NumericalError: vectors or scores that are not finite.
    """
    out = Path(out)
    tasks = _with_distinct_names(find_tasks(folders))
    plain = {
        "embedder": encoder.name if encoder else None,
        "embedder_identity": identity(encoder) if encoder else None,
        "reranker": scorer.name if scorer else None,
        "reranker_identity": identity(scorer) if scorer else None,
        **asdict(settings),
    }
    _claim(out, plain)
    done: list[TaskScores] = []
    sizes = [_size(folder) for folder, _ in tasks]
    started, measured = time.perf_counter(), 0
    with ArrayCache(Path(cache) if cache else out.parent / "cache.sqlite") as arrays:
        if encoder is not None:
            check_same_model(encoder, arrays)
        for number, (folder, info) in enumerate(tasks):
            scores = _resume(out / info.name, folder)
            if scores is None:
                left = _left(started, measured, sum(sizes[number:]))
                log(f"[{number + 1}/{len(tasks)}] {info.name} ({info.kind}){left}")
                scores = _run(folder, out / info.name, encoder, scorer, settings, arrays, log)
                measured += sizes[number]
            else:
                log(f"[{number + 1}/{len(tasks)}] {info.name}: kept from an earlier run")
            done.append(scores)
    overlap = {}
    if training:
        log("looking for the test texts in the training records")
        overlap = training_overlap(tasks, training, settings.split)
    evaluation = Evaluation(
        embedder=encoder.name if encoder else None,
        reranker=scorer.name if scorer else None,
        settings=plain,
        tasks=tuple(done),
        environment={"commit": commit(), "hardware": hardware(), "versions": library_versions(), "created": now()},
        per_query={task.name: _read_json(out / task.name / "per_query.json") for task in done},
        contamination=overlap,
    )
    _write_json(out / "report.json", evaluation.to_mapping())
    for column in COLUMNS:
        if any(column in task.scores for task in done):
            evaluation.report(column).save(out / f"{column}.json")
    if any("bm25" in task.scores for task in done) and any("bm25" not in task.scores for task in done):
        evaluation.report("embedder", ranking_only=True).save(out / "embedder-ranking.json")
    return evaluation


def find_tasks(folders: Sequence[str | Path]) -> list[tuple[Path, TaskInfo]]:
    """The tasks in folders: each is one itself, or holds some.

    Raises:
        DataError: a folder that is neither.
    """
    if isinstance(folders, (str, Path)):
        raise TypeError("folders is one path; wanted a list of them")
    found: list[tuple[Path, TaskInfo]] = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; wanted a task, or a folder of tasks")
        inside = [folder] if _is_task(folder) else sorted(path for path in folder.iterdir() if _is_task(path))
        if not inside:
            raise DataError(
                f"{folder}: holds no task; wanted dataset.json, corpus.jsonl, pairs.tsv or test.jsonl in it"
            )
        found += [(task, read_info(task)) for task in inside]
    if not found:
        raise ValueError("no folder was given; wanted at least one task")
    return found


def _is_task(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("dataset.json", "corpus.jsonl", "pairs.tsv"))


def _with_distinct_names(tasks: list[tuple[Path, TaskInfo]]) -> list[tuple[Path, TaskInfo]]:
    seen: dict[str, Path] = {}
    for folder, info in tasks:
        if not re.fullmatch(r"[\w.() -]+", info.name) or info.name.startswith("."):
            raise DataError(
                f"{folder}: the name {info.name!r} does not make a folder; use letters, digits, '-', '_', '.'"
            )
        if info.name in seen:
            raise ValueError(f"{folder} and {seen[info.name]} are both named {info.name!r}; evaluate them in two runs")
        seen[info.name] = folder
    return tasks


def _claim(out: Path, plain: Mapping[str, Any]) -> None:
    """Make the folder this evaluation's own, or see that it is."""
    path = out / "settings.json"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        _write_json(path, plain)
        return
    other = {**asdict(TaskSettings()), **_read_json(path)}  # what a setting that is younger than the folder does alone
    differing = sorted(key for key in {*plain, *other} if plain.get(key) != other.get(key))
    if differing:
        key = differing[0]
        raise ValueError(
            f"{out} holds an evaluation with {key}={other.get(key)!r} and this one has {plain.get(key)!r}; "
            "choose another folder, or delete that one"
        )


def _resume(place: Path, folder: Path) -> TaskScores | None:
    path = place / "scores.json"
    if not path.exists():
        return None
    try:
        scores = from_mapping(_read_json(path), TaskScores, where=str(path))
    except ConfigError as error:
        raise DataError(f"{error}; delete {place} to evaluate the task anew") from None
    if scores.definition != data_hash(folder):
        raise DataError(f"{folder}: the data changed since {place} was written; delete that folder, or choose another")
    return scores


def _run(
    folder: Path,
    place: Path,
    encoder: Encoder | None,
    scorer: Scorer | None,
    settings: TaskSettings,
    arrays: ArrayCache,
    log: Callable[[str], None],
) -> TaskScores:
    scores, predictions = run_task(
        folder,
        CachedEncoder(encoder, arrays) if encoder else None,
        CachedScorer(scorer, arrays) if scorer else None,
        settings,
        log,
    )
    place.mkdir(parents=True, exist_ok=True)
    write_runs(place, predictions)
    _write_json(place / "per_query.json", predictions.per_query)
    _write_json(place / "scores.json", asdict(scores))  # last: its presence says that the task is whole
    return scores


def write_runs(place: Path, predictions: Predictions) -> None:
    """The rankings as TREC run files, one a column: query, ``Q0``, document, rank, score, column."""
    for column, rankings in predictions.rankings.items():
        parts = []
        for query, ranking in rankings.items():
            first = f"{_token(query)} Q0 "
            parts += [f"{first}{_token(d)} {rank} {score!r} {column}\n" for rank, (d, score) in enumerate(ranking, 1)]
        write_text(place / f"{column}.trec", "".join(parts), shared=True)


@lru_cache(maxsize=1 << 18)
def _token(identity_: str) -> str:
    """White space would split the columns of a run file; it is spelt as in URLs."""
    return re.sub(r"[\s%]", lambda match: "".join(f"%{byte:02X}" for byte in match.group().encode()), identity_)


def _size(folder: Path) -> int:
    """Bytes of a task's texts: what its time goes with."""
    files = [path for path in folder.glob("*") if path.suffix in (".jsonl", ".tsv") and path.is_file()]
    return sum(path.stat().st_size for path in files) + 1


def _left(started: float, measured: int, rest: int) -> str:
    """How long the rest may take, by the size of its texts."""
    if not measured:
        return ""
    seconds = (time.perf_counter() - started) / measured * rest
    return f", about {seconds / 60:.0f} min left" if seconds > 90 else f", about {seconds:.0f} s left"


def _write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n", shared=True)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read: {error}; delete the folder of that task and evaluate it anew"
        ) from None
