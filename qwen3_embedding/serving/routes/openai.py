"""OpenAI: ``/v1/embeddings`` and ``/v1/models``.

Beside OpenAI's fields the route takes the role and the task (see ``serving/prompts.py``), ``precision`` and
``truncation``; Jina's ``embedding_type`` and ``task`` mean what they mean there.
"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI
from pydantic import Field
from starlette.responses import Response

from qwen3_embedding.serving import dialects
from qwen3_embedding.serving.answers import BINARY, Encoding, check_vectors, json_rows, matrix_response, vectors_soon
from qwen3_embedding.serving.errors import BadRequestError, UnknownModelError
from qwen3_embedding.serving.requests import Call, json_response
from qwen3_embedding.serving.routing import Doc, get, post
from qwen3_embedding.serving.schemas import TEXTS_SCHEMA, Asked, texts_of
from qwen3_embedding.serving.server import Server
from qwen3_embedding.serving.services import ModelService, Work
from qwen3_embedding.types import Precision


class EmbeddingsRequest(Asked):
    """``POST /v1/embeddings``."""

    input: Any = Field(None, json_schema_extra=TEXTS_SCHEMA)
    messages: Any = Field(
        None,
        json_schema_extra={"type": "array", "items": {"anyOf": [{"type": "object"}, {"type": "array"}]}},
        description="vLLM's chat form in place of input: one conversation or several, of user messages with text.",
    )
    encoding_format: Literal["float", "base64"] | None = Field(None, description="base64 is little-endian float32.")
    dimensions: int | None = Field(None, ge=1, description="Size of the vectors; cut first, normalised after.")
    precision: Precision | None = Field(None, description="Type of the vectors' components.")
    embedding_type: str | list[str] | None = Field(None, description="Jina's name for precision or encoding_format.")
    late_chunking: bool | None = Field(None, description="Not supported: this model pools its last token.")


def add(app: FastAPI, server: Server) -> None:
    """Add the routes."""

    async def embeddings(call: Call, body: EmbeddingsRequest) -> Response:
        service, suffix = server.embedder(body.model)
        asked = body.input if body.messages is None else message_texts(body.messages)
        if body.messages is not None and body.input is not None:
            raise BadRequestError("`input` and `messages` are two ways to say the texts; send one", param="messages")
        texts = texts_of(asked, "input", server.settings, allow_empty_text=False)
        encoding, precision = _form(body)
        check_vectors(body.dimensions, precision, service.dimensions)
        rows = await service.embed(texts, body.prompt(suffix), body.limit(server.settings), call.work)
        vectors = await vectors_soon(rows, body.dimensions, precision)
        whole = matrix_response(vectors, call.wants)
        if whole is not None:
            return whole
        data = await json_rows(
            vectors, encoding, lambda index, vector: {"object": "embedding", "index": index, "embedding": vector}
        )
        answer = {"object": "list", "data": data, "model": body.model or service.name, "usage": usage(call.work)}
        return json_response(answer | truncated(call.work))

    async def models(call: Call) -> Response:
        return json_response({"object": "list", "data": [_model(service) for service in server.services]})

    async def model(call: Call) -> Response:
        name = call.request.path_params["name"]
        for service in server.services:
            if name in (service.name, service.name.rpartition("/")[2]):
                return json_response(_model(service))
        raise UnknownModelError(f"no model is called {name!r:.80}", param="model")

    paths = ("/v1/embeddings", "/embeddings")
    doc = Doc("OpenAI", "Embed texts", _ANSWER, BINARY)
    post(app, server, paths, dialects.openai, EmbeddingsRequest, embeddings, doc)
    listing = Doc("OpenAI", "The models that are served", {"type": "object"})
    get(app, server, ("/v1/models", "/models"), dialects.openai, models, listing)
    get(
        app, server, ("/v1/models/{name:path}",), dialects.openai, model, Doc("OpenAI", "One model", {"type": "object"})
    )


def message_texts(messages: Any) -> list[str]:
    """The texts of conversations as vLLM's chat form has them; these models read texts, so no chat template is put on.

    Raises:
        BadRequestError: anything but user messages that hold text.
    """
    if not isinstance(messages, list) or not messages:
        raise BadRequestError("`messages` wants an array of messages, or of conversations", param="messages")
    conversations = messages if isinstance(messages[0], list) else [messages]
    return ["\n".join(_spoken(message) for message in conversation) for conversation in _lists(conversations)]


def _lists(conversations: list[Any]) -> list[list[Any]]:
    for conversation in conversations:
        if not isinstance(conversation, list) or not conversation:
            raise BadRequestError("`messages` mixes messages and conversations, or has an empty one", param="messages")
    return conversations


def _spoken(message: Any) -> str:
    role = message.get("role") if isinstance(message, dict) else None
    if role != "user":
        raise BadRequestError(
            f"`messages` has the role {role!r:.40}; only user messages with text are read, and `instruction` is the "
            "place for the task",
            param="messages",
        )
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in parts]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise BadRequestError("`messages` holds something other than text; this model reads text", param="messages")
    return "\n".join(text for text in texts if text is not None)


def usage(work: Work) -> dict[str, int]:
    """What was read, end tokens and prompts included."""
    return {"prompt_tokens": work.tokens, "total_tokens": work.tokens}


def truncated(work: Work) -> dict[str, Any]:
    """The texts that were cut, if any were: an extra key beside the dialect's own."""
    if not work.cuts:
        return {}
    return {"truncated": [{"index": cut.index, "tokens": cut.tokens, "kept": cut.kept} for cut in work.cuts]}


def _form(body: EmbeddingsRequest) -> tuple[Encoding, Precision]:
    """Encoding and precision, from OpenAI's fields or Jina's."""
    if body.late_chunking:
        raise BadRequestError(
            "late_chunking is not supported: this model pools its last token; embed chunks instead",
            param="late_chunking",
        )
    encoding, precision = body.encoding_format, body.precision
    kinds = [body.embedding_type] if isinstance(body.embedding_type, str) else body.embedding_type or []
    if len(kinds) > 1:
        raise BadRequestError(f"embedding_type={kinds}: one at a time", param="embedding_type")
    for kind in kinds:
        if kind in ("float", "base64"):
            encoding = encoding or ("base64" if kind == "base64" else "float")
        elif kind in ("int8", "uint8", "binary", "ubinary"):
            precision = precision or kind  # type: ignore[assignment]
        else:
            raise BadRequestError(f"embedding_type={kind!r} is not known", param="embedding_type")
    return encoding or "float", precision or "float32"


def _model(service: ModelService) -> dict[str, Any]:
    about = {"id": service.name, "object": "model", "created": service.created, "owned_by": "qwen3-embedding"}
    return about | {"max_model_len": service.max_tokens}  # vLLM's name; mteb cuts texts to it


_ANSWER = {
    "type": "object",
    "required": ["object", "data", "model", "usage"],
    "properties": {
        "object": {"const": "list"},
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["object", "index", "embedding"],
                "properties": {
                    "object": {"const": "embedding"},
                    "index": {"type": "integer"},
                    "embedding": {"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string"}]},
                },
            },
        },
        "model": {"type": "string"},
        "usage": {"type": "object"},
        "truncated": {"type": "array", "items": {"type": "object"}},
    },
}
