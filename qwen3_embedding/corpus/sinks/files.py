"""File sinks: a NumPy memory map with its ids, and an Arrow file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from qwen3_embedding.corpus.shards import vector_array
from qwen3_embedding.corpus.sinks.sink import Shape
from qwen3_embedding.types import PRECISIONS, Precision, Vectors
from qwen3_embedding.whole import PARTIAL


class NpySink:
    """A folder with ``vectors.npy``, (N, width), to be opened with ``numpy.load(mmap_mode="r")``, and ``ids.jsonl``.

    Line n of ``ids.jsonl`` is the id of row n, as a JSON string.
    """

    keeps = False
    accepts: tuple[Precision, ...] = PRECISIONS

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._beside = self.folder.with_name(self.folder.name + PARTIAL)
        self._ids: IO[str] | None = None
        self._vectors: Any = None
        self._rows = 0

    @property
    def name(self) -> str:
        """``npy:FOLDER``."""
        return f"npy:{self.folder}"

    def begin(self, shape: Shape) -> None:
        """Make the files at their full size, beside their place."""
        shutil.rmtree(self._beside, ignore_errors=True)
        self._beside.mkdir(parents=True)
        self._ids = (self._beside / "ids.jsonl").open("w", encoding="utf-8")
        self._rows = 0
        if shape.rows:
            self._vectors = np.lib.format.open_memmap(
                self._beside / "vectors.npy", mode="w+", dtype=np.dtype(shape.dtype), shape=(shape.rows, shape.width)
            )
        else:  # an empty file cannot be mapped
            np.save(self._beside / "vectors.npy", np.empty((0, shape.width), dtype=np.dtype(shape.dtype)))

    def delete(self, ids: Sequence[str]) -> None:
        """Nothing: what is gone is not written."""

    def upsert(self, ids: Sequence[str], vectors: Vectors) -> None:
        """Append."""
        assert self._ids is not None
        self._vectors[self._rows : self._rows + len(ids)] = vectors
        self._ids.writelines(json.dumps(id_, ensure_ascii=False) + "\n" for id_ in ids)
        self._rows += len(ids)

    def finish(self) -> int:
        """Put the folder into its place."""
        if self._vectors is not None:
            self._vectors.flush()
        self.close()
        old = self.folder.with_name(self.folder.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(old)
        self._beside.rename(self.folder)
        shutil.rmtree(old, ignore_errors=True)
        return self._rows

    def close(self) -> None:
        """Let go of the files."""
        self._vectors = None
        if self._ids is not None:
            self._ids.close()
            self._ids = None


class ArrowSink:
    """One Arrow IPC file with the columns ``id`` and ``vector``, to be memory-mapped."""

    keeps = False
    accepts: tuple[Precision, ...] = PRECISIONS

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._beside = self.path.with_name(self.path.name + PARTIAL)
        self._writer: Any = None
        self._rows = 0

    @property
    def name(self) -> str:
        """``arrow:PATH``."""
        return f"arrow:{self.path}"

    def begin(self, shape: Shape) -> None:
        """Open the file beside its place."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kind = vector_array(np.empty((0, shape.width), dtype=np.dtype(shape.dtype))).type
        self._writer = pa.ipc.new_file(str(self._beside), pa.schema([("id", pa.string()), ("vector", kind)]))
        self._rows = 0

    def delete(self, ids: Sequence[str]) -> None:
        """Nothing: what is gone is not written."""

    def upsert(self, ids: Sequence[str], vectors: Vectors) -> None:
        """Append a batch."""
        columns = [pa.array(list(ids), pa.string()), vector_array(vectors)]
        self._writer.write_batch(
            pa.record_batch(columns, schema=pa.schema([("id", pa.string()), ("vector", columns[1].type)]))
        )
        self._rows += len(ids)

    def finish(self) -> int:
        """Put the file into its place."""
        self.close()
        self._beside.replace(self.path)
        return self._rows

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
