"""The files of a corpus: which there are, what format each has, and whether one has changed since it was read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qwen3_embedding.errors import DataError

Format = Literal["jsonl", "csv", "tsv", "parquet", "arrow", "text"]
Compression = Literal["none", "gz", "xz", "zst"]

_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".ipc": "arrow",
    ".feather": "arrow",
    ".txt": "text",
    ".md": "text",
    ".rst": "text",
}
_COMPRESSIONS: dict[str, Compression] = {".gz": "gz", ".xz": "xz", ".zst": "zst"}


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a file is, so that a change of it is noticed."""

    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a corpus."""

    path: Path
    name: str
    """Path relative to the corpus folder, with forward slashes; the file's own name where the corpus is one file."""
    format: Format
    compression: Compression


@dataclass(frozen=True, slots=True)
class Source:
    """The files of a corpus, in the order in which they are read (by name)."""

    root: Path
    files: tuple[SourceFile, ...]
    ignored: tuple[str, ...]
    """Names of files that are in the folder and are not read, for the caller to report."""


def open_source(path: str | Path) -> Source:
    """List the files of a corpus: a single file, or a folder with all its subfolders.

    In a folder, plain-text files (``.txt``, ``.md``, ``.rst``) are documents only where no file of records (JSONL,
    Parquet, CSV, Arrow) is beside them, so that a README is not taken for a document.

    Raises:
        DataError: no such file or folder, an unknown format, or a folder without any file that can be read.
    """
    root = Path(path)
    if root.is_file():
        known = _classify(root, root.name)
        if known is None:
            raise DataError(f"{root}: unknown format {root.suffix!r}; wanted one of {_known_suffixes()}")
        return Source(root.parent, (known,), ())
    if not root.is_dir():
        raise DataError(
            f"{root}: no such file or folder; wanted a corpus: {_known_suffixes()}, or a folder of such files"
        )
    return _list_folder(root)


def fingerprint(path: Path, known: Fingerprint | None = None) -> Fingerprint:
    """Size, modification time and SHA-256 of a file.

    Args:
        path: the file.
        known: an earlier fingerprint; where size and time are still the same, its digest is taken over unread.
    """
    status = path.stat()
    if known is not None and (status.st_size, status.st_mtime_ns) == (known.size, known.mtime_ns):
        return known
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Fingerprint(status.st_size, status.st_mtime_ns, digest)


def check_unchanged(file: SourceFile, expected: Fingerprint) -> None:
    """Refuse a file that is not what it was when the run began.

    Raises:
        DataError: its size or modification time is another one.
    """
    status = file.path.stat()
    if (status.st_size, status.st_mtime_ns) != (expected.size, expected.mtime_ns):
        raise DataError(
            f"{file.path}: changed while it was read (was {expected.size} bytes, is {status.st_size}); "
            "what is written so far is kept; repeat the command when the file is at rest"
        )


def _list_folder(root: Path) -> Source:
    records: list[SourceFile] = []
    texts: list[SourceFile] = []
    ignored: list[str] = []
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if not path.is_file() or any(part.startswith(".") for part in name.split("/")):
            continue
        known = _classify(path, name)
        if known is None:
            ignored.append(name)
        else:
            (texts if known.format == "text" else records).append(known)
    if records:
        ignored += [file.name for file in texts]
    files: Sequence[SourceFile] = records or texts
    if not files:
        raise DataError(f"{root}: no file of a known format in this folder; wanted {_known_suffixes()}")
    return Source(root, tuple(sorted(files, key=lambda file: file.name)), tuple(sorted(ignored)))


def _classify(path: Path, name: str) -> SourceFile | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression: Compression = "none"
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        compression = _COMPRESSIONS[suffixes.pop()]
    kind = _FORMATS.get(suffixes[-1]) if suffixes else None
    if kind is None or (compression != "none" and kind in ("parquet", "arrow")):
        return None
    return SourceFile(path, name, kind, compression)


def _known_suffixes() -> str:
    return f"{', '.join(_FORMATS)} (text formats also with {', '.join(_COMPRESSIONS)})"
