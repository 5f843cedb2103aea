"""``bench``: how fast a model runs here, or how much a server carries."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from qwen3_embedding.cli.common import Device, DType, HubName, Json, Kernel, Offline, Quiet, hub, print_table


def command(
    model: Annotated[str, typer.Argument(help="Folder, hub id, or bundled name.")] = "nano-embedding",
    texts: Annotated[int, typer.Option(help="Texts to embed.")] = 64,
    tokens: Annotated[float, typer.Option(help="Their mean length in tokens.")] = 120,
    rounds: Annotated[int, typer.Option(help="Rounds; the median counts.")] = 3,
    profile: Annotated[bool, typer.Option("--profile", help="Also print where the time goes.")] = False,
    url: Annotated[str | None, typer.Option(help="A server instead, of any make; what follows is for it.")] = None,
    served: Annotated[str | None, typer.Option("--model", help="The model's name there. Default: asked.")] = None,
    rerank: Annotated[bool, typer.Option("--rerank", help="Its reranker instead of its embedder.")] = False,
    concurrency: Annotated[str, typer.Option(help="Requests under way at once, one run each.")] = "1,4,16,64",
    lengths: Annotated[str, typer.Option(help="Tokens of a text, about; one run each.")] = "16,128,512",
    per_request: Annotated[int, typer.Option(help="Texts of a request; documents for a reranker.")] = 1,
    seconds: Annotated[float, typer.Option(help="Seconds of a run.")] = 3.0,
    max_requests: Annotated[int, typer.Option(help="Requests of a run at most.")] = 1_000,
    max_seconds: Annotated[float, typer.Option(help="Seconds after which no run begins.")] = 120.0,
    api_key: Annotated[str | None, typer.Option(help="The key. QWEN3_EMBEDDING_API_KEY is read otherwise.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the sweep into this file, .html or .png.")] = None,
    device: Device = "auto",
    dtype: DType = "auto",
    hub_name: HubName = "huggingface",
    offline: Offline = False,
    kernel: Kernel = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure tokens a second, single-query latency and the share of the machine's matrix-product rate.

    With --url a running server is measured: concurrency and length swept, p50, p95, p99, tokens a second, the knee.
    """
    if url is not None:
        sweep: dict[str, Any] = {
            "concurrency": _numbers(concurrency, "--concurrency"),
            "tokens": _numbers(lengths, "--lengths"),
            "per_request": per_request,
            "seconds": seconds,
            "requests": max_requests,
            "total_s": max_seconds,
        }
        _server(url, served, api_key or os.environ.get("QWEN3_EMBEDDING_API_KEY"), rerank, sweep, plot, quiet, as_json)
        return
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


def _server(
    url: str,
    model: str | None,
    api_key: str | None,
    rerank: bool,
    sweep: dict[str, Any],
    plot: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from qwen3_embedding.optional import require

    require("httpx", extra="serve")
    require("aiohttp", extra="serve")
    from qwen3_embedding.serving.anyserver import AnyServer
    from qwen3_embedding.serving.load import LoadSettings, measure_load
    from qwen3_embedding.serving.loadplot import write_plot

    settings = LoadSettings(**sweep)
    if plot is not None and plot.suffix not in (".html", ".png"):
        raise ValueError(f"--plot {plot}: wanted a name that ends with .html or .png")
    with AnyServer(url, api_key, model) as server, Progress(console=Console(stderr=True), disable=quiet) as bars:
        task = bars.add_task("runs", total=None)
        load = measure_load(
            server, settings, rerank or None, lambda done, total: bars.update(task, completed=done, total=total)
        )
    if plot is not None:
        write_plot(load, plot)
    if as_json:
        print(json.dumps(load.as_dict()))
    else:
        names = ("tokens", "concurrent", "requests/s", "tokens/s", "p50 ms", "p95 ms", "p99 ms", "errors", "")
        print_table([_row(run) for run in load.runs], names, f"{load.url}{load.route}")
        if not load.tokens_counted:
            print("tokens/s: the server does not tell its tokens; the wanted lengths were taken")
        if load.left_out:
            print(f"left out for want of time (--max-seconds): {load.left_out}")
    if not any(run.requests for run in load.runs):
        raise typer.Exit(1)


def _row(run: Any) -> tuple[str, ...]:
    errors = ", ".join(f"{count} x {name}" for name, count in run.errors.items()) or "0"
    times = (f"{run.p50_ms:,.1f}", f"{run.p95_ms:,.1f}", f"{run.p99_ms:,.1f}")
    rates = (f"{run.requests_per_s:,.1f}", f"{run.tokens_per_s:,.0f}")
    return (str(run.tokens), str(run.concurrency), *rates, *times, errors, "knee" if run.knee else "")


def _numbers(text: str, name: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{name} {text!r}: wanted whole numbers with commas between, like 1,4,16") from None


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if value < 100 else f"{value:,.0f}"
    if isinstance(value, list | tuple):
        return " ".join(f"{item:.3g}" for item in value)
    return "-" if value is None else str(value)
