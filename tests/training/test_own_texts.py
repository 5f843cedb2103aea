"""``recipes/own_texts.py``: a collection's texts alone make the embedder better on its real questions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors.torch import load_file

from qwen3_embedding import Embedder
from qwen3_embedding.errors import ConfigError, DataError
from tests.support.recipes import load_recipe

ROOT = Path(__file__).resolve().parents[2]
XQUAD = ROOT / "qwen3_embedding" / "assets" / "demo" / "xquad-r"
ROWS = ["BM25", "base", "base, with BM25", "base, reranked"]
ROWS += [name.replace("base", "own texts") for name in ROWS[1:]]


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_recipe("own_texts")


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The English paragraphs of the bundled collection, with their questions in English."""
    folder = tmp_path_factory.mktemp("collection") / "english"
    (folder / "qrels").mkdir(parents=True)

    def kept(name: str) -> set[str]:
        rows = [json.loads(line) for line in (XQUAD / name).read_text(encoding="utf-8").splitlines()]
        rows = [row for row in rows if row["_id"].startswith("en-")]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / name).write_text(text, encoding="utf-8")
        return {row["_id"] for row in rows}

    documents, queries = kept("corpus.jsonl"), kept("queries.jsonl")
    head, *lines = (XQUAD / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()
    judged = [line for line in lines if line.split("\t")[0] in queries and line.split("\t")[1] in documents]
    (folder / "qrels" / "test.tsv").write_text("\n".join([head, *judged]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def made(recipe: ModuleType, english: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    out = tmp_path_factory.mktemp("made") / "out"
    words = [str(english), "--out", str(out), "--steps", "60", "--batch-size", "64", "--threads", "1"]
    words += ["--reranker", "nano-reranker", "--candidates", "5", "--max-queries", "40"]
    recipe.main(words)
    return out, words


def test_texts_alone_help_with_real_questions(made: tuple[Path, list[str]]) -> None:
    out, _ = made
    card: dict[str, Any] = json.loads((out / "report.json").read_text())
    means = {row["name"]: row["mean"]["value"] for row in card["rows"]}
    assert list(means) == ROWS
    assert means["own texts"] > means["base"] + 0.01
    assert "60 steps of 64 of its documents" in card["notes"]["trained"]
    markdown = (out / "report.md").read_text()
    assert all(f"| {name} |" in markdown for name in ROWS)
    base = Embedder.from_pretrained("nano-embedding").embed_documents(["a river"])
    assert Embedder.from_pretrained(out / "english" / "model").embed_documents(["a river"]).shape == base.shape


def test_steps_follow_the_collection_where_words_are_summed(recipe: ModuleType, embedder_folder: Path) -> None:
    options = recipe.parse(["notes"])
    assert [recipe.steps_for(count, options) for count in (0, 12, 3_200, 10**6)] == [250, 250, 500, 1000]
    assert recipe.steps_for(10**6, recipe.parse(["notes", "--steps", "7"])) == 7
    layers = recipe.parse(["notes", "--base", str(embedder_folder)])
    assert (recipe.steps_for(12, layers), layers.batch_size) == (300, 64)


def test_it_goes_on_and_refuses_other_settings(
    recipe: ModuleType, made: tuple[Path, list[str]], english: Path, tmp_path: Path
) -> None:
    out, words = made
    before = (out / "english" / "model" / "model.safetensors").stat().st_mtime_ns
    recipe.main(words)
    assert (out / "english" / "model" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match=r"begun with steps = 60 and now it is 61"):
        recipe.main([*words, "--steps", "61"])
    with pytest.raises(DataError, match="no such file or folder"):
        recipe.main([str(english / "nothing"), "--out", str(tmp_path / "a")])
    shutil.copytree(english, tmp_path / "other" / "english")
    with pytest.raises(DataError, match="both are called english"):
        recipe.main([str(english), str(tmp_path / "other"), "--out", str(tmp_path / "b")])
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(DataError, match="no document of at least 40 characters"):
        recipe.main([str(tmp_path / "short.txt"), "--out", str(tmp_path / "c")])
    assert not (tmp_path / "c" / "short" / "documents.jsonl").exists()


def test_a_folder_of_files_and_layers_that_do_not_sum_words(
    recipe: ModuleType, embedder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    for number in range(12):
        text = f"Note {number}. The pump of house {number * 7} was mended in May. " + "It leaks at the valve. " * 3
        (notes / f"{number}.txt").write_text(text)
    out = tmp_path / "out"
    words = ["--base", str(embedder_folder), "--steps", "2", "--batch-size", "4", "--threads", "1"]
    recipe.main([str(notes), "--out", str(out), *words])
    assert "no questions" in capsys.readouterr().err
    adapter = load_file(out / "notes" / "tuned" / "adapter" / "adapter_model.safetensors")
    assert any(tensor.any() for name, tensor in adapter.items() if "lora_B" in name)
    assert (out / "notes" / "model" / "model.safetensors").exists()
    assert not (out / "report.md").exists()
