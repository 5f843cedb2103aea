"""Documents from files, and what broken files say."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from qwen3_embedding.errors import DataError
from qwen3_embedding.retrieval.source import read_documents


def test_every_format_gives_the_same_documents(tmp_path: Path) -> None:
    rows = [
        {"_id": "a", "title": "T", "text": "one, two", "year": 3},
        {"_id": "b", "title": "", "text": "三", "year": 4},
    ]
    (tmp_path / "x.jsonl").write_text(
        '{"_id": "a", "title": "T", "text": "one, two", "year": 3}\n\n'
        '{"_id": "b", "title": "", "text": "三", "year": 4}\n'
    )
    (tmp_path / "x.csv").write_text('_id,title,text,year\na,T,"one, two",3\nb,,三,4\n')
    (tmp_path / "x.tsv").write_text("_id\ttitle\ttext\tyear\na\tT\tone, two\t3\nb\t\t三\t4\n")
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    wanted = [{"id": "a", "text": "T one, two", "title": "T", "year": 3}, {"id": "b", "text": "三", "year": 4}]
    for suffix in ("jsonl", "parquet"):
        assert list(read_documents(tmp_path / f"x.{suffix}")) == wanted
    texts = [{**one, "year": str(one["year"])} for one in wanted]
    for suffix in ("csv", "tsv"):
        assert list(read_documents(tmp_path / f"x.{suffix}")) == texts
    chosen = list(read_documents(tmp_path / "x.jsonl", ["text"]))
    assert chosen == [
        {"id": "a", "text": "one, two", "title": "T", "year": 3},
        {"id": "b", "text": "三", "title": "", "year": 4},
    ]


def test_a_folder_of_text_files(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.md").write_text("# B")
    (tmp_path / "a.txt").write_text("A")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    assert list(read_documents(tmp_path)) == [{"id": "a.txt", "text": "A"}, {"id": "sub/b.md", "text": "# B"}]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.jsonl", b'{"text": "a"}\n{', r"x.jsonl:2: not JSON"),
        ("x.jsonl", b"3\n", r"x.jsonl:1: is int"),
        ("x.jsonl", b'{"body": "a"}\n', r"x.jsonl:1: wanted text under 'text'; its keys are \['body'\]"),
        ("x.jsonl", b'{"text": 5}\n', "wanted text"),
        ("x.jsonl", b"\xff\xfe", "is not UTF-8"),
        ("x.csv", b"id,text\n1,a,b\n", "not as many cells"),
        ("x.parquet", b"PAR1 torn", "torn"),
        ("x.bin", b"", "unknown format '.bin'"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        list(read_documents(tmp_path / name))


def test_nothing_to_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        list(read_documents(tmp_path / "no"))
    with pytest.raises(DataError, match="holds no document"):
        list(read_documents(tmp_path))
