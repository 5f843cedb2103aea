"""What is in an output folder, row by row: the truth that a killed run resumes from.

One SQLite file beside the shards.  Each window is one transaction in it: the rows of its shard, the shard's checksum,
how far the source is read.  A shard is written and renamed before its transaction, so a kill leaves at most a file that
the ledger does not know, and the next run removes it.  ``manifest.json`` is written from the ledger.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3_embedding.corpus.source import Fingerprint
from qwen3_embedding.errors import IndexCorruptError

LEDGER_NAME = "ledger.sqlite"

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE files (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    sha256 TEXT NOT NULL, version INTEGER NOT NULL, finished INTEGER NOT NULL, gone INTEGER NOT NULL,
    row INTEGER NOT NULL, chunk INTEGER NOT NULL, offset INTEGER NOT NULL
);
CREATE TABLE documents (
    key BLOB PRIMARY KEY, content BLOB NOT NULL, shard INTEGER NOT NULL, row INTEGER NOT NULL,
    file INTEGER NOT NULL, version INTEGER NOT NULL, source_row INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX documents_content ON documents (content);
CREATE TABLE shards (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, rows INTEGER NOT NULL, bytes INTEGER NOT NULL,
    sha256 TEXT NOT NULL, computed INTEGER NOT NULL, tokens INTEGER NOT NULL, cut INTEGER NOT NULL, range TEXT NOT NULL
);
CREATE TABLE obsolete (shard INTEGER NOT NULL, row INTEGER NOT NULL, removed INTEGER NOT NULL, PRIMARY KEY (shard, row))
    WITHOUT ROWID;
CREATE TABLE removed (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL);
CREATE TABLE skips (file INTEGER NOT NULL, row INTEGER NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (file, row))
    WITHOUT ROWID;
"""
_ASK_AT_ONCE = 500  # below SQLite's limit of variables in every build


def key_of(text: str) -> bytes:
    """16 bytes that stand for a text: BLAKE2b, 128 bits."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row's vector is, and where its text was read."""

    content: bytes
    shard: int
    row: int
    file: int
    version: int
    source_row: int


@dataclass(frozen=True, slots=True)
class FileState:
    """A source file as the ledger knows it; ``row``, ``chunk`` and ``offset`` are those of the last item read of it."""

    number: int
    name: str
    fingerprint: Fingerprint
    version: int
    finished: bool
    gone: bool
    row: int
    chunk: int
    offset: int


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """A shard as the manifest lists it."""

    number: int
    name: str
    rows: int
    bytes: int
    sha256: str
    computed: int
    tokens: int
    cut: int
    range: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Commit:
    """What one window changes."""

    documents: Sequence[tuple[bytes, Place]]
    """New rows, and rows that stay where they are but were met in another file or version."""
    shard: ShardEntry | None
    obsolete: Sequence[tuple[int, int]]
    """Rows (shard, row) whose text has changed: their new vectors are in this window."""
    progress: Sequence[tuple[int, int, int, int]]
    """(file, row, chunk, offset) of the last item that was read of a file."""
    finished: Sequence[int]
    """Files that are read to their end."""
    skips: Sequence[tuple[int, int, str]]
    next_window: int


class Ledger:
    """The open SQLite file. One thread at a time uses a ``Ledger``; readers may be open beside one writer."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._db = connection
        self.path = path

    @classmethod
    def create(cls, folder: Path, identity: dict[str, Any]) -> Ledger:
        """Begin an empty ledger for vectors of ``identity``; whole or not at all."""
        path = folder / LEDGER_NAME
        beside = folder / (LEDGER_NAME + ".partial")
        for stale in (beside, Path(f"{beside}-wal"), Path(f"{beside}-shm"), Path(f"{beside}-journal")):
            stale.unlink(missing_ok=True)
        db = sqlite3.connect(beside, isolation_level=None)
        with _told(path), contextlib.closing(db):
            db.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
            db.execute("INSERT INTO meta VALUES ('identity', ?)", (json.dumps(identity, sort_keys=True),))
            db.execute("INSERT INTO meta VALUES ('next_window', '0'), ('next_shard', '0')")
        os.replace(beside, path)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path, read_only: bool = False) -> Ledger:
        """Open the ledger of a folder.

        Raises:
            IndexCorruptError: there is none, or the file is no ledger.
        """
        path = folder / LEDGER_NAME
        if not path.is_file():
            raise IndexCorruptError(
                f"{path}: no such file; without it nobody knows which texts the vectors in {folder} belong to; "
                "encode into a new folder"
            )
        mode = "ro" if read_only else "rw"
        with _told(path):
            db = sqlite3.connect(
                f"{path.resolve().as_uri()}?mode={mode}",
                uri=True,
                isolation_level=None,
                timeout=60,
                check_same_thread=False,
            )
            if not read_only:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA cache_size = -8192")  # kB; what is read often is in the system's cache
            db.execute("SELECT value FROM meta WHERE key = 'identity'").fetchone()
        return cls(db, path)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @property
    def identity(self) -> dict[str, Any]:
        """Model and settings of the vectors."""
        return dict(json.loads(self._meta("identity")))

    @property
    def next_window(self) -> int:
        """Windows committed so far."""
        return int(self._meta("next_window"))

    @property
    def next_shard(self) -> int:
        """The number of the next new shard; numbers are never used again."""
        return int(self._meta("next_shard"))

    def files(self) -> list[FileState]:
        """All files ever read, by name."""
        rows = self._all(
            "SELECT number, name, size, mtime_ns, sha256, version, finished, gone, row, chunk, offset "
            "FROM files ORDER BY name"
        )
        return [
            FileState(
                number, name, Fingerprint(size, mtime, sha), version, bool(finished), bool(gone), row, chunk, offset
            )
            for number, name, size, mtime, sha, version, finished, gone, row, chunk, offset in rows
        ]

    def update_files(self, present: dict[str, Fingerprint]) -> list[str]:
        """Take over the files as they are now.

        A changed file, and one that had been gone, begins a new version and will be read again from its top.

        Returns:
            Names of the files that have changed or are gone since they were read.
        """
        changed: list[str] = []
        known = {state.name: state for state in self.files()}
        with self._transaction():
            for name, now in present.items():
                state = known.get(name)
                values = (now.size, now.mtime_ns, now.sha256)
                if state is None:
                    self._db.execute(
                        "INSERT INTO files (name, size, mtime_ns, sha256, version, finished, gone, row, chunk, offset) "
                        "VALUES (?, ?, ?, ?, 0, 0, 0, 0, 0, 0)",
                        (name, *values),
                    )
                elif state.gone or state.fingerprint.sha256 != now.sha256:
                    changed.append(name)
                    self._db.execute(
                        "UPDATE files SET size = ?, mtime_ns = ?, sha256 = ?, version = version + 1, "
                        "finished = 0, gone = 0, row = 0, chunk = 0, offset = 0 WHERE number = ?",
                        (*values, state.number),
                    )
                    self._db.execute("DELETE FROM skips WHERE file = ?", (state.number,))
                elif state.fingerprint != now:
                    self._db.execute("UPDATE files SET mtime_ns = ? WHERE number = ?", (now.mtime_ns, state.number))
            for name, state in known.items():
                if name not in present and not state.gone:
                    changed.append(name)
                    self._db.execute("UPDATE files SET gone = 1, finished = 1 WHERE number = ?", (state.number,))
                    self._db.execute("DELETE FROM skips WHERE file = ?", (state.number,))
        return changed

    def read_again(self) -> None:
        """Have every file read again at the next run; what is still there will not be computed again."""
        with self._transaction():
            self._db.execute(
                "UPDATE files SET version = version + 1, finished = 0, row = 0, chunk = 0, offset = 0 WHERE gone = 0"
            )

    def places(self, keys: Sequence[bytes]) -> dict[bytes, Place]:
        """Where the rows of these ids are, for those that there are."""
        found = self._ask(
            "SELECT key, content, shard, row, file, version, source_row FROM documents WHERE key IN", keys
        )
        return {key: Place(*rest) for key, *rest in found}

    def contents(self, contents: Sequence[bytes]) -> dict[bytes, tuple[int, int]]:
        """A row (shard, row) that has the vector of each of these texts, for those that are computed already."""
        found = self._ask("SELECT content, shard, row FROM documents WHERE content IN", contents)
        return {content: (shard, row) for content, shard, row in found}

    def commit(self, change: Commit) -> None:
        """Take over a window, whole or not at all."""
        with self._transaction():
            self._db.executemany(
                "INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?, ?, ?, ?)",
                ((key, p.content, p.shard, p.row, p.file, p.version, p.source_row) for key, p in change.documents),
            )
            if change.shard is not None:
                self._insert_shard(change.shard)
            self._db.executemany("INSERT OR IGNORE INTO obsolete VALUES (?, ?, 0)", change.obsolete)
            self._db.executemany(
                "UPDATE files SET row = ?, chunk = ?, offset = ? WHERE number = ?",
                ((row, chunk, offset, file) for file, row, chunk, offset in change.progress),
            )
            self._db.executemany(
                "UPDATE files SET finished = 1 WHERE number = ?", ((file,) for file in change.finished)
            )
            self._db.executemany("INSERT OR REPLACE INTO skips VALUES (?, ?, ?)", change.skips)
            self._db.execute("UPDATE meta SET value = ? WHERE key = 'next_window'", (str(change.next_window),))

    def shards(self) -> list[ShardEntry]:
        """The shards, by number."""
        rows = self._all(
            "SELECT number, name, rows, bytes, sha256, computed, tokens, cut, range FROM shards ORDER BY number"
        )
        return [
            ShardEntry(number, name, count, size, sha, computed, tokens, cut, json.loads(covered))
            for number, name, count, size, sha, computed, tokens, cut, covered in rows
        ]

    def shard_name(self, number: int) -> str:
        """The file name of a shard."""
        row = self._one("SELECT name FROM shards WHERE number = ?", number)
        if row is None:
            raise IndexCorruptError(f"{self.path}: no shard {number}; the ledger contradicts itself")
        return str(row[0])

    def skips(self) -> Iterator[tuple[str, int, str]]:
        """(file name, row, reason) of what was skipped."""
        rows = self._all(
            "SELECT f.name, s.row, s.reason FROM skips s JOIN files f ON f.number = s.file ORDER BY f.name, s.row"
        )
        return iter(rows)

    def count_skips(self) -> int:
        """How many records were skipped."""
        return int(self._one("SELECT COUNT(*) FROM skips")[0])

    def is_complete(self) -> bool:
        """Every file is read to its end and no row waits to be removed."""
        begun = self._one("SELECT EXISTS (SELECT 1 FROM files)")[0]
        unread = self._one("SELECT EXISTS (SELECT 1 FROM files WHERE finished = 0)")[0]
        waiting = self._one("SELECT EXISTS (SELECT 1 FROM obsolete)")[0]
        return bool(begun) and not unread and not waiting

    def mark_removed(self) -> None:
        """Documents that were not met again in the newest version of their file are to be removed."""
        gone = "SELECT 1 FROM files f WHERE f.number = d.file AND (f.gone = 1 OR d.version < f.version)"
        with self._transaction():
            self._db.execute(
                f"INSERT OR IGNORE INTO obsolete SELECT shard, row, 1 FROM documents d WHERE EXISTS ({gone})"
            )
            self._db.execute(f"DELETE FROM documents AS d WHERE EXISTS ({gone})")

    def obsolete_rows(self) -> dict[int, dict[int, bool]]:
        """Shard to the rows of it that are to go; the value says whether the id itself is gone from the corpus."""
        out: dict[int, dict[int, bool]] = {}
        for shard, row, removed in self._all("SELECT shard, row, removed FROM obsolete ORDER BY shard, row"):
            out.setdefault(shard, {})[row] = bool(removed)
        return out

    def replace_shard(
        self, old: ShardEntry, new: ShardEntry | None, moved: Iterable[tuple[bytes, int]], removed_ids: Sequence[str]
    ) -> None:
        """A shard was written again without its obsolete rows (``None``: nothing was left of it).

        Args:
            old: the shard as it was.
            new: what takes its place, under the same number.
            moved: (id key, new row) of the rows that stay.
            removed_ids: ids that are gone from the corpus, for sinks.
        """
        with self._transaction():
            self._db.execute("DELETE FROM shards WHERE number = ?", (old.number,))
            if new is not None:
                self._insert_shard(new)
            self._db.executemany("UPDATE documents SET row = ? WHERE key = ?", ((row, key) for key, row in moved))
            self._db.executemany("INSERT INTO removed (id) VALUES (?)", ((id_,) for id_ in removed_ids))
            self._db.execute("DELETE FROM obsolete WHERE shard = ?", (old.number,))

    def forget_shard(self, number: int) -> None:
        """Drop a shard that is lost, with its rows: the next reading computes them again."""
        with self._transaction():
            self._db.execute("DELETE FROM documents WHERE shard = ?", (number,))
            self._db.execute("DELETE FROM obsolete WHERE shard = ?", (number,))
            self._db.execute("DELETE FROM shards WHERE number = ?", (number,))

    def removed_after(self, number: int) -> list[tuple[int, str]]:
        """(number, id) of the removals behind ``number``."""
        return self._all("SELECT number, id FROM removed WHERE number > ? ORDER BY number", number)

    def _insert_shard(self, shard: ShardEntry) -> None:
        self._db.execute(
            "INSERT INTO shards VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*dataclasses.astuple(shard)[:-1], json.dumps(shard.range)),
        )
        if shard.number >= self.next_shard:
            self._db.execute("UPDATE meta SET value = ? WHERE key = 'next_shard'", (str(shard.number + 1),))

    def _meta(self, key: str) -> str:
        row = self._one("SELECT value FROM meta WHERE key = ?", key)
        if row is None:
            raise IndexCorruptError(f"{self.path}: no {key!r} in it; this is no ledger of a corpus")
        return str(row[0])

    def _ask(self, question: str, values: Sequence[bytes]) -> Iterator[tuple[Any, ...]]:
        for at in range(0, len(values), _ASK_AT_ONCE):
            some = values[at : at + _ASK_AT_ONCE]
            yield from self._all(f"{question} ({', '.join('?' * len(some))})", *some)

    def _one(self, question: str, *values: Any) -> Any:
        with _told(self.path):
            return self._db.execute(question, values).fetchone()

    def _all(self, question: str, *values: Any) -> list[tuple[Any, ...]]:
        with _told(self.path):
            return self._db.execute(question, values).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with _told(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """SQLite's errors as this package words them."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise OSError(errno.EIO, f"SQLite says: {error}", str(path)) from error
    except sqlite3.DatabaseError as error:
        raise IndexCorruptError(f"{path}: not a readable ledger: {error}; encode into a new folder") from error
