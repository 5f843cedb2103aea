"""Batch mode on a cluster: Ray Data's LLM processor answers the requests, with vLLM engines as its workers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qwen3_embedding.errors import RemoteError
from qwen3_embedding.optional import require
from qwen3_embedding.synthesis.completion import Completion, Request

Processor = Callable[[Any], Any]
"""A Ray dataset of :func:`to_row` rows to one of rows with ``number``, ``text``, ``input_tokens``, ``output_tokens``,
``truncated``, ``error``."""


@dataclass(frozen=True, slots=True)
class RaySettings:
    """The model and how its cluster is used."""

    model: str
    """Folder or hub id that every worker can reach."""
    address: str = "auto"
    """``auto`` finds this machine's cluster, ``HOST:PORT`` or ``ray://HOST:PORT`` another, ``local`` starts one."""
    replicas: int = 1
    """vLLM engines."""
    requests: int = 4096
    """Of one job. Every job starts the engines anew, and a break costs at most one job, so: as many as run for some
    minutes."""
    rows: int = 64
    """Requests that an engine is handed at a time."""
    engine: dict[str, Any] | None = None
    """Arguments of vLLM's engine, such as ``tensor_parallel_size``, ``max_model_len``."""
    chat_template: dict[str, Any] | None = None
    """Arguments of the model's chat template, such as ``enable_thinking = false``."""
    temperature: float = 0.8
    top_p: float = 0.95
    max_tokens: int = 2048
    structured: bool = True
    """Hold answers to the template's JSON schema."""

    def __post_init__(self) -> None:
        for name in ("replicas", "requests", "rows", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; wanted at least 1")


class RayEngine:
    """Answers batches of requests on a Ray cluster: the engine of :class:`~qwen3_embedding.synthesis.batch.Batched`.

    Args:
        settings: model and cluster.
        processor: in place of vLLM: any function from dataset to dataset.
    """

    def __init__(self, settings: RaySettings, processor: Processor | None = None) -> None:
        self._settings = settings
        self._processor = processor

    def __call__(self, requests: Sequence[Request]) -> list[Completion | None]:
        """The answers, in the order of the requests.

        Raises:
            RemoteError: the job failed; what earlier jobs answered is in the ledger.
        """
        ray = require("ray", extra="scale")
        require("ray.data", extra="scale")
        self._connect(ray)
        if self._processor is None:
            self._processor = vllm_processor(self._settings)
        dataset = ray.data.from_items([to_row(number, request) for number, request in enumerate(requests)])
        try:
            rows = self._processor(dataset).take_all()
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise RemoteError(
                f"the Ray job with {self._settings.model} failed: {reason}; repeat the command"
            ) from error
        answers: list[Completion | None] = [None] * len(requests)
        for row in rows:
            answers[int(row["number"])] = to_completion(row)
        return answers

    def _connect(self, ray: Any) -> None:
        if ray.is_initialized():
            return
        address = None if self._settings.address == "local" else self._settings.address
        ray.init(address=address, include_dashboard=False if address is None else None, log_to_driver=False)


def to_row(number: int, request: Request) -> dict[str, Any]:
    """A request as plain values."""
    return {
        "number": number,
        "key": request.key,
        "system": request.system,
        "prompt": request.prompt,
        "seed": request.seed,
        "schema": json.dumps(request.schema),
        "name": request.name,
    }


def to_completion(row: dict[str, Any]) -> Completion | None:
    """An answer out of a processor's row; ``None`` where the row failed.

    Ray hands failed rows through as they are, past :func:`from_vllm`.
    """
    if row.get("error") or row.get("__inference_error__"):
        return None
    return Completion(
        text=str(row["text"]),
        input_tokens=int(row["input_tokens"]),
        output_tokens=int(row["output_tokens"]),
        truncated=bool(row["truncated"]),
    )


def vllm_processor(settings: RaySettings) -> Processor:
    """Ray Data's LLM processor with vLLM engines.

    Raises:
        MissingExtraError: this Ray has no ``ray.data.llm``.
    """
    llm = require("ray.data.llm", extra="scale")
    config = llm.vLLMEngineProcessorConfig(
        model_source=settings.model,
        engine_kwargs=dict(settings.engine or {}),
        concurrency=settings.replicas,
        batch_size=settings.rows,
        should_continue_on_error=True,
    )
    processor: Processor = llm.build_processor(
        config,
        preprocess=lambda row: to_vllm(row, settings),
        postprocess=lambda row: from_vllm(row, settings),
        builder_kwargs={"chat_template_kwargs": settings.chat_template} if settings.chat_template else None,
    )
    return processor


def to_vllm(row: dict[str, Any], settings: RaySettings) -> dict[str, Any]:
    """What the processor's vLLM stage reads of a row."""
    sampling: dict[str, Any] = {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_tokens": settings.max_tokens,
        "seed": int(row["seed"]),
    }
    if settings.structured:
        sampling["structured_outputs"] = {"json": row["schema"]}
    messages = [{"role": "system", "content": row["system"]}, {"role": "user", "content": row["prompt"]}]
    return {"number": row["number"], "messages": messages, "sampling_params": sampling}


def from_vllm(row: dict[str, Any], settings: RaySettings) -> dict[str, Any]:
    """What the vLLM stage wrote, in the names of :data:`Processor`. It does not say why an answer stopped."""
    output = int(row.get("num_generated_tokens") or 0)
    return {
        "number": row["number"],
        "text": row.get("generated_text") or "",
        "input_tokens": int(row.get("num_input_tokens") or 0),
        "output_tokens": output,
        "truncated": output >= settings.max_tokens,
        "error": "",
    }
