"""The models of one server and what they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from qwen3_embedding.inference.embedder import Embedder
from qwen3_embedding.inference.reranker import Reranker
from qwen3_embedding.serving.auth import Keys
from qwen3_embedding.serving.errors import UnknownModelError
from qwen3_embedding.serving.metrics import Metrics
from qwen3_embedding.serving.prompts import split_suffix
from qwen3_embedding.serving.queue import Compute, TokenQueue
from qwen3_embedding.serving.services import (
    EmbedderService,
    ModelService,
    RerankerService,
    embedder_compute,
    reranker_compute,
)
from qwen3_embedding.serving.settings import ServerSettings

Model = TypeVar("Model", Embedder, Reranker)
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
        embedders: by the name under which clients ask for them; the first is the default.
        rerankers: the same for rerankers.
        settings: see :class:`ServerSettings`. The token budget of a batch is the smaller of the settings' and the
            model's own for its device.
    """

    def __init__(
        self,
        embedders: Mapping[str, Embedder] | None = None,
        rerankers: Mapping[str, Reranker] | None = None,
        settings: ServerSettings | None = None,
    ) -> None:
        self.settings = settings or ServerSettings()
        self.keys = Keys(self.settings.keys)
        self.metrics = Metrics()
        self.draining = False
        if not embedders and not rerankers:
            raise ValueError("nothing to serve: got neither an embedder nor a reranker")
        both = set(embedders or {}) & set(rerankers or {})
        if both:
            raise ValueError(f"an embedder and a reranker are both called {min(both)!r}; give one another name")
        self._threads = ThreadPoolExecutor(self.settings.tokenizer_threads, thread_name_prefix="tokenizer")
        self.embedders = {
            name: EmbedderService(
                embedder, name, self._queue(name, embedder, embedder_compute(embedder)), self._threads
            )
            for name, embedder in (embedders or {}).items()
        }
        self.rerankers = {
            name: RerankerService(
                reranker, name, self._queue(name, reranker, reranker_compute(reranker)), self._threads
            )
            for name, reranker in (rerankers or {}).items()
        }

    def _queue(self, name: str, model: Embedder | Reranker, compute: Compute) -> TokenQueue:
        budget = min(self.settings.queue.max_batch_tokens, model.runner.settings.batch_tokens)
        settings = replace(self.settings.queue, max_batch_tokens=budget)
        queue = TokenQueue(compute, settings, name, on_batch=partial(self.metrics.batch, name))
        self.metrics.watch(name, queue.stats)
        return queue

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
        """Live unless a batch runs far too long; ready while accepting."""
        for service in self.services:
            running = service.queue.stats().running_seconds
            if running > self.settings.stall_s:
                return Health(False, False, f"a batch of {service.name} has been running for {running:.0f} s")
        if self.draining:
            return Health(True, False, "the server is shutting down")
        return Health(True, True)

    def close(self) -> bool:
        """Answer what was accepted, stop the workers. Returns whether all was answered in time."""
        self.draining = True
        drained = [service.queue.close(timeout=self.settings.drain_s) for service in self.services]
        self._threads.shutdown(wait=False)
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


def load_models(sources: Sequence[str], load: Callable[[str], Model]) -> dict[str, Model]:
    """Load ``[NAME=]SOURCE`` each; without a name a model is called as it calls itself.

    Raises:
        ValueError: two of the same name.
    """
    models: dict[str, Model] = {}
    for source in sources:
        name, equals, where = source.partition("=")
        model = load(where if equals else source)
        called = name if equals else model.name
        if called in models:
            raise ValueError(f"two models are called {called!r}; name one of them: --embedder NAME=SOURCE")
        models[called] = model
    return models
