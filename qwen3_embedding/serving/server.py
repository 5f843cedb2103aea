"""The models of one server and what they share."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Self, TypeVar

from qwen3_embedding.inference.embedder import Embedder
from qwen3_embedding.inference.reranker import Reranker
from qwen3_embedding.serving.auth import Keys
from qwen3_embedding.serving.engines import Engine, LocalEngine
from qwen3_embedding.serving.errors import UnknownModelError
from qwen3_embedding.serving.metrics import Metrics
from qwen3_embedding.serving.models import LoadSettings, ModelSpec, load_models
from qwen3_embedding.serving.processes import WorkerPool
from qwen3_embedding.serving.prompts import split_suffix
from qwen3_embedding.serving.queue import TokenQueue
from qwen3_embedding.serving.services import EmbedderService, ModelService, RerankerService
from qwen3_embedding.serving.settings import ServerSettings
from qwen3_embedding.serving.tracing import Traces

Service = TypeVar("Service", bound=ModelService)


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the process is sound, and whether it wants requests."""

    live: bool
    ready: bool
    reason: str = ""


class Server:
    """Everything behind the routes: models with their queues, keys, metrics.

    Args:
        embedders: by the name under which clients ask for them; the first is the default. Models compute in this
            process; engines wherever they do.
        rerankers: the same for rerankers.
        settings: see :class:`ServerSettings`. The token budget of a batch is the smaller of the settings' and the
            model's own for its device.
        pool: worker processes behind the engines, ended with the server.
        traces: where the spans of requests go; ``None`` makes none.
    """

    def __init__(
        self,
        embedders: Mapping[str, Embedder | Engine] | None = None,
        rerankers: Mapping[str, Reranker | Engine] | None = None,
        settings: ServerSettings | None = None,
        pool: WorkerPool | None = None,
        traces: Traces | None = None,
    ) -> None:
        self.settings = settings or ServerSettings()
        self.keys = Keys(self.settings.keys)
        self.metrics = Metrics()
        self.traces = traces
        self.draining = False
        if not embedders and not rerankers:
            raise ValueError("nothing to serve: got neither an embedder nor a reranker")
        both = set(embedders or {}) & set(rerankers or {})
        if both:
            raise ValueError(f"an embedder and a reranker are both called {min(both)!r}; give one another name")
        self._threads = ThreadPoolExecutor(self.settings.tokenizer_threads, thread_name_prefix="tokenizer")
        self._pool = pool
        self._computing = threading.Lock()
        self.embedders = {
            name: self._service(EmbedderService, name, model) for name, model in (embedders or {}).items()
        }
        self.rerankers = {
            name: self._service(RerankerService, name, model) for name, model in (rerankers or {}).items()
        }

    @classmethod
    def load(cls, specs: list[ModelSpec], load: LoadSettings, settings: ServerSettings) -> Self:
        """A server whose models compute in its own process."""
        models = dict(zip((spec.name for spec in specs), load_models(specs, load), strict=True))
        embedders = {name: model for name, model in models.items() if isinstance(model, Embedder)}
        rerankers = {name: model for name, model in models.items() if isinstance(model, Reranker)}
        return cls(embedders, rerankers, settings)

    @classmethod
    def over(cls, pool: WorkerPool, specs: list[ModelSpec], settings: ServerSettings) -> Self:
        """A server whose models live in worker processes."""
        engines = {kind: {spec.name: pool.engines[spec.name] for spec in specs if spec.kind == kind}
                   for kind in ("embedder", "reranker")}  # fmt: skip
        return cls(engines["embedder"], engines["reranker"], settings, pool)

    def _service(self, cls: type[Service], name: str, model: Embedder | Reranker | Engine) -> Service:
        engine = LocalEngine(model, self._computing) if isinstance(model, Embedder | Reranker) else model
        budget = min(self.settings.queue.max_batch_tokens, engine.facts.batch_tokens)
        settings = replace(self.settings.queue, max_batch_tokens=budget)
        queue = TokenQueue(engine.computes, settings, name, on_batch=partial(self.metrics.batch, name))
        self.metrics.watch(name, queue.stats)
        if self._pool is not None:
            self._pool.on_death(queue.nudge)
        return cls(engine, name, queue, self._threads)

    @property
    def services(self) -> list[ModelService]:
        """All models, embedders first."""
        return [*self.embedders.values(), *self.rerankers.values()]

    def embedder(self, model: str | None) -> tuple[EmbedderService, str | None]:
        """The embedder of that name (``None``: the first) and the role that the name's suffix says.

        Raises:
            UnknownModelError: none of that name.
        """
        return _find(model, self.embedders, "embedder")

    def reranker(self, model: str | None) -> RerankerService:
        """The reranker of that name (``None``: the first).

        Raises:
            UnknownModelError: none of that name.
        """
        return _find(model, self.rerankers, "reranker")[0]

    def health(self) -> Health:
        """Live unless a batch runs far too long; ready while accepting and every model has a worker."""
        stats = {service.name: service.queue.stats() for service in self.services}
        for name, stat in stats.items():
            if stat.running_seconds > self.settings.stall_s:
                return Health(False, False, f"a batch of {name} has been running for {stat.running_seconds:.0f} s")
        if self.draining:
            return Health(True, False, "the server is shutting down")
        for name, stat in stats.items():
            if not stat.workers_alive:
                return Health(True, False, f"no worker of {name} is running; one is being started")
        return Health(True, True)

    def close(self) -> bool:
        """Answer what was accepted, stop the workers. Returns whether all was answered in time."""
        self.draining = True
        drained = [service.queue.close(timeout=self.settings.drain_s) for service in self.services]
        self._threads.shutdown(wait=False)
        if self._pool is not None:
            self._pool.close()
        if self.traces is not None:
            self.traces.close()
        return all(drained)


def _find(model: str | None, services: Mapping[str, Service], kind: str) -> tuple[Service, str | None]:
    if not services:
        raise UnknownModelError(f"this server has no {kind}; its operator can add one with --{kind} NAME")
    name, suffix = split_suffix(model) if model else (next(iter(services)), None)
    for wanted, said in ((model, None), (name, suffix)):
        for known, service in services.items():
            if wanted in (known, known.rpartition("/")[2]):
                return service, said
    raise UnknownModelError(f"no {kind} is called {model!r:.80}; this server has {', '.join(services)}", param="model")
