"""The process: logs, signals, uvicorn."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import sys
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI

from qwen3_embedding.serving.app import create_app
from qwen3_embedding.serving.protocol import protocol
from qwen3_embedding.serving.server import Server

SWITCH_S = 0.0005
"""So long a queue's thread that has its rows waits for the event loop to let it deliver them and send the next batch.
At Python's own 5 ms the worker would stand still for a third of a short batch."""


COLLECT = (20_000, 20, 20)
"""When the collector looks: at Python's own 700, 10, 10 it walks the hundreds of requests under way again and again."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen."""

    host: str = "127.0.0.1"
    port: int = 8080


def run(server: Server, address: Address, log_level: str = "info", rpc_port: int | None = None) -> None:
    """Serve until SIGTERM or SIGINT; then refuse new connections, answer what was accepted, and return.

    ``rpc_port`` is for gRPC, beside HTTP; ``None`` for none.

    Logs are JSON lines on stderr, one a request, without texts and without keys.
    """
    configure_logs(log_level)
    sys.setswitchinterval(SWITCH_S)
    with contextlib.suppress(ImportError):
        import anyio._backends._asyncio  # noqa: F401  # or the first look for clients that left stops all for 30 ms
    app = create_app(server, None if rpc_port is None else (address.host, rpc_port))
    gc.collect()
    gc.freeze()  # or the collector walks all that was imported, tens of milliseconds, while requests wait
    gc.set_threshold(*COLLECT)
    _Uvicorn(uvicorn_config(app, server, host=address.host, port=address.port), server).run()


def uvicorn_config(app: FastAPI, server: Server, **options: Any) -> uvicorn.Config:
    """How uvicorn runs the application; ``options`` are uvicorn's own (host, port)."""
    return uvicorn.Config(
        app.middleware_stack or app,  # the application itself would only pass every request on to it
        http=protocol(server.settings.body_timeout_s),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # no route asks for the client's address
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(server.settings.drain_s) + 1,
        **options,
    )


class _Uvicorn(uvicorn.Server):
    """Says to the readiness check at once that it is leaving."""

    def __init__(self, config: uvicorn.Config, server: Server) -> None:
        super().__init__(config)
        self._server = server

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._server.draining = True
        super().handle_exit(sig, frame)


def configure_logs(level: str = "info") -> None:
    """JSON lines on stderr: ours as they are, uvicorn's wrapped."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    for name in ("qwen3_embedding.serving", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level.upper())


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """One JSON object a line; an exception's trace has no values of variables, so no texts."""
        message = record.getMessage()
        line: dict[str, Any] = {"time": self.formatTime(record), "level": record.levelname.lower()}
        if message.startswith("{"):
            if not record.exc_info:
                return f"{json.dumps(line)[:-1]}, {message[1:]}"
            line |= json.loads(message)
        else:
            line |= {"event": "server", "message": message}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)
