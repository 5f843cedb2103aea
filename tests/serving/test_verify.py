"""``verify --url``: our server passes, and servers with the classic mistakes are told what theirs is.

The wrong servers are small FastAPI applications around the bundled nano models; the path before the routes says the
mistake: ``/mean/v1/embeddings`` pools by the mean.
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import uvicorn
from fastapi import FastAPI, HTTPException, Request

from qwen3_embedding import Embedder, Reranker
from qwen3_embedding.cli.verify import command
from qwen3_embedding.errors import RemoteError
from qwen3_embedding.serving.anyserver import AnyServer
from qwen3_embedding.serving.mistakes import document_variants, score_variants
from qwen3_embedding.serving.verify import Finding, Reference, load_reference, verify_server

NANO = ("nano-embedding", "nano-reranker")


@pytest.fixture(scope="module")
def nano() -> Reference:
    return load_reference(NANO)


class Wrong:
    """Vectors and scores of the nano models, with the mistake asked for."""

    def __init__(self, embedder: Embedder, reranker: Reranker) -> None:
        self.embedder, self.reranker = embedder, reranker

    def vectors(self, how: str, texts: list[str], limit: int | None = None) -> Any:
        ids, end = self.embedder.tokenizer.token_ids(texts), self.embedder.tokenizer.end_id
        if how == "prompted":
            return self.embedder.embed_queries(texts)
        if how in ("mean", "first"):
            name = {"mean": "mean pooling instead", "first": "pooling of the first"}[how]
            return next(rows() for key, rows in document_variants(self.embedder, texts).items() if key.startswith(name))
        if how == "noend":
            return self.embedder.embed_tokens([one or [end] for one in ids])
        if how == "chatend":
            return self.embedder.embed_tokens([[*one, self.reranker.tokenizer.reranker_suffix_ids[0]] for one in ids])
        if how in ("left", "right64"):
            return self.embedder.embed_tokens([[*(one[-63:] if how == "left" else one[:63]), end] for one in ids])
        if limit is not None:
            return self.embedder.embed_tokens([cut(how, one, end, limit) for one in ids])
        if how == "padded":  # to the longest, and the padding is read
            longest = max(map(len, ids))
            pad = self.embedder.tokenizer.token_ids(["pad"])[0][0]
            return self.embedder.embed_tokens([[*one, *[pad] * (longest - len(one)), end] for one in ids])
        rows = self.embedder.embed_documents(texts)
        if how == "sorted":
            return rows[np.argsort([-len(text) for text in texts], kind="stable")]
        return rows * 3 if how == "long" else rows

    def scores(self, how: str, query: str, documents: list[str]) -> Any:
        right = self.reranker.score(query, documents).astype(np.float64)
        odds = np.log(right / (1 - right))
        named = {
            "bare": "the template is missing: query and document stand bare",
            "noprefix": "the template's beginning (system message) is missing",
            "nosuffix": "the template's end (assistant, closed thought) is missing",
            "blank": "blank lines stand between the template's fields",
            "notask": "the instruction is left out",
        }
        if how in named:
            return score_variants(self.reranker, query, documents)[named[how]]()
        if how == "no":
            return 1 - right
        if how == "odds":
            return odds
        if how == "softmax":
            weights = np.exp(odds - odds.max())
            return weights / weights.sum()
        return right


def cut(how: str, ids: list[int], end: int, limit: int) -> list[int]:
    whole = [*ids, end]
    if how == "cutleft":
        return whole[-limit:]
    return whole[:limit] if how == "cutend" else [*ids[: limit - 1], end]


RERANKING = "bare noprefix nosuffix blank notask no odds softmax unsorted notop scoresorted".split()  # noqa: SIM905
BOTH = ["right", "tei", "scoreright"]


def application(wrong: Wrong) -> FastAPI:
    """Routes for the mistakes; one of an embedder comes without a reranker, and the other way round."""
    app = FastAPI()

    def only(there: bool) -> None:
        if not there:
            raise HTTPException(404, "Not Found")

    @app.post("/{how}/v1/embeddings")
    async def embeddings(how: str, request: Request) -> dict[str, Any]:
        only(not how.startswith("tei") and how not in RERANKING)
        body = await request.json()
        size = body.get("dimensions")
        if how == "nodims" and size:
            raise HTTPException(400, "Model does not support matryoshka representation")
        rows = wrong.vectors(how, body["input"], body.get("truncate_prompt_tokens"))
        if size and how != "alldims":
            rows = rows[:, -size:] if how == "lastdims" else rows[:, :size]
            if how != "shortdims":
                rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        items: list[Any] = rows.astype(float).tolist()
        if body.get("encoding_format") == "base64":
            kind = {"bigend": ">f4", "double": "<f8"}.get(how, "<f4")
            items = [base64.b64encode(row.astype(kind).tobytes()).decode() for row in rows]
        return {"data": [{"index": i, "embedding": item} for i, item in enumerate(items)], "model": "nano"}

    @app.post("/{how}/embed")
    async def tei(how: str, request: Request) -> Any:
        only(how.startswith("tei"))
        body = await request.json()
        if body.get("prompt_name") == "query" and how != "teinoprompt":
            return wrong.embedder.embed_queries(body["inputs"]).tolist()
        rows = wrong.vectors(how, body["inputs"])[:, : body.get("dimensions")]
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).tolist()

    @app.post("/{how}/v1/rerank")
    async def rerank(how: str, request: Request) -> dict[str, Any]:
        only(how in RERANKING + BOTH and not how.startswith("score"))
        body = await request.json()
        scores = wrong.scores(how, body["query"], body["documents"])
        order = np.arange(len(scores)) if how == "unsorted" else np.argsort(-scores, kind="stable")
        if body.get("top_n") and how != "notop":
            order = order[: body["top_n"]]
        return {"results": [{"index": int(i), "relevance_score": float(scores[i])} for i in order]}

    @app.post("/{how}/score")
    async def score(how: str, request: Request) -> dict[str, Any]:
        only(how.startswith("score"))
        body = await request.json()
        scores = wrong.scores(how, body["text_1"], body["text_2"])
        order = np.argsort(-scores) if how == "scoresorted" else np.arange(len(scores))
        return {"data": [{"index": int(i), "score": float(scores[i])} for i in order]}

    return app


@pytest.fixture(scope="module")
def wrong_url(nano: Reference) -> Iterator[str]:
    assert nano.embedder is not None
    assert nano.reranker is not None
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    app = application(Wrong(nano.embedder, nano.reranker))
    process = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    thread = threading.Thread(target=lambda: asyncio.run(process.serve(sockets=[listener])), daemon=True)
    thread.start()
    while not process.started:
        time.sleep(0.005)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    process.should_exit = True
    thread.join(30)
    listener.close()


def ask(url: str, reference: Reference) -> dict[str, Finding]:
    with AnyServer(url) as server:
        return {finding.name: finding for finding in verify_server(server, reference)}


def failures(found: dict[str, Finding]) -> list[Finding]:
    return [finding for finding in found.values() if finding.outcome == "fail"]


def test_our_server_passes(url: str, embedder: Embedder, reranker: Reranker) -> None:
    found = ask(url, Reference(embedder, reranker))
    assert failures(found) == []
    assert sum(finding.outcome == "pass" for finding in found.values()) >= 16
    assert [finding.name for finding in found.values() if finding.outcome == "skip"] == []


def test_our_server_passes_without_a_reference(url: str) -> None:
    found = ask(url + "/v1/", Reference())
    assert failures(found) == []
    assert sum(finding.outcome == "skip" for finding in found.values()) == 3
    assert all("--against" in finding.got for finding in found.values() if finding.outcome == "skip")


def test_a_right_server_of_another_make_passes(wrong_url: str, nano: Reference) -> None:
    for how in ("right", "nodims", "tei", "scoreright"):
        found = ask(f"{wrong_url}/{how}", nano)
        assert failures(found) == [], how
        assert sum(finding.outcome == "pass" for finding in found.values()) >= (8 if how == "nodims" else 13)


@pytest.mark.parametrize(
    ("how", "name", "cause"),
    [
        ("noend", "documents", "the end token <|endoftext|> is missing"),
        ("chatend", "documents", "the end token is <|im_end|>, not <|endoftext|>"),
        ("mean", "documents", "mean pooling instead of the last token"),
        ("first", "documents", "pooling of the first token instead of the last"),
        ("prompted", "documents", "documents get the query's instruction"),
        ("long", "vectors are finite", "does not normalise"),
        ("padded", "a vector alone and in a batch", "padding leaks"),
        ("sorted", "vectors come in the order asked", "does not sort back"),
        ("left", "texts of 700 words", "the beginning is cut"),
        ("right64", "texts of 700 words", "a low length limit, and the end cut in silence"),
        ("cutleft", "a text cut on request", "the beginning is cut"),
        ("cutend", "a text cut on request", "the end token is lost"),
        ("alldims", "dimensions", "dimensions is ignored"),
        ("shortdims", "dimensions", "not normalised again"),
        ("lastdims", "dimensions", "the components are not the first ones"),
        ("bigend", "base64", "bytes in the wrong order"),
        ("double", "base64", "not float32"),
        ("teinoprompt", "instruction for queries", "prompt_name=query is taken but not applied"),
        ("bare", "scores are as", "the template is missing: query and document stand bare"),
        ("noprefix", "scores are as", "the template's beginning (system message) is missing"),
        ("nosuffix", "scores are as", "the template's end (assistant, closed thought) is missing"),
        ("blank", "scores are as", "blank lines stand between the template's fields"),
        ("notask", "scores are as", "the instruction is left out"),
        ("no", "scores are as", "the probability of 'no'"),
        ("odds", "scores are probabilities", "apply the sigmoid"),
        ("softmax", "a score alone and in a list", "a softmax over the documents"),
        ("unsorted", "results best first", "not sorted"),
        ("notop", "top_n", "top_n is ignored"),
        ("scoresorted", "results in the order asked", "sorted by score"),
    ],
)
def test_a_mistake_is_named(wrong_url: str, nano: Reference, how: str, name: str, cause: str) -> None:
    failed = failures(ask(f"{wrong_url}/{how}", nano))
    assert any(finding.name.startswith(name) and cause in finding.cause for finding in failed), failed
    for finding in failed:
        assert finding.got
        assert finding.wanted
        assert finding.cause


def test_other_weights_are_no_known_mistake(wrong_url: str, embedder: Embedder, reranker: Reranker) -> None:
    found = ask(f"{wrong_url}/right", Reference(embedder, reranker))
    assert found["embeddings"].cause.startswith("another model")
    assert any("no classic mistake" in finding.cause for finding in failures(found))


def test_what_answers_nothing_is_told(wrong_url: str) -> None:
    with AnyServer(f"{wrong_url}/right/deeper/still") as server:
        [finding] = verify_server(server, Reference())
    assert (finding.outcome, finding.name) == ("fail", "speaks a known dialect")
    with AnyServer("http://127.0.0.1:9") as server, pytest.raises(RemoteError, match="Connect"):
        verify_server(server, Reference())
    with pytest.raises(ValueError, match="http://"):
        AnyServer("localhost:8080")
    with pytest.raises(ValueError, match="two models to compare with are embedders"):
        load_reference(["nano-embedding", "nano-embedding"])


def test_command_line(
    wrong_url: str, url: str, embedder_folder: Path, reranker_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(url=url, against=[str(embedder_folder), str(reranker_folder)], as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["passed"] is True
    assert {check["outcome"] for check in told["checks"]} == {"pass"}
    with pytest.raises(typer.Exit) as stop:
        command(url=f"{wrong_url}/mean", against=["nano-embedding"])
    assert stop.value.exit_code == 1
    assert "likely cause: mean pooling instead of the last token" in capsys.readouterr().out
    with pytest.raises(ValueError, match="one of the two"):
        command()
    with pytest.raises(RemoteError, match="Connect"):
        command(url="http://127.0.0.1:9")
