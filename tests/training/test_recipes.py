"""Every recipe of the project loads, and says of itself what its name says."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen3_embedding.config import load_toml
from qwen3_embedding.mining.recipe import MineRecipe
from qwen3_embedding.training.config import load_settings

RECIPES = Path(__file__).parents[2] / "recipes"
MINING = [path for path in sorted(RECIPES.rglob("*.toml")) if path.name.startswith(("mine-", "mining"))]
NOT_TRAINING = ("pipeline.toml", "synthesize.toml", "adapt")
TRAINING = [p for p in sorted(RECIPES.rglob("*.toml")) if p not in MINING and not p.name.startswith(NOT_TRAINING)]


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: str(path.relative_to(RECIPES)))
def test_it_loads(path: Path) -> None:
    settings = load_settings(path)
    assert settings.run.steps > 0
    assert (settings.kind == "reranker") == ("reranker" in path.name)
    if path.parent.name == "qwen3":
        size = path.name.split("-")[0]
        assert f"-{size}" in f"{settings.model} {settings.output}"
        assert settings.lora is not None
        assert settings.lora.alpha == 2 * settings.lora.rank


@pytest.mark.parametrize("path", MINING, ids=lambda path: str(path.relative_to(RECIPES)))
def test_mining_recipes_load(path: Path) -> None:
    assert load_toml(path, MineRecipe).mining.negatives > 0


@pytest.mark.parametrize(("size", "width"), [("0.6B", 1024), ("4B", 2560), ("8B", 4096)])
def test_vector_sizes_are_below_the_full_one(size: str, width: int) -> None:
    for stage in (1, 2):
        loss = load_settings(RECIPES / "qwen3" / f"{size}-stage-{stage}.toml").loss
        assert max(loss.dimensions) < width
        assert len(loss.dimensions) == len(loss.dimension_weights)
