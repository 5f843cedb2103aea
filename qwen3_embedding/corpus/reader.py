"""Documents out of files, streamed: memory holds one record (text formats) or one batch of records (columnar ones)."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal, cast

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from qwen3_embedding.corpus.source import SourceFile
from qwen3_embedding.errors import DataError

MAX_RECORD_BYTES = 256 * 1024 * 1024
"""A longer line is refused: it would not be streamed any more, and is hardly ever meant."""

_BATCH_ROWS = 1024
_ID_NAMES = ("id", "_id")


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Where a record keeps its text and its id, and what to do with a record that cannot be read."""

    text_columns: tuple[str, ...] = ("text",)
    """Joined by a space, empty ones left out: ``("title", "text")`` for the collections of BEIR."""
    id_column: str | None = None
    """``None``: the column ``id`` or ``_id`` where the first record has one, else ``{file}:{row}``."""
    on_error: Literal["raise", "skip"] = "raise"
    """``skip`` goes on behind a record that cannot be read and reports it as a :class:`Skip`."""

    def __post_init__(self) -> None:
        if not self.text_columns:
            raise ValueError("text_columns is empty; wanted at least one column name")
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f"on_error={self.on_error!r}; wanted 'raise' or 'skip'")


@dataclass(frozen=True, slots=True)
class Document:
    """A text and where it stood."""

    id: str
    text: str
    row: int
    """1-based line of a JSONL or CSV file, 1-based row of a columnar one, 1 for a plain-text file."""
    offset: int = 0
    """Byte at which the record begins, where the file can be entered there; else 0."""
    fraction: float = field(default=0.0, compare=False)
    """Of the file, how much is read, 0 to 1; for progress only."""


@dataclass(frozen=True, slots=True)
class Skip:
    """A record that could not be read."""

    row: int
    reason: str
    offset: int = 0
    """As in :class:`Document`."""


@dataclass(slots=True)
class _Fields:
    """Takes id and text out of a record; decides once, at the first record of a file, which column is the id."""

    file: SourceFile
    options: ReadOptions
    id_column: str | None = field(init=False)
    decided: bool = False

    def __post_init__(self) -> None:
        self.id_column = self.options.id_column

    def decide(self, names: Any) -> None:
        if not self.decided:
            self.decided = True
            if self.id_column is None:
                self.id_column = next((name for name in _ID_NAMES if name in names), None)

    def document(self, record: Mapping[str, Any], row: int, offset: int = 0, fraction: float = 0.0) -> Document:
        """Raises ValueError, with the reason, where the record has no id or no text."""
        self.decide(record)
        parts = [self._text(record, name) for name in self.options.text_columns]
        return Document(self._id(record, row), " ".join(part for part in parts if part), row, offset, fraction)

    def _text(self, record: Mapping[str, Any], name: str) -> str:
        value = record.get(name)
        if isinstance(value, str):
            _check_unicode(value, name)
            return value
        if name not in record:
            raise ValueError(f"no column {name!r} (there is: {', '.join(map(repr, record)) or 'nothing'})")
        if value is None and len(self.options.text_columns) > 1:
            return ""
        raise ValueError(f"column {name!r} is {type(value).__name__}, wanted a string")

    def _id(self, record: Mapping[str, Any], row: int) -> str:
        if self.id_column is None:
            return f"{self.file.name}:{row}"
        value = record.get(self.id_column)
        if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
            raise ValueError(f"id column {self.id_column!r} is {value!r:.60}, wanted a string or an integer")
        _check_unicode(str(value), self.id_column)
        return str(value)


def read_file(
    file: SourceFile, options: ReadOptions | None = None, start: Document | None = None
) -> Iterator[Document | Skip]:
    """The documents of a file, in its order.

    Args:
        file: what to read.
        options: columns, and what happens with a corrupt record.
        start: begin at this document again (it is the first that comes); ``None`` begins at the top.

    Raises:
        DataError: a record that cannot be read (with file and row), unless ``on_error="skip"``; always, where the
            file itself is torn, because nothing behind the tear can be read.
    """
    options = options or ReadOptions()
    reader = _READERS[file.format]
    try:
        for item in reader(file, options, start):
            if isinstance(item, Skip) and options.on_error == "raise":
                raise DataError(
                    f"{file.path}:{item.row}: {item.reason}; repair the record, or skip such records (on_error='skip', "
                    "--on-error skip)"
                )
            yield item
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's fault (no permission, no such file), not the format's
        raise DataError(f"{file.path}: torn, or not {file.format}: {error}") from error


def _read_jsonl(file: SourceFile, options: ReadOptions, start: Document | None) -> Iterator[Document | Skip]:
    fields = _Fields(file, options)
    for row, offset, fraction, line in _lines(file, start, fields):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(f"a JSON {type(record).__name__}, wanted an object")
            yield fields.document(record, row, offset, fraction)
        except (ValueError, RecursionError) as error:  # JSON and Unicode errors are ValueErrors
            yield Skip(row, f"not a usable JSON record: {error}", offset)


def _lines(file: SourceFile, start: Document | None, fields: _Fields) -> Iterator[tuple[int, int, float, bytes]]:
    """Row, offset, fraction read and bytes of each line from ``start`` on, where a plain file is entered."""
    with _open(file) as (stream, fraction):
        row, offset = 0, 0
        if start is not None and file.compression == "none":
            _decide_from_first_line(stream, fields)
            stream.seek(start.offset)
            row, offset = start.row - 1, start.offset
        while line := _torn(file, row, lambda: stream.readline(MAX_RECORD_BYTES + 1)):
            row += 1
            if len(line) > MAX_RECORD_BYTES:
                raise DataError(
                    f"{file.path}:{row}: a line of more than {MAX_RECORD_BYTES:,} bytes; wanted one record a line"
                )
            if row == 1 and line.startswith(b"\xef\xbb\xbf"):
                line = b"   " + line[3:]
            if start is None or row >= start.row:
                yield row, offset, fraction(), line
            elif line.strip() and not fields.decided:
                _decide_from(line, fields)
            offset += len(line)


def _decide_from_first_line(stream: BinaryIO, fields: _Fields) -> None:
    """The id column is settled by the first readable record, also where reading begins in the middle."""
    while not fields.decided and (line := stream.readline(MAX_RECORD_BYTES)):
        _decide_from(line, fields)


def _decide_from(line: bytes, fields: _Fields) -> None:
    with contextlib.suppress(ValueError, RecursionError):
        record = json.loads(line)
        if isinstance(record, dict):
            fields.decide(record)


def _read_csv(file: SourceFile, options: ReadOptions, start: Document | None) -> Iterator[Document | Skip]:
    fields = _Fields(file, options)
    csv.field_size_limit(MAX_RECORD_BYTES)
    with (
        _open(file) as (stream, fraction),
        io.TextIOWrapper(stream, encoding="utf-8-sig", newline="", errors="surrogateescape") as text,
    ):
        rows = csv.reader(text, delimiter="\t" if file.format == "tsv" else ",", strict=True)
        header = _torn(file, 0, lambda: next(rows, None))
        if header is None:
            raise DataError(f"{file.path}: empty; wanted a header line with column names")
        fields.decide(header)
        while True:
            row = rows.line_num + 1
            try:
                values = _torn(file, row, lambda: next(rows, None))
            except csv.Error as error:
                yield Skip(row, f"not valid CSV: {error}")
                continue
            if values is None:
                return
            if values and (start is None or row >= start.row):
                yield _csv_document(fields, header, values, row, fraction())


def _csv_document(fields: _Fields, header: list[str], values: list[str], row: int, fraction: float) -> Document | Skip:
    if len(values) != len(header):
        return Skip(row, f"{len(values)} fields, wanted {len(header)} as in the header")
    try:
        return fields.document(dict(zip(header, values, strict=True)), row, 0, fraction)
    except ValueError as error:
        return Skip(row, str(error))


def _read_text(file: SourceFile, options: ReadOptions, start: Document | None) -> Iterator[Document | Skip]:
    del options, start  # a plain-text file is one document
    with _open(file) as (stream, _):
        raw = _torn(file, 1, lambda: stream.read(MAX_RECORD_BYTES + 1))
    if len(raw) > MAX_RECORD_BYTES:
        raise DataError(
            f"{file.path}: more than {MAX_RECORD_BYTES:,} bytes; wanted one document, or one record a line (JSONL)"
        )
    try:
        yield Document(file.name, raw.decode("utf-8-sig"), 1, fraction=1.0)
    except UnicodeDecodeError as error:
        yield Skip(1, f"not UTF-8: {error}")


def _read_parquet(file: SourceFile, options: ReadOptions, start: Document | None) -> Iterator[Document | Skip]:
    with pa.parquet.ParquetFile(file.path, buffer_size=1 << 20, pre_buffer=False) as parquet:
        fields = _columns(file, options, parquet.schema_arrow.names)
        first = start.row if start else 1
        row = 1
        groups: list[int] = []
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            if groups or row + rows > first:
                groups.append(group)
            else:
                row += rows
        if groups:
            batches = parquet.iter_batches(_BATCH_ROWS, row_groups=groups, columns=_wanted(fields))
            yield from _records(batches, fields, row, first, parquet.metadata.num_rows)


def _read_arrow(file: SourceFile, options: ReadOptions, start: Document | None) -> Iterator[Document | Skip]:
    with pa.memory_map(str(file.path)) as mapped:
        is_file = bytes(mapped.read(6)) == b"ARROW1"
        mapped.seek(0)
        if is_file:
            reader = pa.ipc.open_file(mapped)
            batches: Iterator[Any] = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            reader = pa.ipc.open_stream(mapped)
            batches = iter(reader)
        fields = _columns(file, options, reader.schema.names)
        small = (
            batch.slice(at, _BATCH_ROWS)
            for batch in (whole.select(_wanted(fields)) for whole in batches)
            for at in range(0, batch.num_rows, _BATCH_ROWS)
        )
        yield from _records(small, fields, 1, start.row if start else 1, None)


def _columns(file: SourceFile, options: ReadOptions, names: list[str]) -> _Fields:
    fields = _Fields(file, options)
    fields.decide(names)
    missing = [name for name in _wanted(fields) if name not in names]
    if missing:
        raise DataError(f"{file.path}: no column {missing[0]!r} (there is: {', '.join(map(repr, names))})")
    return fields


def _wanted(fields: _Fields) -> list[str]:
    own = [fields.id_column] if fields.id_column else []
    return [*own, *(name for name in fields.options.text_columns if name not in own)]


def _records(
    batches: Iterator[Any], fields: _Fields, row: int, first: int, total: int | None
) -> Iterator[Document | Skip]:
    for batch in batches:
        if row + batch.num_rows <= first:
            row += batch.num_rows
            continue
        for record in batch.to_pylist():
            if row >= first:
                try:
                    yield fields.document(record, row, 0, row / total if total else 0.0)
                except ValueError as error:
                    yield Skip(row, str(error))
            row += 1


@contextlib.contextmanager
def _open(file: SourceFile) -> Iterator[tuple[BinaryIO, Callable[[], float]]]:
    """The decompressed stream of a file, and how much of the file is read."""
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(file.path.open("rb", buffering=1 << 20))
        size = max(1, file.path.stat().st_size)
        stream: BinaryIO = raw
        if file.compression == "gz":
            stream = cast(BinaryIO, stack.enter_context(gzip.GzipFile(fileobj=raw)))
        elif file.compression == "xz":
            stream = cast(BinaryIO, stack.enter_context(lzma.LZMAFile(raw)))
        elif file.compression == "zst":
            inner = stack.enter_context(pa.input_stream(raw, compression="zstd"))
            stream = stack.enter_context(io.BufferedReader(inner, 1 << 20))
        yield stream, lambda: raw.tell() / size


def _torn(file: SourceFile, row: int, read: Callable[[], Any]) -> Any:
    """Run one read; a compressed stream that ends in the middle is named with file and line."""
    try:
        return read()
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error, pa.ArrowException) as error:
        raise _torn_error(file, row, error) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise _torn_error(file, row, error) from error


def _torn_error(file: SourceFile, row: int, error: Exception) -> DataError:
    return DataError(f"{file.path}: torn or corrupt behind line {row}: {error}; fetch the file again")


def _check_unicode(text: str, name: str) -> None:
    if text.isascii():  # known without looking at the characters
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"column {name!r} is not valid Unicode: {error.reason} at character {error.start}") from None


_READERS: dict[str, Callable[[SourceFile, ReadOptions, Document | None], Iterator[Document | Skip]]] = {
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "tsv": _read_csv,
    "text": _read_text,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
}
