"""``recipes/adapt.py``, whole, at toy size, with the scripted server: every stage, a break, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from qwen3_embedding import Embedder
from qwen3_embedding.config import load_toml
from qwen3_embedding.data import Record, read_records, write_records
from qwen3_embedding.errors import ConfigError, DataError
from tests.support.recipes import RECIPES, load_recipe
from tests.synthesis.support import served, serving, write_documents

RECIPE = """
documents = "{documents}"
out = "{out}"
base = "{base}"
device = "cpu"

[endpoint]
model = "scripted"
url = "{url}"

[units]
retrieval = 2.0

[languages]
across = 0.0

[filter]
cosine = 0.0
rank = 0
length = 0.0
language = false
group = 0.0

[held_out]
share = 0.3

[mining]
negatives = 2
depth = 10

[training]
steps = 3
batch_size = 8
learning_rate = 1e-3
max_document_tokens = 64

[lora]
rank = 4
"""


@pytest.fixture(scope="module")
def adapt() -> ModuleType:
    return load_recipe("adapt")


def write_recipe(folder: Path, base: Path, url: str) -> Path:
    documents = write_documents(folder / "documents.jsonl", 30)
    path = folder / "adapt.toml"
    path.write_text(RECIPE.format(documents=documents, out=folder / "out", base=base, url=url))
    return path


@pytest.fixture(scope="module")
def adapted(
    tmp_path_factory: pytest.TempPathFactory, embedder_folder: Path, adapt: ModuleType
) -> tuple[Path, Path, ModuleType]:
    """A run that was stopped behind the training and then went on, with the server gone."""
    folder = tmp_path_factory.mktemp("adapt")
    log = folder / "served"
    with serving("--log", str(log)) as url:
        recipe = write_recipe(folder, embedder_folder, url)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(adapt, "merge", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                adapt.main([str(recipe)])
    assert set(served(log).values()) == {1}
    assert not (folder / "out" / "model").exists()
    adapt.main([str(recipe)])
    return folder / "out", recipe, adapt


def test_the_table_has_before_and_after(adapted: tuple[Path, Path, ModuleType]) -> None:
    report = (adapted[0] / "report.md").read_text().splitlines()
    assert "synthetic questions on documents not learnt from, 30 documents" in report[0]
    names = [line.split("|")[1].strip() for line in report[4:]]
    assert names[0] == "BM25"
    assert names[1].startswith("base (")
    assert (names[2], names[3].split(":")[0]) == ("tuned", "merged")
    assert all("to" in line.split("|")[5] for line in report[6:])


def test_no_held_out_document_was_learnt_from(adapted: tuple[Path, Path, ModuleType]) -> None:
    out = adapted[0]
    corpus = {
        row["_id"]: row["text"] for row in map(json.loads, (out / "held-out" / "corpus.jsonl").read_text().splitlines())
    }
    rows = (out / "held-out" / "qrels" / "test.tsv").read_text().splitlines()[1:]
    measured = {corpus[row.split("\t")[1]] for row in rows}
    learnt = list(read_records(out / "mined.jsonl"))
    assert len(corpus) == 30
    assert measured
    assert measured.isdisjoint(text for record in learnt for text in record.positives)
    assert all(len(record.negatives) <= 2 for record in learnt)
    assert any(record.negatives for record in learnt)


def test_the_model_lies_between_base_and_tuned(adapted: tuple[Path, Path, ModuleType], embedder_folder: Path) -> None:
    text = ["The lighthouse on the northern reef"]
    base, tuned, merged = (
        Embedder.from_pretrained(folder, dtype="float32").embed_documents(text)[0]
        for folder in (embedder_folder, adapted[0] / "tuned", adapted[0] / "model")
    )
    assert base @ tuned < 1 - 1e-5
    assert base @ merged > base @ tuned
    assert tuned @ merged > base @ tuned
    assert (adapted[0] / "tuned" / "adapter" / "adapter_config.json").exists()


def test_again_prints_the_table_and_makes_nothing(
    adapted: tuple[Path, Path, ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    out, recipe, adapt = adapted
    before = (out / "model" / "model.safetensors").stat().st_mtime_ns
    adapt.main([str(recipe)])
    assert capsys.readouterr().out == (out / "report.md").read_text()
    assert (out / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_other_settings_are_refused(adapted: tuple[Path, Path, ModuleType], tmp_path: Path) -> None:
    _, recipe, adapt = adapted
    changed = tmp_path / "changed.toml"
    changed.write_text(recipe.read_text().replace("share = 0.3", "share = 0.5"))
    with pytest.raises(ConfigError, match="begun with held_out"):
        adapt.main([str(changed)])


def test_a_dry_run_asks_nobody(
    tmp_path: Path, embedder_folder: Path, adapt: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, embedder_folder, "http://127.0.0.1:9/v1")
    adapt.main([str(recipe), "--dry-run"])
    printed = capsys.readouterr().out
    assert "Somebody is going to search" in printed
    assert "30 documents, 60 units, 120 requests" in printed
    assert not (tmp_path / "out").exists()


def test_real_questions_measure_and_are_not_learnt(adapted: tuple[Path, Path, ModuleType], tmp_path: Path) -> None:
    out, recipe, adapt = adapted
    records = list(read_records(out / "synthetic" / "records.jsonl"))
    write_records(tmp_path / "questions.jsonl", records[:3])
    text = recipe.read_text().replace("share = 0.3", f'questions = "{tmp_path / "questions.jsonl"}"')
    (tmp_path / "real.toml").write_text(text.replace(str(out), str(tmp_path / "out")))
    settings = load_toml(tmp_path / "real.toml", adapt.AdaptRecipe)
    assert settings.synthesis.filter.unseen == (tmp_path / "questions.jsonl",)
    write_records(settings.synthesis.records, records[3:])
    adapt.split(settings)
    lines = (tmp_path / "out" / "held-out" / "queries.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == [record.query for record in records[:3]]
    (tmp_path / "questions.jsonl").write_text(
        (tmp_path / "questions.jsonl").read_text().replace("Note", "Another note")
    )
    with pytest.raises(DataError, match="no positive that is a document"):
        adapt.split(settings)


def test_the_shipped_recipe_loads(adapt: ModuleType) -> None:
    settings = load_toml(RECIPES / "adapt.toml", adapt.AdaptRecipe)
    assert settings.synthesis.encoder is not None
    assert settings.synthesis.encoder.model == settings.base
    assert settings.lora.rank == 32


def test_of_a_base_that_sums_words_the_table_is_trained(
    adapt: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps that teach other layers destroy its own (``training/words.py``)."""
    path = write_recipe(tmp_path, Path("nano-embedding"), "http://127.0.0.1:1/v1")
    path.write_text(path.read_text().replace("learning_rate = 1e-3\n", ""))
    recipe = load_toml(path, adapt.AdaptRecipe)
    records = [
        Record(f"where is light {number}", (f"Light {number} stands on a northern reef.",), "retrieval", "x")
        for number in range(16)
    ]
    write_records(recipe.out / "mined.jsonl", records)
    adapt.tune(recipe)
    adapt.merge(recipe)
    assert "sums words" in capsys.readouterr().err
    assert not (recipe.out / "tuned" / "adapter").exists()
    text = ["where is the northern light"]
    base, tuned, merged = (
        Embedder.from_pretrained(folder, dtype="float32").embed_documents(text)[0]
        for folder in ("nano-embedding", recipe.out / "tuned", recipe.out / "model")
    )
    assert 0.9 < base @ tuned < 1 - 1e-5  # three steps move it a little; through its layers they would wreck it
    assert base @ merged > base @ tuned
    assert tuned @ merged > base @ tuned
