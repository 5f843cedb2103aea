"""OpenTelemetry traces: a span a request and, inside, ``tokenise``, ``queue``, ``compute`` and ``serialise``.

Spans are made when the request is over, from the times that were taken anyway, so the way of a request has nothing to
wait for. They join the caller's trace (W3C ``traceparent``). No attribute ever holds a text or a secret.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from qwen3_embedding import __version__
from qwen3_embedding.optional import require
from qwen3_embedding.serving.errors import ServingError
from qwen3_embedding.serving.services import Work

TRACES_PATH = "/v1/traces"


class Traces:
    """Makes spans with a tracer provider of OpenTelemetry's SDK.

    Args:
        provider: where the spans go.
    """

    def __init__(self, provider: Any) -> None:
        self._provider = provider
        self._trace = require("opentelemetry.trace", extra="otel")
        carried = require("opentelemetry.trace.propagation.tracecontext", extra="otel")
        self._carried = carried.TraceContextTextMapPropagator()
        self._tracer = provider.get_tracer("qwen3_embedding.serving", __version__)

    @classmethod
    def over_otlp(cls, endpoint: str, service_name: str = "qwen3-embedding") -> Traces:
        """Send spans to a collector by OTLP over HTTP.

        Args:
            endpoint: its URL; without a path, OTLP's own (``/v1/traces``).
            service_name: under which the traces are filed.

        Raises:
            MissingExtraError: OpenTelemetry's SDK is not installed.
            ValueError: not a URL.
        """
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"otlp_endpoint={endpoint!r}; wanted a URL such as http://collector:4318")
        exporter = require("opentelemetry.exporter.otlp.proto.http.trace_exporter", extra="otel")
        resources = require("opentelemetry.sdk.resources", extra="otel")
        sdk = require("opentelemetry.sdk.trace", extra="otel")
        export = require("opentelemetry.sdk.trace.export", extra="otel")
        named = {"service.name": service_name, "service.version": __version__}
        provider = sdk.TracerProvider(resource=resources.Resource.create(named))
        url = endpoint if parts.path.strip("/") else endpoint.rstrip("/") + TRACES_PATH
        provider.add_span_processor(export.BatchSpanProcessor(exporter.OTLPSpanExporter(endpoint=url)))
        return cls(provider)

    def record(self, call: Any, status: str, error: ServingError | None, headers: Mapping[str, str]) -> None:
        """The spans of a request that is over.

        Args:
            call: the request (``requests.Served``).
            status: HTTP status or gRPC code.
            error: what went wrong.
            headers: of the request, for its ``traceparent``.
        """
        now, clock = time.monotonic(), time.time_ns()

        def at(moment: float) -> int:
            return clock - round((now - moment) * 1e9)

        grpc = not status.isdigit()
        span = self._tracer.start_span(
            call.route if grpc else f"{'POST' if call.work.items else 'HTTP'} {call.route}",
            context=self._carried.extract(headers),
            kind=self._trace.SpanKind.SERVER,
            attributes=_attributes(call, status, grpc),
            start_time=at(call.began),
        )
        if error is not None:
            span.set_attribute("error.type", error.kind)
            if error.status >= 500:
                span.set_status(self._trace.StatusCode.ERROR, error.kind)
        inside = self._trace.set_span_in_context(span)
        steps = [*call.work.steps]
        if call.work.rows_at:
            steps.append(("serialise", call.work.rows_at, now))
        for name, began, ended in steps:
            step = self._tracer.start_span(name, context=inside, start_time=at(began))
            step.end(at(ended))
        span.end(clock)

    def close(self) -> None:
        """Send what has not been sent."""
        self._provider.shutdown()


def _attributes(call: Any, status: str, grpc: bool) -> dict[str, str | int]:
    work: Work = call.work
    found: dict[str, str | int] = {"qwen3.request_id": call.id, "qwen3.caller": work.caller.name}
    if grpc:
        found |= {"rpc.system": "grpc", "rpc.method": call.route, "rpc.response.status_code": status}
    else:
        found |= {"http.route": call.route, "http.response.status_code": int(status)}
    if work.items:
        found |= {
            "gen_ai.operation.name": "embeddings" if work.kind == "embed" else "rerank",
            "gen_ai.request.model": work.model,
            "gen_ai.usage.input_tokens": work.tokens,
            "qwen3.inputs": work.items,
            "qwen3.truncated_inputs": len(work.cuts),
        }
    return found
