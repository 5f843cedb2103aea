from __future__ import annotations

import csv
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest

from qwen3_embedding.corpus.reader import Document, ReadOptions, Skip, read_file
from qwen3_embedding.corpus.source import check_unchanged, fingerprint, open_source
from qwen3_embedding.errors import DataError

RECORDS = [{"id": f"d{n}", "title": f"T{n}", "text": f'text {n} — 文本\n"quoted", {n}'} for n in range(3000)]
WANTED = [(record["id"], record["text"]) for record in RECORDS]


def _jsonl(path: Path, opener: Callable[..., Any] = open) -> Path:
    with opener(path, "wb") as file:
        file.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode())
    return path


def _zst(path: Path) -> Path:
    plain = _jsonl(path.with_name("plain.tmp")).read_bytes()
    with pa.output_stream(str(path), compression="zstd") as stream:
        stream.write(plain)
    path.with_name("plain.tmp").unlink()
    return path


def _csv(path: Path) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["id", "title", "text"], delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(RECORDS)
    return path


def _parquet(path: Path) -> Path:
    pa.parquet.write_table(pa.Table.from_pylist(RECORDS), path, row_group_size=700)
    return path


def _arrow(path: Path, new: Callable[..., Any]) -> Path:
    table = pa.Table.from_pylist(RECORDS)
    with new(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=500)
    return path


MAKERS: dict[str, Callable[[Path], Path]] = {
    "c.jsonl": _jsonl,
    "c.jsonl.gz": lambda path: _jsonl(path, gzip.open),
    "c.jsonl.xz": lambda path: _jsonl(path, lzma.open),
    "c.jsonl.zst": _zst,
    "c.csv": _csv,
    "c.tsv": _csv,
    "c.parquet": _parquet,
    "c.arrow": lambda path: _arrow(path, pa.ipc.new_file),
    "stream.arrow": lambda path: _arrow(path, pa.ipc.new_stream),
}


def _read(path: Path, options: ReadOptions | None = None, start: Document | None = None) -> list[Document | Skip]:
    (file,) = open_source(path).files
    return list(read_file(file, options, start))


def _documents(items: list[Document | Skip]) -> list[Document]:
    documents = [item for item in items if isinstance(item, Document)]
    assert len(documents) == len(items)
    return documents


@pytest.mark.parametrize("name", MAKERS)
def test_every_format_gives_the_same_documents(name: str, tmp_path: Path) -> None:
    documents = _documents(_read(MAKERS[name](tmp_path / name)))
    assert [(document.id, document.text) for document in documents] == WANTED


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("at", [0, 1, 699, 700, 1500, 2999])
def test_reading_begins_again_at_any_document(name: str, at: int, tmp_path: Path) -> None:
    path = MAKERS[name](tmp_path / name)
    documents = _documents(_read(path))
    assert _read(path, start=documents[at]) == documents[at:]


def test_ids_come_from_id_then_underscore_id_then_the_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"_id": 7, "text": "x"}\n\n{"_id": "8", "text": "y"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n\n{"text": "y", "id": "late"}\n')
    (tmp_path / "c.jsonl").write_text('{"key": "k", "text": "x"}\n')
    assert [d.id for d in _documents(_read(tmp_path / "a.jsonl"))] == ["7", "8"]
    rows = _documents(_read(tmp_path / "b.jsonl"))
    assert [d.id for d in rows] == ["b.jsonl:1", "b.jsonl:3"]
    assert _read(tmp_path / "b.jsonl", start=rows[1]) == rows[1:], "the id column is settled by the first record"
    assert [d.id for d in _documents(_read(tmp_path / "c.jsonl", ReadOptions(id_column="key")))] == ["k"]


def test_text_columns_are_joined(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"title": "A", "text": "b"}\n{"title": "", "text": "c"}\n{"title": null, "text": "d"}\n')
    documents = _documents(_read(path, ReadOptions(text_columns=("title", "text"))))
    assert [d.text for d in documents] == ["A b", "c", "d"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"id": "x", "text": ', "not a usable JSON record"),
        (b'["id"]', "a JSON list, wanted an object"),
        (b'{"id": "x"}', "no column 'text'"),
        (b'{"id": "x", "text": 5}', "column 'text' is int"),
        (b'{"text": "x"}', "id column 'id' is None"),
        (b'{"id": "x", "text": "\xff"}', "not a usable JSON record"),
        (b'{"id": "x", "text": "\\ud800"}', "not valid Unicode"),
        (b"[" * 100_000, "not a usable JSON record"),
    ],
)
def test_a_corrupt_line_is_named_or_skipped(line: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"id": "1", "text": "a"}\n' + line + b'\n{"id": "3", "text": "c"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: .*" + reason):
        _read(path)
    first, skip, last = _read(path, ReadOptions(on_error="skip"))
    assert isinstance(skip, Skip)
    assert skip.row == 2
    assert reason in skip.reason
    assert isinstance(first, Document)
    assert isinstance(last, Document)
    assert (first.id, last.id) == ("1", "3")


def test_a_corrupt_csv_row_is_named_or_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"id,text\n1,a\n2,b,c\n3,\xff\n4,d\n")
    with pytest.raises(DataError, match=r"a\.csv:3: 3 fields, wanted 2"):
        _read(path)
    items = _read(path, ReadOptions(on_error="skip"))
    assert [item.row for item in items if isinstance(item, Skip)] == [3, 4]
    assert [item.id for item in items if isinstance(item, Document)] == ["1", "4"]


@pytest.mark.parametrize("name", [name for name in MAKERS if name.endswith(("gz", "xz", "zst", "parquet", "arrow"))])
def test_a_torn_file_is_an_error_also_where_records_are_skipped(name: str, tmp_path: Path) -> None:
    path = MAKERS[name](tmp_path / name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="torn"):
        _read(path, ReadOptions(on_error="skip"))


def test_a_missing_column_of_a_columnar_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'body' .*'text'"):
        _read(_parquet(tmp_path / "a.parquet"), ReadOptions(text_columns=("body",)))


def test_a_column_that_is_not_unicode_is_named(tmp_path: Path) -> None:
    raw = pa.array([b"good", b"\xff\xfe"], pa.binary()).view(pa.string())
    pa.parquet.write_table(pa.table({"text": raw}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: torn, or not parquet"):
        _read(tmp_path / "a.parquet")


def test_a_folder_of_texts(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("two\nlines", encoding="utf-8")
    (tmp_path / "sub" / "a.md").write_text("# один", encoding="utf-8")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / ".hidden.txt").write_text("no")
    source = open_source(tmp_path)
    documents = [item for file in source.files for item in read_file(file)]
    assert [(d.id, d.text) for d in documents if isinstance(d, Document)] == [
        ("b.txt", "two\nlines"),
        ("sub/a.md", "# один"),
    ]
    assert source.ignored == ("picture.png",)


def test_a_readme_beside_records_is_not_a_document(tmp_path: Path) -> None:
    _parquet(tmp_path / "part-1.parquet")
    _jsonl(tmp_path / "part-0.jsonl")
    (tmp_path / "README.md").write_text("about")
    source = open_source(tmp_path)
    assert [file.name for file in source.files] == ["part-0.jsonl", "part-1.parquet"]
    assert source.ignored == ("README.md",)


def test_what_is_no_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        open_source(tmp_path / "none")
    with pytest.raises(DataError, match="no file of a known format"):
        open_source(tmp_path)
    (tmp_path / "a.docx").write_bytes(b"x")
    with pytest.raises(DataError, match=r"unknown format '\.docx'"):
        open_source(tmp_path / "a.docx")


def test_a_fingerprint_notices_a_change(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "1", "text": "a"}\n')
    (file,) = open_source(path).files
    first = fingerprint(path)
    check_unchanged(file, first)
    assert fingerprint(path, first) is first
    path.write_text('{"id": "1", "text": "a longer one"}\n')
    assert fingerprint(path, first).sha256 != first.sha256
    with pytest.raises(DataError, match="changed while it was read"):
        check_unchanged(file, first)


def test_a_hugging_face_dataset_folder_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(RECORDS).save_to_disk(str(tmp_path / "saved"))
    source = open_source(tmp_path / "saved")
    documents = [item for file in source.files for item in read_file(file)]
    assert [(d.id, d.text) for d in documents if isinstance(d, Document)] == WANTED
    assert set(source.ignored) == {"dataset_info.json", "state.json"}
