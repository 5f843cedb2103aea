"""The corpus: each text once by content, on disk, read back by row."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from qwen3_embedding.data.dedup import text_hash
from qwen3_embedding.mining.store import key_of
from qwen3_embedding.types import IntArray


class Corpus:
    """Texts in a scratch file, in the order they came; a context manager that removes the file at its end.

    In memory: 24 bytes a text for place, key and content hash, and the set of hashes while texts are added.
    """

    def __init__(self, scratch: str | Path) -> None:
        self._path = Path(scratch)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("w+b")
        self._ends = array("q", [0])
        self._keys = array("q")
        self._hashes = array("q")
        self._seen: set[int] = set()
        self.duplicates = 0

    def add(self, texts: Iterable[str]) -> None:
        """Add texts; empty ones and those whose normalised form is there already are passed over and counted."""
        self._file.seek(0, 2)
        for text in texts:
            hashed = text_hash(text)
            if hashed in self._seen or not text.strip():
                self.duplicates += 1
                continue
            self._seen.add(hashed)
            self._hashes.append(hashed)
            self._keys.append(key_of(text))
            self._ends.append(self._ends[-1] + self._file.write(text.encode()))

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, row: int) -> str:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a corpus of {len(self)}")
        self._file.seek(self._ends[row])
        return self._file.read(self._ends[row + 1] - self._ends[row]).decode()

    def texts(self, rows: IntArray) -> Sequence[str]:
        """The texts of some rows."""
        return [self[int(row)] for row in rows]

    @property
    def keys(self) -> IntArray:
        """(N,) key of each exact text."""
        return np.array(self._keys, dtype=np.int64)

    @property
    def hashes(self) -> IntArray:
        """(N,) hash of each text's normalised content."""
        return np.array(self._hashes, dtype=np.int64)

    def __enter__(self) -> Corpus:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)
