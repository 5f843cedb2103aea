"""Every recipe of the project loads, and says of itself what its name says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from qwen3_embedding import Embedder, Reranker
from qwen3_embedding.config import load_toml
from qwen3_embedding.data import write_records
from qwen3_embedding.mining.recipe import MineRecipe
from qwen3_embedding.training.config import load_settings
from qwen3_embedding.training.trainer import train
from tests.support.checkpoints import make_embedder_folder
from tests.training.support import pair_records

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


WIDTHS = [("0.6B", 1024), ("4B", 2560), ("8B", 4096)]


@pytest.mark.parametrize(("size", "width"), WIDTHS)
def test_vector_sizes_are_below_the_full_one(size: str, width: int) -> None:
    for stage in (1, 2):
        loss = load_settings(RECIPES / "qwen3" / f"{size}-stage-{stage}.toml").loss
        assert max(loss.dimensions) < width
        assert len(loss.dimensions) == len(loss.dimension_weights)


@pytest.mark.parametrize(("size", "width"), WIDTHS)
def test_the_stages_for_published_models_follow_each_other(size: str, width: int, tmp_path: Path) -> None:
    """Stage 1, stage 2 and the reranker of a size as they are, on a random model of its width: few steps and pairs."""
    shape: dict[str, Any] = {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 96,
    }
    for name in (f"Qwen3-{size}-Base", f"Qwen3-{size}"):
        make_embedder_folder(tmp_path / "models" / name, hidden_size=width, initializer_range=0.02, **shape)
    for name in ("weak", "labelled"):
        write_records(tmp_path / "data" / name / "records.jsonl", pair_records(40))
    for stage in ("stage-1", "stage-2", "reranker"):
        settings = load_settings(RECIPES / "qwen3" / f"{size}-{stage}.toml")
        sources = tuple(dataclasses.replace(source, path=tmp_path / source.path) for source in settings.data.sources)
        settings = dataclasses.replace(
            settings,
            model=tmp_path / settings.model,
            output=tmp_path / settings.output,
            # one process: parts of a model need several
            run=dataclasses.replace(settings.run, steps=2, margin_warmup_steps=0, shard=False),
            data=dataclasses.replace(settings.data, sources=sources, batch_size=8, cache=tmp_path / "cache"),
        )
        output = train(settings, show=False).folder
        adapter = load_file(output / "adapter" / "adapter_model.safetensors")
        assert any(tensor.any() for name, tensor in adapter.items() if "lora_B" in name)
        if stage == "reranker":
            scores = Reranker.from_pretrained(output, dtype="float32").score("the river", ["the river is very old"])
            assert 0 < float(scores[0]) < 1
        else:
            vectors = Embedder.from_pretrained(output, dtype="float32").embed_documents(["the river", "a market"])
            assert vectors.shape == (2, width)
            assert np.isfinite(vectors).all()
