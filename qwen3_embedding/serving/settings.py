"""What an operator can set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from qwen3_embedding.serving.auth import Key
from qwen3_embedding.serving.queue import QueueSettings

Truncation = Literal["error", "end"]
"""What happens to a text beyond the model's context: refuse it, or cut its end and say so."""


def check_truncation(word: str | None) -> Truncation | None:
    """The policy of that name, or ``None`` for each dialect's own.

    Raises:
        ValueError: no such policy.
    """
    if word not in (None, "error", "end"):
        raise ValueError(f"truncation={word!r}; wanted error or end")
    return word  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How the server behaves towards its clients.

    Attributes:
        keys: API keys; none means that everybody may call.
        truncation: policy for every dialect; ``None`` is each dialect's own (Cohere and TEI cut, the others refuse).
        max_items: texts of one request at most.
        max_body_bytes: size of a request body at most.
        body_timeout_s: a body that has not arrived after this is refused (408).
        request_timeout_s: a request that is not answered after this is given up (504).
        drain_s: after SIGTERM, how long accepted requests may take to finish.
        stall_s: a batch that runs longer than this makes the liveness check fail, so that the server is restarted.
        tokenizer_threads: threads that turn texts into tokens beside the worker.
        queue: see :class:`QueueSettings`; one queue for each model.
    """

    keys: tuple[Key, ...] = ()
    truncation: Truncation | None = None
    max_items: int = 2_048
    max_body_bytes: int = 32 * 2**20
    body_timeout_s: float = 30.0
    request_timeout_s: float = 600.0
    drain_s: float = 60.0
    stall_s: float = 900.0
    tokenizer_threads: int = 2
    queue: QueueSettings = field(default_factory=QueueSettings)

    def __post_init__(self) -> None:
        for name in ("max_items", "max_body_bytes", "tokenizer_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; wanted at least 1")
        for name in ("body_timeout_s", "request_timeout_s", "drain_s", "stall_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}; wanted more than 0 seconds")
