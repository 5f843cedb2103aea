"""Vectors on disk by the text they belong to, so that no text is encoded twice.

A store is a folder of segments: ``NNNNNN.npy`` with the vectors and ``NNNNNN.keys.npy`` with a 64-bit key for each.
A segment is written beside and renamed, vectors first, so what is there after a kill is whole.  The keys are read into
memory (8 bytes a text); the vectors are memory-mapped.  That any two of ten million texts share a key has a
probability of 3e-6.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qwen3_embedding.errors import DataError
from qwen3_embedding.types import FloatArray, IntArray
from qwen3_embedding.whole import whole_file

Encode = Callable[[IntArray], FloatArray]
"""Positions in a list of texts to their vectors."""
SEGMENT = 8192


def key_of(*parts: str) -> int:
    """64-bit key of some strings, the same in every process."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        raw = part.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return int.from_bytes(digest.digest(), "little", signed=True)


class VectorStore:
    """Vectors of size ``dimensions`` under 64-bit keys, in a folder."""

    def __init__(self, root: str | Path, identity: str, dimensions: int, segment: int = SEGMENT) -> None:
        """Open or create the store of ``identity`` (model, kind of text) below ``root``.

        A kill loses the encoding of at most ``segment`` texts.
        """
        self._segment = segment
        about = {"identity": identity, "dimensions": dimensions}
        name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = Path(root) / name
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "about.json").write_text(json.dumps(about) + "\n", encoding="utf-8")
        self.dimensions = dimensions
        self._segments: list[FloatArray] = []
        self._segment_keys: list[IntArray] = []
        self._starts: list[int] = [0]
        self._open_segments()

    def __len__(self) -> int:
        return self._starts[-1]

    def find(self, keys: IntArray) -> IntArray:
        """Row of each key, -1 where it is not there."""
        if not len(self):
            return np.full(len(keys), -1)
        places = np.minimum(np.searchsorted(self._sorted_keys, keys), len(self) - 1)
        found: IntArray = np.where(self._sorted_keys[places] == keys, self._rows[places], -1)
        return found

    def get(self, rows: IntArray) -> FloatArray:
        """(N, dimensions) vectors of these rows."""
        out = np.empty((len(rows), self.dimensions), np.float32)
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(numbers):
            mine = numbers == number
            out[mine] = self._segments[number][rows[mine] - self._starts[number]]
        return out

    def blocks(self, rows: IntArray, size: int) -> Iterator[tuple[IntArray, FloatArray]]:
        """The vectors of these rows in blocks that follow the segments.

        Yields:
            Positions in ``rows`` and the (at most ``size``, dimensions) vectors there.
        """
        order = np.argsort(rows, kind="stable")
        for start in range(0, len(order), size):
            positions = order[start : start + size]
            yield positions, self.get(rows[positions])

    def add(self, keys: IntArray, encode: Encode) -> int:
        """Encode what is missing, a segment at a time.

        Args:
            keys: keys of all texts wanted.
            encode: gives the vectors of the texts at some positions of ``keys``.

        Returns:
            How many texts were encoded.
        """
        _, first = np.unique(keys, return_index=True)
        first.sort()
        missing = first[self.find(keys[first]) < 0]
        for start in range(0, len(missing), self._segment):
            positions = missing[start : start + self._segment]
            self._write(keys[positions], encode(positions))
        self._sort()
        return len(missing)

    def _write(self, keys: IntArray, vectors: FloatArray) -> None:
        if vectors.shape != (len(keys), self.dimensions):
            raise ValueError(f"got vectors of shape {vectors.shape}; wanted ({len(keys)}, {self.dimensions})")
        if not np.isfinite(vectors).all():
            raise DataError(
                f"{self.folder}: the model gave vectors with NaN or infinity; nothing of this block was stored"
            )
        number = f"{len(self._segments):06d}"
        _save(self.folder / f"{number}.npy", np.ascontiguousarray(vectors, dtype=np.float32))
        _save(self.folder / f"{number}.keys.npy", keys)
        self._enter(number)

    def _open_segments(self) -> None:
        for path in sorted(self.folder.glob("*.keys.npy")):
            self._enter(path.name.removesuffix(".keys.npy"))
        self._sort()

    def _enter(self, number: str) -> None:
        keys = np.array(_load(self.folder / f"{number}.keys.npy"), np.int64)
        vectors = _load(self.folder / f"{number}.npy")
        wanted = (len(keys), self.dimensions)
        if vectors.shape != wanted or vectors.dtype != np.float32 or int(number) != len(self._segments):
            raise DataError(
                f"{self.folder}: segment {number} holds {vectors.dtype} {vectors.shape}; wanted float32 {wanted} "
                f"as segment {len(self._segments)}; delete the folder to encode again"
            )
        self._segments.append(vectors)
        self._segment_keys.append(keys)
        self._starts.append(self._starts[-1] + len(keys))

    def _sort(self) -> None:
        keys = np.concatenate([np.zeros(0, np.int64), *self._segment_keys])
        self._rows: IntArray = np.argsort(keys, kind="stable")
        self._sorted_keys: IntArray = keys[self._rows]


def _save(path: Path, array: npt.NDArray[np.generic]) -> None:
    with whole_file(path) as beside, beside.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def _load(path: Path) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a whole array ({error}); delete its folder to encode again") from None
    return array
