"""Bare texts as token ids on disk, for the next-token objective: tokenised once, memory-mapped, found again by hash."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qwen3_embedding.data import TASKS, Record, text_hash
from qwen3_embedding.data.files import PlainText, file_hash, read_texts, record_files
from qwen3_embedding.errors import DataError
from qwen3_embedding.inputs.tokenizer import Tokenizer
from qwen3_embedding.training.config import Learn, SourceSettings
from qwen3_embedding.training.token_store import write_store
from qwen3_embedding.types import IntArray

VERSION = 1
BATCH_ITEMS = 2048
ARRAYS = ("ids", "bounds", "starts", "tasks", "languages")


class TextStore:
    """Items as token ids, without prompts and end tokens.

    To learn ``texts``, an item is one text: every different one of the records, or a line of plain text.  To learn
    ``queries``, an item is a record: its query, then its positives.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ARRAYS}
        self._ids, self._bounds, self._starts = arrays["ids"], arrays["bounds"], arrays["starts"]
        self.tasks, self.languages = arrays["tasks"], arrays["languages"]

    def __len__(self) -> int:
        return len(self._starts) - 1

    @property
    def language_names(self) -> list[str]:
        """Names of the codes in ``languages``; empty for items without."""
        return list(self.meta["languages"])

    @property
    def sizes(self) -> IntArray:
        """Tokens of each text."""
        return np.asarray(np.diff(self._bounds), dtype=np.int64)

    def texts(self, item: int) -> range:
        """The text numbers of an item."""
        return range(int(self._starts[item]), int(self._starts[item + 1]))

    def ids(self, text: int) -> npt.NDArray[np.int32]:
        """Token ids of a text."""
        return np.asarray(self._ids[self._bounds[text] : self._bounds[text + 1]])


def open_texts(source: SourceSettings, learn: Learn, tokenizer_folder: Path, cache: Path, seed: int) -> TextStore:
    """The store of a source, made now if it is not in the cache.

    Raises:
        DataError: unreadable files, nothing of the wanted task, or plain texts where queries are to be learnt.
    """
    files = record_files(source.path)
    inputs = {
        "version": VERSION,
        "files": [file_hash(file) for file in files],
        "tokenizer": file_hash(tokenizer_folder / "tokenizer.json"),
        "settings": {"learn": learn, "cap": source.cap, "task": source.task, "seed": seed},
    }
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:24]
    folder = cache / key
    if not (folder / "meta.json").exists():
        items = _items(source, learn, files)
        if source.cap and len(items) > source.cap:
            rows = np.random.default_rng([seed, len(items)]).permutation(len(items))[: source.cap]
            items = [items[row] for row in np.sort(rows)]
        if not items:
            raise DataError(f"{source.path}: nothing to learn" + (f" of task {source.task!r}" if source.task else ""))
        _write(folder, items, Tokenizer.from_folder(tokenizer_folder), inputs)
    return TextStore(folder)


class _Item:
    """Texts that belong together, before they are tokenised."""

    __slots__ = ("language", "task", "texts")

    def __init__(self, texts: tuple[str, ...], task: int, language: str) -> None:
        self.texts, self.task, self.language = texts, task, language


def _items(source: SourceSettings, learn: Learn, files: list[Path]) -> list[_Item]:
    read = (line for file in files for line in read_texts(file))
    wanted = (line for line in read if not source.task or not isinstance(line, Record) or line.task == source.task)
    return list(_queries(source, wanted) if learn == "queries" else _texts(wanted))


def _queries(source: SourceSettings, lines: Iterator[Record | PlainText]) -> Iterator[_Item]:
    for line in lines:
        if not isinstance(line, Record):
            raise DataError(
                f"{source.path}: a line is plain text; learn = 'queries' wants records with query and positives, and "
                "learn = 'texts' takes both"
            )
        yield _Item((line.query, *line.positives), TASKS.index(line.task), line.language or "")


def _texts(lines: Iterator[Record | PlainText]) -> Iterator[_Item]:
    """Every different text, once."""
    seen: set[int] = set()
    for line in lines:
        task = TASKS.index(line.task) if isinstance(line, Record) else 0
        texts = (line.query, *line.positives, *line.negatives) if isinstance(line, Record) else (line.text,)
        for text in texts:
            key = text_hash(text)
            if key not in seen and text.strip():
                seen.add(key)
                yield _Item((text,), task, line.language or "")


def _write(folder: Path, items: list[_Item], tokenizer: Tokenizer, inputs: dict[str, Any]) -> None:
    ids, bounds, starts = array("i"), array("q", [0]), array("q", [0])
    languages = list(dict.fromkeys(item.language for item in items))
    code = {name: number for number, name in enumerate(languages)}
    for begin in range(0, len(items), BATCH_ITEMS):
        part = items[begin : begin + BATCH_ITEMS]
        encoded = iter(tokenizer.token_ids([text for item in part for text in item.texts]))
        for item in part:
            for _ in item.texts:
                ids.extend(next(encoded))
                bounds.append(len(ids))
            starts.append(len(bounds) - 1)
    arrays = {
        "ids": np.asarray(ids),
        "bounds": np.asarray(bounds),
        "starts": np.asarray(starts),
        "tasks": np.array([item.task for item in items], dtype=np.int8),
        "languages": np.array([code[item.language] for item in items], dtype=np.int32),
    }
    write_store(folder, arrays, {"languages": languages, "inputs": inputs})
