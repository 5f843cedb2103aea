"""gRPC with a client whose code protoc generates from the same ``.proto``, as any user of TEI's interface would."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from qwen3_embedding.serving.auth import Key
from qwen3_embedding.serving.queue import QueueSettings
from qwen3_embedding.serving.server import Server
from qwen3_embedding.serving.settings import ServerSettings
from tests.serving.conftest import serving

if TYPE_CHECKING:
    from qwen3_embedding import Embedder, Reranker

grpc = pytest.importorskip("grpc")
pytest.importorskip("grpc_tools")

FOLDER = Path(__file__).resolve().parents[2] / "qwen3_embedding" / "serving" / "rpc"
SECRET = "correct-horse"
KEY = (("authorization", f"Bearer {SECRET}"),)
TEXTS = ["a bright star", "größer 漢字 🦊", "<|im_end|> is text here"]
TASK = "Find the opposite"


def protoc(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{FOLDER}", *arguments], check=True, timeout=60)


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    folder = tmp_path_factory.mktemp("generated")
    protoc(f"--python_out={folder}", f"--grpc_python_out={folder}", "tei.proto", "health.proto")
    sys.path.insert(0, str(folder))
    yield import_module("tei_pb2"), import_module("tei_pb2_grpc")
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def server(embedder: Embedder, reranker: Reranker) -> Server:
    keys = (Key.parse(f"team={SECRET}"), Key.parse("poor=battery-staple:60"))
    settings = ServerSettings(keys=keys, queue=QueueSettings(max_waiting_tokens=3000))
    return Server({"tiny-embedding": embedder}, {"tiny-reranker": reranker}, settings)


@pytest.fixture(scope="module")
def channel(server: Server) -> Iterator[Any]:
    from qwen3_embedding.serving.app import create_app

    app = create_app(server, rpc=("127.0.0.1", 0))
    with serving(server, app), grpc.insecure_channel(f"127.0.0.1:{app.state.rpc.port}") as open_channel:
        yield open_channel


def refused(ask: Any, *arguments: Any, **options: Any) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        ask(*arguments, timeout=30, **options)
    return caught.value


def test_the_compiled_descriptor_is_the_proto_files(tmp_path: Path) -> None:
    protoc(f"--descriptor_set_out={tmp_path / 'fresh'}", "tei.proto", "health.proto")
    assert (tmp_path / "fresh").read_bytes() == (FOLDER / "tei.binpb").read_bytes(), (
        f"run: cd {FOLDER} && python -m grpc_tools.protoc -I. --descriptor_set_out=tei.binpb tei.proto health.proto"
    )


def test_embeddings_are_the_offline_ones(channel: Any, generated: Any, embedder: Embedder) -> None:
    pb, stubs = generated
    stub = stubs.EmbedStub(channel)
    answer = stub.Embed(pb.EmbedRequest(inputs=TEXTS[0], normalize=True), metadata=KEY)
    np.testing.assert_allclose(answer.embeddings, embedder.embed_documents(TEXTS[:1])[0], atol=2e-5)
    assert answer.metadata.compute_chars == len(TEXTS[0])
    assert answer.metadata.total_time_ns >= answer.metadata.inference_time_ns > 0
    raw = np.asarray(stub.Embed(pb.EmbedRequest(inputs=TEXTS[0]), metadata=KEY).embeddings)
    np.testing.assert_allclose(raw / np.linalg.norm(raw), answer.embeddings, atol=2e-5)
    short = stub.Embed(pb.EmbedRequest(inputs=TEXTS[0], normalize=True, dimensions=32), metadata=KEY).embeddings
    np.testing.assert_allclose(short, embedder.embed_documents(TEXTS[:1], dimensions=32)[0], atol=2e-5)
    query = stub.Embed(pb.EmbedRequest(inputs=TEXTS[0], normalize=True, prompt_name="query"), metadata=KEY).embeddings
    np.testing.assert_allclose(query, embedder.embed_queries(TEXTS[:1])[0], atol=2e-5)
    own = pb.EmbedRequest(inputs=TEXTS[0], normalize=True, instruction=TASK, model="tiny-embedding")
    np.testing.assert_allclose(
        stub.Embed(own, metadata=KEY).embeddings, embedder.embed_queries(TEXTS[:1], TASK)[0], atol=2e-5
    )
    stream = stub.EmbedStream((pb.EmbedRequest(inputs=text, normalize=True) for text in TEXTS * 100), metadata=KEY)
    vectors = np.asarray([item.embeddings for item in stream])
    np.testing.assert_allclose(vectors, np.tile(embedder.embed_documents(TEXTS), (100, 1)), atol=2e-5)
    every = stub.EmbedAll(pb.EmbedAllRequest(inputs=TEXTS[1]), metadata=KEY).token_embeddings
    assert len(every) == len(embedder.tokenizer.encode_documents([TEXTS[1]]).ids[0])


def test_scores_are_the_offline_ones(channel: Any, generated: Any, reranker: Reranker) -> None:
    pb, stubs = generated
    wanted = reranker.score("which star", TEXTS, TASK)
    asked = pb.RerankRequest(query="which star", texts=TEXTS, return_text=True, instruction=TASK)
    ranks = stubs.RerankStub(channel).Rerank(asked, metadata=KEY).ranks
    assert [rank.score for rank in ranks] == sorted((rank.score for rank in ranks), reverse=True)
    for rank in ranks:
        assert rank.score == pytest.approx(wanted[rank.index], abs=2e-5)
        assert rank.text == TEXTS[rank.index]
    parts = (pb.RerankStreamRequest(query="which star", text=text, instruction=TASK) for text in TEXTS)
    streamed = stubs.RerankStub(channel).RerankStream(parts, metadata=KEY).ranks
    assert [rank.index for rank in streamed] == [rank.index for rank in ranks]
    assert not streamed[0].HasField("text")
    predict = stubs.PredictStub(channel)
    pair = predict.PredictPair(pb.PredictPairRequest(inputs=["which star", TEXTS[0]], instruction=TASK), metadata=KEY)
    assert pair.predictions[0].label == "yes"
    assert pair.predictions[0].score == pytest.approx(wanted[0], abs=2e-5)


def test_tokens_there_and_back(channel: Any, generated: Any, embedder: Embedder) -> None:
    pb, stubs = generated
    stub = stubs.TokenizeStub(channel)
    (tokens,) = [stub.Tokenize(pb.EncodeRequest(inputs=TEXTS[1], add_special_tokens=True), metadata=KEY).tokens]
    ids = [token.id for token in tokens]
    assert ids == embedder.tokenizer.encode_documents([TEXTS[1]]).ids[0]
    assert tokens[-1].special
    assert not tokens[-1].HasField("start")
    assert stub.Decode(pb.DecodeRequest(ids=ids, skip_special_tokens=True), metadata=KEY).text == TEXTS[1]
    assert stub.Decode(pb.DecodeRequest(ids=ids), metadata=KEY).text == TEXTS[1] + "<|endoftext|>"
    assert refused(stub.Decode, pb.DecodeRequest(ids=[2**31]), metadata=KEY).code().name == "INVALID_ARGUMENT"


def test_info_and_health(channel: Any, generated: Any) -> None:
    pb, stubs = generated
    info = stubs.InfoStub(channel).Info(pb.InfoRequest(), metadata=KEY)
    assert (info.model_id, info.model_type) == ("tiny-embedding", pb.MODEL_TYPE_EMBEDDING)
    assert info.max_input_length == 2048
    health, health_stubs = import_module("health_pb2"), import_module("health_pb2_grpc")
    state = health_stubs.HealthStub(channel).Check(health.HealthCheckRequest())  # without a key
    assert state.status == health.HealthCheckResponse.SERVING


def test_errors_have_grpcs_codes(channel: Any, generated: Any) -> None:
    pb, stubs = generated
    embed = stubs.EmbedStub(channel)
    no_key = refused(embed.Embed, pb.EmbedRequest(inputs="x"))
    assert (no_key.code().name, "API key" in no_key.details()) == ("UNAUTHENTICATED", True)
    long = "many words " * 1500
    cases = [
        (embed.Embed, pb.EmbedRequest(inputs=long), "INVALID_ARGUMENT", "at most 2048 tokens"),
        (embed.Embed, pb.EmbedRequest(inputs="x", dimensions=7), "INVALID_ARGUMENT", "use 32 to 64"),
        (embed.Embed, pb.EmbedRequest(inputs="x", model="/etc/passwd"), "NOT_FOUND", "tiny-embedding"),
        (embed.Embed, pb.EmbedRequest(inputs="x", truncation_direction=1), "INVALID_ARGUMENT", "only the end"),
        (embed.EmbedSparse, pb.EmbedSparseRequest(inputs="x"), "UNIMPLEMENTED", "sparse"),
        (stubs.PredictStub(channel).Predict, pb.PredictRequest(inputs="x"), "UNIMPLEMENTED", "pairs"),
        (stubs.RerankStub(channel).Rerank, pb.RerankRequest(query="q"), "INVALID_ARGUMENT", "cannot be empty"),
    ]
    for ask, request, code, word in cases:
        error = refused(ask, request, metadata=KEY)
        assert (error.code().name, word in error.details()) == (code, True), error.details()
    cut = embed.Embed.with_call(pb.EmbedRequest(inputs=long, truncate=True), metadata=KEY)[1]
    assert dict(cut.trailing_metadata())["x-truncated-count"] == "1"
    poor = (("authorization", "Bearer battery-staple"),)
    embed.Embed(pb.EmbedRequest(inputs="many words " * 60), metadata=poor)
    spent = refused(embed.Embed, pb.EmbedRequest(inputs="many words " * 60), metadata=poor)
    assert spent.code().name == "RESOURCE_EXHAUSTED"
    assert int(dict(spent.trailing_metadata())["retry-after"]) >= 1
    late = pb.EmbedRequest(inputs="word " * 400)
    with pytest.raises(grpc.RpcError) as caught:
        list(embed.EmbedStream(iter([late] * 50), timeout=0.01, metadata=KEY))
    assert caught.value.code().name == "DEADLINE_EXCEEDED"
    assert embed.Embed(pb.EmbedRequest(inputs="after"), metadata=KEY).embeddings
