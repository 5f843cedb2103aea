"""The services of ``tei.proto`` on a server's models, and gRPC's health check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

from qwen3_embedding import __version__
from qwen3_embedding.serving.answers import check_vectors
from qwen3_embedding.serving.errors import BadRequestError
from qwen3_embedding.serving.prompts import Prompt, PromptFields, resolve_prompt
from qwen3_embedding.serving.requests import log
from qwen3_embedding.serving.routes.rerank import best_first
from qwen3_embedding.serving.routes.tei import decoded, tokens_of
from qwen3_embedding.serving.rpc.calls import NotSupportedError, RpcCall, gathered, streamed, unary
from qwen3_embedding.serving.rpc.messages import HEALTH, message, services
from qwen3_embedding.serving.schemas import texts_of
from qwen3_embedding.serving.server import Server
from qwen3_embedding.serving.services import EmbedderService, Limit, sigmoid, unit

LEFT = 1


class Rpc:
    """The gRPC side of ``server``; runs on the event loop that starts it."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._grpc: Any = None
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Listen; port 0 picks a free one, see :attr:`port`.

        Raises:
            OSError: the port is taken.
        """
        most = self._server.settings.max_body_bytes
        options = [("grpc.max_receive_message_length", most), ("grpc.max_send_message_length", -1),
                   ("grpc.so_reuseport", 0)]  # fmt: skip
        self._grpc = grpc.aio.server(options=options)
        self._grpc.add_generic_rpc_handlers(self._handlers())
        try:
            self.port = self._grpc.add_insecure_port(f"{host}:{port}")
        except RuntimeError as error:
            raise OSError(f"gRPC cannot listen on {host}:{port}: {error}") from None
        await self._grpc.start()
        log.info(f"gRPC (tei.v1) on {host}:{self.port}")

    async def stop(self) -> None:
        """Take no new RPC; answer what was accepted, for so long as the settings allow."""
        if self._grpc is not None:
            await self._grpc.stop(self._server.settings.drain_s)

    def _handlers(self) -> list[Any]:
        handles = {
            "Info": self._info, "Embed": self._embed, "EmbedStream": self._embed, "EmbedAll": self._embed_all,
            "EmbedAllStream": self._embed_all, "PredictPair": self._predict_pair,
            "PredictPairStream": self._predict_pair, "Rerank": self._rerank, "RerankStream": self._rerank_stream,
            "Tokenize": self._tokenize, "TokenizeStream": self._tokenize, "Decode": self._decode,
            "DecodeStream": self._decode, "Check": self._check,
        }  # fmt: skip
        return [
            grpc.method_handlers_generic_handler(
                service.full_name,
                {
                    method.name: self._method(service.full_name, method, handles.get(method.name, _not_supported))
                    for method in service.methods
                },
            )
            for service in services()
        ]

    def _method(self, service: str, method: Any, handle: Any) -> Any:
        route, package = f"/{service}/{method.name}", service.rpartition(".")[0]
        asked = message(method.input_type.name, package)
        coding = {
            "request_deserializer": asked.FromString,
            "response_serializer": lambda value: value.SerializeToString(),
        }
        if method.client_streaming and method.server_streaming:
            return grpc.stream_stream_rpc_method_handler(streamed(self._server, route, handle), **coding)
        if method.client_streaming:
            return grpc.stream_unary_rpc_method_handler(gathered(self._server, route, handle), **coding)
        run = unary(self._server, route, handle, open_to_all=package == HEALTH)
        return grpc.unary_unary_rpc_method_handler(run, **coding)

    # -- the services -------------------------------------------------------------------------------------------------

    async def _info(self, call: RpcCall, request: Any) -> Any:
        first = self._server.services[0]
        return message("InfoResponse")(
            version=__version__,
            model_id=first.name,
            model_dtype=first.dtype,
            model_type="MODEL_TYPE_EMBEDDING" if self._server.embedders else "MODEL_TYPE_RERANKER",
            max_input_length=first.max_tokens,
            max_batch_tokens=first.queue.settings.max_batch_tokens,
            max_client_batch_size=self._server.settings.max_items,
            tokenization_workers=self._server.settings.tokenizer_threads,
        )

    async def _embed(self, call: RpcCall, request: Any) -> Any:
        service, prompt = self._embedder(request)
        dimensions = request.dimensions if request.HasField("dimensions") else None
        check_vectors(dimensions, "float32", service.dimensions)
        rows = await service.embed([request.inputs], prompt, _limit(request), call.work)
        vector = unit(rows, dimensions)[0] if request.normalize else rows[0, :dimensions]
        return message("EmbedResponse")(embeddings=vector.tolist(), metadata=call.timing())

    async def _embed_all(self, call: RpcCall, request: Any) -> Any:
        service, prompt = self._embedder(request)
        (states,) = await service.embed_every_token([request.inputs], prompt, _limit(request), call.work)
        rows = [message("TokenEmbedding")(embeddings=row.tolist()) for row in states]
        return message("EmbedAllResponse")(token_embeddings=rows, metadata=call.timing())

    async def _predict_pair(self, call: RpcCall, request: Any) -> Any:
        if len(request.inputs) != 2:
            raise BadRequestError(f"`inputs` has {len(request.inputs)} texts; wanted a query and a document")
        query, document = request.inputs
        (score,) = await self._scores(call, request, query, [document])
        prediction = message("Prediction")(score=score, label="yes")
        return message("PredictResponse")(predictions=[prediction], metadata=call.timing())

    async def _rerank(self, call: RpcCall, request: Any) -> Any:
        return await self._ranks(call, request, list(request.texts))

    async def _rerank_stream(self, call: RpcCall, requests: Sequence[Any]) -> Any:
        if not requests:
            raise BadRequestError("the stream is empty; wanted a query and texts")
        return await self._ranks(call, requests[0], [request.text for request in requests])

    async def _ranks(self, call: RpcCall, request: Any, texts: list[str]) -> Any:
        texts = texts_of(texts, "texts", self._server.settings)
        scores = await self._scores(call, request, request.query, texts)
        ranks = [
            message("Rank")(index=index, text=texts[index] if request.return_text else None, score=scores[index])
            for index in best_first(scores)
        ]
        return message("RerankResponse")(ranks=ranks, metadata=call.timing())

    async def _scores(self, call: RpcCall, request: Any, query: str, texts: list[str]) -> Any:
        service = self._server.reranker(_field(request, "model"))
        instruction = _field(request, "instruction")
        logits = await service.logits([query] * len(texts), texts, instruction, _limit(request), call.work)
        return logits if request.raw_scores else sigmoid(logits)

    async def _tokenize(self, call: RpcCall, request: Any) -> Any:
        text = texts_of(request.inputs, "inputs", self._server.settings)[0]
        fields = PromptFields(instruction=_field(request, "instruction"), prompt_name=_field(request, "prompt_name"))
        model = _field(request, "model")
        (found,) = tokens_of(self._server, model, [text], resolve_prompt(fields), request.add_special_tokens)
        return message("EncodeResponse")(tokens=[message("SimpleToken")(**token) for token in found])

    async def _decode(self, call: RpcCall, request: Any) -> Any:
        text = decoded(self._server, _field(request, "model"), list(request.ids), request.skip_special_tokens)
        return message("DecodeResponse")(text=text)

    async def _check(self, call: RpcCall, request: Any) -> Any:
        answer = message("HealthCheckResponse", HEALTH)
        return answer(status=answer.SERVING if self._server.health().ready else answer.NOT_SERVING)

    def _embedder(self, request: Any) -> tuple[EmbedderService, Prompt]:
        service, suffix = self._server.embedder(_field(request, "model"))
        said = PromptFields(
            instruction=_field(request, "instruction"), prompt_name=_field(request, "prompt_name"), suffix=suffix
        )
        return service, resolve_prompt(said)


def _limit(request: Any) -> Limit:
    if request.truncation_direction == LEFT:
        raise BadRequestError(
            "truncation_direction: only the end can be cut; instruction and query stand at the beginning"
        )
    return Limit("end" if request.truncate else "error")


def _field(request: Any, name: str) -> str | None:
    """An optional string; absent is ``None``."""
    return str(getattr(request, name)) if request.HasField(name) else None


async def _not_supported(call: RpcCall, request: Any) -> Any:
    raise NotSupportedError(
        f"{call.route}: Qwen3 has no sparse vectors, and its reranker reads pairs; use Embed, PredictPair or Rerank"
    )
