"""``qwen3-embedding mine``: from a recipe to a record file and its report; exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwen3_embedding.data.files import read_records, write_records
from qwen3_embedding.data.record import Record
from tests.support.command_line import CommandLine

RECIPE = """
records = ["train.jsonl"]
output = "out/mined.jsonl.gz"
cache = "cache"

[encoder]
model = "{embedder}"
max_tokens = 64

[scorer]
model = "{reranker}"

[corpus]
paths = ["docs.jsonl"]

[mining]
negatives = 2
depth = 20

[mining.filter]
positive_share = 0.99

[mining.verify]
max_score = 1.0
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, embedder_folder: Path, reranker_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("mine")
    records = [
        Record(query=f"what is {word}?", positives=(f"{word} is a thing.",), task="retrieval", source="test")
        for word in ("river", "moon", "loan", "leaf")
    ]
    write_records(folder / "train.jsonl", records)
    (folder / "docs.jsonl").write_text("".join(json.dumps({"text": f"about {i} apples"}) + "\n" for i in range(30)))
    (folder / "recipe.toml").write_text(RECIPE.format(embedder=embedder_folder, reranker=reranker_folder))
    return folder


def test_mine_writes_records_and_a_report_and_repeats_from_the_cache(workplace: Path, q3e: CommandLine) -> None:
    done = q3e("mine", "recipe.toml", "--json", cwd=workplace)
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["corpus"] == 34
    assert report["encoded"] == 38
    mined = list(read_records(workplace / "out" / "mined.jsonl.gz"))
    assert [r.query for r in mined] == [r.query for r in read_records(workplace / "train.jsonl")]
    assert sum(len(r.negatives) for r in mined) == report["candidates"]["kept"] > 0
    stored = json.loads((workplace / "out" / "mined.jsonl.gz.report.json").read_text())
    assert stored["candidates"] == report["candidates"]
    assert stored["recipe"]["mining"]["filter"]["positive_share"] == 0.99
    before = (workplace / "out" / "mined.jsonl.gz").read_bytes()
    again = q3e("mine", "recipe.toml", cwd=workplace)
    assert again.code == 0, again.err
    assert "0 texts encoded now" in again.out
    assert "0 pairs scored now" in again.out
    assert (workplace / "out" / "mined.jsonl.gz").read_bytes() == before


def test_exit_codes_tell_the_callers_mistake_from_the_worlds_fault(workplace: Path, q3e: CommandLine) -> None:
    wrong = workplace / "wrong.toml"
    text = (workplace / "recipe.toml").read_text()
    for change, code, message in (
        (("[mining.verify]\nmax_score = 1.0", ""), 2, "both a table [scorer] and a table [mining.verify]"),
        (("depth = 20", "dept = 20"), 2, "did you mean 'depth'"),
        (("out/mined.jsonl.gz", "train.jsonl"), 2, "is one of the record files"),
        (('"train.jsonl"', '"none.jsonl"'), 3, "none.jsonl: no record files"),
        (("docs.jsonl", "train.jsonl"), 3, "no column 'text'"),
    ):
        wrong.write_text(text.replace(*change))
        done = q3e("mine", "wrong.toml", cwd=workplace)
        assert (done.code, done.out) == (code, ""), done.err
        assert message in done.err
