"""``bench``: how fast a model runs here."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from qwen3_embedding.cli.common import Device, DType, HubName, Json, Kernel, Offline, hub, print_table


def command(
    model: Annotated[str, typer.Argument(help="Folder, hub id, or bundled name.")] = "nano-embedding",
    texts: Annotated[int, typer.Option(help="Texts to embed.")] = 64,
    tokens: Annotated[float, typer.Option(help="Their mean length in tokens.")] = 120,
    rounds: Annotated[int, typer.Option(help="Rounds; the median counts.")] = 3,
    profile: Annotated[bool, typer.Option("--profile", help="Also print where the time goes.")] = False,
    device: Device = "auto",
    dtype: DType = "auto",
    hub_name: HubName = "huggingface",
    offline: Offline = False,
    kernel: Kernel = "auto",
    as_json: Json = False,
) -> None:
    """Measure tokens a second, single-query latency and the share of the machine's matrix-product rate."""
    from qwen3_embedding.inference.embedder import Embedder
    from qwen3_embedding.inference.speed import measure, mixed_lengths, random_texts, time_by_part

    embedder = Embedder.from_pretrained(model, device, dtype, offline=offline, hub=hub(hub_name), kernel=kernel)
    speed = measure(embedder, texts, tokens, rounds)
    parts = {}
    if profile:
        parts = time_by_part(embedder, random_texts(embedder.tokenizer, mixed_lengths(texts, tokens)))
    if as_json:
        print(json.dumps({**speed.as_dict(), **({"parts": parts} if parts else {})}))
        return
    rows: list[tuple[str, ...]] = [(name.replace("_", " "), _shown(value)) for name, value in speed.as_dict().items()]
    print_table(rows, ("measured", "value"))
    if parts:
        whole = sum(parts.values())
        by_size = sorted(parts.items(), key=lambda part: -part[1])
        shares: list[tuple[str, ...]] = [
            (name, f"{value * 1000:.1f}", f"{value / whole:.1%}") for name, value in by_size
        ]
        print_table(shares, ("part", "ms", "share"))


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if value < 100 else f"{value:,.0f}"
    if isinstance(value, list | tuple):
        return " ".join(f"{item:.3g}" for item in value)
    return "-" if value is None else str(value)
