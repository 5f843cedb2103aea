"""Replicas over machines with Ray Serve: the same routes, one replica a GPU, balanced and scaled by Ray.

``deploy/ray-serve.yaml`` names :func:`build`; or by hand:

    serve run qwen3_embedding.serving.ray:build embedders=Qwen/Qwen3-Embedding-0.6B replicas=4 gpus=1

A replica computes in its own process, which Ray watches and replaces.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwen3_embedding.optional import require
from qwen3_embedding.serving.app import create_app
from qwen3_embedding.serving.auth import Key, read_key_file
from qwen3_embedding.serving.models import LoadSettings, find_models
from qwen3_embedding.serving.queue import QueueSettings
from qwen3_embedding.serving.server import Server
from qwen3_embedding.serving.settings import ServerSettings

ONGOING = 10_000
"""Requests that Ray hands to one replica: it batches and refuses by tokens itself, so Ray must not hold them back."""


class Arguments(BaseModel):
    """What ``serve run`` and the configuration file can say; lists may be words separated by commas."""

    model_config = ConfigDict(extra="forbid")

    embedders: list[str] = Field(default_factory=list)
    rerankers: list[str] = Field(default_factory=list)
    adapters: list[str] = Field(default_factory=list)
    device: str = "auto"
    dtype: str = "auto"
    max_batch_tokens: int | None = Field(default=None, ge=1)
    max_waiting_tokens: int = Field(default=1_000_000, ge=1)
    api_key_file: Path | None = None
    """Read on the machine of each replica."""
    replicas: int = Field(default=1, ge=1)
    cpus: float = Field(default=1, ge=0)
    """Cores that Ray reserves for a replica."""
    gpus: float = Field(default=0, ge=0)
    """GPUs of a replica: 1, or a part for small models."""

    @field_validator("embedders", "rerankers", "adapters", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        return [word for word in value.split(",") if word] if isinstance(value, str) else value


def build(arguments: Arguments) -> Any:
    """A Ray Serve application: models and their queue on each replica.

    Without models the bundled nano pair is served.

    Raises:
        MissingExtraError: Ray Serve is not installed.
    """
    serve = require("ray.serve", extra="ray-serve")

    def app() -> FastAPI:
        made = create_app(make_server(arguments))
        assert made.middleware_stack is not None
        made.middleware_stack = _Nameless(made.middleware_stack)
        return made

    class Qwen3Embedding:
        """One replica."""

    deployment = serve.deployment(serve.ingress(app)(Qwen3Embedding))
    return deployment.options(
        name="qwen3-embedding",
        num_replicas=arguments.replicas,
        max_ongoing_requests=ONGOING,
        graceful_shutdown_timeout_s=75,
        ray_actor_options={"num_cpus": arguments.cpus, "num_gpus": arguments.gpus},
    ).bind()


class _Nameless:
    """Leaves the request id out of the answers: Ray's proxy puts it there itself, the client's own or a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""

        async def passed(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [header for header in message["headers"] if header[0].lower() != b"x-request-id"]
                message = {**message, "headers": kept}
            await send(message)

        await self._app(scope, receive, passed)


def make_server(arguments: Arguments) -> Server:
    """The server of one replica, its models in this process."""
    embedders, rerankers = arguments.embedders, arguments.rerankers
    if not embedders and not rerankers:
        embedders, rerankers = ["nano-embedding"], ["nano-reranker"]
    specs = find_models(embedders, rerankers, arguments.adapters)
    lines = read_key_file(arguments.api_key_file) if arguments.api_key_file else []
    settings = ServerSettings(
        keys=tuple(Key.parse(line, number) for number, line in enumerate(lines, start=1)),
        queue=QueueSettings(
            max_batch_tokens=arguments.max_batch_tokens or 65_536, max_waiting_tokens=arguments.max_waiting_tokens
        ),
    )
    load = LoadSettings(arguments.device, arguments.dtype, batch_tokens=arguments.max_batch_tokens)
    return Server.load(specs, load, settings)
