"""Documents with their metadata from files: JSONL, CSV, Parquet, plain text, or a folder of these."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from qwen3_embedding.errors import DataError

_ID_NAMES = ("id", "_id")
_TEXT_SUFFIXES = (".txt", ".md", ".rst")


def read_documents(path: str | Path, text_columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Mappings with ``id``, ``text`` and metadata, as :meth:`SearchIndex.add` takes them, one at a time.

    Args:
        path: a file, or a folder with all its subfolders; a text file is one document under its relative path.
        text_columns: the columns that make the text, joined by a space, empty ones left out; ``None`` is ``text``,
            behind ``title`` where there is one.  The other columns become metadata; ``id`` or ``_id`` is the id.

    Raises:
        DataError: no such file, nothing to read in it, an unknown format, or a record without text (file and line).
    """
    root = Path(path)
    if root.is_file():
        files = [root]
    elif root.is_dir():
        files = sorted(file for file in root.rglob("*") if file.is_file() and file.suffix.lower() in _READERS)
    else:
        raise DataError(f"{root}: no such file or folder; wanted documents: {_known()}")
    if not files:
        raise DataError(f"{root}: holds no document; wanted {_known()}")
    for file in files:
        reader = _READERS.get(file.suffix.lower())
        if reader is None:
            raise DataError(f"{file}: unknown format {file.suffix!r}; wanted {_known()}")
        name = file.relative_to(root).as_posix() if file != root else file.name
        for where, record in _guarded(file, reader):
            yield _document(record, where, name, text_columns)


def _document(record: dict[str, Any], where: str, name: str, text_columns: Sequence[str] | None) -> dict[str, Any]:
    if text_columns is None:
        columns = ["title", "text"] if isinstance(record.get("title"), str) else ["text"]
    else:
        columns = list(text_columns)
    parts = [record.get(column) for column in columns]
    if columns[-1] not in record or not all(part is None or isinstance(part, str) for part in parts):
        raise DataError(f"{where}: wanted text under {', '.join(map(repr, columns))}; its keys are {list(record)[:10]}")
    identity = next((record[key] for key in _ID_NAMES if record.get(key) is not None), None)
    document = {key: value for key, value in record.items() if key not in (*_ID_NAMES, *columns) and value is not None}
    if text_columns is None and isinstance(record.get("title"), str) and record["title"]:
        document["title"] = record["title"]
    document["text"] = " ".join(part for part in parts if part)
    if identity is not None:
        document["id"] = str(identity)
    elif record.get(_WHOLE_FILE):
        document["id"] = name
    document.pop(_WHOLE_FILE, None)
    return document


_WHOLE_FILE = "\0whole file"


def _guarded(
    file: Path, reader: Callable[[Path], Iterator[tuple[str, dict[str, Any]]]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        yield from reader(file)
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: byte {error.start} is not UTF-8; convert the file") from None
    except (pa.ArrowException, csv.Error) as error:
        raise DataError(f"{file}: torn, or not {file.suffix}: {error}") from None


def _read_jsonl(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with file.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise DataError(f"{file}:{number}: not JSON: {error}") from None
            record = {"text": record} if isinstance(record, str) else record
            if not isinstance(record, dict):
                raise DataError(f"{file}:{number}: is {type(record).__name__}; wanted a string or an object")
            yield f"{file}:{number}", record


def _read_csv(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, delimiter="\t" if file.suffix.lower() == ".tsv" else ",", strict=True)
        for record in reader:
            if None in record or None in record.values():
                raise DataError(f"{file}:{reader.line_num}: not as many cells as the header has")
            yield f"{file}:{reader.line_num}", dict(record)


def _read_parquet(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    row = 0
    with parquet.ParquetFile(file) as table:
        for batch in table.iter_batches(batch_size=1024):
            for record in batch.to_pylist():
                row += 1
                yield f"{file}: row {row}", record


def _read_text(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    yield str(file), {"text": file.read_text(encoding="utf-8"), _WHOLE_FILE: True}


_READERS: dict[str, Callable[[Path], Iterator[tuple[str, dict[str, Any]]]]] = {
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    **dict.fromkeys(_TEXT_SUFFIXES, _read_text),
}


def _known() -> str:
    return ", ".join(_READERS)
