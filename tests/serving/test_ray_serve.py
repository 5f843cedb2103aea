"""Two replicas on one machine behind Ray Serve's proxy (where ``ray[serve]`` is installed)."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
from pydantic import ValidationError

from qwen3_embedding.serving.ray import Arguments, build, make_server

if TYPE_CHECKING:
    from qwen3_embedding import Embedder, Reranker

TEXTS = ["one text", "größer 漢字 🦊"]


@pytest.fixture(scope="module")
def replicas(embedder_folder: Path, reranker_folder: Path) -> Iterator[str]:
    try:
        import ray
        from ray import serve
    except ImportError:
        pytest.skip("ray[serve] is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        arguments = Arguments.model_validate(
            {
                "embedders": f"tiny={embedder_folder}",
                "rerankers": [f"judge={reranker_folder}"],
                "replicas": 2,
                "cpus": 0.5,
            }
        )
        serve.run(build(arguments), name="qwen3", route_prefix="/")
        yield f"http://127.0.0.1:{port}"
        serve.shutdown()
    finally:
        ray.shutdown()


@pytest.mark.filterwarnings("ignore")
def test_replicas_give_the_offline_numbers(replicas: str, embedder: Embedder, reranker: Reranker) -> None:
    with httpx.Client(base_url=replicas, timeout=60) as client:
        wanted = embedder.embed_documents(TEXTS)
        for _ in range(8):  # both replicas
            answer = client.post("/v1/embeddings", json={"input": TEXTS}, headers={"x-request-id": "mine-7"})
            got = [item["embedding"] for item in answer.json()["data"]]
            np.testing.assert_allclose(got, wanted, atol=2e-5)
            assert answer.headers["x-request-id"] == "mine-7"
        ranked = client.post("/rerank", json={"query": "q", "texts": TEXTS}).json()
        scores = [item["score"] for item in sorted(ranked, key=lambda item: int(item["index"]))]
        np.testing.assert_allclose(scores, reranker.score("q", TEXTS), atol=2e-5)
        assert client.post("/embed", json={"inputs": []}).status_code == 400
        assert client.get("/health").status_code == 200


def test_arguments_are_read_from_words_and_unknown_ones_refused(embedder_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("team=correct-horse\n")
    arguments = Arguments.model_validate(
        {"embedders": f"a={embedder_folder},b={embedder_folder}", "api_key_file": str(tmp_path / "keys")}
    )
    server = make_server(arguments)
    try:
        assert list(server.embedders) == ["a", "b"]
        assert server.keys.required
    finally:
        server.close()
    with pytest.raises(ValidationError, match="embeders"):
        Arguments.model_validate({"embeders": "x"})
