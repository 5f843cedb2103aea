"""The ledger: every answer that was paid for and every unit that ended, one line each, never changed again.

A line is a CRC-32 in hex, a space, JSON, a line end.  It is handed to the operating system with one ``write`` as soon
as the answer is there, so a killed process loses nothing.  It is on the disk (``fsync``) after ``sync_seconds`` at the
latest, so a power failure loses that much.  A torn last line is cut off when the ledger is opened again; a bad line in
the middle is an error.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from qwen3_embedding.errors import ConfigError, DataError

VERSION = 1
_ENCODER = json.JSONEncoder(separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of the model, as it came."""

    unit: str
    step: str
    attempt: int
    prompt_hash: str
    text: str
    seed: int
    input_tokens: int
    output_tokens: int
    estimated: bool
    truncated: bool
    tries: int
    seconds: float


_ANSWER = tuple(field.name for field in fields(Answer))


@dataclass(frozen=True, slots=True)
class Totals:
    """What all answers of a ledger came to."""

    answers: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def plus(self, answer: Answer) -> Totals:
        """With one more answer."""
        return Totals(
            self.answers + 1, self.input_tokens + answer.input_tokens, self.output_tokens + answer.output_tokens
        )


class Ledger:
    """An open ledger. One process at a time; a context manager.

    Args:
        path: the file; made where it is missing.
        fingerprint: what the answers depend on (model, templates, seed …).  A ledger that was begun with another one is
            refused, so that no file mixes two recipes.
        sync_seconds: longest time before a line is on the disk; 0 syncs every line.

    Raises:
        ConfigError: the ledger was begun with other settings (the message names them).
        DataError: a bad line in the middle, or another process has the ledger open.
    """

    def __init__(self, path: str | Path, fingerprint: Mapping[str, Any], sync_seconds: float = 1.0) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.ended: dict[str, bool] = {}
        """Units that ended: True with pairs, False without."""
        self.failures: dict[str, int] = {}
        """Units that ended without pairs, by reason."""
        self.totals = Totals()
        self.pairs = 0
        self.torn_bytes = 0
        self.settings = settings_hash(fingerprint)
        self._answers: dict[str, list[Answer]] = {}
        self._sync_seconds = sync_seconds
        self._dirty = threading.Event()
        self._closing = threading.Event()
        self._size = 0
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._lock()
            self._load(fingerprint)
        except BaseException:
            os.close(self._file)
            raise
        self._syncer = threading.Thread(target=self._sync_now_and_then, name="ledger-sync", daemon=True)
        if sync_seconds > 0:
            self._syncer.start()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def answers(self, unit: str) -> list[Answer]:
        """The answers of a unit that has not ended."""
        return self._answers.get(unit, [])

    def add_answer(self, answer: Answer) -> None:
        """Note an answer; it is safe from a kill when this returns."""
        self._append({"event": "answer", **{name: getattr(answer, name) for name in _ANSWER}})
        self._take_answer(answer)

    def end(self, unit: str, pairs: list[dict[str, Any]]) -> None:
        """Note that a unit ended with pairs."""
        self._end({"event": "end", "unit": unit, "pairs": pairs})

    def fail(self, unit: str, reason: str, detail: str) -> None:
        """Note that a unit ended without pairs."""
        self._end({"event": "end", "unit": unit, "pairs": [], "reason": reason, "detail": detail[:500]})

    def close(self) -> None:
        """Sync and close."""
        self._closing.set()
        self._dirty.set()
        if self._syncer.is_alive():
            self._syncer.join()
        os.fsync(self._file)
        os.close(self._file)

    def _end(self, event: dict[str, Any]) -> None:
        if event["unit"] in self.ended:
            raise ValueError(f"unit {event['unit']} has ended before; a unit ends once")
        self._append(event)
        self._take_end(event)

    def _append(self, event: Mapping[str, Any]) -> None:
        line = encode_line(event)
        try:
            written = os.write(self._file, line)
            while written < len(line):
                written += os.write(self._file, line[written:])
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(line)
        if self._sync_seconds > 0:
            self._dirty.set()
        else:
            os.fsync(self._file)

    def _sync_now_and_then(self) -> None:
        while not self._closing.wait(self._sync_seconds):
            if self._dirty.is_set():
                self._dirty.clear()
                os.fsync(self._file)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{self.path}: another process writes this ledger; wait for it or use another folder"
            ) from None

    def _load(self, fingerprint: Mapping[str, Any]) -> None:
        size, good = os.fstat(self._file).st_size, 0
        for event, end in _events(self.path):
            self._take(event, fingerprint, first=good == 0)
            good = end
        if good < size:
            self.torn_bytes = size - good
            os.ftruncate(self._file, good)
        self._size = good
        if good == 0:
            self._write_head(fingerprint)

    def _write_head(self, fingerprint: Mapping[str, Any]) -> None:
        self._append({"event": "run", "version": VERSION, "fingerprint": fingerprint})
        os.fsync(self._file)

    def _take(self, event: dict[str, Any], fingerprint: Mapping[str, Any], first: bool) -> None:
        if first:
            _check_head(event, fingerprint, self.path)
        elif event["event"] == "answer":
            self._take_answer(_answer(event))
        elif event["event"] == "end":
            self._take_end(event)

    def _take_answer(self, answer: Answer) -> None:
        self.totals = self.totals.plus(answer)
        self._answers.setdefault(answer.unit, []).append(answer)

    def _take_end(self, event: Mapping[str, Any]) -> None:
        self.ended[event["unit"]] = bool(event["pairs"])
        self.pairs += len(event["pairs"])
        self._answers.pop(event["unit"], None)
        if "reason" in event:
            self.failures[event["reason"]] = self.failures.get(event["reason"], 0) + 1


def settings_hash(fingerprint: Mapping[str, Any]) -> str:
    """16 hex digits over what the answers of a ledger depend on."""
    content = json.dumps(fingerprint, sort_keys=True).encode()
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def read_pairs(path: str | Path) -> Iterator[dict[str, Any]]:
    """The pairs of all units that ended, in the order in which they ended, as plain values.

    Raises:
        DataError: no such file, or a bad line in the middle.
    """
    for event, _ in _events(Path(path)):
        if event["event"] == "end":
            yield from event["pairs"]


def encode_line(event: Mapping[str, Any]) -> bytes:
    """One line of a ledger."""
    content = _ENCODER.encode(event).encode()
    return b"%08x %s\n" % (zlib.crc32(content), content)


def decode_line(line: bytes) -> dict[str, Any] | None:
    """What a line holds, or ``None`` where it is torn or damaged."""
    if len(line) < 11 or line[8:9] != b" " or line[-1:] != b"\n":
        return None
    content = line[9:-1]
    if line[:8] != b"%08x" % zlib.crc32(content):
        return None
    event = json.loads(content)
    return event if isinstance(event, dict) else None


def _events(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """The events of a ledger, each with the offset behind its line; a damaged tail is left out."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; wanted a ledger of a run")
    offset, bad = 0, 0
    with path.open("rb", buffering=1 << 20) as file:
        for number, line in enumerate(file, 1):
            event = decode_line(line)
            if event is None:
                bad = bad or number
                continue
            if bad:
                raise DataError(f"{path}:{bad}: damaged line in the middle of the ledger; restore the file from a copy")
            offset = offset + len(line)
            yield event, offset


def _check_head(event: Mapping[str, Any], fingerprint: Mapping[str, Any], path: Path) -> None:
    if event.get("event") != "run" or event.get("version") != VERSION:
        raise DataError(f"{path}: not a ledger of version {VERSION}; use another folder")
    begun = event["fingerprint"]
    wanted = json.loads(json.dumps(fingerprint))
    for name in sorted({*begun, *wanted}):
        if begun.get(name) != wanted.get(name):
            raise ConfigError(
                f"{path}: this ledger was begun with {name} = {begun.get(name)!r}, the recipe now says "
                f"{wanted.get(name)!r}; set it back, or give the new recipe another 'out' folder"
            )


def _answer(event: Mapping[str, Any]) -> Answer:
    return Answer(**{key: value for key, value in event.items() if key != "event"})
