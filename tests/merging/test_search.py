"""Search of merge weights: finds a known optimum, repeats itself, resumes, and writes the best merge."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from qwen3_embedding import Embedder
from qwen3_embedding.errors import DataError, NumericalError
from qwen3_embedding.merging.merge import merge
from qwen3_embedding.merging.search import (
    SEARCH_REPORT,
    SearchSettings,
    Strategy,
    Trial,
    Weights,
    project_to_simplex,
    search_merge,
    search_weights,
    with_weights,
)
from qwen3_embedding.merging.settings import MergeSettings, Source
from tests.support.checkpoints import make_embedder_folder

TARGET = np.array([0.5, 0.1, 0.4])


def hill(weights: Weights) -> float:
    return -float(np.abs(np.array(weights) - TARGET).sum())


@pytest.mark.parametrize(("strategy", "within"), [("coordinate", 0.05), ("nelder-mead", 0.05), ("random", 0.3)])
def test_every_strategy_nears_the_optimum_on_the_simplex(strategy: Strategy, within: float) -> None:
    found = search_weights(hill, 3, SearchSettings(strategy, evaluations=80, seed=3))
    assert -found.best.score < within
    assert len(found.trials) <= 80
    for trial in found.trials:
        assert min(trial.weights) >= 0
        assert sum(trial.weights) == pytest.approx(1, abs=1e-9)
    first = [trial.weights for trial in found.trials[:4]]
    assert first == [(0.333334, 0.333333, 0.333333), (1, 0, 0), (0, 1, 0), (0, 0, 1)]


@pytest.mark.parametrize("strategy", ["coordinate", "nelder-mead"])
def test_a_best_single_source_is_found_and_the_search_ends(strategy: Strategy) -> None:
    found = search_weights(lambda weights: weights[1], 3, SearchSettings(strategy, evaluations=500))
    assert list(found.best.weights) == [0, 1, 0]
    assert found.finished


@pytest.mark.parametrize("strategy", ["coordinate", "nelder-mead", "random"])
def test_killed_anywhere_and_resumed_gives_the_uninterrupted_search(strategy: Strategy, tmp_path: Path) -> None:
    settings = SearchSettings(strategy, evaluations=20, seed=5)
    whole = search_weights(hill, 3, settings)
    for number, stop in enumerate((1, 7, 19)):
        ledger = tmp_path / f"{number}.jsonl"
        scored: list[Weights] = []

        def dying(weights: Weights, stop: int = stop, scored: list[Weights] = scored) -> float:
            if len(scored) == stop:
                raise KeyboardInterrupt
            scored.append(weights)
            return hill(weights)

        with pytest.raises(KeyboardInterrupt):
            search_weights(dying, 3, settings, ledger)
        with ledger.open("a") as file:
            file.write('{"weights": [0.1, 0.')  # killed inside a line

        def again(weights: Weights, scored: list[Weights] = scored) -> float:
            assert weights not in scored
            return hill(weights)

        assert search_weights(again, 3, settings, ledger) == whole
        lines = [json.loads(line) for line in ledger.read_text().splitlines()]
        assert [tuple(line["weights"]) for line in lines[1:]] == [trial.weights for trial in whole.trials]


def test_more_evaluations_extend_a_search(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    short = search_weights(hill, 3, SearchSettings(evaluations=6), ledger)
    long = search_weights(hill, 3, SearchSettings(evaluations=15), ledger)
    assert long.trials[:6] == short.trials
    assert not short.finished


def test_a_ledger_of_another_search_is_refused(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    search_weights(hill, 3, SearchSettings(evaluations=2), ledger, "on set A")
    with pytest.raises(DataError, match="another search"):
        search_weights(hill, 3, SearchSettings(evaluations=2), ledger, "on set B")
    ledger.write_text("not json\n")
    with pytest.raises(DataError, match="not a ledger"):
        search_weights(hill, 3, SearchSettings(evaluations=2), ledger)


def test_bad_settings_and_scores_are_refused() -> None:
    with pytest.raises(NumericalError, match="is nan"):
        search_weights(lambda weights: float("nan"), 2, SearchSettings())
    with pytest.raises(ValueError, match="at least 2"):
        search_weights(hill, 1, SearchSettings())
    with pytest.raises(ValueError, match="tolerance"):
        SearchSettings(step=0.01, tolerance=0.1)
    with pytest.raises(ValueError, match="evaluations=0"):
        SearchSettings(evaluations=0)


def test_projection_is_the_nearest_point_of_the_simplex() -> None:
    generator = np.random.default_rng(0)
    for point in generator.normal(size=(20, 4)):
        nearest = project_to_simplex(point)
        assert nearest.min() >= 0
        assert nearest.sum() == pytest.approx(1)
        others = generator.dirichlet(np.ones(4), size=500)
        assert np.linalg.norm(others - point, axis=1).min() >= np.linalg.norm(nearest - point) - 1e-12


def test_a_search_finds_the_merge_that_made_the_reference_vectors(tmp_path: Path) -> None:
    """Held-out score: nearness to the vectors of a known merge, so the best weights are known."""
    sources = tuple(Source(make_embedder_folder(tmp_path / f"run-{seed}", seed=seed)) for seed in range(2))
    settings = MergeSettings(method="spherical-mean", sources=sources, output=tmp_path / "best")
    texts = ["one text", "another, longer text", "und ein dritter"]
    merge(with_weights(settings, (0.75, 0.25), tmp_path / "reference"))
    wanted = Embedder.from_pretrained(tmp_path / "reference").embed_documents(texts)

    def evaluate(folder: Path) -> float:
        return float(np.mean(np.sum(Embedder.from_pretrained(folder).embed_documents(texts) * wanted, axis=1)))

    seen: list[Trial] = []
    search = SearchSettings(evaluations=9)
    report, found = search_merge(settings, search, evaluate, "three texts", tmp_path / "ledger.jsonl", seen.append)
    assert found.best.weights == (0.75, 0.25)
    assert found.best.score == pytest.approx(1, abs=1e-6)
    assert seen == list(found.trials)
    assert report.method == "spherical-mean"
    stored = json.loads((tmp_path / "best" / SEARCH_REPORT).read_text())
    assert stored["best"]["weights"] == [0.75, 0.25]
    assert stored["objective"] == "three texts"
    assert torch.equal(
        torch.from_numpy(Embedder.from_pretrained(tmp_path / "best").embed_documents(texts)), torch.from_numpy(wanted)
    )
    leftovers = sorted(path.name for path in tmp_path.iterdir())
    assert leftovers == ["best", "ledger.jsonl", "reference", "run-0", "run-1"]
    with pytest.raises(ValueError, match="overwrite = true"):
        search_merge(settings, search, evaluate, "three texts", tmp_path / "ledger.jsonl")
