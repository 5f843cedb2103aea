"""Every dialect against the offline objects, and each dialect's own answers and errors."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

from qwen3_embedding.inference.precision import to_precision
from qwen3_embedding.inputs.prompts import RERANKER_PREFIX, RERANKER_SUFFIX, query_prompt
from qwen3_embedding.serving.routes.tei import spans
from qwen3_embedding.types import PRECISIONS, FloatArray

if TYPE_CHECKING:
    from qwen3_embedding import Embedder, Reranker

TEXTS = ["a bright star", "  spaces stay  ", "größer 漢字 🦊", "<|im_end|> is text here"]
TASK = "Find the opposite"
CLOSE = 2e-5
"""Batches of other sizes add in another order; the offline promise for float32 is 1e-5 a side."""


def post(http: httpx.Client, path: str, **body: Any) -> Any:
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def openai_vectors(answer: Any) -> FloatArray:
    return np.asarray([item["embedding"] for item in answer["data"]], dtype=np.float32)


@pytest.fixture(scope="module")
def documents_ND(embedder: Embedder) -> FloatArray:
    return embedder.embed_documents(TEXTS)


@pytest.fixture(scope="module")
def queries_ND(embedder: Embedder) -> FloatArray:
    return embedder.embed_queries(TEXTS, TASK)


# -- the same text gives the offline vector through every dialect ---


def test_documents_through_every_dialect(http: httpx.Client, documents_ND: FloatArray) -> None:
    answers = [
        openai_vectors(post(http, "/v1/embeddings", input=TEXTS, model="tiny-embedding")),
        openai_vectors(post(http, "/embeddings", input=TEXTS, dimensions=None, user=None, encoding_format=None)),
        openai_vectors(post(http, "/v1/embeddings", input=TEXTS, model="tiny-embedding:document")),
        post(http, "/embed", inputs=TEXTS),
        post(http, "/embed", inputs=TEXTS, prompt_name="document"),
        post(http, "/v2/embed", model="tiny-embedding", texts=TEXTS, input_type="search_document")["embeddings"][
            "float"
        ],
    ]
    for vectors in answers:
        np.testing.assert_allclose(vectors, documents_ND, atol=CLOSE)


def test_conversations_in_place_of_texts(http: httpx.Client, documents_ND: FloatArray) -> None:
    parts = [[{"role": "user", "content": [{"type": "text", "text": text}]}] for text in TEXTS]
    np.testing.assert_allclose(openai_vectors(post(http, "/v1/embeddings", messages=parts)), documents_ND, atol=CLOSE)
    one = [{"role": "user", "content": TEXTS[0]}]
    np.testing.assert_allclose(openai_vectors(post(http, "/v1/embeddings", messages=one)), documents_ND[:1], atol=CLOSE)
    image = [{"role": "user", "content": [{"type": "image_url"}]}]
    refused: list[Any] = [[], "x", [[]], [one, 3], [{"role": "system", "content": "x"}], [{"role": "user"}], image]
    for wrong in refused:
        answer = http.post("/v1/embeddings", json={"messages": wrong})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")


@pytest.mark.parametrize(
    "said",
    [
        {"instruction": TASK},
        {"instruct": TASK},
        {"task": TASK},
        {"instruction": TASK, "instruct": TASK, "input_type": "query"},
        {"instruction": TASK, "prompt_name": "query"},
        {"instruction": TASK, "model": "tiny-embedding:query"},
        {"instruction": TASK, "task": "retrieval.query"},
        {"instruction": TASK, "input_type": "classification"},
    ],
)
def test_an_instruction_in_all_its_names(http: httpx.Client, queries_ND: FloatArray, said: dict[str, str]) -> None:
    model = {"model": "tiny-embedding"}
    openai = openai_vectors(post(http, "/v1/embeddings", input=TEXTS, **model | said))
    np.testing.assert_allclose(openai, queries_ND, atol=CLOSE)
    np.testing.assert_allclose(post(http, "/embed", inputs=TEXTS, **said), queries_ND, atol=CLOSE)
    cohere = post(http, "/v2/embed", texts=TEXTS, **model | said)["embeddings"]["float"]
    np.testing.assert_allclose(cohere, queries_ND, atol=CLOSE)


@pytest.mark.parametrize(
    "said",
    [
        {"model": "tiny-embedding:query"},
        {"input_type": "search_query"},
        {"prompt_name": "query"},
        {"task": "retrieval.query"},
    ],
)
def test_a_query_without_instruction_gets_the_web_search_task(
    http: httpx.Client, embedder: Embedder, said: dict[str, str]
) -> None:
    vectors = openai_vectors(post(http, "/v1/embeddings", input=TEXTS, **said))
    np.testing.assert_allclose(vectors, embedder.embed_queries(TEXTS), atol=CLOSE)


@pytest.mark.parametrize("instruction", [None, TASK])
def test_scores_through_every_dialect(http: httpx.Client, reranker: Reranker, instruction: str | None) -> None:
    query = "which star is bright"
    wanted = reranker.score(query, TEXTS, instruction)
    asked: dict[str, Any] = {"query": query, "instruction": instruction}

    def in_order(results: list[dict[str, Any]], key: str) -> list[float]:
        scores = [result[key] for result in results]
        assert scores == sorted(scores, reverse=True)
        return [result[key] for result in sorted(results, key=lambda result: int(result["index"]))]

    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        results = post(http, path, documents=TEXTS, model="tiny-reranker", **asked)["results"]
        np.testing.assert_allclose(in_order(results, "relevance_score"), wanted, atol=CLOSE)
    tei = post(http, "/rerank", texts=TEXTS, **asked)
    np.testing.assert_allclose(in_order(tei, "score"), wanted, atol=CLOSE)
    for path in ("/score", "/v1/score"):
        for left, right in (("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2")):
            data = post(http, path, **{left: query, right: TEXTS}, instruction=instruction)["data"]
            assert [item["index"] for item in data] == [0, 1, 2, 3]
            np.testing.assert_allclose([item["score"] for item in data], wanted, atol=CLOSE)


def test_a_crowd_gets_the_same_vectors(url: str, embedder: Embedder) -> None:
    texts = [f"text number {i} {'word ' * (i % 17)}" for i in range(256)]

    async def crowd() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            return await asyncio.gather(*(client.post("/v1/embeddings", json={"input": text}) for text in texts))

    answers = asyncio.run(crowd())
    assert {answer.status_code for answer in answers} == {200}
    vectors = np.concatenate([openai_vectors(answer.json()) for answer in answers])
    np.testing.assert_allclose(vectors, embedder.embed_documents(texts), atol=CLOSE)


# -- forms of the answer ---


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dimensions", [None, 32])
def test_precisions_and_dimensions(
    http: httpx.Client, embedder: Embedder, precision: Any, dimensions: int | None
) -> None:
    wanted = embedder.embed_documents(TEXTS, dimensions=dimensions, precision=precision)
    body = {"input": TEXTS, "precision": precision, "dimensions": dimensions}
    floats = [item["embedding"] for item in post(http, "/v1/embeddings", **body)["data"]]
    coded = [item["embedding"] for item in post(http, "/v1/embeddings", encoding_format="base64", **body)["data"]]
    decoded = np.stack([np.frombuffer(base64.b64decode(text), wanted.dtype.newbyteorder("<")) for text in coded])
    np.testing.assert_array_equal(np.asarray(floats, dtype=wanted.dtype), decoded)
    off_by = (
        1
        if precision in ("int8", "uint8")
        else 0
        if "binary" in precision
        else 1e-3
        if precision == "float16"
        else CLOSE
    )
    np.testing.assert_allclose(decoded.astype(np.float64), wanted.astype(np.float64), atol=off_by)


def test_whole_matrices_by_accept(http: httpx.Client, documents_ND: FloatArray) -> None:
    def ask(kind: str, path: str = "/v1/embeddings", **body: Any) -> httpx.Response:
        answer = http.post(path, json=body or {"input": TEXTS}, headers={"accept": kind})
        assert answer.status_code == 200
        assert answer.headers["content-type"] == kind
        return answer

    npy = np.load(io.BytesIO(ask("application/x-npy").content), allow_pickle=False)
    np.testing.assert_allclose(npy, documents_ND, atol=CLOSE)
    raw = ask("application/octet-stream")
    assert (raw.headers["x-shape"], raw.headers["x-dtype"]) == ("4,64", "float32")
    np.testing.assert_array_equal(np.frombuffer(raw.content, "<f4").reshape(4, 64), npy)
    column = pa.ipc.open_stream(ask("application/vnd.apache.arrow.stream").content).read_all()["vector"]
    np.testing.assert_array_equal(np.stack(column.to_numpy()), npy)
    ints = ask("application/x-npy", input=TEXTS, precision="int8")
    assert np.load(io.BytesIO(ints.content)).dtype == np.int8
    tei = np.load(io.BytesIO(ask("application/x-npy", "/embed", inputs=TEXTS).content))
    np.testing.assert_allclose(tei, documents_ND, atol=CLOSE)


def test_openai_answer_has_exactly_its_fields(http: httpx.Client, embedder: Embedder) -> None:
    answer = post(http, "/v1/embeddings", input="one", model="tiny-embedding:query")
    tokens = len(embedder.tokenizer.encode_queries(["one"]).ids[0])
    assert set(answer) == {"object", "data", "model", "usage"}
    assert answer["model"] == "tiny-embedding:query"
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert set(answer["data"][0]) == {"object", "index", "embedding"}


def test_cohere_embed_types(http: httpx.Client, embedder: Embedder) -> None:
    kinds = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    answer = post(http, "/v2/embed", model="tiny-embedding", texts=TEXTS, embedding_types=kinds, output_dimension=32)
    assert set(answer["embeddings"]) == set(kinds)
    vectors = np.asarray(answer["embeddings"]["float"], dtype=np.float32)
    np.testing.assert_allclose(vectors, embedder.embed_documents(TEXTS, dimensions=32), atol=CLOSE)
    for kind in ("int8", "uint8", "binary", "ubinary"):
        np.testing.assert_array_equal(answer["embeddings"][kind], to_precision(vectors, kind))
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(answer["embeddings"]["base64"][0]), "<f4"), vectors[0])
    assert answer["texts"] == TEXTS
    assert answer["meta"]["api_version"] == {"version": "2"}


def test_rerank_options(http: httpx.Client) -> None:
    documents = [{"text": text, "title": f"t{i}"} for i, text in enumerate(TEXTS)]
    answer = post(http, "/v1/rerank", query="q", documents=documents, top_n=2, return_documents=True)
    assert len(answer["results"]) == 2
    assert all(result["document"]["text"] == TEXTS[result["index"]] for result in answer["results"])
    assert "document" not in post(http, "/v2/rerank", query="q", documents=TEXTS)["results"][0]
    assert len(post(http, "/v1/rerank", query="q", documents=TEXTS, top_n=None)["results"]) == 4
    assert len(post(http, "/v1/rerank", query="q", documents=TEXTS, top_k=1)["results"]) == 1
    fields = post(http, "/v1/rerank", query="q", documents=documents, rank_fields=["title", "text"])
    plain = post(http, "/v1/rerank", query="q", documents=[f"title: t{i}\ntext: {t}" for i, t in enumerate(TEXTS)])
    assert fields["results"] == plain["results"]


def test_tei_raw_scores_are_log_odds(http: httpx.Client) -> None:
    raw = post(http, "/rerank", query="q", texts=TEXTS, raw_scores=True, return_text=True)
    scores = {item["index"]: item["score"] for item in post(http, "/rerank", query="q", texts=TEXTS)}
    for item in raw:
        assert item["text"] == TEXTS[item["index"]]
        assert 1 / (1 + np.exp(-item["score"])) == pytest.approx(scores[item["index"]], abs=1e-6)
    pairs = post(http, "/score", queries=["q", "r"], documents=TEXTS[:2], use_activation=False)["data"]
    assert pairs[0]["score"] == pytest.approx(next(i["score"] for i in raw if i["index"] == 0), abs=1e-4)


def test_tei_without_normalising_and_every_token(
    http: httpx.Client, embedder: Embedder, documents_ND: FloatArray
) -> None:
    rows = np.asarray(post(http, "/embed", inputs=TEXTS, normalize=False), dtype=np.float32)
    assert not np.allclose(np.linalg.norm(rows, axis=1), 1, atol=0.1)
    np.testing.assert_allclose(rows / np.linalg.norm(rows, axis=1, keepdims=True), documents_ND, atol=CLOSE)
    every = post(http, "/embed_all", inputs=TEXTS)
    lengths = [len(ids) for ids in embedder.tokenizer.encode_documents(TEXTS).ids]
    assert [len(tokens) for tokens in every] == lengths
    np.testing.assert_allclose([tokens[-1] for tokens in every], rows, atol=1e-3)


def test_similarity(http: httpx.Client, embedder: Embedder) -> None:
    inputs = {"source_sentence": TEXTS[0], "sentences": TEXTS}
    vectors = embedder.embed_documents(TEXTS)
    np.testing.assert_allclose(post(http, "/similarity", inputs=inputs), vectors @ vectors[0], atol=CLOSE)
    vectors = embedder.embed_queries(TEXTS)
    asked = post(http, "/similarity", inputs=inputs, parameters={"prompt_name": "query"})
    np.testing.assert_allclose(asked, vectors @ vectors[0], atol=CLOSE)


def test_tokenize(http: httpx.Client, embedder: Embedder) -> None:
    answer = post(http, "/tokenize", inputs=TEXTS)
    for text, tokens in zip(TEXTS, answer, strict=True):
        assert [token["id"] for token in tokens] == embedder.tokenizer.encode_documents([text]).ids[0]
        assert tokens[-1]["special"]
        assert all(
            token["text"] == text[token["start"] : token["stop"]] for token in tokens[:-1] if "�" not in token["text"]
        )
    bare = post(http, "/tokenize", inputs="one", add_special_tokens=False)
    assert [token["id"] for token in bare[0]] == embedder.tokenizer.token_ids(["one"])[0]
    prompted = post(http, "/tokenize", inputs="one", prompt_name="query")
    assert [token["id"] for token in prompted[0]] == embedder.tokenizer.encode_queries(["one"]).ids[0]


def test_spans_of_characters_that_fall_apart() -> None:
    assert spans("a漢b", ["a", "�", "�", "b"]) == [(0, 1), (1, 2), (1, 2), (2, 3)]
    assert spans("漢漢", ["�", "�", "�"]) == [(0, 2)] * 3
    assert spans("🦊 x 🦊", ["�", "�", " x ", "�", "�"]) == [(0, 1), (0, 1), (1, 4), (4, 5), (4, 5)]


def test_prompt_shows_what_the_model_reads(http: httpx.Client, reranker: Reranker) -> None:
    answer = post(http, "/prompt", text="stars", instruction=TASK)
    assert answer["rendered"] == query_prompt("stars", TASK) + "<|endoftext|>"
    assert "".join(token["text"] for token in answer["tokens"]) == answer["rendered"]
    pair = post(http, "/prompt", query="q", document="d</think>")
    assert pair["rendered"].startswith(RERANKER_PREFIX)
    assert pair["rendered"].endswith("<Document>: d</think>" + RERANKER_SUFFIX)
    assert [token["id"] for token in pair["tokens"]] == reranker.tokenizer.encode_pairs(["q"], ["d</think>"]).ids[0]


def test_models_and_info(http: httpx.Client) -> None:
    listed = http.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["tiny-embedding", "tiny-reranker"]
    assert http.get("/v1/models/tiny-reranker").json()["object"] == "model"
    assert http.get("/v1/models/other").status_code == 404
    info = http.get("/info").json()
    assert info["model_type"] == {"embedding": {"pooling": "last_token"}}
    assert info["embedders"][0]["dimensions"] == 64
    assert info["rerankers"][0]["name"] == "tiny-reranker"


# -- truncation: never silent ---

LONG = "many words " * 3000


def test_openai_refuses_what_is_too_long_unless_asked_to_cut(http: httpx.Client, embedder: Embedder) -> None:
    refused = http.post("/v1/embeddings", json={"input": ["fine", LONG]})
    assert refused.status_code == 400
    assert "text 1 must have at most 2048 tokens" in refused.json()["error"]["message"]
    answer = http.post("/v1/embeddings", json={"input": ["fine", LONG], "truncation": "end"})
    assert answer.headers["x-truncated"] == "1"
    cut = answer.json()["truncated"]
    tokens = len(embedder.tokenizer.encode_documents([LONG]).ids[0])
    assert cut == [{"index": 1, "tokens": tokens, "kept": 2048}]
    with pytest.warns(UserWarning, match="cut"):
        wanted = embedder.embed_documents(["fine", LONG])
    np.testing.assert_allclose(openai_vectors(answer.json()), wanted, atol=CLOSE)


def test_every_dialects_word_for_cutting(http: httpx.Client) -> None:
    tei = http.post("/embed", json={"inputs": LONG})
    assert (tei.status_code, tei.headers["x-truncated-count"]) == (200, "1")
    refused = http.post("/embed", json={"inputs": LONG, "truncate": False})
    assert (refused.status_code, refused.json()["error_type"]) == (422, "Validation")
    cohere = http.post("/v2/embed", json={"texts": [LONG], "truncate": "END"})
    assert "was cut from" in cohere.json()["meta"]["warnings"][0]
    assert http.post("/v2/embed", json={"texts": [LONG], "truncate": "NONE"}).status_code == 400
    vllm = http.post("/v1/embeddings", json={"input": "some words here", "truncate_prompt_tokens": 2})
    assert vllm.json()["truncated"][0]["kept"] == 2
    assert http.post("/v1/embeddings", json={"input": LONG, "truncate_prompt_tokens": -1}).status_code == 200
    for left in ({"truncation_direction": "Left"}, {"truncation_side": "left"}, {"truncate": "START"}):
        answer = http.post("/embed", json={"inputs": "x", **left})
        assert answer.status_code == 422
        assert "only the end can be cut" in answer.json()["error"]


def test_rerank_cuts_the_documents_end(http: httpx.Client, reranker: Reranker) -> None:
    assert http.post("/v1/rerank", json={"query": "q", "documents": [LONG]}).status_code == 400
    answer = http.post("/v2/rerank", json={"query": "q", "documents": ["x", LONG]})
    assert answer.headers["x-truncated"] == "1"
    short = post(http, "/v2/rerank", query="q", documents=["one two three four five six"], max_tokens_per_doc=2)
    assert "was cut" in short["meta"]["warnings"][0]
    hopeless = http.post("/v2/rerank", json={"query": LONG, "documents": ["x"]})
    assert hopeless.status_code == 400
    assert "no room for a document" in hopeless.json()["message"]


# -- errors in the dialect of the route ---

BAD: list[tuple[str, dict[str, Any], int, str]] = [
    ("/v1/embeddings", {}, 400, "input"),
    ("/v1/embeddings", {"input": ""}, 400, "empty"),
    ("/v1/embeddings", {"input": []}, 400, "empty"),
    ("/v1/embeddings", {"input": [1, 2, 3]}, 400, "check_embedding_ctx_length=False"),
    ("/v1/embeddings", {"input": [[1, 2], [3]]}, 400, "check_embedding_ctx_length=False"),
    ("/v1/embeddings", {"input": ["x", None]}, 400, "input[1]"),
    ("/v1/embeddings", {"input": 7}, 400, "a number"),
    ("/v1/embeddings", {"input": "x", "dimensions": 65}, 400, "use 32 to 64"),
    ("/v1/embeddings", {"input": "x", "dimensions": 0}, 400, "dimensions"),
    ("/v1/embeddings", {"input": "x", "dimensions": "32"}, 400, "dimensions"),
    ("/v1/embeddings", {"input": "x", "encoding_format": "hex"}, 400, "encoding_format"),
    ("/v1/embeddings", {"input": "x", "precision": "int4"}, 400, "precision"),
    ("/v1/embeddings", {"input": "x", "dimensions": 33, "precision": "binary"}, 400, "multiple of 8"),
    ("/v1/embeddings", {"input": "x", "model": "gpt"}, 404, "tiny-embedding"),
    ("/v1/embeddings", {"input": "x", "model": "tiny-reranker"}, 404, "no embedder"),
    ("/v1/embeddings", {"input": "x", "input_type": "nonsense"}, 400, "search_query"),
    ("/v1/embeddings", {"input": "x", "input_type": "document", "instruction": "t"}, 400, "never get an instruction"),
    ("/v1/embeddings", {"input": "x", "input_type": "document", "prompt_name": "query"}, 400, "both query and"),
    ("/v1/embeddings", {"input": "x", "instruction": "a", "instruct": "b"}, 400, "differ"),
    ("/v1/embeddings", {"input": "x", "late_chunking": True}, 400, "late_chunking"),
    ("/v1/embeddings", {"input": ["x"] * 65}, 413, "batch size 65 > maximum allowed batch size 64"),
    ("/embed", {"inputs": []}, 400, "cannot be empty"),
    ("/embed", {"inputs": [[1, 2]]}, 422, "token ids"),
    ("/embed", {"inputs": "x", "prompt_name": "nope"}, 422, "prompt_name"),
    ("/embed", {"inputs": ["x"] * 65}, 413, "batch size"),
    ("/rerank", {"query": "q", "texts": []}, 400, "texts"),
    ("/rerank", {"query": "q", "documents": []}, 400, "documents"),
    ("/rerank", {"query": "q"}, 400, "documents"),
    ("/rerank", {"texts": ["x"]}, 422, "query"),
    ("/v1/rerank", {"query": "q", "documents": [{"body": "x"}]}, 400, "`text`"),
    ("/v1/rerank", {"query": "q", "documents": ["x"], "top_n": -1}, 400, "top_n"),
    ("/v2/rerank", {"query": "q", "documents": ["x"], "model": "other"}, 404, "other"),
    ("/v2/embed", {"texts": ["x"], "embedding_types": ["int4"]}, 400, "int4"),
    ("/v2/embed", {"images": ["data:"]}, 400, "reads text"),
    ("/score", {"queries": ["a", "b"], "documents": ["x"]}, 400, "as many as"),
    ("/score", {"documents": ["x"]}, 400, "queries"),
    ("/similarity", {"inputs": {"source_sentence": "x", "sentences": []}}, 400, "sentences"),
    ("/prompt", {}, 400, "text"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "word"), BAD)
def test_bad_requests(http: httpx.Client, path: str, body: dict[str, Any], status: int, word: str) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == status, answer.text
    message = _message(path, body, answer.json())
    assert word in message


def _message(path: str, body: dict[str, Any], said: dict[str, Any]) -> str:
    """The message, where the dialect has it."""
    if path in ("/v1/embeddings", "/prompt"):
        assert set(said["error"]) == {"message", "type", "param", "code"}
        return str(said["error"]["message"])
    if path == "/score":
        assert isinstance(said["error"]["code"], int)
        return str(said["error"]["message"])
    if path in ("/embed", "/similarity") or ("texts" in body and path == "/rerank"):
        assert set(said) == {"error", "error_type"}
        return str(said["error"])
    if path in ("/v1/rerank", "/rerank"):
        assert {"detail", "message", "id"} <= set(said)
        assert said["detail"].startswith("[RID: ")
        return str(said["message"])
    assert set(said) == {"id", "message"}
    return str(said["message"])


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[1]", b'"x"', b"null", b"\xff\xfe", b'{"input": "\\ud800"}', b'{"input": NaN}', b"[" * 5000]
)
@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed", "/rerank", "/v2/embed", "/score"])
def test_bodies_that_are_no_json_object(http: httpx.Client, path: str, raw: bytes) -> None:
    answer = http.post(path, content=raw)
    assert 400 <= answer.status_code < 500
    assert "body" in json.dumps(answer.json())


def test_any_content_type_is_read_as_json(http: httpx.Client) -> None:
    for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded"):
        answer = http.post("/embed", content=b'{"inputs": "x"}', headers={"content-type": kind})
        assert answer.status_code == 200


def test_unknown_fields_are_named_not_swallowed(http: httpx.Client) -> None:
    answer = http.post("/v1/embeddings", json={"input": "x", "dimension": 32, "späß": 1})
    assert answer.headers["x-ignored-fields"] == "dimension"


def test_unknown_paths_and_methods(http: httpx.Client) -> None:
    assert http.get("/nope").status_code == 404
    assert "no route" in http.get("/nope").json()["error"]["message"]
    wrong = http.get("/embed")
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"


def test_headers_tell_id_and_timing(http: httpx.Client) -> None:
    answer = http.post("/embed", json={"inputs": ["x", "yy"]}, headers={"x-request-id": "mine-7"})
    assert answer.headers["x-request-id"] == "mine-7"
    assert answer.headers["x-compute-characters"] == "3"
    assert int(answer.headers["x-compute-tokens"]) >= 4
    parts = sum(int(answer.headers[f"x-{part}-time"]) for part in ("tokenization", "queue", "inference"))
    assert 0 <= parts <= int(answer.headers["x-total-time"]) + 3  # each is rounded
    strange = http.post("/embed", json={"inputs": "x"}, headers={"x-request-id": "a b\tc"})
    assert strange.headers["x-request-id"] != "a b\tc"


def test_deadlines_and_priorities(http: httpx.Client) -> None:
    assert http.post("/embed", json={"inputs": "x"}, headers={"x-deadline-ms": "60000"}).status_code == 200
    late = http.post("/embed", json={"inputs": ["word " * 1500] * 30}, headers={"x-deadline-ms": "1"})
    assert late.status_code == 504
    assert http.post("/embed", json={"inputs": "x"}, headers={"x-deadline-ms": "soon"}).status_code == 422
    assert http.post("/embed", json={"inputs": "x"}, headers={"x-priority": "bulk"}).status_code == 200
    assert http.post("/embed", json={"inputs": "x"}, headers={"x-priority": "now"}).status_code == 422


def test_the_openapi_document_names_every_route(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    for path in (
        "/v1/embeddings",
        "/embed",
        "/rerank",
        "/v1/rerank",
        "/v2/rerank",
        "/v2/embed",
        "/score",
        "/similarity",
    ):
        schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        for reference in schema.get("anyOf", [schema]):
            assert reference["$ref"].rpartition("/")[2] in schemas
    assert "instruction" in schemas["EmbeddingsRequest"]["properties"]
