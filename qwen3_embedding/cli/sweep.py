"""``sweep``: retrieval quality by vector size and precision, and by the wording of the instruction."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwen3_embedding.cli.common import Device, DType, Json, Offline, Revision, print_table

if TYPE_CHECKING:
    from qwen3_embedding.evaluation.sweeps import InstructionResult, SweepCell


def command(
    folder: Annotated[
        Path, typer.Argument(help="A retrieval task: corpus.jsonl, queries.jsonl, qrels/ (BEIR layout).")
    ],
    embedder: Annotated[str, typer.Option(help="Folder, hub id or bundled name.")] = "nano-embedding",
    dimensions: Annotated[
        list[int] | None, typer.Option("--dimensions", help="A size; repeat it. Default: halves of the full one.")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option("--precision", help="A precision; repeat it. Default: float32, int8, binary.")
    ] = None,
    instructions: Annotated[
        bool, typer.Option("--instructions", help="Instead: the task's instruction, other wordings, and none.")
    ] = False,
    figure: Annotated[Path | None, typer.Option("--figure", help="Draw quality by size into DIR (PNG, SVG).")] = None,
    split: Annotated[str, typer.Option(help="Which qrels/SPLIT.tsv.")] = "test",
    device: Device = "auto",
    dtype: DType = "auto",
    revision: Revision = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Measure what smaller vectors, other precisions or another instruction cost on a task of yours (nDCG@10)."""
    from qwen3_embedding.evaluation.collection import read_collection, read_info
    from qwen3_embedding.evaluation.figures import save_figure
    from qwen3_embedding.evaluation.sweeps import (
        as_precisions,
        default_instructions,
        halves,
        plot_sweep,
        sweep_dimensions,
        sweep_instructions,
    )
    from qwen3_embedding.inference.embedder import Embedder
    from qwen3_embedding.inference.precision import from_precision, to_precision
    from qwen3_embedding.types import DEFAULT_INSTRUCTION

    info, collection = read_info(folder), read_collection(folder, split)
    precisions = as_precisions(precision or ["float32", "int8", "binary"])
    encoder = Embedder.from_pretrained(embedder, device, dtype, revision, offline=offline)
    if instructions:
        wordings = default_instructions(info.instruction or DEFAULT_INSTRUCTION)
        _show_instructions(sweep_instructions(collection, encoder, wordings), info.name, as_json)
        return
    cells = sweep_dimensions(
        collection,
        encoder,
        lambda vectors_ND, kind: from_precision(to_precision(vectors_ND, kind), kind),
        dimensions or halves(encoder.dimensions),
        precisions,
        info.instruction,
    )
    if figure is not None:
        for path in save_figure(plot_sweep(cells, f"{info.name}, {encoder.name}"), figure, "sweep"):
            print(f"wrote {path}", file=sys.stderr)
    _show_cells(cells, info.name, as_json)


def _show_instructions(results: list[InstructionResult], title: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps([asdict(result) for result in results], ensure_ascii=False))
        return
    rows: list[tuple[str, ...]] = []
    for r in results:
        score = f"{100 * r.score.value:.2f} [{100 * r.score.low:.2f}, {100 * r.score.high:.2f}]"
        rows.append((r.name, score, f"{100 * r.difference:+.2f}", f"{r.p_value:.4f}", r.instruction or "(none)"))
    print_table(rows, ("wording", "nDCG@10", "difference", "p", "instruction"), title)


def _show_cells(cells: list[SweepCell], title: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps([asdict(cell) for cell in cells]))
        return
    rows: list[tuple[str, ...]] = [
        (str(c.dimensions), c.precision, str(c.bytes_per_vector), f"{100 * c.score:.2f}", f"{100 * c.kept:.1f} %")
        for c in cells
    ]
    print_table(rows, ("dimensions", "precision", "bytes", "nDCG@10", "kept"), title)
