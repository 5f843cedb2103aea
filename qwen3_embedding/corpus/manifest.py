"""``manifest.json``: what an output folder holds, for people and programs. Written from the ledger, atomically."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3_embedding.corpus.ledger import Ledger
from qwen3_embedding.corpus.shards import check_shard, read_batches
from qwen3_embedding.errors import IndexCorruptError
from qwen3_embedding.types import Vectors
from qwen3_embedding.whole import write_text

MANIFEST_NAME = "manifest.json"
FORMAT = "qwen3-embedding-corpus"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard as the manifest lists it."""

    file: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The contents of ``manifest.json``."""

    folder: Path
    raw: dict[str, Any]

    @property
    def complete(self) -> bool:
        """Everything that the sources held at the last run is in the shards, and nothing else."""
        return bool(self.raw["complete"])

    @property
    def rows(self) -> int:
        """Vectors in all shards."""
        return int(self.raw["totals"]["rows"])

    @property
    def width(self) -> int:
        """Numbers a row: the dimensions, or an eighth of them where the vectors are binary."""
        return int(self.raw["encoding"]["width"])

    @property
    def dtype(self) -> str:
        """NumPy's name of a number's type."""
        return str(self.raw["encoding"]["dtype"])

    @property
    def shards(self) -> list[Shard]:
        """The shards, in the order of the source."""
        return [Shard(item["file"], item["rows"], item["bytes"], item["sha256"]) for item in self.raw["shards"]]

    def vectors(self) -> Iterator[tuple[list[str], Vectors]]:
        """Ids and vectors, a few thousand rows at a time."""
        for shard in self.shards:
            yield from read_batches(self.folder / shard.file)

    def check(self, deep: bool = True) -> list[str]:
        """What is wrong with the shards, one sentence each; without ``deep`` only their sizes are looked at."""
        found = []
        for shard in self.shards:
            fault = check_shard(self.folder / shard.file, shard.bytes, shard.sha256 if deep else None)
            if fault is not None:
                found.append(f"{shard.file}: {fault}")
        return found


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of an output folder.

    Raises:
        IndexCorruptError: there is none, or it is not one.
    """
    path = Path(folder) / MANIFEST_NAME
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise IndexCorruptError(f"{path}: no such file; wanted a folder that `qwen3-embedding encode` wrote") from None
    except ValueError as error:
        raise IndexCorruptError(
            f"{path}: not valid JSON: {error}; repeat the encode command to write it again"
        ) from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise IndexCorruptError(f'{path}: not a manifest of a corpus; wanted "format": {FORMAT!r}')
    if raw.get("version") != VERSION:
        raise IndexCorruptError(f"{path}: version {raw.get('version')!r}; this release reads version {VERSION}")
    return Manifest(Path(folder), raw)


def write_manifest(folder: Path, ledger: Ledger) -> Manifest:
    """Write ``manifest.json`` beside its place and rename it. It holds no times: equal content gives equal bytes."""
    shards = ledger.shards()
    raw = {
        "format": FORMAT,
        "version": VERSION,
        "complete": ledger.is_complete(),
        **ledger.identity,
        "totals": {
            "rows": sum(shard.rows for shard in shards),
            "computed": sum(shard.computed for shard in shards),
            "tokens": sum(shard.tokens for shard in shards),
            "cut": sum(shard.cut for shard in shards),
            "skipped": ledger.count_skips(),
        },
        "sources": [
            {"file": state.name, "bytes": state.fingerprint.size, "sha256": state.fingerprint.sha256}
            for state in ledger.files()
            if not state.gone
        ],
        "shards": [
            {
                "file": shard.name,
                "rows": shard.rows,
                "bytes": shard.bytes,
                "sha256": shard.sha256,
                "computed": shard.computed,
                "tokens": shard.tokens,
                "cut": shard.cut,
                "source": shard.range,
            }
            for shard in shards
        ],
    }
    write_text(folder / MANIFEST_NAME, json.dumps(raw, indent=1, ensure_ascii=False) + "\n")
    return Manifest(folder, raw)
