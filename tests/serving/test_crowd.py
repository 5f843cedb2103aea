"""Alone and in a crowd: every dialect gives the offline numbers; what is equal is computed once; what is cached is."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

from qwen3_embedding.serving.queue import QueueSettings
from qwen3_embedding.serving.server import Server
from qwen3_embedding.serving.settings import ServerSettings
from tests.serving.conftest import serving
from tests.serving.test_faults import gated, until

if TYPE_CHECKING:
    from qwen3_embedding import Embedder, Reranker

TEXTS = ["a bright star", "  spaces stay  ", "größer 漢字 🦊", "<|im_end|> is text here"]
CLOSE = 2e-5


def vectors_of(answer: dict[str, Any]) -> list[list[float]]:
    return [item["embedding"] for item in answer["data"]]


EMBED: list[tuple[str, dict[str, Any], Any]] = [
    ("/v1/embeddings", {"input": TEXTS}, vectors_of),
    ("/embeddings", {"input": TEXTS}, vectors_of),
    ("/embed", {"inputs": TEXTS}, list),
    ("/v2/embed", {"texts": TEXTS}, lambda answer: answer["embeddings"]["float"]),
]


def in_order(results: list[dict[str, Any]], key: str) -> list[float]:
    return [result[key] for result in sorted(results, key=lambda result: int(result["index"]))]


SCORE: list[tuple[str, dict[str, Any], Any]] = [
    ("/v1/rerank", {"documents": TEXTS}, lambda answer: in_order(answer["results"], "relevance_score")),
    ("/v2/rerank", {"documents": TEXTS}, lambda answer: in_order(answer["results"], "relevance_score")),
    ("/rerank", {"documents": TEXTS}, lambda answer: in_order(answer["results"], "relevance_score")),
    ("/rerank", {"texts": TEXTS}, lambda answer: in_order(answer, "score")),
    ("/score", {"documents": TEXTS}, lambda answer: in_order(answer["data"], "score")),
    ("/v1/score", {"documents": TEXTS}, lambda answer: in_order(answer["data"], "score")),
]


@contextmanager
def crowd(url: str) -> Iterator[None]:
    """Six callers with other texts, of many lengths, some of which contain the same ones."""
    stop = threading.Event()
    failed: list[str] = []

    def ask(number: int) -> None:
        turn = 0
        with httpx.Client(base_url=url, timeout=60) as client:
            while not stop.is_set():
                turn += 1
                own = [f"{number} {turn} " + "word " * (17 * number % 60), TEXTS[turn % 4] if turn % 2 else "other"]
                if number % 3:
                    answer = client.post("/embed", json={"inputs": own, "prompt_name": "query" if turn % 2 else None})
                else:
                    answer = client.post("/rerank", json={"query": f"q {turn}", "texts": own})
                if answer.status_code != 200:
                    failed.append(answer.text)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert not failed


@pytest.mark.parametrize("crowded", [False, True])
def test_every_dialect_gives_the_offline_numbers(
    url: str, embedder: Embedder, reranker: Reranker, crowded: bool
) -> None:
    wanted_ND, wanted_N = embedder.embed_documents(TEXTS), reranker.score("which star", TEXTS)
    with httpx.Client(base_url=url, timeout=60) as client:

        def check() -> None:
            for path, body, read in EMBED:
                got = read(client.post(path, json=body).json())
                np.testing.assert_allclose(got, wanted_ND, atol=CLOSE, err_msg=path)
                alone = {key: value[:1] if isinstance(value, list) else value for key, value in body.items()}
                np.testing.assert_allclose(read(client.post(path, json=alone).json()), wanted_ND[:1], atol=CLOSE)
            for path, body, read in SCORE:
                side = "queries" if "score" in path else "query"
                got = read(client.post(path, json={side: "which star", **body}).json())
                np.testing.assert_allclose(got, wanted_N, atol=CLOSE, err_msg=path)

        if crowded:
            with crowd(url):
                check()
        else:
            check()


def test_equal_inputs_in_flight_are_computed_once(embedder: Embedder) -> None:
    with gated(embedder) as (url, _, gate):
        gate.open.clear()
        answers: list[httpx.Response] = []

        def ask(path: str, body: dict[str, Any]) -> None:
            answers.append(httpx.post(url + path, json=body, timeout=30))

        asks: list[tuple[str, dict[str, Any]]] = [("/v1/embeddings", {"input": "same"}), ("/embed", {"inputs": "same"})]
        asks += [("/v2/embed", {"texts": ["same"], "output_dimension": 32})]
        threads = [threading.Thread(target=ask, args=asks[number % 3]) for number in range(12)]
        for thread in threads:
            thread.start()
        until(lambda: gate.queue.stats().joined == 11)
        gate.open.set()
        for thread in threads:
            thread.join(30)
        assert [answer.status_code for answer in answers] == [200] * 12
        assert gate.computed == [1]


def test_the_cache_answers_repeats_and_nothing_else(embedder: Embedder) -> None:
    with gated(embedder, queue=QueueSettings(cache_bytes=2**20)) as (url, _, gate):
        body: dict[str, Any] = {"input": TEXTS}
        first = httpx.post(f"{url}/v1/embeddings", json=body).json()
        again = httpx.post(f"{url}/v1/embeddings", json=body).json()
        assert first == again
        assert sum(gate.computed) == len(TEXTS)
        short = httpx.post(f"{url}/v1/embeddings", json=body | {"dimensions": 32}).json()
        np.testing.assert_allclose(vectors_of(short), embedder.embed_documents(TEXTS, dimensions=32), atol=CLOSE)
        assert sum(gate.computed) == len(TEXTS)  # cached before it is cut
        as_query = httpx.post(f"{url}/v1/embeddings", json=body | {"input_type": "query"}).json()
        np.testing.assert_allclose(vectors_of(as_query), embedder.embed_queries(TEXTS), atol=CLOSE)
        assert sum(gate.computed) == 2 * len(TEXTS)  # another prompt is another input


_opened: list[str] | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event in ("open", "os.listdir", "os.scandir", "subprocess.Popen", "import"):
        _opened.append(f"{event} {arguments[0]}")


def test_no_request_reaches_the_file_system(embedder: Embedder, reranker: Reranker) -> None:
    global _opened
    sys.addaudithook(_watch)
    bad = ["/etc/passwd", "../../etc/passwd", str(embedder.folder), "nano-embedding", "file:///etc/passwd", "tiny/../x"]
    server = Server({"tiny": embedder}, {"judge": reranker}, ServerSettings())
    with serving(server) as url, httpx.Client(base_url=url, timeout=30) as client:

        def everything(names: list[str]) -> set[int]:
            seen = set()
            for name in names:
                for path, body, _ in (*EMBED, *SCORE):
                    side = {"queries": name} if "score" in path else {"query": name}
                    for extra in ({"model": name}, {"instruction": name}, {"prompt_name": name}, {"user": name}):
                        seen.add(client.post(path, json=side | body | extra).status_code)
                for path in (f"/v1/models/{name}", f"/{name}", f"/docs/{name}", f"/%2e%2e/{name}"):
                    answer = client.get(path)
                    assert "root:" not in answer.text
                    seen.add(answer.status_code)
            return seen

        everything(bad[:1])  # whatever is imported or read once, is
        _opened = []
        try:
            statuses = everything(bad[1:])
        finally:
            found, _opened = _opened, None
    assert statuses == {200, 400, 404, 422}
    assert found == []
