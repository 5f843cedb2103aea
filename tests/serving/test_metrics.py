"""The metrics page, read by Prometheus's own parser."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from qwen3_embedding.serving.server import Server
from tests.serving.conftest import serving

if TYPE_CHECKING:
    from qwen3_embedding import Embedder, Reranker


@pytest.fixture
def fresh(embedder: Embedder, reranker: Reranker) -> Iterator[httpx.Client]:
    server = Server({"e": embedder}, {"r": reranker})
    with serving(server) as url, httpx.Client(base_url=url) as client:
        yield client


def read(client: httpx.Client) -> dict[str, float]:
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}"] = sample.value
    return samples


def read_after(client: httpx.Client, batches: int) -> dict[str, float]:
    """The samples once so many batches are counted: a batch is counted just after its answers are out."""
    deadline = time.monotonic() + 30
    while (seen := read(client)).get("te_batch_next_size_count{}", 0) < batches and time.monotonic() < deadline:
        time.sleep(0.01)
    return seen


def test_what_happened_is_counted(fresh: httpx.Client) -> None:
    tokens = int(fresh.post("/embed", json={"inputs": ["one", "two", "one"]}).headers["x-compute-tokens"])
    fresh.post("/rerank", json={"query": "q", "texts": ["a", "b"]})
    fresh.post("/v1/embeddings", json={"input": "x " * 5000, "truncation": "end"})
    fresh.post("/v1/embeddings", json={"input": []})
    seen = read_after(fresh, batches=3)
    assert seen["te_request_count{method=batch}"] == 2
    assert seen["te_request_count{method=single}"] == 2
    assert seen["te_request_success{method=single}"] == 1
    assert seen["te_request_failure{err=empty_input}"] == 1
    assert seen["te_embed_count{}"] == 4
    assert seen["te_predict_success{}"] == 2
    assert seen["te_request_duration_count{}"] == 4
    assert seen["te_request_inference_duration_count{}"] == 3
    assert seen["te_request_input_length_count{}"] == 6
    assert seen["te_queue_size{}"] == 0
    assert seen["te_batch_next_size_sum{}"] == 5  # three texts of which two are equal, two pairs, one text
    assert seen["qwen3_tokens_total{caller=anonymous,model=e}"] == tokens + 2048
    assert seen["qwen3_truncated_inputs_total{model=e}"] == 1
    assert seen["qwen3_requests_total{route=/v1/embeddings,status=400}"] == 1
    assert seen["qwen3_queue_waiting_tokens{model=r}"] == 0
    assert seen["qwen3_batches_total{model=e}"] == 2
    assert seen["qwen3_worker_restarts_total{model=e}"] == 0
    assert seen["qwen3_joined_inputs_total{model=e}"] == 1
    assert seen["qwen3_requests_in_flight{}"] == 1  # the scrape itself
