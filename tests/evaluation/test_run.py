"""A whole evaluation: resumed against uninterrupted, changed data, the command line."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qwen3_embedding.cli import app
from qwen3_embedding.data.files import write_records
from qwen3_embedding.data.record import Record
from qwen3_embedding.errors import DataError
from qwen3_embedding.evaluation.metrics import evaluate_run
from qwen3_embedding.evaluation.results import Report
from qwen3_embedding.evaluation.run import Evaluation, _left, _size, evaluate, find_tasks
from qwen3_embedding.evaluation.scoreboard import Board, to_markdown
from qwen3_embedding.evaluation.tasks import TaskSettings
from tests.evaluation.collections import write_every_kind, write_retrieval
from tests.support.hashing import HashEncoder, OverlapScorer

SETTINGS = TaskSettings(candidates=5)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_every_kind(tmp_path_factory.mktemp("tasks"))


def scores(evaluation: Evaluation) -> dict[str, Any]:
    return {task.name: (task.scores, task.per_language, task.counts, task.definition) for task in evaluation.tasks}


class _Dies(HashEncoder):
    """Stops in the middle, as a killed process would."""

    left = 10**9

    def _embed(self, texts: Any, dimensions: int | None) -> Any:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super()._embed(texts, dimensions)


def test_killed_and_resumed_gives_the_same_report(tasks: Path, tmp_path: Path) -> None:
    whole = evaluate([tasks], HashEncoder(), OverlapScorer(), SETTINGS, tmp_path / "whole" / "out")
    for steps in (1, 4, 9):
        dying = _Dies()
        dying.left = steps
        out = tmp_path / str(steps) / "out"
        with pytest.raises(KeyboardInterrupt):
            evaluate([tasks], dying, OverlapScorer(), SETTINGS, out)
        assert not (out / "report.json").exists()
        lines: list[str] = []
        encoder = HashEncoder()
        resumed = evaluate([tasks], encoder, OverlapScorer(), SETTINGS, out, log=lines.append)
        assert scores(resumed) == scores(whole)
        assert resumed.per_query == whole.per_query
        assert any("kept from an earlier run" in line for line in lines) == (steps > 1)
        again = HashEncoder()
        assert scores(evaluate([tasks], again, OverlapScorer(), SETTINGS, out)) == scores(whole)
        assert again.calls == [("documents", 1)]  # whether it is still the same model


SLOW = """
import sys, time
from pathlib import Path
from qwen3_embedding.evaluation.run import evaluate
from qwen3_embedding.evaluation.tasks import TaskSettings
from tests.support.hashing import HashEncoder, OverlapScorer

class Slow(HashEncoder):
    def _embed(self, texts, dimensions):
        time.sleep(0.1)
        return super()._embed(texts, dimensions)

evaluate([sys.argv[1]], Slow(), OverlapScorer(), TaskSettings(candidates=5), sys.argv[2])
"""


def test_kill_9_and_resumed_leaves_the_same_files(tasks: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole" / "out", tmp_path / "killed" / "out"
    evaluate([tasks], HashEncoder(), OverlapScorer(), SETTINGS, whole)
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(tasks), str(out)])
    try:
        deadline = time.monotonic() + 120
        while not (out / "clustering" / "scores.json").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (out / "report.json").exists()
    lines: list[str] = []
    evaluate([tasks], HashEncoder(), OverlapScorer(), SETTINGS, out, log=lines.append)
    assert sum("kept from an earlier run" in line for line in lines) >= 3
    for path in sorted(whole.rglob("*")):
        if path.suffix == ".trec" or path.name == "per_query.json":
            assert (out / path.relative_to(whole)).read_bytes() == path.read_bytes(), path
    assert untimed(out / "report.json") == untimed(whole / "report.json")
    assert not list(out.rglob("*.part*"))


def untimed(path: Path) -> Any:
    """A report without what no two runs share: clocks and speeds."""
    report = json.loads(path.read_text())
    del report["environment"]["created"]
    for task in report["tasks"]:
        del task["seconds"], task["speed"]
    return report


def test_what_is_written(tasks: Path, tmp_path: Path) -> None:
    evaluation = evaluate([tasks], HashEncoder(), OverlapScorer(), SETTINGS, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [task["name"] for task in written["tasks"]] == sorted(path.name for path in tasks.iterdir())
    assert written["means"]["retrieval"]["embedder"] == evaluation.tasks[-2].scores["embedder"]["ndcg@10"]
    run: dict[str, dict[str, float]] = {}
    for line in (tmp_path / "out" / "retrieval" / "reranker.trec").read_text().splitlines():
        query, _, document, _, score, tag = line.split(" ")
        run.setdefault(query, {})[document] = float(score)
        assert tag == "reranker"
    qrels = {f"{a}-q{n}": {f"{b}-p{n}": 1 for b in ("de", "en", "zh")} for a in ("de", "en", "zh") for n in range(8)}
    task = next(task for task in evaluation.tasks if task.name == "retrieval")
    assert evaluate_run(qrels, run).mean["ndcg@10"] == pytest.approx(task.scores["reranker"]["ndcg@10"])
    report = Report.load(tmp_path / "out" / "embedder.json")
    assert report.task("retrieval").score == task.scores["embedder"]["ndcg@10"]
    assert len(report.task("retrieval").per_query) == 24
    text = Report.load(tmp_path / "out" / "bm25.json")
    assert text.model == "BM25"
    ranking = Report.load(tmp_path / "out" / "embedder-ranking.json")
    assert [one.name for one in ranking.tasks] == [one.name for one in text.tasks] == ["reranking", "retrieval"]


def test_changed_data_and_other_settings_are_refused(tmp_path: Path) -> None:
    folder = write_retrieval(tmp_path / "set")
    evaluate([folder], HashEncoder(), None, SETTINGS, tmp_path / "out")
    with pytest.raises(ValueError, match=r"candidates=5 and this one has 6; choose another"):
        evaluate([folder], HashEncoder(), None, TaskSettings(candidates=6), tmp_path / "out")
    with pytest.raises(ValueError, match="embedder='hash' and this one has 'other'"):
        evaluate([folder], HashEncoder(name="other"), None, SETTINGS, tmp_path / "out")
    with pytest.raises(ValueError, match="it is another model now"):
        evaluate([folder], HashEncoder(seed=9), None, SETTINGS, tmp_path / "out2")
    begun = tmp_path / "out" / "settings.json"
    settings = json.loads(begun.read_text())
    assert settings.pop("rerank_weight") == 1.0
    begun.write_text(json.dumps(settings))  # as an evaluation left it that knew no such setting
    evaluate([folder], HashEncoder(), None, SETTINGS, tmp_path / "out")
    with pytest.raises(ValueError, match=r"rerank_weight=1\.0 and this one has 0\.5; choose another"):
        evaluate([folder], HashEncoder(), None, replace(SETTINGS, rerank_weight=0.5), tmp_path / "out")
    path = folder / "corpus.jsonl"
    path.write_text(path.read_text().replace("river", "stream"))
    with pytest.raises(DataError, match="the data changed"):
        evaluate([folder], HashEncoder(), None, SETTINGS, tmp_path / "out")


def test_test_texts_in_the_training_records_are_counted(tasks: Path, tmp_path: Path) -> None:
    records = [
        Record("RIVER?", ("river  alphabet",), "retrieval", "s"),  # a query of the retrieval task, written otherwise
        Record("something", ("kilometre kilogram garden 2", "bridge a"), "retrieval", "s"),
    ]
    write_records(tmp_path / "train" / "one.jsonl", records)
    folders = [tasks / name for name in ("retrieval", "bitext", "clustering")]
    evaluation = evaluate(folders, HashEncoder(), None, SETTINGS, tmp_path / "out", training=[tmp_path / "train"])
    assert evaluation.contamination == {"retrieval": 1 / 24, "bitext": 1 / 24, "clustering": 1 / 72}
    assert evaluation.report("embedder").task("bitext").contamination == 1 / 24
    assert evaluation.report("bm25").task("retrieval").contamination is None
    markdown = to_markdown(Board.read(tmp_path / "out"))
    assert markdown.count("| 4.2 % |") == 2
    assert "in training" in markdown
    with pytest.raises(DataError, match="no record files"):
        evaluate(folders, HashEncoder(), None, SETTINGS, tmp_path / "out", training=[tmp_path / "nothing"])


def test_the_time_left_goes_with_the_texts_of_every_kind(tasks: Path) -> None:
    for kind in ("sts", "retrieval", "clustering"):
        size = _size(tasks / kind)
        assert size > sum(path.stat().st_size for path in (tasks / kind).glob("*.*") if path.suffix != ".json")
        assert size < 20_000
    started = time.perf_counter() - 10  # a fifth of the bytes took ten seconds
    assert _left(started, 100, 400) == ", about 40 s left"
    assert _left(started, 100, 4000) == ", about 7 min left"
    assert _left(started, 0, 400) == ""


def test_torn_results_are_named(tmp_path: Path) -> None:
    folder = write_retrieval(tmp_path / "set")
    evaluate([folder], HashEncoder(), None, SETTINGS, tmp_path / "out")
    path = tmp_path / "out" / "set" / "scores.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(DataError, match="cannot be read"):
        evaluate([folder], HashEncoder(), None, SETTINGS, tmp_path / "out")


def test_bm25_alone_and_a_folder_without_description(tmp_path: Path) -> None:
    folder = write_retrieval(tmp_path / "plain")
    (folder / "dataset.json").unlink()
    evaluation = evaluate([folder], None, None, SETTINGS, tmp_path / "out")
    assert list(evaluation.tasks[0].scores) == ["bm25"]
    assert evaluation.tasks[0].name == "plain"


def test_folders_that_hold_no_task_are_named(tmp_path: Path) -> None:
    for folders, error in (([tmp_path / "no"], DataError), ([tmp_path], DataError), ([], ValueError)):
        with pytest.raises(error):
            find_tasks(folders)
    with pytest.raises(TypeError, match="one path"):
        find_tasks(str(tmp_path))
    first, second = write_retrieval(tmp_path / "a" / "set"), write_retrieval(tmp_path / "b" / "set")
    with pytest.raises(ValueError, match="both named 'set'"):
        evaluate([first, second], None, None, SETTINGS, tmp_path / "out")


def test_the_commands_index_search_and_evaluate(
    tmp_path: Path, embedder_folder: Path, reranker_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_retrieval(tmp_path / "set")
    run = CliRunner()

    def q3e(*arguments: str) -> Any:
        done = run.invoke(app, [*arguments, "--json"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    corpus = str(folder / "corpus.jsonl")
    made = q3e("index", corpus, "--out", "index", "--model", str(embedder_folder))
    assert made["documents"] == 24
    assert q3e("index", corpus, "--out", "index", "--model", str(embedder_folder), "--upsert")["documents"] == 24
    found = q3e("search", "index", "river", "--mode", "text", "--top-k", "3")
    assert {hit["id"] for hit in found["hits"]} == {"en-p0", "en-p7"}
    found = q3e("search", "index", "river", "--reranker", str(reranker_folder), "--candidates", "5")
    assert {hit["origin"] for hit in found["hits"]} == {"rerank"}
    report = q3e(
        "evaluate",
        str(folder),
        "--embedder",
        str(embedder_folder),
        "--reranker",
        str(reranker_folder),
        "--candidates",
        "3",
    )
    assert set(report["tasks"][0]["scores"]) == {"bm25", "embedder", "hybrid", "reranker"}
    table = run.invoke(app, ["evaluate", str(folder), "--embedder", str(embedder_folder), "--out", "other"])
    assert table.exit_code == 0
    assert "ndcg@10" in table.stdout
    shutil.rmtree(tmp_path / "index")
    assert isinstance(run.invoke(app, ["search", "index", "river", "--mode", "text"]).exception, Exception)
