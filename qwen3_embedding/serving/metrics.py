"""Prometheus metrics: the names of text-embeddings-inference where it has them (``te_…``), ours beside (``qwen3_…``).

No label ever holds a text or a secret: callers appear by the name of their key.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from qwen3_embedding.serving.queue import BatchReport, QueueStats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
_TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


class _PlainCounters(Collector):
    """Counters whose names do not end in ``_total``, as text-embeddings-inference has them."""

    NAMES: Mapping[str, str] = {
        "te_request_count": "Requests that ask for computation, by kind.",
        "te_request_success": "Requests answered, by kind.",
        "te_request_failure": "Requests refused or failed, by error.",
        "te_embed_count": "Embedding inputs asked for.",
        "te_embed_success": "Embedding inputs answered.",
        "te_predict_count": "Reranking pairs asked for.",
        "te_predict_success": "Reranking pairs answered.",
    }

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, dict[tuple[tuple[str, str], ...], float]] = defaultdict(lambda: defaultdict(float))

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        key = tuple(sorted(labels.items()))
        with self._lock:
            self._values[name][key] += amount

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            values = {name: dict(rows) for name, rows in self._values.items()}
        for name, help_text in self.NAMES.items():
            metric = Metric(name, help_text, "unknown")
            for labels, value in (values.get(name) or {(): 0.0}).items():
                metric.add_sample(name, dict(labels), value)
            yield metric


class _Histogram(Collector):
    """A histogram that takes many values at once, with one lock for all of them."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self._name, self._text, self._bounds = name, text, bounds
        self._lock = threading.Lock()
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, *values: float) -> None:
        with self._lock:
            self._sum += sum(values)
            for value in values:
                self._counts[bisect_left(self._bounds, value)] += 1

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            counts, total = list(accumulate(self._counts)), self._sum
        bounds = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        buckets = list(zip(bounds, counts, strict=True))
        yield HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=total)


class _QueueGauges(Collector):
    """Reads the queues at the moment of the scrape."""

    def __init__(self) -> None:
        self.queues: dict[str, Callable[[], QueueStats]] = {}

    FIELDS: Mapping[str, tuple[str, str, str]] = {
        "qwen3_queue_waiting_tokens": ("waiting_tokens", "gauge", "Tokens that wait."),
        "qwen3_queue_running_tokens": ("running_tokens", "gauge", "Tokens of the running batch."),
        "qwen3_tokens_per_second": ("tokens_per_second", "gauge", "Speed of the last batches while they ran."),
        "qwen3_workers": ("workers", "gauge", "Workers of the model."),
        "qwen3_workers_alive": ("workers_alive", "gauge", "Workers that run."),
        "qwen3_cache_bytes": ("cache_bytes", "gauge", "Size of the cache of finished rows."),
        "qwen3_batches": ("batches", "counter", "Batches computed."),
        "qwen3_computed_tokens": ("computed_tokens", "counter", "Tokens computed; shared beginnings once a batch."),
        "qwen3_joined_inputs": ("joined", "counter", "Inputs answered by a row that was under way for another."),
        "qwen3_cache_hits": ("cache_hits", "counter", "Inputs answered from the cache."),
        "qwen3_worker_restarts": ("restarts", "counter", "Workers that died and were replaced."),
        "qwen3_nonfinite_rows": ("recomputed_rows", "counter", "Rows that were not finite at first."),
    }

    def collect(self) -> Iterator[Metric]:
        stats = {model: read() for model, read in self.queues.items()}
        size = Metric("te_queue_size", "Inputs that wait, all models.", "gauge")
        size.add_sample("te_queue_size", {}, sum(stat.waiting_sequences for stat in stats.values()))
        yield size
        for name, (field, kind, help_text) in self.FIELDS.items():
            metric = Metric(name, help_text, kind)
            sample = f"{name}_total" if kind == "counter" else name
            for model, stat in stats.items():
                metric.add_sample(sample, {"model": model}, getattr(stat, field))
            yield metric


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._plain = _PlainCounters()
        self._queues = _QueueGauges()
        registry.register(self._plain)
        registry.register(self._queues)

        def histogram(name: str, text: str, bounds: Sequence[float] = _SECONDS) -> _Histogram:
            made = _Histogram(name, text, bounds)
            registry.register(made)
            return made

        self.request_duration = histogram("te_request_duration", "Seconds from a request's arrival to its answer.")
        self.tokenization_duration = histogram(
            "te_request_tokenization_duration", "Seconds of turning texts into tokens."
        )
        self.queue_duration = histogram("te_request_queue_duration", "Seconds from the submission to the first batch.")
        self.inference_duration = histogram(
            "te_request_inference_duration", "Seconds from the first batch to the last row."
        )
        self._lengths = histogram("te_request_input_length", "Tokens of an input.", _TOKENS)
        self.batch_size = histogram("te_batch_next_size", "Sequences of a batch.", _COUNTS)
        self.batch_tokens = histogram("te_batch_next_tokens", "Tokens of a batch.", _TOKENS)
        self.batch_seconds = Histogram(
            "qwen3_batch_duration", "Seconds of a batch.", ["model"], registry=registry, buckets=_SECONDS
        )
        self.requests = Counter(
            "qwen3_requests", "Requests by route and status.", ["route", "status"], registry=registry
        )
        self.tokens = Counter(
            "qwen3_tokens", "Tokens asked for, by model and caller.", ["model", "caller"], registry=registry
        )
        self.truncated = Counter("qwen3_truncated_inputs", "Inputs that were cut.", ["model"], registry=registry)
        self._children: dict[tuple[Counter, tuple[str, ...]], Counter] = {}
        self.in_flight = 0
        """Requests being answered; the event loop alone counts them."""
        in_flight = Gauge("qwen3_requests_in_flight", "Requests being answered.", registry=registry)
        in_flight.set_function(lambda: self.in_flight)

    def watch(self, model: str, read: Callable[[], QueueStats]) -> None:
        """Show a queue from now on."""
        self._queues.queues[model] = read

    def batch(self, model: str, report: BatchReport) -> None:
        """A batch was computed."""
        self.batch_size.observe(report.sequences)
        self.batch_tokens.observe(report.tokens)
        self.batch_seconds.labels(model).observe(report.seconds)

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to one of the counters that are named as text-embeddings-inference names them."""
        self._plain.add(name, amount, **labels)

    def request(self, route: str, status: str) -> None:
        """A request was answered."""
        self._child(self.requests, route, status).inc()

    def inputs(self, model: str, caller: str, lengths: Sequence[int], cut: int) -> None:
        """The inputs of a request were computed: their tokens, and how many were cut."""
        self._lengths.observe(*lengths)
        self._child(self.tokens, model, caller).inc(sum(lengths))
        self._child(self.truncated, model).inc(cut)

    def _child(self, counter: Counter, *labels: str) -> Counter:
        """The counter under these labels; prometheus_client checks and locks at every look-up."""
        key = counter, labels
        found = self._children.get(key)
        if found is None:
            found = self._children[key] = counter.labels(*labels)
        return found

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)
