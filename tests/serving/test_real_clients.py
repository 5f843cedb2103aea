"""Other people's clients, unmodified, against the running server. Those that are not installed are skipped by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from qwen3_embedding import Embedder, Reranker

TEXTS = ["a bright star", "größer 漢字 🦊", "the moon"]
TASK = "Find the opposite"
CLOSE = 2e-5


@pytest.fixture
def documents_ND(embedder: Embedder) -> Any:
    return embedder.embed_documents(TEXTS)


def test_openai(url: str, embedder: Embedder, documents_ND: Any) -> None:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused-here", max_retries=0) as client:
        answer = client.embeddings.create(input=TEXTS, model="tiny-embedding")  # asks for base64 by itself
        np.testing.assert_allclose([item.embedding for item in answer.data], documents_ND, atol=CLOSE)
        assert answer.usage.total_tokens > 0
        floats = client.embeddings.create(
            input=TEXTS[0], model="tiny-embedding", encoding_format="float", dimensions=32
        )
        wanted = embedder.embed_documents(TEXTS[:1], dimensions=32)[0]
        np.testing.assert_allclose(floats.data[0].embedding, wanted, atol=CLOSE)
        extra = client.embeddings.create(input=TEXTS, model="tiny-embedding", extra_body={"instruction": TASK})
        np.testing.assert_allclose(
            [item.embedding for item in extra.data], embedder.embed_queries(TEXTS, TASK), atol=CLOSE
        )
        by_name = client.embeddings.create(input=TEXTS, model="tiny-embedding:query")
        np.testing.assert_allclose([item.embedding for item in by_name.data], embedder.embed_queries(TEXTS), atol=CLOSE)
        assert [model.id for model in client.models.list()] == ["tiny-embedding", "tiny-reranker"]
        assert client.models.retrieve("tiny-embedding").id == "tiny-embedding"
        with pytest.raises(openai.NotFoundError) as missing:
            client.embeddings.create(input="x", model="text-embedding-3-small")
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
            client.embeddings.create(input=[[1, 2, 3]], model="tiny-embedding")


def test_cohere(url: str, embedder: Embedder, reranker: Reranker) -> None:
    cohere = pytest.importorskip("cohere")
    scores = reranker.score("which star", TEXTS)
    with cohere.ClientV2(api_key="unused-here", base_url=url) as client:
        answer = client.rerank(model="tiny-reranker", query="which star", documents=TEXTS)
        assert [result.index for result in answer.results] == np.argsort(-scores, kind="stable").tolist()
        for result in answer.results:
            assert result.relevance_score == pytest.approx(float(scores[result.index]), abs=CLOSE)
        assert len(client.rerank(model="tiny-reranker", query="q", documents=TEXTS, top_n=1).results) == 1
        kinds = ["float", "ubinary"]
        embedded = client.embed(
            model="tiny-embedding", texts=TEXTS, input_type="search_query", embedding_types=kinds
        ).embeddings
        np.testing.assert_allclose(embedded.float_, embedder.embed_queries(TEXTS), atol=CLOSE)
        wanted = embedder.embed_queries(TEXTS, precision="ubinary")
        np.testing.assert_array_equal(np.asarray(embedded.ubinary, dtype=np.uint8), wanted)
        with pytest.raises(cohere.NotFoundError):
            client.rerank(model="other", query="q", documents=TEXTS)
    with cohere.Client(api_key="unused-here", base_url=url) as old:
        echoed = old.rerank(
            model="tiny-reranker", query="star", documents=TEXTS, return_documents=True, top_n=2
        ).results
        assert [result.document.text for result in echoed] == [TEXTS[result.index] for result in echoed]


def test_huggingface_inference_client(url: str, embedder: Embedder, documents_ND: Any) -> None:
    hub = pytest.importorskip("huggingface_hub")
    client = hub.InferenceClient(base_url=f"{url}/embed")
    np.testing.assert_allclose(client.feature_extraction(TEXTS), documents_ND, atol=CLOSE)
    queries = client.feature_extraction(TEXTS, prompt_name="query")
    np.testing.assert_allclose(queries, embedder.embed_queries(TEXTS), atol=CLOSE)
    similarity = hub.InferenceClient(base_url=f"{url}/similarity").sentence_similarity(TEXTS[0], other_sentences=TEXTS)
    np.testing.assert_allclose(similarity, documents_ND @ documents_ND[0], atol=CLOSE)


def test_langchain_openai(url: str, documents_ND: Any) -> None:
    langchain = pytest.importorskip("langchain_openai")
    options = {"base_url": f"{url}/v1", "api_key": "unused-here", "model": "tiny-embedding"}
    embeddings = langchain.OpenAIEmbeddings(check_embedding_ctx_length=False, **options)
    np.testing.assert_allclose(embeddings.embed_documents(TEXTS), documents_ND, atol=CLOSE)
    np.testing.assert_allclose(embeddings.embed_query(TEXTS[0]), documents_ND[0], atol=CLOSE)


def test_langchain_openai_sends_token_ids_unless_told_not_to(url: str) -> None:
    langchain = pytest.importorskip("langchain_openai")
    openai = pytest.importorskip("openai")
    options = {"base_url": f"{url}/v1", "api_key": "unused-here", "model": "tiny-embedding", "max_retries": 0}
    embeddings = langchain.OpenAIEmbeddings(tiktoken_enabled=True, **options)
    try:
        embeddings.embed_documents(["a"])
    except openai.BadRequestError as error:
        assert "check_embedding_ctx_length=False" in str(error)  # noqa: PT017
    except Exception as error:  # its tokenizer's file comes from the network
        pytest.skip(f"tiktoken cannot load its vocabulary here: {type(error).__name__}")
    else:
        pytest.fail("ids of another tokenizer were taken")


def test_langchain_cohere(url: str, reranker: Reranker) -> None:
    langchain = pytest.importorskip("langchain_cohere")
    client = langchain.CohereRerank(model="tiny-reranker", cohere_api_key="unused-here", base_url=url, top_n=3)
    order = np.argsort(-reranker.score("which star", TEXTS), kind="stable").tolist()
    assert [result["index"] for result in client.rerank(TEXTS, "which star")] == order


def test_llama_index(url: str, documents_ND: Any) -> None:
    llama = pytest.importorskip("llama_index.embeddings.openai_like")
    model = llama.OpenAILikeEmbedding(model_name="tiny-embedding", api_base=f"{url}/v1", api_key="unused-here")
    np.testing.assert_allclose(model.get_text_embedding_batch(TEXTS), documents_ND, atol=CLOSE)
    np.testing.assert_allclose(model.get_query_embedding(TEXTS[0]), documents_ND[0], atol=CLOSE)


def test_llama_index_jina_rerank(url: str, reranker: Reranker) -> None:
    jina = pytest.importorskip("llama_index.postprocessor.jinaai_rerank")
    schema = pytest.importorskip("llama_index.core.schema")
    nodes = [schema.NodeWithScore(node=schema.TextNode(text=text)) for text in TEXTS]
    model = jina.JinaRerank(model="tiny-reranker", api_key="unused-here", top_n=3, base_url=f"{url}/v1")
    ranked = model.postprocess_nodes(nodes, query_str="which star")
    order = np.argsort(-reranker.score("which star", TEXTS), kind="stable")
    assert [node.node.text for node in ranked] == [TEXTS[place] for place in order]


def test_llama_index_cohere_rerank(url: str, reranker: Reranker) -> None:
    cohere = pytest.importorskip("llama_index.postprocessor.cohere_rerank")
    schema = pytest.importorskip("llama_index.core.schema")
    nodes = [schema.NodeWithScore(node=schema.TextNode(text=text)) for text in TEXTS]
    model = cohere.CohereRerank(model="tiny-reranker", api_key="unused-here", top_n=3, base_url=url)
    ranked = model.postprocess_nodes(nodes, query_str="which star")
    scores = reranker.score("which star", TEXTS)
    order = np.argsort(-scores, kind="stable")
    assert [node.node.text for node in ranked] == [TEXTS[place] for place in order]
    np.testing.assert_allclose([node.score for node in ranked], scores[order], atol=CLOSE)


def test_haystack(url: str, documents_ND: Any) -> None:
    embedders = pytest.importorskip("haystack.components.embedders")
    utils = pytest.importorskip("haystack.utils")
    key = utils.Secret.from_token("unused-here")
    embedder = embedders.OpenAITextEmbedder(api_key=key, model="tiny-embedding", api_base_url=f"{url}/v1")
    np.testing.assert_allclose(embedder.run(TEXTS[0])["embedding"], documents_ND[0], atol=CLOSE)
    haystack = pytest.importorskip("haystack")
    whole = embedders.OpenAIDocumentEmbedder(
        api_key=key, model="tiny-embedding", api_base_url=f"{url}/v1", progress_bar=False
    )
    documents = whole.run([haystack.Document(content=text) for text in TEXTS])["documents"]
    np.testing.assert_allclose([document.embedding for document in documents], documents_ND, atol=CLOSE)


@pytest.mark.filterwarnings("ignore:.*ReadOnly:UserWarning")  # about its own types, while it is imported
def test_litellm(url: str, documents_ND: Any, reranker: Reranker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would ask the network otherwise
    litellm = pytest.importorskip("litellm")
    answer = litellm.embedding(
        model="openai/tiny-embedding", input=TEXTS, api_base=f"{url}/v1", api_key="unused-here", encoding_format="float"
    )
    np.testing.assert_allclose([item["embedding"] for item in answer.data], documents_ND, atol=CLOSE)
    ranked = litellm.rerank(
        model="cohere/tiny-reranker", query="which star", documents=TEXTS, api_base=url, api_key="unused-here"
    )
    order = np.argsort(-reranker.score("which star", TEXTS), kind="stable").tolist()
    assert [result["index"] for result in ranked.results] == order


def test_mteb_openai_wrappers(url: str, documents_ND: Any, reranker: Reranker) -> None:
    wrappers = pytest.importorskip("mteb.models.openai_wrappers")
    data = pytest.importorskip("torch.utils.data")
    mteb = pytest.importorskip("mteb")
    task = mteb.get_task("STSBenchmark").metadata
    common: dict[str, Any] = {"task_metadata": task, "hf_split": "test", "hf_subset": "default"}

    def batches(texts: list[str]) -> Any:
        return data.DataLoader([{"text": text} for text in texts], batch_size=2, collate_fn=_collate)

    for chat in (True, False):  # True is its default: each text as a conversation
        embedder = wrappers.OpenAIAPIEncodeWrapper(
            endpoint_url=url, model_name="tiny-embedding", use_chat_template=chat
        )
        np.testing.assert_allclose(embedder.encode(batches(TEXTS), **common), documents_ND, atol=CLOSE)
    scorer = wrappers.OpenAIAPIRerankWrapper(endpoint_url=url, model_name="tiny-reranker")
    scores = scorer.predict(batches(["which star"] * 3), batches(TEXTS), **common)
    np.testing.assert_allclose(scores, reranker.score("which star", TEXTS), atol=CLOSE)


def _collate(rows: list[dict[str, str]]) -> dict[str, list[str]]:
    return {"text": [row["text"] for row in rows]}
