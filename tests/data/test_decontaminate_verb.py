"""The verb: record files in, clean ones and a report out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwen3_embedding.data import Record, read_records, write_records
from tests.support.command_line import CommandLine
from tests.support.tasks import write_task


@pytest.fixture
def place(tmp_path: Path) -> Path:
    documents = {"d1": "Goethe wrote Faust over sixty years", "d2": "nobody asks for this text"}
    write_task(tmp_path / "tasks" / "quiz", documents, {"q1": "who wrote Faust?"}, {"q1": "d1"})
    pairs = tmp_path / "tasks" / "alike"
    pairs.mkdir()
    (pairs / "dataset.json").write_text('{"kind": "sts"}')
    (pairs / "pairs.tsv").write_text(
        "score\tsentence1\tsentence2\n1.0\ta bird sings in the tree\tbirds sing in trees\n"
    )
    write_records(
        tmp_path / "records" / "one.jsonl.xz",
        [
            Record("WHO wrote  Faust?", ("an answer",), "retrieval", "web"),
            Record("something else", ("nobody asks for this text",), "retrieval", "web"),
            Record("a bird", ("a bird sings in the tree",), "retrieval", "zoo"),
        ],
    )
    write_records(tmp_path / "records" / "two.jsonl", [Record("q", ("d",), "retrieval", "web")])
    return tmp_path


def test_clean_records_and_a_report(place: Path, q3e: CommandLine) -> None:
    records, tasks, out = (str(place / name) for name in ("records", "tasks", "clean"))
    done = q3e("decontaminate", records, "--against", tasks, "--out", out, "--json")
    assert done.code == 0
    assert "one.jsonl.xz: 3 records, 2 dropped" in done.err
    report = json.loads(done.out)
    assert (report["seen"], report["dropped"], report["by_set"]) == (4, 2, {"quiz": 1, "alike": 1})
    kept = list(read_records(place / "clean" / "one.jsonl.xz"))
    assert [record.positives for record in kept] == [("nobody asks for this text",)]
    assert len(list(read_records(place / "clean" / "two.jsonl"))) == 1
    written = json.loads((place / "clean" / "decontamination.json").read_text())
    assert written["settings"]["run_words"] == 13
    assert [sample["evaluation_text"] for sample in written["samples"]] == [
        "who wrote Faust?",
        "a bird sings in the tree",
    ]


def test_the_records_themselves_are_not_replaced(place: Path, q3e: CommandLine) -> None:
    before = (place / "records" / "two.jsonl").read_bytes()
    records = str(place / "records")
    against = ("--against", str(place / "tasks"))
    done = q3e("decontaminate", records, *against, "--out", records)
    assert done.code == 2
    assert "would be replaced" in done.err
    done = q3e("decontaminate", records, records, *against, "--out", str(place / "x"))
    assert done.code == 2
    assert "two files are called one.jsonl.xz" in done.err
    assert (place / "records" / "two.jsonl").read_bytes() == before


def test_what_is_no_task_is_refused(place: Path, q3e: CommandLine) -> None:
    places = [str(place / name) for name in ("records", "absent", "x")]
    done = q3e("decontaminate", places[0], "--against", places[1], "--out", places[2])
    assert done.code == 3
    assert "no such folder" in done.err
    assert not (place / "x").exists()
