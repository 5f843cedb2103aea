"""Search of merge weights on the simplex against a held-out score.

Deterministic and resumable: every score goes to a ledger when it is known, a strategy is a pure function of its seed
and the scores so far, and a repeated search replays its first steps from the ledger without merging anything.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qwen3_embedding.config import to_mapping
from qwen3_embedding.errors import DataError, NumericalError
from qwen3_embedding.merging.merge import merge, merge_record
from qwen3_embedding.merging.methods import Array
from qwen3_embedding.merging.report import MergeReport
from qwen3_embedding.merging.settings import MergeSettings, Source
from qwen3_embedding.model.weights import write_json
from qwen3_embedding.optional import require

Weights = tuple[float, ...]
Score = Callable[[Weights], float]
"""Held-out score of weights that sum to 1; higher is better."""

Strategy = Literal["coordinate", "random", "nelder-mead"]
DECIMALS = 6
"""Weights are rounded to this before they are scored, so that a replay asks for the very same ones."""
SEARCH_REPORT = "merge-search.json"


@dataclass(frozen=True)
class SearchSettings:
    """How to search. Equal weights and each source alone are always scored first, for comparison."""

    strategy: Strategy = "coordinate"
    evaluations: int = 32
    """Merges scored at most, the first n + 1 included."""
    seed: int = 0
    step: float = 0.25
    """First change of a weight (``coordinate``, ``nelder-mead``)."""
    tolerance: float = 0.02
    """Change of a weight at which to stop (``coordinate``, ``nelder-mead``)."""

    def __post_init__(self) -> None:
        if self.evaluations < 1:
            raise ValueError(f"evaluations={self.evaluations}; wanted at least 1")
        if not 0 < self.tolerance <= self.step <= 1:
            raise ValueError(f"step={self.step}, tolerance={self.tolerance}; wanted 0 < tolerance <= step <= 1")


@dataclass(frozen=True)
class Trial:
    """One merge that was scored."""

    weights: Weights
    score: float


@dataclass(frozen=True)
class SearchResult:
    """Every trial in order, and the best (the first of equals)."""

    trials: tuple[Trial, ...]
    finished: bool
    """False where the strategy would have gone on, had it been allowed more evaluations."""

    @property
    def best(self) -> Trial:
        """The trial with the highest score."""
        return max(self.trials, key=lambda trial: trial.score)

    def to_json(self) -> dict[str, Any]:
        """Plain values: the best trial, the finished flag and all trials."""
        return {"best": asdict(self.best), "finished": self.finished, "trials": [asdict(t) for t in self.trials]}


def search_weights(
    score: Score, count: int, settings: SearchSettings, ledger: Path | None = None, identity: str = ""
) -> SearchResult:
    """Look for weights of ``count`` sources with the highest score.

    Args:
        score: the held-out score.
        count: how many sources there are.
        settings: the strategy and its limits.
        ledger: a JSON-lines file of scores, continued where it exists.
        identity: what is searched (sources, method, held-out set); a ledger of another search is refused.

    Raises:
        DataError: a ledger of another search, or one that cannot be read.
        NumericalError: a score that is not finite.
        ValueError: fewer than two sources.
    """
    if count < 2:
        raise ValueError(f"a search over {count} sources; wanted at least 2")
    about = {"identity": identity, "count": count}
    trials = _Trials(score, settings.evaluations, _Ledger(ledger, about) if ledger else None)
    try:
        _first_trials(trials, count)
        STRATEGIES[settings.strategy](trials, count, settings)
        finished = True
    except _SpentError:
        finished = False
    return SearchResult(tuple(trials.done), finished)


def search_merge(
    settings: MergeSettings,
    search: SearchSettings,
    evaluate: Callable[[Path], float],
    objective: str,
    ledger: Path,
    on_trial: Callable[[Trial], None] | None = None,
) -> tuple[MergeReport, SearchResult]:
    """Search the weights of a merge and write the best one to ``settings.output``.

    Every trial is merged into a folder beside the output, scored and removed.

    Args:
        settings: the merge; its own weights are not used.
        search: strategy and limits.
        evaluate: held-out score of a checkpoint folder; higher is better.
        objective: what ``evaluate`` measures and on what, as part of the ledger's identity.
        ledger: where scores are kept; repeat the call to resume.
        on_trial: told of each newly scored trial.
    """
    if settings.output.exists() and not settings.overwrite:
        raise ValueError(f"output={settings.output} exists; set overwrite = true to replace it, or name another folder")
    settings.output.parent.mkdir(parents=True, exist_ok=True)

    def score(weights: Weights) -> float:
        beside = Path(tempfile.mkdtemp(prefix=f".{settings.output.name}.", suffix=".trial", dir=settings.output.parent))
        try:
            merge(with_weights(settings, weights, beside / "merged"))
            value = evaluate(beside / "merged")
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        if on_trial:
            on_trial(Trial(weights, value))
        return value

    found = search_weights(score, len(settings.sources), search, ledger, _identity(settings, objective))
    report = merge(with_weights(settings, found.best.weights, settings.output))
    write_json(settings.output / SEARCH_REPORT, {"objective": objective, **to_mapping(search), **found.to_json()})
    return report, found


def with_weights(settings: MergeSettings, weights: Weights, output: Path) -> MergeSettings:
    """The same merge with other weights and another output."""
    sources = tuple(Source(s.path, w) for s, w in zip(settings.sources, weights, strict=True))
    return replace(settings, sources=sources, output=output)


def _identity(settings: MergeSettings, objective: str) -> str:
    equal = (1.0,) * len(settings.sources)
    record = asdict(merge_record(with_weights(settings, equal, settings.output)))
    return json.dumps({**record, "objective": objective}, sort_keys=True)


# --- strategies -------------------------------------------------------------------------------------------------------


def _first_trials(trials: _Trials, count: int) -> None:
    trials(np.full(count, 1 / count))
    for corner in np.eye(count):
        trials(corner)


def _coordinate(trials: _Trials, count: int, settings: SearchSettings) -> None:
    """Raise or lower one weight at a time, the others in proportion; halve the step where nothing helps."""
    best = trials.best
    step = settings.step
    while step >= settings.tolerance:
        before = best
        for number in range(count):
            for change in (step, -step):
                candidate = _changed(np.array(best.weights), number, change)
                value = trials(candidate)
                if value > best.score:
                    best = Trial(_rounded(candidate), value)
        if best == before:
            step /= 2


def _random(trials: _Trials, count: int, settings: SearchSettings) -> None:
    """Uniform on the simplex."""
    generator = np.random.default_rng(settings.seed)
    while True:
        trials(generator.dirichlet(np.ones(count)))


def _nelder_mead(trials: _Trials, count: int, settings: SearchSettings) -> None:
    """Nelder and Mead 1965 on all weights but the last, each point projected onto the simplex."""
    optimize = require("scipy.optimize", extra="train")
    start = np.array(trials.best.weights)
    corners = np.stack([start[:-1], *(start[:-1] + settings.step * axis for axis in np.eye(count - 1))])
    optimize.minimize(
        lambda point: -trials(project_to_simplex(np.append(point, 1 - point.sum()))),
        start[:-1],
        method="Nelder-Mead",
        options={"initial_simplex": corners, "xatol": settings.tolerance, "fatol": float("inf"), "maxiter": 10**6},
    )


def project_to_simplex(point_N: Array) -> Array:
    """The nearest point with non-negative coordinates that sum to 1 (Held, Wolfe and Crowder 1974)."""
    descending_N = np.sort(point_N)[::-1]
    excess_N = (np.cumsum(descending_N) - 1) / np.arange(1, len(point_N) + 1)
    threshold = excess_N[np.flatnonzero(descending_N > excess_N)[-1]]
    projected_N: Array = np.maximum(point_N - threshold, 0.0)
    return projected_N


def _changed(weights_N: Array, number: int, change: float) -> Array:
    weight = float(np.clip(weights_N[number] + change, 0.0, 1.0))
    others = np.delete(weights_N, number)
    share = others / others.sum() if others.sum() > 0 else np.full(len(others), 1 / len(others))
    changed_N: Array = np.insert(share * (1 - weight), number, weight)
    return changed_N


def _rounded(weights: Sequence[float] | Array) -> Weights:
    values = [round(float(weight), DECIMALS) for weight in weights]
    values[int(np.argmax(values))] += round(1 - sum(values), DECIMALS)  # the sum stays 1
    return tuple(round(value, DECIMALS) for value in values)


# --- trials and their ledger ------------------------------------------------------------------------------------------


class _SpentError(Exception):
    """The allowed number of evaluations is used up."""


class _Trials:
    """Scores weights once each, up to a limit."""

    def __init__(self, score: Score, limit: int, ledger: _Ledger | None) -> None:
        self._score = score
        self._limit = limit
        self._ledger = ledger
        self._known = dict(ledger.read()) if ledger else {}
        self._seen: dict[Weights, float] = {}

    @property
    def done(self) -> list[Trial]:
        return [Trial(weights, score) for weights, score in self._seen.items()]

    @property
    def best(self) -> Trial:
        return max(self.done, key=lambda trial: trial.score)

    def __call__(self, point: Sequence[float] | Array) -> float:
        weights = _rounded(point)
        if weights not in self._seen:
            if len(self._seen) >= self._limit:
                raise _SpentError
            self._seen[weights] = self._known[weights] if weights in self._known else self._new(weights)
        return self._seen[weights]

    def _new(self, weights: Weights) -> float:
        value = float(self._score(weights))
        if not np.isfinite(value):
            raise NumericalError(f"the held-out score of weights {list(weights)} is {value}; wanted a finite number")
        if self._ledger:
            self._ledger.append(weights, value)
        return value


class _Ledger:
    """JSON lines: what is searched, then one line a trial."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self._path = path
        self._about = about
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write("w", about)

    def read(self) -> list[tuple[Weights, float]]:
        raw = self._path.read_bytes()
        whole, _, torn = raw.rpartition(b"\n")
        if torn:  # the process was killed inside its last line
            with self._path.open("r+b") as file:
                file.truncate(len(raw) - len(torn))
        try:
            lines = [json.loads(line) for line in whole.split(b"\n") if line]
            if lines and lines[0] != self._about:
                raise DataError(
                    f"{self._path}: belongs to another search (other sources, method or held-out set); "
                    "remove it or name another ledger"
                )
            if not lines:
                self._write("w", self._about)
            return [(tuple(line["weights"]), float(line["score"])) for line in lines[1:]]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{self._path}: not a ledger of a merge search: {error}") from None

    def append(self, weights: Weights, score: float) -> None:
        self._write("a", {"weights": list(weights), "score": score})

    def _write(self, mode: str, value: dict[str, Any]) -> None:
        with self._path.open(mode, encoding="utf-8") as file:
            file.write(json.dumps(value) + "\n")
            file.flush()
            os.fsync(file.fileno())


STRATEGIES: dict[Strategy, Callable[[_Trials, int, SearchSettings], None]] = {
    "coordinate": _coordinate,
    "random": _random,
    "nelder-mead": _nelder_mead,
}
