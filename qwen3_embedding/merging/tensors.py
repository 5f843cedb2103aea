"""Pieces of tensors from and to safetensors files, so that a merge never holds a whole tensor.

The safetensors library maps or copies tensors whole; an 8B embedding table is 2.5 GB in float32.  The format is plain
(eight bytes of length, a JSON header, the bytes in order), so pieces are read and written here, and the library opens
the files first to check that they are whole.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from qwen3_embedding.errors import CheckpointError
from qwen3_embedding.model.weights import INDEX, WEIGHTS, plain_name, weight_files, write_json

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CODES = {dtype: code for code, dtype in DTYPES.items()}
PIECE = 1 << 21
"""Elements in a piece: 16 MiB of float64 for each source."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies."""

    name: str
    """As it is written in the file."""
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """Of its first byte in the file."""

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


class TensorFolder:
    """The tensors of a checkpoint folder by plain name (without ``model.``), read in pieces; a context manager."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        _refuse_adapter(self.folder)
        self.tensors: dict[str, TensorInfo] = {}
        for file in sorted(set(weight_files(self.folder).values())):
            for info in read_header(file):
                self._enter(info)
        self._stack = ExitStack()
        self._open: dict[Path, FileIO] = {}

    def _enter(self, info: TensorInfo) -> None:
        plain = plain_name(info.name)
        if plain.endswith("rotary_emb.inv_freq"):  # computed from the configuration; old exports carry it
            return
        if plain in self.tensors:
            raise CheckpointError(
                f"{info.file}: {info.name!r} and {self.tensors[plain].name!r} are the same tensor; keep one"
            )
        self.tensors[plain] = info

    def pieces(self, plain: str, elements: int) -> Iterator[Tensor]:
        """The first ``elements`` numbers of a tensor, in order, in 1-D pieces of :data:`PIECE`, in the file's type."""
        info = self.tensors[plain]
        file = self._file(info.file)
        size = info.dtype.itemsize
        for start in range(0, elements, PIECE):
            buffer = bytearray(min(PIECE, elements - start) * size)
            file.seek(info.offset + start * size)
            _fill(file, buffer, info)
            yield torch.frombuffer(buffer, dtype=info.dtype)

    def _file(self, path: Path) -> FileIO:
        if path not in self._open:
            self._open[path] = self._stack.enter_context(FileIO(path))
        return self._open[path]

    def close(self) -> None:
        """Close the files."""
        self._stack.close()
        self._open.clear()

    def __enter__(self) -> TensorFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _fill(file: FileIO, buffer: bytearray, info: TensorInfo) -> None:
    filled = 0
    while filled < len(buffer):  # an unbuffered read may give less than was asked for
        read = file.readinto(memoryview(buffer)[filled:])
        if not read:
            raise CheckpointError(f"{info.file}: ends inside {info.name!r}; it changed while it was read")
        filled += read


def _refuse_adapter(folder: Path) -> None:
    if (folder / "adapter_config.json").exists() and not (folder / WEIGHTS).exists() and not (folder / INDEX).exists():
        raise CheckpointError(
            f"{folder}: this is an adapter, not a checkpoint; merge it into its base first, as averaging the "
            "factors A and B of adapters is not averaging their products"
        )


def read_header(file: Path) -> list[TensorInfo]:
    """Every tensor of a safetensors file, in the file's order.

    Raises:
        CheckpointError: a tensor that is not floating point.
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    tensors = []
    for name, entry in sorted(header.items(), key=lambda item: int(item[1]["data_offsets"][0])):
        if entry["dtype"] not in DTYPES:
            raise CheckpointError(
                f"{file}: {name!r} has type {entry['dtype']}; wanted one of {', '.join(DTYPES)} to merge"
            )
        offset = 8 + length + int(entry["data_offsets"][0])
        tensors.append(TensorInfo(name, file, DTYPES[entry["dtype"]], tuple(entry["shape"]), offset))
    return tensors


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_folder(
    folder: Path, plan: Sequence[Planned], pieces: Callable[[Planned], Iterable[Tensor]], shard_bytes: int
) -> None:
    """Write tensors piece by piece as one file, or as shards with an index.

    Args:
        folder: an existing folder without weights.
        plan: what to write, in order.
        pieces: gives the 1-D pieces of a tensor in order, in its planned type.
        shard_bytes: begin a new file where the next tensor would pass this size.
    """
    shards = _shards(plan, shard_bytes)
    if len(shards) == 1:
        _write_file(folder / WEIGHTS, shards[0], pieces)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / file, shard, pieces)
        weight_map.update({planned.name: file for planned in shard})
    write_json(folder / INDEX, {"metadata": {"total_size": sum(p.bytes for p in plan)}, "weight_map": weight_map})


def _shards(plan: Sequence[Planned], limit: int) -> list[list[Planned]]:
    shards: list[list[Planned]] = [[]]
    used = 0
    for planned in plan:
        if shards[-1] and used + planned.bytes > limit:
            shards.append([])
            used = 0
        shards[-1].append(planned)
        used += planned.bytes
    return shards


def _write_file(path: Path, plan: Sequence[Planned], pieces: Callable[[Planned], Iterable[Tensor]]) -> None:
    with path.open("wb") as file:
        file.write(_header(plan))
        for planned in plan:
            written = 0
            for piece in pieces(planned):
                written += file.write(piece.contiguous().view(torch.uint8).numpy().data)
            if written != planned.bytes:
                raise ValueError(f"{planned.name}: got {written} bytes for a tensor of {planned.bytes}")
        file.flush()
        os.fsync(file.fileno())


def _header(plan: Sequence[Planned]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for planned in plan:
        end = begin + planned.bytes
        entries[planned.name] = {
            "dtype": CODES[planned.dtype],
            "shape": list(planned.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the first tensor to eight bytes
    return len(text).to_bytes(8, "little") + text
