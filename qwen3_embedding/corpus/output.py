"""The output folder: opened, cleaned of what a kill left, written window by window, tidied at the end."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_embedding.corpus.ledger import LEDGER_NAME, Commit, Ledger, ShardEntry, key_of
from qwen3_embedding.corpus.manifest import MANIFEST_NAME, Manifest, write_manifest
from qwen3_embedding.corpus.shards import ShardRows, Written, check_shard, read_rows, read_shard, write_shard
from qwen3_embedding.corpus.source import Fingerprint
from qwen3_embedding.corpus.window import Row, Window
from qwen3_embedding.errors import DataError, IndexCorruptError
from qwen3_embedding.types import Vectors
from qwen3_embedding.whole import PARTIAL, whole_file

SKIPS_NAME = "skipped.jsonl"
_LOCK_NAME = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder and hold it; the system lets go of it when the process ends, however it ends.

    Raises:
        DataError: another process is writing into it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK_NAME).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{folder}: another encode is writing here; wait for it, or choose another folder"
            ) from None
        yield


class Output:
    """An output folder that is open for writing."""

    def __init__(self, folder: Path, ledger: Ledger, is_chunked: bool) -> None:
        self.folder = folder
        self.ledger = ledger
        self.is_chunked = is_chunked
        self._manifest: Manifest | None = None

    @classmethod
    def open(cls, folder: Path, identity: dict[str, Any], repair: bool = False) -> Output:
        """Begin or continue an output folder (the caller holds its lock).

        Args:
            folder: where the shards are.
            identity: model and settings; what a folder holds must all be of one.
            repair: drop shards that are missing or torn, to have their rows computed again.

        Raises:
            ValueError: the folder holds vectors of another model or other settings.
            IndexCorruptError: a shard is missing or torn, or there are shards and no ledger.
        """
        if (folder / LEDGER_NAME).exists():
            ledger = Ledger.open(folder)
            _check_identity(folder, ledger.identity, identity)
        else:
            if (folder / MANIFEST_NAME).exists() or any(folder.glob("shard-*.parquet")):
                raise IndexCorruptError(f"{folder}: shards without {LEDGER_NAME}; encode into a new folder")
            ledger = Ledger.create(folder, identity)
        output = cls(folder, ledger, identity["rows"]["chunk"] is not None)
        output._clean()
        output._check_shards(repair)
        return output

    def take_sources(self, present: dict[str, Fingerprint]) -> list[str]:
        """Note the source files as they are now; the manifest says at once that there is something to read.

        Returns:
            Names of the files that have changed or are gone since they were read.
        """
        changed = self.ledger.update_files(present)
        write_manifest(self.folder, self.ledger)
        return changed

    def write(self, window: Window, vectors: Vectors) -> None:
        """Write a window: its shard, its transaction, the manifest.

        Args:
            window: the plan.
            vectors: (U, width) the vectors of ``window.sequences``, at the output's precision.
        """
        shard = self._write_shard(window, vectors) if window.rows else None
        self.ledger.commit(
            Commit(
                documents=[(row.key, row.place) for row in window.rows] + window.unchanged,
                shard=shard,
                obsolete=window.obsolete,
                progress=[(file, *at) for file, at in window.progress.items()],
                finished=window.finished,
                skips=window.skips,
                next_window=window.number + 1,
            )
        )
        write_manifest(self.folder, self.ledger)

    def finish(self) -> Manifest:
        """Everything is read: take out what is no longer in the sources, list what was skipped, write the manifest."""
        self.ledger.mark_removed()
        entries = {entry.number: entry for entry in self.ledger.shards()}
        for number, rows in self.ledger.obsolete_rows().items():
            self._rewrite(entries[number], rows)
        self._write_skips()
        return write_manifest(self.folder, self.ledger)

    def close(self) -> None:
        """Close the ledger."""
        self.ledger.close()

    def _write_shard(self, window: Window, vectors: Vectors) -> ShardEntry:
        name = f"shard-{window.shard:06d}.parquet"
        written = write_shard(self.folder / name, self._columns(window, vectors))
        cut = sum(tokens > 0 for tokens in window.cut_tokens)
        return _entry(window, name, written, cut, _range(window.rows, self.ledger))

    def _columns(self, window: Window, vectors: Vectors) -> ShardRows:
        rows = window.rows
        chunks = [row.chunk for row in rows]
        ids = [chunk.id if self.is_chunked else chunk.parent for chunk in chunks]
        matrix = self._vectors(window, vectors)
        if not self.is_chunked:
            return ShardRows(ids, matrix)
        return ShardRows(
            ids,
            matrix,
            [chunk.parent for chunk in chunks],
            [chunk.start for chunk in chunks],
            [chunk.end for chunk in chunks],
        )

    def _vectors(self, window: Window, vectors: Vectors) -> Vectors:
        """(N, width): computed rows put in place, repeats copied from the shards that have them."""
        computed = np.asarray([row.computed for row in window.rows], dtype=np.int64)
        out = np.empty((len(computed), vectors.shape[1]), dtype=vectors.dtype)
        out[computed >= 0] = vectors[computed[computed >= 0]]
        sources: dict[int, list[tuple[int, int]]] = {}
        for number, row in enumerate(window.rows):
            if row.source is not None:
                sources.setdefault(row.source[0], []).append((number, row.source[1]))
        for shard, pairs in sources.items():
            to, rows = np.asarray(pairs, dtype=np.int64).T
            out[to] = read_rows(self.folder / self.ledger.shard_name(shard), rows)
        return out

    def _rewrite(self, old: ShardEntry, rows: dict[int, bool]) -> None:
        """Write a shard again without some rows, under another name: both are whole until it is taken over."""
        whole = read_shard(self.folder / old.name)
        removed = [whole.ids[row] for row, is_removed in rows.items() if is_removed]
        keep = np.setdiff1d(np.arange(len(whole.ids)), np.asarray(list(rows), dtype=np.int64))
        new: ShardEntry | None = None
        moved: list[tuple[bytes, int]] = []
        if keep.size:
            ids = [whole.ids[i] for i in keep]
            name = _next_name(old.name)
            written = write_shard(self.folder / name, _select(whole, keep))
            new = ShardEntry(
                old.number, name, len(ids), written.bytes, written.sha256, old.computed, old.tokens, old.cut, old.range
            )
            moved = [(key_of(id_), number) for number, id_ in enumerate(ids)]
        self.ledger.replace_shard(old, new, moved, removed)
        write_manifest(self.folder, self.ledger)
        (self.folder / old.name).unlink(missing_ok=True)

    def _clean(self) -> None:
        """Remove what an interrupted run left half done: files that the ledger does not list."""
        listed = {entry.name for entry in self.ledger.shards()}
        for path in [*self.folder.glob("shard-*.parquet"), *self.folder.glob(f"*{PARTIAL}")]:
            if path.name not in listed:
                path.unlink()
        write_manifest(self.folder, self.ledger)

    def _check_shards(self, repair: bool) -> None:
        """Sizes of all shards and the checksum of the last, which is the one that a crash could have torn."""
        entries = self.ledger.shards()
        bad = []
        for entry in entries:
            deep = repair or entry is entries[-1]
            fault = check_shard(self.folder / entry.name, entry.bytes, entry.sha256 if deep else None)
            if fault is not None:
                bad.append((entry, fault))
        if bad and not repair:
            entry, fault = bad[0]
            more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            raise IndexCorruptError(
                f"{self.folder / entry.name}: {fault}{more}; repeat the command with --repair to compute what is "
                "lost again"
            )
        for entry, _ in bad:
            (self.folder / entry.name).unlink(missing_ok=True)
            self.ledger.forget_shard(entry.number)
        if bad:
            self.ledger.read_again()
            write_manifest(self.folder, self.ledger)

    def _write_skips(self) -> None:
        path = self.folder / SKIPS_NAME
        if not self.ledger.count_skips():
            path.unlink(missing_ok=True)
            return
        with whole_file(path) as beside, beside.open("w", encoding="utf-8") as file:
            for name, row, reason in self.ledger.skips():
                file.write(json.dumps({"file": name, "row": row, "reason": reason}, ensure_ascii=False) + "\n")


def _entry(window: Window, name: str, written: Written, cut: int, covered: dict[str, Any]) -> ShardEntry:
    computed, tokens = len(window.sequences), window.n_tokens
    return ShardEntry(
        window.shard, name, len(window.rows), written.bytes, written.sha256, computed, tokens, cut, covered
    )


def _range(rows: list[Row], ledger: Ledger) -> dict[str, Any]:
    """From which place to which place of the source the rows of a shard come."""
    names = {state.number: state.name for state in ledger.files()}

    def end(row: Row) -> dict[str, Any]:
        return {"file": names[row.place.file], "row": row.place.source_row, "chunk": row.chunk.index}

    return {"from": end(rows[0]), "to": end(rows[-1])}


def _select(rows: ShardRows, keep: Any) -> ShardRows:
    def take(values: list[Any] | None) -> list[Any] | None:
        return None if values is None else [values[i] for i in keep]

    return ShardRows(
        [rows.ids[i] for i in keep], rows.vectors[keep], take(rows.parents), take(rows.starts), take(rows.ends)
    )


def _next_name(name: str) -> str:
    """``shard-000003.parquet``, ``shard-000003-r1.parquet``, ``shard-000003-r2.parquet`` …"""
    stem = name.removesuffix(".parquet")
    base, _, revision = stem.partition("-r")
    return f"{base}-r{int(revision or 0) + 1}.parquet"


def _check_identity(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    differences = []
    for part, values in wanted.items():
        for key, value in values.items():
            there = found.get(part, {}).get(key)
            if there != value and (part, key) != ("model", "name"):
                differences.append(f"{part}.{key} there is {there!r}, asked for is {value!r}")
    if differences:
        raise ValueError(
            f"{folder} holds vectors that must not be mixed with these: {'; '.join(differences)}. "
            "Give the same settings, or another folder"
        )
