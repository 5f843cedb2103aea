"""Spans of requests, collected by OpenTelemetry's own in-memory exporter and by a collector that speaks OTLP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from qwen3_embedding.serving.auth import Key
from qwen3_embedding.serving.server import Server
from qwen3_embedding.serving.settings import ServerSettings
from qwen3_embedding.serving.tracing import Traces
from tests.serving.conftest import serving

if TYPE_CHECKING:
    from qwen3_embedding import Embedder, Reranker

sdk = pytest.importorskip("opentelemetry.sdk.trace")
export = pytest.importorskip("opentelemetry.sdk.trace.export")
memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")

SECRET, TEXT = "correct-horse", "the secret of the text"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def traced(embedder: Embedder, reranker: Reranker) -> Iterator[tuple[httpx.Client, Any]]:
    exporter = memory.InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    settings = ServerSettings(keys=(Key.parse(f"team={SECRET}"),))
    server = Server({"tiny": embedder}, {"judge": reranker}, settings, traces=Traces(provider))
    with serving(server) as url, httpx.Client(base_url=url, headers={"authorization": f"Bearer {SECRET}"}) as client:
        yield client, exporter


def test_a_request_is_a_span_with_its_steps_inside(traced: tuple[httpx.Client, Any]) -> None:
    client, exporter = traced
    carried = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine-7"}
    assert client.post("/v1/embeddings", json={"input": [TEXT, "b"]}, headers=carried).status_code == 200
    *steps, request = exporter.get_finished_spans()
    assert request.name == "POST /v1/embeddings"
    assert f"{request.context.trace_id:032x}" == TRACE
    assert f"{request.parent.span_id:016x}" == PARENT
    assert request.attributes["qwen3.request_id"] == "mine-7"
    assert request.attributes["qwen3.caller"] == "team"
    assert request.attributes["gen_ai.request.model"] == "tiny"
    assert request.attributes["qwen3.inputs"] == 2
    assert request.attributes["gen_ai.usage.input_tokens"] > 2
    assert request.attributes["http.response.status_code"] == 200
    assert [step.name for step in steps] == ["tokenise", "queue", "compute", "serialise"]
    before = request.start_time
    for step in steps:
        assert step.parent.span_id == request.context.span_id
        assert before <= step.start_time <= step.end_time <= request.end_time
        before = step.start_time
    assert steps[2].end_time > steps[2].start_time


def test_errors_are_marked_and_nothing_is_told_that_must_not_be(traced: tuple[httpx.Client, Any]) -> None:
    client, exporter = traced
    client.post("/rerank", json={"query": TEXT, "texts": [TEXT]})
    assert client.post("/v1/embeddings", json={"input": TEXT, "model": TEXT}).status_code == 404
    client.get("/health")
    spans = exporter.get_finished_spans()
    assert spans[-1].attributes["error.type"] == "model_not_found"
    assert [span.name for span in spans if span.parent is None] == ["POST /rerank", "HTTP /v1/embeddings"]
    told = " ".join(span.to_json() for span in spans)
    assert "secret" not in told
    assert SECRET not in told


def test_a_collector_gets_them_by_otlp(embedder: Embedder) -> None:
    got: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        traces = Traces.over_otlp(f"http://127.0.0.1:{collector.server_port}", "my-service")
        with serving(Server({"tiny": embedder}, None, traces=traces)) as url:
            assert httpx.post(f"{url}/embed", json={"inputs": TEXT}).status_code == 200
        collector.shutdown()
    assert {path for path, _ in got} == {"/v1/traces"}
    sent = b"".join(body for _, body in got)
    assert b"my-service" in sent
    assert b"tokenise" in sent
    assert TEXT.encode() not in sent
    with pytest.raises(ValueError, match="wanted a URL"):
        Traces.over_otlp("collector:4318")
