"""vLLM: ``/score`` and ``/v1/score``, one query against many documents or pair by pair, in the caller's order."""

from __future__ import annotations

import time
from typing import Any

from fastapi import FastAPI
from pydantic import Field
from starlette.responses import Response

from qwen3_embedding.serving import dialects
from qwen3_embedding.serving.errors import BadRequestError
from qwen3_embedding.serving.requests import Call, json_response
from qwen3_embedding.serving.routes.openai import truncated, usage
from qwen3_embedding.serving.routing import Doc, post
from qwen3_embedding.serving.schemas import TEXTS_SCHEMA, Asked, texts_of
from qwen3_embedding.serving.server import Server
from qwen3_embedding.serving.services import sigmoid

_LEFT, _RIGHT = ("queries", "data_1", "text_1"), ("documents", "items", "data_2", "text_2")


class ScoreRequest(Asked):
    """``POST /score``; each side has several names, as vLLM's versions do."""

    queries: Any = Field(None, json_schema_extra=TEXTS_SCHEMA)
    documents: Any = Field(None, json_schema_extra=TEXTS_SCHEMA)
    items: Any = Field(None, json_schema_extra=TEXTS_SCHEMA)
    data_1: Any = Field(None, json_schema_extra=TEXTS_SCHEMA)
    data_2: Any = Field(None, json_schema_extra=TEXTS_SCHEMA)
    text_1: Any = Field(None, json_schema_extra=TEXTS_SCHEMA)
    text_2: Any = Field(None, json_schema_extra=TEXTS_SCHEMA)
    use_activation: bool | None = Field(None, description="false gives log-odds instead of probabilities.")


def add(app: FastAPI, server: Server) -> None:
    """Add the routes."""

    async def score(call: Call, body: ScoreRequest) -> Response:
        service = server.reranker(body.model)
        queries = texts_of(_side(body, _LEFT), "queries", server.settings)
        documents = texts_of(_side(body, _RIGHT), "documents", server.settings)
        if len(queries) == 1:
            queries = queries * len(documents)
        if len(queries) != len(documents):
            raise BadRequestError(
                f"{len(queries)} queries and {len(documents)} documents; wanted one query, or as many as documents"
            )
        limit = body.limit(server.settings)
        logits = await service.logits(queries, documents, body.wanted_instruction(), limit, call.work)
        scores = logits if body.use_activation is False else sigmoid(logits)
        data = [{"index": index, "object": "score", "score": value} for index, value in enumerate(scores.tolist())]
        answer = {
            "id": f"score-{call.id}",
            "object": "list",
            "created": int(time.time()),
            "model": body.model or service.name,
            "data": data,
            "usage": usage(call.work) | {"completion_tokens": 0, "prompt_tokens_details": None},
        }
        return json_response(answer | truncated(call.work))

    answer = {"type": "object", "required": ["id", "object", "data", "usage"]}
    doc = Doc("vLLM", "Score pairs of texts, in order", answer)
    post(app, server, ("/score", "/v1/score"), dialects.vllm, ScoreRequest, score, doc)


def _side(body: ScoreRequest, names: tuple[str, ...]) -> Any:
    given = [name for name in names if getattr(body, name) is not None]
    if len(given) != 1:
        raise BadRequestError(f"wanted one of {', '.join(names)}; got {', '.join(given) or 'none'}", param=names[0])
    return getattr(body, given[0])
