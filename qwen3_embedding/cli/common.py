"""What several verbs share: options and reading texts."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from qwen3_embedding.errors import DataError

Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")]
DType = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16, float16, int8 (CPU), fp8 (Hopper GPU).")]
Kernel = Annotated[str, typer.Option("--kernel", help="auto, native (our own, CPU), library (PyTorch's).")]
Reproducible = Annotated[
    bool, typer.Option("--reproducible", help="Equal to the last bit alone and in any batch, whatever the kernel.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Use no network: hub models from the local cache only.")]
HubName = Annotated[str, typer.Option("--hub", help="Where hub ids live: huggingface or modelscope.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]


@contextmanager
def importing() -> Iterator[None]:
    """Heavy imports without the garbage collector, which would walk torch's objects while they come and again at exit.

    What exists afterwards is left out of later collections, as it would stay for the life of the process anyway.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if enabled:
            gc.enable()


def read_lines(file: Path | None, where: str = "stdin") -> list[str]:
    """Texts, one a line; lines of a ``.jsonl`` file are strings or objects with ``text``.

    Raises:
        DataError: a file that is missing or not UTF-8, or a line that is no text.
    """
    name = str(file) if file is not None and str(file) != "-" else where
    try:
        if name == where:
            raw = sys.stdin.buffer.read().decode("utf-8")
        else:
            raw = Path(name).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: byte {error.start} is not UTF-8; convert the file") from None
    except FileNotFoundError:
        raise DataError(f"{name}: no such file") from None
    lines = raw.split("\n")
    if lines and lines[-1] == "":
        lines.pop()
    lines = [line.removesuffix("\r") for line in lines]
    return list(_from_jsonl(lines, name)) if name.endswith(".jsonl") else lines


def _from_jsonl(lines: list[str], name: str) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        try:
            value: Any = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{name}:{number}: not JSON: {error.msg}") from None
        text = value.get("text") if isinstance(value, dict) else value
        if not isinstance(text, str):
            raise DataError(f"{name}:{number}: wanted a string or an object with the key 'text'")
        yield text


def hub(name: str) -> Any:
    """The hub's name, checked."""
    if name not in ("huggingface", "modelscope"):
        raise ValueError(f"hub={name!r}; wanted huggingface or modelscope")
    return name


def print_table(
    rows: list[tuple[str, ...]], headers: tuple[str, ...], title: str = "", width: int | None = None
) -> None:
    """Print a table for people on stdout, as wide as the terminal (80 where there is none) or as asked for."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*headers, title=title or None)
    for row in rows:
        table.add_row(*row)
    Console(width=width).print(table)
