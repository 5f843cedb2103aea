"""Make the bundled models again: base, embedder, mined negatives, reranker, in this order.

    python recipes/nano/run.py --data FOLDER        # FOLDER holds the training records (docs/nano.md says which)

Every stage leaves a folder in runs/nano and is skipped if its folder is there; a killed stage goes on from its last
checkpoint.  With the same data, versions and one thread the files come out the same, byte for byte.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

HERE, RUNS = Path(__file__).resolve().parent, Path("runs/nano")
ASSETS = Path(__file__).resolve().parents[2] / "qwen3_embedding" / "assets"
TIMES = RUNS / "seconds.json"


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the training records")
    parser.add_argument("--threads", type=int, default=2, help="of torch; part of what makes the files the same")
    parser.add_argument("--install", action="store_true", help="put the result into the package's assets")
    arguments = parser.parse_args()

    import torch

    torch.set_num_threads(arguments.threads)
    if not arguments.data.is_dir():
        parser.error(f"{arguments.data} is no folder; --data wants the folder of training records (docs/nano.md)")
    RUNS.mkdir(parents=True, exist_ok=True)
    for name, output, stage in stages(arguments.data):
        if output.exists():
            print(f"{name}: {output} is there")
            continue
        started = time.monotonic()
        stage()
        note_seconds(name, time.monotonic() - started)
    if arguments.install:
        install(arguments.data)


def stages(data: Path) -> Iterator[tuple[str, Path, Callable[[], object]]]:
    """Name, what it leaves, and how, of each stage in order."""
    from qwen3_embedding.training.base import BaseSettings, make_base
    from qwen3_embedding.training.matching import MatchingSettings, matching_start

    base, embedder, mined = RUNS / "base", RUNS / "nano-embedding", RUNS / "mined.jsonl.gz"
    start, reranker = RUNS / "reranker-start", RUNS / "nano-reranker"
    yield "base", base, lambda: make_base(BaseSettings(output=base, data=data))
    yield "embedding", embedder, lambda: train(HERE / "embedding.toml", data)
    yield "mining", mined, lambda: mine(HERE / "mining.toml", data)
    yield "reranker-start", start, lambda: matching_start(MatchingSettings(source=embedder, output=start))
    yield "reranker", reranker, lambda: train(HERE / "reranker.toml", data)


def mine(recipe: Path, data: Path) -> None:
    """Run a mining recipe with its records taken from ``data``."""
    from qwen3_embedding.cli.mine import models
    from qwen3_embedding.config import load_toml
    from qwen3_embedding.mining.recipe import MineRecipe, run

    settings = load_toml(recipe, MineRecipe)
    records = tuple(moved(path, data) for path in settings.records)
    run(dataclasses.replace(settings, records=records), models(settings), log=print)


def train(recipe: Path, data: Path) -> None:
    """Run a training recipe with its sources taken from ``data``."""
    from qwen3_embedding.training.config import load_settings
    from qwen3_embedding.training.trainer import train as run

    settings = load_settings(recipe)
    sources = tuple(dataclasses.replace(source, path=moved(source.path, data)) for source in settings.data.sources)
    run(dataclasses.replace(settings, data=dataclasses.replace(settings.data, sources=sources)))


def moved(path: Path, data: Path) -> Path:
    """A recipe's ``data/...`` in the data folder that was named."""
    return data / path.name if path.parts[0] == "data" else path


def note_seconds(name: str, seconds: float) -> None:
    """Keep how long each stage took."""
    times = json.loads(TIMES.read_text()) if TIMES.exists() else {}
    times[name] = round(times.get(name, 0) + seconds, 1)
    TIMES.write_text(json.dumps(times, indent=2) + "\n")
    print(f"{name}: {seconds:.0f} s")


def install(data: Path) -> None:
    """Copy both models into the package, beside first, then renamed; their settings name ``data`` as the recipes do."""
    for name in ("nano-embedding", "nano-reranker"):
        beside = ASSETS / f"{name}.partial"
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree(RUNS / name, beside)
        shutil.copyfile(ASSETS / name / "LICENSE", beside / "LICENSE")
        settings = beside / "training.toml"
        settings.write_text(settings.read_text(encoding="utf-8").replace(f'"{data}/', '"data/'), encoding="utf-8")
        shutil.rmtree(ASSETS / name, ignore_errors=True)
        os.rename(beside, ASSETS / name)


if __name__ == "__main__":
    main()
