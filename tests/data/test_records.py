"""Records and their files: what is read is what was written, and what is no record is refused with its place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from qwen3_embedding.data import Record, read_folder, read_records, write_records
from qwen3_embedding.data.files import SUFFIXES, file_hash
from qwen3_embedding.data.record import from_mapping, to_mapping
from qwen3_embedding.errors import DataError

RECORDS = [
    Record(
        "what is a cat?", ("a small\nanimal", "Felis catus"), "retrieval", "made", negatives=("a dog",), language="en"
    ),
    Record("犬", ("dog",), "bitext", "made", instruction="Translate", language="ja-en"),
    Record("a", ("b",), "sts", "made", score=0.25),
    Record('quotes " and \\ and \u2028', ("x",), "classification", "made", instruction="", negatives=("y", "z")),
]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"records{suffix}"
    assert write_records(path, RECORDS) == len(RECORDS)
    assert list(read_records(path)) == RECORDS
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.xz", ".jsonl.zst"])
def test_equal_records_give_equal_bytes(tmp_path: Path, suffix: str) -> None:
    first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    write_records(first, RECORDS)
    write_records(second, RECORDS)
    assert file_hash(first) == file_hash(second)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write_records(path, RECORDS)

    def broken() -> Any:
        yield RECORDS[0]
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_records(path, broken())
    assert list(read_records(path)) == RECORDS
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"positives": []}, "positives is empty"),
        ({"positives": ["good", "  "]}, r"positives\[1\] is empty"),
        ({"positives": "a string"}, "positives is str; wanted a list"),
        ({"positives": None}, "'positives' is missing or null"),
        ({"negatives": [3]}, r"negatives\[0\] is int"),
        ({"query": ""}, "query is empty"),
        ({"query": 5}, "query is int"),
        ({"query": "\ud800"}, "lone surrogate at character 0"),
        ({"task": "retreival"}, "task is 'retreival'; wanted one of retrieval"),
        ({"source": ""}, "source is empty"),
        ({"score": "high"}, "score is 'high'"),
        ({"score": float("nan")}, "score is nan"),
        ({"task": "sts"}, "an sts record has no score"),
        ({"instruction": 1}, "instruction is int"),
        ({"positive": ["typo"]}, "unknown key 'positive'"),
    ],
)
def test_a_malformed_line_is_refused_with_its_place(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    path = tmp_path / "records.jsonl"
    good = to_mapping(RECORDS[0])
    path.write_text(json.dumps(good) + "\n\n" + json.dumps({**good, **change}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=reason) as caught:
        list(read_records(path))
    assert str(caught.value).startswith(f"{path}:3:")


def test_broken_json_and_other_values_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"query": ', encoding="utf-8")
    with pytest.raises(DataError, match=r"records.jsonl:1: not valid JSON"):
        list(read_records(path))
    path.write_text("[1]\n", encoding="utf-8")
    with pytest.raises(DataError, match=r":1: got list, wanted an object"):
        list(read_records(path))


def test_a_parquet_row_is_refused_with_its_number(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [to_mapping(RECORDS[0]), {**to_mapping(RECORDS[0]), "query": ""}]
    path = tmp_path / "records.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    with pytest.raises(DataError, match=r"records.parquet: row 2: query is empty"):
        list(read_records(path))


def test_torn_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl.gz"
    whole = gzip.compress(("\n".join(json.dumps(to_mapping(r)) for r in RECORDS * 50)).encode())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read behind line"):
        list(read_records(path))
    torn = tmp_path / "records.parquet"
    torn.write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="cannot be read behind row 0"):
        list(read_records(torn))
    with pytest.raises(DataError, match="no such file"):
        list(read_records(tmp_path / "absent.jsonl"))
    with pytest.raises(DataError, match="unknown suffix"):
        list(read_records(tmp_path / "records.csv"))
    with pytest.raises(DataError, match="no record files"):
        list(read_folder(tmp_path / "nothing"))


def test_a_folder_is_read_in_order_of_name(tmp_path: Path) -> None:
    write_records(tmp_path / "b.jsonl", RECORDS[2:])
    write_records(tmp_path / "a.jsonl.xz", RECORDS[:2])
    assert list(read_folder(tmp_path)) == RECORDS


def test_a_record_checks_itself() -> None:
    with pytest.raises(ValueError, match="positives is empty"):
        Record("q", (), "retrieval", "made")
    assert from_mapping(to_mapping(RECORDS[0]), "here") == RECORDS[0]
