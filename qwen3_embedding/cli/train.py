"""``train``: records to a checkpoint, as a recipe says."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def command(
    recipe: Annotated[Path, typer.Argument(help="TOML file of the run's settings.")],
    output: Annotated[Path | None, typer.Option(help="Checkpoint folder to write, in place of the recipe's.")] = None,
    steps: Annotated[int | None, typer.Option(help="Number of steps, in place of the recipe's.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train an embedder or a reranker; run the same command again to go on after a break."""
    from dataclasses import replace

    from qwen3_embedding.training.config import load_settings
    from qwen3_embedding.training.trainer import train

    settings = load_settings(recipe)
    if output is not None:
        settings = replace(settings, output=output)
    if steps is not None:
        settings = replace(settings, run=replace(settings.run, steps=steps))
    trained = train(settings, show=not quiet)
    if os.environ.get("RANK", "0") != "0":
        return  # of the processes that torchrun starts one speaks
    if as_json:
        print(json.dumps({key: str(v) if isinstance(v, Path) else v for key, v in asdict(trained).items()}))
    else:
        print(f"{trained.folder}: {trained.steps} steps, final loss {trained.final_loss:.4f}")
