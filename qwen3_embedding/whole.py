"""Files and folders that are there whole or not at all: written beside their place, forced to disk, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"
"""Behind the name of what is not whole yet; the next writer of the same name takes its place."""


@contextmanager
def whole_file(path: str | Path, *, shared: bool = False) -> Iterator[Path]:
    """The place to write a file to; when the block ends it becomes ``path``, and replaces what stood there.

    A block that fails leaves ``path`` as it was and nothing beside it.  Folders above it are made.

    Args:
        path: the file.
        shared: other processes may write the same file at the same time; the last one to finish stays.

    Raises:
        OSError: it cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(path, shared)
    try:
        yield beside
        force_to_disk(beside)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """As :func:`whole_file` for a folder, which begins empty; ``path`` must be free when the block ends.

    Raises:
        OSError: it cannot be written, or ``path`` is a folder with something in it.
    """
    path = Path(path)
    beside = _beside(path)
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        force_to_disk(*beside.rglob("*"), beside)
        os.rename(beside, path)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def write_text(path: str | Path, text: str, *, shared: bool = False) -> None:
    """A file of UTF-8, :func:`whole_file`."""
    write_bytes(path, text.encode("utf-8"), shared=shared)


def write_bytes(path: str | Path, data: bytes, *, shared: bool = False) -> None:
    """A file of bytes, :func:`whole_file`."""
    with whole_file(path, shared=shared) as beside:
        beside.write_bytes(data)


def force_to_disk(*paths: Path) -> None:
    """So that what has its name is whole behind a power cut too: contents of files, entries of folders."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _beside(path: Path, shared: bool = False) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}" if shared else path.name + PARTIAL)
