"""Records as token ids on disk: tokenised once, memory-mapped, found again by the hash of what they were made from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qwen3_embedding.data import TASKS, Record, read_records, text_hash
from qwen3_embedding.data.files import file_hash, record_files
from qwen3_embedding.errors import DataError
from qwen3_embedding.inputs.prompts import query_prefix
from qwen3_embedding.inputs.tokenizer import Tokenizer
from qwen3_embedding.training.config import SourceSettings
from qwen3_embedding.types import FloatArray, IntArray

VERSION = 1
BATCH_RECORDS = 2048
ARRAYS = (
    "ids",
    "bounds",
    "hashes",
    "starts",
    "positives",
    "tasks",
    "languages",
    "scores",
    "prefixes",
    "prefix_lengths",
)


@dataclass(frozen=True)
class StoreSettings:
    """What the ids depend on, the files and the tokenizer aside."""

    cap: int
    task: str
    instruction: str
    seed: int
    max_tokens: int
    """Texts are kept up to so many tokens; batches cut them further."""


class TokenStore:
    """The texts of a source as token ids, without end tokens: of each record the query, its positives, its negatives.

    Queries stand with their prompt, as the tokenizer joins the two.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ARRAYS}
        self._ids, self._bounds, self._hashes = arrays["ids"], arrays["bounds"], arrays["hashes"]
        self._starts, self._positives = arrays["starts"], arrays["positives"]
        self.tasks, self.languages, self.scores = arrays["tasks"], arrays["languages"], arrays["scores"]
        self._prefixes, self._prefix_lengths = arrays["prefixes"], arrays["prefix_lengths"]

    def __len__(self) -> int:
        return len(self._positives)

    @property
    def language_names(self) -> list[str]:
        """Names of the codes in ``languages``; empty for records without."""
        return list(self.meta["languages"])

    def query(self, record: int) -> int:
        """The text number of a record's query."""
        return int(self._starts[record])

    def positives(self, record: int) -> range:
        """The text numbers of a record's positives."""
        first = int(self._starts[record]) + 1
        return range(first, first + int(self._positives[record]))

    def negatives(self, record: int) -> range:
        """The text numbers of a record's negatives."""
        return range(self.positives(record).stop, int(self._starts[record + 1]))

    def ids(self, text: int) -> npt.NDArray[np.int32]:
        """Token ids of a text, without the end token."""
        return np.asarray(self._ids[self._bounds[text] : self._bounds[text + 1]])

    def longer_than(self, query_tokens: int, document_tokens: int) -> tuple[int, int]:
        """How many queries and how many documents are longer."""
        sizes = np.diff(self._bounds)
        of_queries = sizes[self._starts[:-1]] > query_tokens
        longer = sizes > document_tokens
        return int(of_queries.sum()), int(longer.sum() - longer[self._starts[:-1]].sum())

    def hash(self, text: int) -> int:
        """64-bit hash of the normalised text (of a query, without its prompt)."""
        return int(self._hashes[text])

    def prefix(self, record: int) -> npt.NDArray[np.int32] | None:
        """The ids of the prompt that the query begins with; ``None`` where prompt and text share a token."""
        if self._prefix_lengths[record] < 0:
            return None
        return np.asarray(self.meta["prefixes"][int(self._prefixes[record])], dtype=np.int32)


def open_store(source: SourceSettings, tokenizer_folder: Path, cache: Path, seed: int, max_tokens: int) -> TokenStore:
    """The store of a source, made now if it is not in the cache.

    Raises:
        DataError: unreadable records, or none of the wanted task.
    """
    settings = StoreSettings(source.cap, source.task, source.instruction, seed, max_tokens)
    files = record_files(source.path)
    inputs = {
        "version": VERSION,
        "files": [file_hash(file) for file in files],
        "tokenizer": file_hash(tokenizer_folder / "tokenizer.json"),
        "settings": settings.__dict__,
    }
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:24]
    folder = cache / key
    if not (folder / "meta.json").exists():
        records = _chosen(files, settings)
        if not records:
            raise DataError(
                f"{source.path}: no records of task {source.task!r}" if source.task else f"{source.path}: empty"
            )
        _write(folder, records, Tokenizer.from_folder(tokenizer_folder), settings, inputs)
    return TokenStore(folder)


def chosen_records(source: SourceSettings, seed: int) -> list[Record]:
    """The records of a source that are used, after task and cap."""
    return _chosen(record_files(source.path), StoreSettings(source.cap, source.task, source.instruction, seed, 0))


def _chosen(files: list[Path], settings: StoreSettings) -> list[Record]:
    records = [r for file in files for r in read_records(file) if not settings.task or r.task == settings.task]
    if settings.cap and len(records) > settings.cap:
        rows = np.random.default_rng([settings.seed, len(records)]).permutation(len(records))[: settings.cap]
        records = [records[row] for row in np.sort(rows)]
    return records


class _Columns:
    """The arrays of a store while they grow."""

    def __init__(self) -> None:
        self.ids, self.bounds, self.hashes = array("i"), array("q", [0]), array("q")
        self.starts, self.positives = array("q", [0]), array("i")
        self.tasks, self.languages, self.scores = array("b"), array("i"), array("f")
        self.prefixes, self.prefix_lengths = array("i"), array("i")

    def text(self, ids: list[int], text: str) -> None:
        self.ids.extend(ids)
        self.bounds.append(len(self.ids))
        self.hashes.append(text_hash(text))


def _write(
    folder: Path, records: list[Record], tokenizer: Tokenizer, settings: StoreSettings, inputs: dict[str, Any]
) -> None:
    columns, languages, prefixes = _Columns(), _Codes(), _Codes()
    prefix_ids: list[list[int]] = []
    cut = 0
    for begin in range(0, len(records), BATCH_RECORDS):
        part = records[begin : begin + BATCH_RECORDS]
        heads = [query_prefix(_instruction(record, settings)) for record in part]
        texts = [text for record, head in zip(part, heads, strict=True) for text in _texts(record, head)]
        encoded = iter(tokenizer.token_ids(texts))
        for record, head in zip(part, heads, strict=True):
            code = prefixes.code(head)
            if code == len(prefix_ids):
                prefix_ids.append(tokenizer.token_ids([head])[0] if head else [])
            cut += _add(columns, record, encoded, prefix_ids[code], settings.max_tokens)
            columns.prefixes.append(code)
            columns.languages.append(languages.code(record.language or ""))
    arrays = {name: np.asarray(getattr(columns, name)) for name in ARRAYS}
    meta = {"languages": languages.names, "prefixes": prefix_ids, "cut_texts": cut, "inputs": inputs}
    write_store(folder, arrays, meta)


def write_store(folder: Path, arrays: Mapping[str, IntArray | FloatArray], meta: Mapping[str, Any]) -> None:
    """Write ``NAME.npy`` of each array and ``meta.json`` beside, then rename, so that a store is there whole or not at
    all; of processes that write the same store one is first and the others leave it.

    Raises:
        OSError: the folder cannot be written.
    """
    beside = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for name, values in arrays.items():
        np.save(beside / f"{name}.npy", values, allow_pickle=False)
    (beside / "meta.json").write_text(json.dumps(meta, ensure_ascii=False), encoding="utf-8")
    try:
        os.rename(beside, folder)
    except OSError:
        if not (folder / "meta.json").exists():  # else another process was first with the same content
            raise
        shutil.rmtree(beside)


def _instruction(record: Record, settings: StoreSettings) -> str | None:
    if settings.instruction:
        return None if settings.instruction == "default" else settings.instruction
    return record.instruction


def _texts(record: Record, head: str) -> Iterator[str]:
    yield head + record.query
    yield from record.positives
    yield from record.negatives


def _add(columns: _Columns, record: Record, encoded: Iterator[list[int]], prefix: list[int], limit: int) -> int:
    """Add a record's texts; returns how many were cut."""
    cut = 0
    for number, text in enumerate((record.query, *record.positives, *record.negatives)):
        ids = next(encoded)
        if number == 0:
            clean = ids[: len(prefix)] == prefix
            columns.prefix_lengths.append(len(prefix) if clean else -1)
        cut += len(ids) > limit
        columns.text(ids[:limit], text)
    columns.starts.append(len(columns.bounds) - 1)
    columns.positives.append(len(record.positives))
    columns.tasks.append(TASKS.index(record.task))
    columns.scores.append(float("nan") if record.score is None else record.score)
    return cut


class _Codes:
    """Names to numbers, in order of first appearance."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}

    def code(self, name: str) -> int:
        return self._codes.setdefault(name, len(self._codes))

    @property
    def names(self) -> list[str]:
        return list(self._codes)


def rows_by(codes: IntArray) -> dict[int, IntArray]:
    """The rows that hold each code, codes in ascending order."""
    order = np.argsort(codes, kind="stable")
    found, begins = np.unique(np.asarray(codes)[order], return_index=True)
    return dict(zip(found.tolist(), np.split(order, begins[1:]), strict=True))
