"""``serve``: the HTTP server with the playground at ``/``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from qwen3_embedding.cli.common import importing


def command(
    embedder: Annotated[
        list[str] | None,
        typer.Option(help="Embedder to serve, [NAME=]SOURCE: folder, hub id or bundled name. Repeatable."),
    ] = None,
    reranker: Annotated[list[str] | None, typer.Option(help="Reranker to serve, [NAME=]SOURCE. Repeatable.")] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="LoRA adapter to serve as a model of its own: NAME=FOLDER, or NAME=BASE:FOLDER. Repeatable."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, help="Worker processes; each holds all models. Default: one a GPU, one on the CPU. 0: no process."
        ),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Take hub ids from the local cache only.")] = False,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 picks a free one.")] = 8080,
    grpc_port: Annotated[
        int | None, typer.Option(help="Port for gRPC in text-embeddings-inference's words; none without it.")
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help="[NAME=]SECRET[:TOKENS_PER_MINUTE]. Repeatable. QWEN3_EMBEDDING_API_KEYS holds several, by spaces."
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with one such key a line; # begins a comment.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16, int8 (CPU).")] = "auto",
    kernel: Annotated[str, typer.Option(help="auto, native (our own, CPU), library (PyTorch's).")] = "auto",
    reproducible: Annotated[
        bool, typer.Option("--reproducible", help="Equal to the last bit alone and in any batch, whatever the kernel.")
    ] = False,
    truncation: Annotated[
        str | None,
        typer.Option(help="For texts beyond the context, in every dialect: error or end. Default: the dialect's."),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="A lower length limit than the models' own.")] = None,
    max_batch_tokens: Annotated[int | None, typer.Option(help="Tokens of a batch. Default: by device.")] = None,
    max_waiting_tokens: Annotated[int, typer.Option(help="Bound of each model's queue; past it 429.")] = 1_000_000,
    max_items: Annotated[int, typer.Option(help="Texts of one request at most.")] = 2_048,
    max_body_mb: Annotated[int, typer.Option(help="MiB of a request body at most.")] = 32,
    cache_mb: Annotated[
        int, typer.Option(help="MiB of finished vectors to keep for repeated texts; 0 keeps none.")
    ] = 0,
    request_timeout: Annotated[float, typer.Option(help="Seconds after which a request is given up.")] = 600.0,
    drain: Annotated[float, typer.Option(help="Seconds that accepted requests may take after SIGTERM.")] = 60.0,
    otlp_endpoint: Annotated[
        str | None, typer.Option(help="URL of an OpenTelemetry collector that traces are sent to; none without it.")
    ] = None,
    otlp_service_name: Annotated[str, typer.Option(help="Under which the traces are filed.")] = "qwen3-embedding",
    log_level: Annotated[str, typer.Option(help="debug, info, warning, error.")] = "info",
) -> None:
    """Serve models over HTTP in the dialects of OpenAI, Cohere, Jina, TEI and vLLM; playground at /.

    Without --embedder and --reranker the bundled nano models are served.
    """
    from qwen3_embedding.optional import require

    for module in ("fastapi", "uvicorn", "orjson", "prometheus_client"):
        require(module, extra="serve")
    if grpc_port is not None:
        for module in ("grpc", "google.protobuf"):
            require(module, extra="grpc")
    from qwen3_embedding.serving.auth import Key, read_key_file
    from qwen3_embedding.serving.queue import QueueSettings
    from qwen3_embedding.serving.settings import ServerSettings, check_truncation
    from qwen3_embedding.serving.tracing import Traces

    if not embedder and not reranker:
        embedder, reranker = ["nano-embedding"], ["nano-reranker"]
    given = [*(api_key or []), *os.environ.get("QWEN3_EMBEDDING_API_KEYS", "").split()]
    given += read_key_file(api_key_file) if api_key_file else []
    settings = ServerSettings(
        keys=tuple(Key.parse(text, number) for number, text in enumerate(given, start=1)),
        truncation=check_truncation(truncation),
        max_items=max_items,
        max_body_bytes=max_body_mb * 2**20,
        request_timeout_s=request_timeout,
        drain_s=drain,
        queue=QueueSettings(
            max_batch_tokens=max_batch_tokens or 65_536,
            max_waiting_tokens=max_waiting_tokens,
            cache_bytes=cache_mb * 2**20,
        ),
    )
    traces = Traces.over_otlp(otlp_endpoint, otlp_service_name) if otlp_endpoint else None
    # What takes seconds to import comes after everything that a caller can get wrong.
    with importing():
        import torch

        from qwen3_embedding.serving.models import LoadSettings, find_models
        from qwen3_embedding.serving.processes import WorkerPool, worker_devices
        from qwen3_embedding.serving.run import Address, run
        from qwen3_embedding.serving.server import Server

    specs = find_models(embedder or [], reranker or [], adapter or [], offline)
    load = LoadSettings(device, dtype, max_tokens, max_batch_tokens, kernel, reproducible)
    if workers == 0:
        server = Server.load(specs, load, settings)
    else:
        devices = worker_devices(device, workers, torch.cuda.device_count())
        # Threads that spin while they wait would take the cores from the server that feeds them.
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
        server = Server.over(WorkerPool(specs, load, devices, environment), specs, settings)
    server.traces = traces
    for service in server.services:
        typer.echo(f"serving {service.name}: {service.dtype} on {service.device}", err=True)
    typer.echo(f"playground: http://{host}:{port}/", err=True)
    run(server, Address(host, port), log_level, grpc_port)
