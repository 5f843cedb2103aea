"""Recipes load, and a run goes from documents to records with an embedding model."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qwen3_embedding.config import from_mapping, load_toml
from qwen3_embedding.data import read_records
from qwen3_embedding.errors import ConfigError
from qwen3_embedding.synthesis.client import EndpointSettings
from qwen3_embedding.synthesis.detect import _stopwords
from qwen3_embedding.synthesis.filter import FilterSettings
from qwen3_embedding.synthesis.languages import languages
from qwen3_embedding.synthesis.personas import bundled_personas
from qwen3_embedding.synthesis.ray import RaySettings
from qwen3_embedding.synthesis.recipe import EncoderSettings, Synthesis, SynthesisRecipe
from tests.synthesis.support import ROOT, TOPICS
from tests.synthesis.test_generate import Scripted, by_example

if TYPE_CHECKING:
    from qwen3_embedding.inference.embedder import Embedder

RAW = [(f"d{n}", f"{text} Item {n}.") for n, text in enumerate(TOPICS * 3)]


def test_the_shipped_recipe_and_the_one_in_the_documentation_load() -> None:
    shipped = load_toml(ROOT / "recipes" / "synthesize.toml", SynthesisRecipe)
    assert shipped.endpoint is not None
    assert shipped.endpoint.extra == {"chat_template_kwargs": {"enable_thinking": False}}
    page = (ROOT / "docs" / "synthesis.md").read_text(encoding="utf-8")
    snippets = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert len(snippets) == 2
    assert from_mapping(tomllib.loads(snippets[0]), SynthesisRecipe).encoder is None
    assert from_mapping(tomllib.loads(snippets[1])["ray"], RaySettings).engine is not None
    assert f"{len(languages())} languages with weights" in page
    assert f"common words of {len(_stopwords())} languages" in page
    assert f"library of {len(bundled_personas())} personas" in page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": None}, "need [encoder]"),
        ({"endpoint": None}, "wanted one of [endpoint], [local] and [ray]"),
        ({"format": "csv"}, "format is 'csv'"),
        ({"filter": {"cosin": 0.5}}, "did you mean 'cosine'"),
        ({"languages": {"only": ["xx"]}}, "no language 'xx'"),
        ({"units": {"retrieval": 0.0}}, "more than 0 of one"),
    ],
)
def test_a_wrong_recipe_says_what_is_wrong(change: dict[str, object], message: str) -> None:
    good = {"documents": "d", "out": "o", "endpoint": {"model": "m"}, "encoder": {"model": "e"}}
    raw = {key: value for key, value in {**good, **change}.items() if value is not None}
    with pytest.raises(ConfigError, match=re.escape(message)):
        from_mapping(raw, SynthesisRecipe)


def test_from_documents_to_records_with_an_embedding_model(tmp_path: Path, embedder: Embedder) -> None:
    recipe = SynthesisRecipe(
        Path("unused"),
        tmp_path,
        name="synthetic-test",
        format="parquet",
        endpoint=EndpointSettings("m"),
        encoder=EncoderSettings("e"),
        filter=FilterSettings(rank=6, cosine=0, length=0, language=False),
    )
    synthesis = Synthesis(recipe, lambda: RAW, embedder)
    model = Scripted(lambda request: by_example(request).replace("gâteau", f"gâteau {request.key[:4]}"))
    assert synthesis.count_units() == synthesis.generate(model).done == len(RAW)
    report = synthesis.filter()
    assert report["run"]["personas"] == report["run"]["encoder"] == embedder.name
    assert report["run"]["documents"]["used"] == len(RAW)
    assert 0 < report["filters"]["rank"]["dropped"] < len(RAW)
    records = list(read_records(tmp_path / "records.parquet"))
    provenance = [json.loads(line) for line in (tmp_path / "provenance.jsonl").read_text("utf-8").splitlines()]
    assert len(records) == len(provenance) == report["run"]["records"] > 0
    for record, origin in zip(records, provenance, strict=True):
        assert record.source == "synthetic-test"
        assert record.score == pytest.approx(origin["cosine"], abs=1e-4)
        assert origin["rank"] <= 6
        assert any(origin["document"] == name and text in record.positives for name, text in RAW)
    before = (tmp_path / "records.parquet").read_bytes()
    assert synthesis.generate(model).done == 0
    assert synthesis.filter()["kept"] == report["kept"]
    assert (tmp_path / "records.parquet").read_bytes() == before


def test_another_model_may_not_write_into_the_same_ledger(tmp_path: Path) -> None:
    off = FilterSettings(rank=0, cosine=0)
    first = SynthesisRecipe(Path("unused"), tmp_path, endpoint=EndpointSettings("m", concurrency=4), filter=off)
    Synthesis(first, lambda: RAW).generate(Scripted(by_example))
    faster = SynthesisRecipe(Path("unused"), tmp_path, endpoint=EndpointSettings("m", concurrency=9), filter=off)
    assert Synthesis(faster, lambda: RAW).generate(Scripted(by_example)).skipped == len(RAW)
    other = SynthesisRecipe(Path("unused"), tmp_path, endpoint=EndpointSettings("n"), filter=off)
    with pytest.raises(ConfigError, match="begun with model model = 'm', the recipe now says 'n'"):
        Synthesis(other, lambda: RAW).generate(Scripted(by_example))


def test_an_estimate_is_near_what_is_asked(tmp_path: Path) -> None:
    recipe = SynthesisRecipe(
        Path("unused"),
        tmp_path,
        endpoint=EndpointSettings("m", input_price=3.0),
        filter=FilterSettings(rank=0, cosine=0),
    )
    synthesis = Synthesis(recipe, lambda: RAW, limit=8)
    estimate, model = synthesis.estimate(), Scripted(by_example)
    synthesis.generate(model)
    assert (estimate.documents, estimate.units, estimate.requests) == (8, 8, len(model.requests))
    characters = sum(len(request.prompt) + len(request.system) for request in model.requests)
    assert estimate.input_tokens == pytest.approx(characters / 4, rel=0.05)
    assert estimate.cost == pytest.approx(3e-6 * estimate.input_tokens)
    assert len(estimate.prompts) == 3
