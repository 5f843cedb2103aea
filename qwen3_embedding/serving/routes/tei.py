"""text-embeddings-inference: ``/embed``, ``/embed_all``, ``/similarity``, ``/tokenize``, ``/decode``, ``/info``.

``/rerank`` is in ``rerank.py``, which tells it from the other dialects by its ``texts``. ``prompt_name`` is ``query``
or ``document``; without it texts are documents.
"""

from __future__ import annotations

import unicodedata
from itertools import takewhile
from typing import Any

import numpy as np
from fastapi import FastAPI
from pydantic import Field
from starlette.responses import Response

from qwen3_embedding import __version__
from qwen3_embedding.inputs.prompts import END_OF_TEXT
from qwen3_embedding.inputs.tokenizer import Tokenizer
from qwen3_embedding.serving import dialects
from qwen3_embedding.serving.answers import BINARY, check_vectors, json_rows, matrix_response, vectors_soon
from qwen3_embedding.serving.errors import BadRequestError
from qwen3_embedding.serving.prompts import Prompt
from qwen3_embedding.serving.requests import Call, json_response, parse
from qwen3_embedding.serving.routing import Doc, get, post
from qwen3_embedding.serving.schemas import TEXTS_SCHEMA, Asked, check_count, texts_of
from qwen3_embedding.serving.server import Server
from qwen3_embedding.serving.services import ModelService, sigmoid, unit
from qwen3_embedding.types import DEFAULT_INSTRUCTION


class TeiEmbedRequest(Asked):
    """``POST /embed`` and ``/embed_all``."""

    inputs: Any = Field(json_schema_extra=TEXTS_SCHEMA)
    normalize: bool | None = Field(None, description="false gives the vectors before normalisation (embed only).")
    dimensions: int | None = Field(None, ge=1)


class TeiRerankRequest(Asked):
    """``POST /rerank`` with ``texts``."""

    query: str
    texts: list[Any] = Field(json_schema_extra={"minItems": 1, "items": {"type": "string"}})
    raw_scores: bool | None = Field(None, description="Log-odds instead of probabilities.")
    return_text: bool | None = None


class SimilarityInputs(Asked):
    """The texts of ``POST /similarity``."""

    source_sentence: str
    sentences: list[Any] = Field(json_schema_extra={"minItems": 1, "items": {"type": "string"}})


class SimilarityRequest(Asked):
    """``POST /similarity``; role and instruction hold for both sides."""

    inputs: SimilarityInputs
    parameters: dict[str, Any] | None = None


class TokenizeRequest(Asked):
    """``POST /tokenize``."""

    inputs: Any = Field(json_schema_extra=TEXTS_SCHEMA)
    add_special_tokens: bool | None = Field(None, description="The end token; on by default.")


class DecodeRequest(Asked):
    """``POST /decode``."""

    ids: list[Any] = Field(
        json_schema_extra={
            "items": {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "integer"}}]},
            "minItems": 1,
        }
    )
    skip_special_tokens: bool | None = Field(None, description="Leave the end token out; on by default.")


def add(app: FastAPI, server: Server) -> None:
    """Add the routes."""

    async def embed(call: Call, body: TeiEmbedRequest) -> Response:
        service, suffix = server.embedder(body.model)
        texts = texts_of(body.inputs, "inputs", server.settings)
        check_vectors(body.dimensions, "float32", service.dimensions)
        rows = await service.embed(texts, body.prompt(suffix), body.limit(server.settings, "end"), call.work)
        vectors = (
            rows[:, : body.dimensions]
            if body.normalize is False
            else await vectors_soon(rows, body.dimensions, "float32")
        )
        return matrix_response(vectors, call.wants) or json_response(await json_rows(vectors, "float"))

    async def embed_all(call: Call, body: TeiEmbedRequest) -> Response:
        service, suffix = server.embedder(body.model)
        texts = texts_of(body.inputs, "inputs", server.settings)
        limit = body.limit(server.settings, "end")
        return json_response(await service.embed_every_token(texts, body.prompt(suffix), limit, call.work))

    async def similarity(call: Call, body: SimilarityRequest) -> Response:
        service, suffix = server.embedder(body.model)
        sentences = texts_of(body.inputs.sentences, "sentences", server.settings)
        # TEI puts the options into `parameters`; ours may also stand beside `inputs`.
        said = body if not body.parameters else parse(call, body.model_dump(exclude_none=True) | body.parameters, Asked)
        limit = said.limit(server.settings, "end")
        rows = await service.embed([body.inputs.source_sentence, *sentences], said.prompt(suffix), limit, call.work)
        vectors = unit(rows)
        return json_response((vectors[1:] @ vectors[0]).astype(np.float32))

    async def tokenize(call: Call, body: TokenizeRequest) -> Response:
        texts = texts_of(body.inputs, "inputs", server.settings)
        end = body.add_special_tokens is not False
        return json_response(tokens_of(server, body.model, texts, body.prompt(None), end))

    async def decode(call: Call, body: DecodeRequest) -> Response:
        several = bool(body.ids) and all(isinstance(ids, list) for ids in body.ids)
        lists = body.ids if several else [body.ids]
        check_count(len(lists), server.settings)
        skip = body.skip_special_tokens is not False
        return json_response([decoded(server, body.model, ids, skip) for ids in lists])

    async def info(call: Call) -> Response:
        return json_response(_info(server))

    async def health(call: Call) -> Response:
        state = server.health()
        if state.ready:
            return Response(status_code=200)
        return json_response({"error": state.reason, "error_type": "Unhealthy"}, 503)

    async def live(call: Call) -> Response:
        state = server.health()
        if state.live:
            return Response(status_code=200)
        return json_response({"error": state.reason, "error_type": "Unhealthy"}, 503)

    rows = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
    tei = dialects.tei
    post(app, server, ("/embed",), tei, TeiEmbedRequest, embed, Doc("TEI", "Embed texts", rows, BINARY))
    every = Doc("TEI", "Hidden states of every token", {"type": "array", "items": rows})
    post(app, server, ("/embed_all",), tei, TeiEmbedRequest, embed_all, every)
    numbers = Doc("TEI", "Cosine of one sentence with others", {"type": "array", "items": {"type": "number"}})
    post(app, server, ("/similarity",), tei, SimilarityRequest, similarity, numbers)
    post(app, server, ("/tokenize",), tei, TokenizeRequest, tokenize, Doc("TEI", "Tokens", {"type": "array"}))
    texts = Doc("TEI", "Texts of token ids", {"type": "array", "items": {"type": "string"}})
    post(app, server, ("/decode",), tei, DecodeRequest, decode, texts)
    get(app, server, ("/info",), tei, info, Doc("TEI", "What is served, and how", {"type": "object"}))
    ready = Doc("Health", "200 while requests are welcome", {})
    get(app, server, ("/health", "/health/ready", "/ping"), tei, health, ready, open_to_all=True)
    get(app, server, ("/health/live",), tei, live, Doc("Health", "200 while sound", {}), open_to_all=True)


async def tei_rerank(server: Server, call: Call, body: TeiRerankRequest) -> Response:
    """TEI's reranking: a bare list, best first."""
    service = server.reranker(body.model)
    texts = texts_of(body.texts, "texts", server.settings)
    limit = body.limit(server.settings, "end")
    logits = await service.logits([body.query] * len(texts), texts, body.wanted_instruction(), limit, call.work)
    scores = logits if body.raw_scores else sigmoid(logits)
    answer: list[dict[str, Any]] = []
    for index in np.argsort(-logits, kind="stable").tolist():
        answer.append({"index": index, "score": float(scores[index])})
        if body.return_text:
            answer[-1]["text"] = texts[index]
    return json_response(answer)


def tokens_of(
    server: Server, model: str | None, texts: list[str], prompt: Prompt, end: bool
) -> list[list[dict[str, Any]]]:
    """The tokens of each text as the model reads it, the embedder's prompt included."""
    service: ModelService
    if server.embedders:
        service = embedder = server.embedder(model)[0]
        texts = [embedder.rendered(text, prompt).removesuffix(END_OF_TEXT) for text in texts]
    else:
        service = server.reranker(model)
    return [_tokens(service.tokenizer, text, end) for text in texts]


def decoded(server: Server, model: str | None, ids: list[Any], skip_special: bool) -> str:
    """The text of token ids.

    Raises:
        BadRequestError: something else than ids of this tokenizer.
    """
    service: ModelService = server.embedder(model)[0] if server.embedders else server.reranker(model)
    most = service.tokenizer.vocab_size
    for token in ids:
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < most:
            raise BadRequestError(f"`ids` has {token!r:.40}; wanted token ids from 0 to {most - 1}", param="ids")
    return service.tokenizer.decode(ids, skip_special)


def _tokens(tokenizer: Tokenizer, text: str, end: bool) -> list[dict[str, Any]]:
    """TEI's tokens; ``start`` and ``stop`` count characters, and tokens that share a character share its place."""
    ids = tokenizer.token_ids([text])[0]
    pieces = tokenizer.token_strings(ids)
    answer: list[dict[str, Any]] = [
        {"id": token, "text": piece, "special": False, "start": start, "stop": stop}
        for token, piece, (start, stop) in zip(ids, pieces, spans(text, pieces), strict=True)
    ]
    if end:
        answer.append({"id": tokenizer.end_id, "text": END_OF_TEXT, "special": True, "start": None, "stop": None})
    return answer


def spans(text: str, pieces: list[str]) -> list[tuple[int, int]]:
    """Where each piece stands in the (NFC) text; neighbours that are parts of characters get their common place."""
    whole = unicodedata.normalize("NFC", text)
    places: list[tuple[int, int]] = []
    place = number = 0
    while number < len(pieces):
        run = 1
        if "\ufffd" in pieces[number]:
            while number + run < len(pieces) and "\ufffd" in pieces[number + run]:
                run += 1
            after = list(takewhile(lambda piece: "\ufffd" not in piece, pieces[number + run :]))
            last = number + run + len(after) == len(pieces)
            stop = len(whole) - sum(map(len, after)) if last else whole.find("".join(after), place + 1)
        else:
            stop = place + len(pieces[number])
        places += [(place, stop)] * run
        place, number = stop, number + run
    return places


def _info(server: Server) -> dict[str, Any]:
    first = server.services[0]
    kind: dict[str, Any] = {"embedding": {"pooling": "last_token"}}
    if not server.embedders:
        kind = {"reranker": {"id2label": {"0": "yes"}, "label2id": {"yes": 0}}}
    return {
        "model_id": first.name,
        "model_sha": None,
        "model_dtype": first.dtype,
        "served_model_name": first.name,
        "model_type": kind,
        "max_concurrent_requests": None,
        "max_input_length": first.max_tokens,
        "max_batch_tokens": first.queue.settings.max_batch_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": server.settings.max_items,
        "auto_truncate": server.settings.truncation != "error",
        "tokenization_workers": server.settings.tokenizer_threads,
        "version": __version__,
        "sha": None,
        "docker_label": None,
        "default_instruction": DEFAULT_INSTRUCTION,
        "keys_required": server.keys.required,
        "embedders": [_about(service) | {"dimensions": service.dimensions} for service in server.embedders.values()],
        "rerankers": [_about(service) for service in server.rerankers.values()],
    }


def _about(service: ModelService) -> dict[str, Any]:
    stats = service.queue.stats()
    return {
        "name": service.name,
        "dtype": service.dtype,
        "device": service.device,
        "max_tokens": service.max_tokens,
        "max_batch_tokens": service.queue.settings.max_batch_tokens,
        "max_waiting_tokens": service.queue.settings.max_waiting_tokens,
        "waiting_tokens": stats.waiting_tokens,
        "running_tokens": stats.running_tokens,
        "tokens_per_second": round(stats.tokens_per_second, 1),
        "computed_tokens": stats.computed_tokens,
        "batches": stats.batches,
        "joined": stats.joined,
        "cache_hits": stats.cache_hits,
        "workers": stats.workers,
        "workers_alive": stats.workers_alive,
        "worker_restarts": stats.restarts,
    }
