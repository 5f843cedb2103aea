"""``merge``: checkpoints into one checkpoint."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer


def command(
    recipe: Annotated[Path, typer.Argument(help="TOML recipe: method, output, sources (docs/merging.md).")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Merge checkpoints: linear, slerp, spherical mean of n, or task vectors; with a report of angles."""
    from qwen3_embedding.config import load_toml
    from qwen3_embedding.merging.merge import merge
    from qwen3_embedding.merging.settings import MergeSettings

    settings = load_toml(recipe, MergeSettings)
    report = merge(settings, _show if sys.stderr.isatty() else None)
    print(f"wrote {settings.output}", file=sys.stderr)
    print(json.dumps(report.summary(), indent=2) if as_json else "\n".join(report.lines()))


def _show(done: int, total: int, name: str) -> None:
    print(f"\r{done + 1}/{total} {name:60.60}", end="\n" if done + 1 == total else "", file=sys.stderr, flush=True)
