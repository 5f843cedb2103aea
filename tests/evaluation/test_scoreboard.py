"""The table of docs/results.md: what stands in it is what the evaluation holds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from qwen3_embedding.errors import DataError
from qwen3_embedding.evaluation.run import Evaluation, evaluate
from qwen3_embedding.evaluation.scoreboard import BEGIN, END, Board, parse_beside, to_markdown, write_into
from qwen3_embedding.evaluation.statistics import bootstrap_interval
from qwen3_embedding.evaluation.tasks import TaskSettings
from tests.evaluation.collections import write_every_kind, write_retrieval
from tests.support.hashing import HashEncoder, OverlapScorer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("board")
    write_every_kind(root / "tasks")
    write_retrieval(root / "tasks" / "second")
    return root


@pytest.fixture(scope="module")
def evaluation(place: Path) -> Evaluation:
    settings = TaskSettings(candidates=5, rerank_queries=10)
    return evaluate([place / "tasks"], HashEncoder(), OverlapScorer(), settings, place / "a" / "out")


def cells(markdown: str, first: str) -> list[str]:
    line = next(line for line in markdown.split("\n") if line.startswith(f"| {first}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_cells_are_the_scores_with_their_intervals(place: Path, evaluation: Evaluation) -> None:
    markdown = to_markdown(Board.read(place / "a" / "out"))
    task = next(task for task in evaluation.tasks if task.name == "retrieval")
    title, metric, documents, queries, *columns = cells(markdown, "retrieval")
    assert (title, metric, documents, queries) == ("retrieval (3 languages)", "ndcg@10", "24", "24")
    best = max(task.scores[column]["ndcg@10"] for column in ("bm25", "embedder", "hybrid"))
    for column, cell in zip(("bm25", "embedder", "hybrid", "reranker"), columns, strict=True):
        values = evaluation.per_query["retrieval"][column]["ndcg@10"]
        found = bootstrap_interval([values[query] for query in sorted(values)])
        value = f"{100 * task.scores[column]['ndcg@10']:.1f}"
        bold = column != "reranker" and task.scores[column]["ndcg@10"] == best  # a sample is no rival
        start = f"**{value}**" if bold else value
        assert cell.startswith(f"{start} <sub>{100 * found.low:.1f} to {100 * found.high:.1f}</sub>")
    assert "10 queries" in columns[3]
    mean = cells(markdown, "**mean of 2 retrieval sets**")
    assert f"{100 * evaluation.mean('ndcg@10')['embedder']:.1f}" in mean[5]
    for kind in ("sts", "pair", "bitext", "classification"):
        assert re.search(r"\d <sub>-?[\d.]+ to -?[\d.]+</sub>", " ".join(cells(markdown, kind))), kind
    assert "commit" in markdown
    assert "for at most 10 queries a set" in markdown


def test_a_sampled_reranker_says_what_it_was_given(evaluation: Evaluation) -> None:
    task = next(task for task in evaluation.tasks if task.name == "retrieval")
    assert (task.counts["queries"], task.counts["reranked_queries"]) == (24, 10)
    sampled = evaluation.per_query["retrieval"]["reranker"]["ndcg@10"]
    assert len(sampled) == 10
    before = [evaluation.per_query["retrieval"]["embedder"]["ndcg@10"][query] for query in sampled]
    assert task.scores["reranker"]["ndcg@10_before"] == pytest.approx(sum(before) / 10)


def test_other_models_stand_beside(place: Path, evaluation: Evaluation) -> None:
    evaluate([place / "tasks" / "sts", place / "tasks" / "second"], HashEncoder(name="b", seed=4), None,
             TaskSettings(passage_words=4), place / "b" / "out")  # fmt: skip
    assert "its best passage of 4 words" in to_markdown(Board.read(place / "b" / "out"))
    others = {title: Board.read(path) for title, path in parse_beside([f"Other={place / 'b' / 'out'}"]).items()}
    markdown = to_markdown(Board.read(place / "a" / "out"), others)
    assert cells(markdown, "second")[-1]
    assert not cells(markdown, "retrieval")[-1]
    assert not cells(markdown, "**mean")[-1], "no mean over a part"
    assert "Other: b, the same sets" in markdown
    changed = json.loads((place / "b" / "out" / "report.json").read_text())
    changed["tasks"][0]["definition"] = "f" * 64
    (place / "b" / "out" / "report.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=r"Other: .* other data"):
        to_markdown(Board.read(place / "a" / "out"), {"Other": Board.read(place / "b" / "out")})
    for bad in ("Other", "=x", "a="):
        with pytest.raises(ValueError, match="wanted TITLE=DIR"):
            parse_beside([bad])


def test_the_page_keeps_its_words(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "results.md"
    write_into(page, "one\n")
    page.write_text(page.read_text() + "\nWords below.\n")
    write_into(page, r"two \1" + "\n")
    text = page.read_text()
    assert text.startswith("# Results\n")
    assert text.endswith("\nWords below.\n")
    assert r"two \1" in text
    assert "one" not in text
    assert text.count(BEGIN) == text.count(END) == 1
    page.write_text(text.replace(END, ""))
    with pytest.raises(DataError, match="wanted the mark"):
        write_into(page, "three\n")


def test_a_folder_without_a_finished_evaluation_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        Board.read(tmp_path)
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(DataError, match="not an evaluation of format"):
        Board.read(tmp_path)
