"""Record files: JSONL (plain, gzip, xz, zstd) and Parquet, read as streams and written beside, then renamed."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from qwen3_embedding.data.record import KEYS, Record, from_mapping, to_mapping
from qwen3_embedding.errors import DataError
from qwen3_embedding.optional import require
from qwen3_embedding.whole import whole_file

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.xz", ".jsonl.zst", ".parquet")
PARQUET_ROWS = 10_000


def read_records(path: str | Path) -> Iterator[Record]:
    """The records of one file, in order, without holding the file in memory.

    Raises:
        DataError: no such file, an unknown suffix, a torn file, or a line that is no record (file, line, reason).
    """
    for where, raw in _rows(Path(path), "records"):
        yield from_mapping(raw, where)


def _rows(path: Path, wanted: str) -> Iterator[tuple[str, Any]]:
    """Each row as plain values, with the file and line that it stands in."""
    _check_suffix(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; wanted {wanted} as {', '.join(SUFFIXES)}")
    return _parquet_rows(path) if path.suffix == ".parquet" else _json_lines(path)


@dataclass(frozen=True, slots=True)
class PlainText:
    """A line of plain text: ``{"text": …, "language": …}``, other keys aside."""

    text: str
    language: str | None = None


def read_texts(path: str | Path) -> Iterator[Record | PlainText]:
    """The lines of one file, each a record or a plain text (an object with ``text`` and without ``query``).

    Raises:
        DataError: as :func:`read_records`, or a text that is none.
    """
    for where, raw in _rows(Path(path), "records or texts"):
        if isinstance(raw, dict) and "text" in raw and "query" not in raw:
            yield _plain_text(raw, where)
        else:
            yield from_mapping(raw, where)


def _plain_text(raw: dict[str, Any], where: str) -> PlainText:
    text, language = raw["text"], raw.get("language")
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: text is {text!r:.60}; wanted a text that is not empty")
    if language is not None and not isinstance(language, str):
        raise DataError(f"{where}: language is {language!r:.60}; wanted a string or null")
    return PlainText(text, language)


def read_folder(folder: str | Path) -> Iterator[Record]:
    """The records of every record file of a folder, files in order of name."""
    for path in record_files(folder):
        yield from read_records(path)


def record_files(path: str | Path) -> list[Path]:
    """The record files of a folder in order of name, or the file itself.

    Raises:
        DataError: nothing there.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    files = sorted(file for file in path.glob("*") if file.name.endswith(SUFFIXES))
    if not files:
        raise DataError(f"{path}: no record files; wanted a file or a folder of {', '.join(SUFFIXES)}")
    return files


def write_records(path: str | Path, records: Iterable[Record]) -> int:
    """Write records as their suffix says; the file is there whole or not at all.

    Returns:
        How many were written.
    """
    path = Path(path)
    _check_suffix(path)
    with whole_file(path) as beside:
        if path.suffix == ".parquet":
            return _write_parquet(beside, records)
        return _write_json_lines(beside, records, path.suffix)


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_suffix(path: Path) -> None:
    if not path.name.endswith(SUFFIXES):
        raise DataError(f"{path}: unknown suffix; wanted {', '.join(SUFFIXES)}")


@contextmanager
def _open(path: Path, mode: str, suffix: str) -> Iterator[BinaryIO]:
    """A binary stream through the suffix's compression."""
    if suffix == ".gz":
        # No time stamp inside, so that equal records give equal bytes.
        with path.open(mode) as raw, gzip.GzipFile(filename="", fileobj=raw, mode=mode, mtime=0) as stream:
            yield cast(BinaryIO, stream)
    elif suffix == ".xz":
        with lzma.open(path, mode) as stream:
            yield cast(BinaryIO, stream)
    elif suffix == ".zst":
        zstandard = require("zstandard", extra="train")
        with zstandard.open(path, mode) as raw, _by_line(raw, mode) as stream:
            yield stream
    else:
        with path.open(mode) as stream:
            yield cast(BinaryIO, stream)


def _by_line(stream: Any, mode: str) -> Any:
    """zstandard's reader gives no lines."""
    return io.BufferedReader(stream, 1 << 20) if mode == "rb" else nullcontext(stream)


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    number = 0
    try:
        with _open(path, "rb", path.suffix) as stream:
            for line in stream:
                number += 1
                if line.strip():
                    yield f"{path}:{number}", _parse(line, f"{path}:{number}")
    except (EOFError, OSError, lzma.LZMAError) as error:
        raise DataError(f"{path}: cannot be read behind line {number}: {error}") from error


def _parse(line: bytes, where: str) -> Any:
    try:
        return json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{where}: not valid JSON: {error}") from None


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read behind row {number}: {error}") from error


def _write_json_lines(path: Path, records: Iterable[Record], suffix: str) -> int:
    count = 0
    with _open(path, "wb", suffix) as stream:
        for record in records:
            stream.write(json.dumps(to_mapping(record), ensure_ascii=False).encode() + b"\n")
            count += 1
    return count


def _write_parquet(path: Path, records: Iterable[Record]) -> int:
    import pyarrow
    import pyarrow.parquet

    strings = pyarrow.list_(pyarrow.string())
    types = {"positives": strings, "negatives": strings, "score": pyarrow.float64()}
    schema = pyarrow.schema([(key, types.get(key, pyarrow.string())) for key in KEYS])
    count = 0
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        rows: list[dict[str, Any]] = []
        for record in records:
            rows.append(to_mapping(record))
            count += 1
            if len(rows) == PARQUET_ROWS:
                writer.write_table(pyarrow.Table.from_pylist(rows, schema))
                rows = []
        if rows:
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))
    return count
