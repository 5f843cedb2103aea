"""``embed``: texts to vectors."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from qwen3_embedding.cli.common import (
    Device,
    DType,
    HubName,
    Kernel,
    Offline,
    Quiet,
    Reproducible,
    Revision,
    hub,
    importing,
    read_lines,
)
from qwen3_embedding.types import Precision
from qwen3_embedding.whole import write_bytes


def command(
    file: Annotated[Path | None, typer.Argument(help="Texts, one a line, or .jsonl; stdin without it.")] = None,
    model: Annotated[str, typer.Option("--model", help="Folder, hub id, or bundled name.")] = "nano-embedding",
    query: Annotated[
        bool, typer.Option("--query", help="The texts are queries: put the instruction before them.")
    ] = False,
    document: Annotated[bool, typer.Option("--document", help="The texts are documents (the default).")] = False,
    instruction: Annotated[str | None, typer.Option(help="Task of the queries; implies --query.")] = None,
    dimensions: Annotated[int | None, typer.Option(help="Vector size, 32 to the model's full size.")] = None,
    precision: Annotated[str, typer.Option(help="float32, float16, int8, uint8, binary, ubinary.")] = "float32",
    format: Annotated[
        Literal["json", "jsonl", "npy"], typer.Option(help="json: one list; jsonl: one line a text.")
    ] = "jsonl",
    output: Annotated[Path | None, typer.Option(help="Write here instead of stdout.")] = None,
    device: Device = "auto",
    dtype: DType = "auto",
    revision: Revision = None,
    hub_name: HubName = "huggingface",
    offline: Offline = False,
    kernel: Kernel = "auto",
    reproducible: Reproducible = False,
    quiet: Quiet = False,
) -> None:
    """Embed texts into unit vectors."""
    if document and (query or instruction is not None):
        raise ValueError("--document goes with neither --query nor --instruction: documents get no instruction")
    with importing():
        from qwen3_embedding.inference.embedder import Embedder

    texts = read_lines(file)
    embedder = Embedder.from_pretrained(
        model, device, dtype, revision, offline=offline, hub=hub(hub_name), kernel=kernel, reproducible=reproducible
    )
    wanted: Precision = precision  # type: ignore[assignment]
    progress = not quiet and sys.stderr.isatty()
    if query or instruction is not None:
        vectors = embedder.embed_queries(texts, instruction, dimensions, wanted, progress)
    else:
        vectors = embedder.embed_documents(texts, dimensions, wanted, progress)
    if format == "npy":
        _write_bytes(_npy(vectors), output)
    elif format == "json":
        _write_bytes((json.dumps(vectors.tolist()) + "\n").encode(), output)
    else:
        _write_bytes("".join(json.dumps(row) + "\n" for row in vectors.tolist()).encode(), output)


def _npy(vectors: object) -> bytes:
    from io import BytesIO

    import numpy as np

    buffer = BytesIO()
    np.save(buffer, np.asarray(vectors), allow_pickle=False)
    return buffer.getvalue()


def _write_bytes(data: bytes, output: Path | None) -> None:
    if output is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    write_bytes(output, data)
