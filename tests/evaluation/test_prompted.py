"""Other people's models in our protocols: prompts of their own, sentence-transformers, servers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from qwen3_embedding.cli import app
from qwen3_embedding.evaluation.prompted import PromptedEncoder, SentenceTransformerEncoder
from qwen3_embedding.inference.embedder import Embedder
from qwen3_embedding.inference.reranker import Reranker
from qwen3_embedding.types import Encoder
from tests.evaluation.collections import write_every_kind
from tests.support.hashing import HashEncoder


def test_prompts_stand_before_the_texts() -> None:
    inner = HashEncoder()
    encoder = PromptedEncoder(inner, "task {instruction}: ", "passage: ")
    assert isinstance(encoder, Encoder)
    assert np.array_equal(encoder.embed_queries(["a"], "find"), inner.embed_documents(["task find: a"]))
    assert np.array_equal(encoder.embed_documents(["a"], 32), inner.embed_documents(["passage: a"], 32))
    assert encoder.fingerprint != PromptedEncoder(inner, "query: ", "passage: ").fingerprint
    assert encoder.fingerprint.startswith("name:"), "still known by name alone, so the cache looks twice"
    with pytest.raises(ValueError, match="the only place to fill"):
        PromptedEncoder(inner, "{task}: ")


def test_prompts_written_here_are_the_embedders_own(embedder: Embedder) -> None:
    encoder = PromptedEncoder(embedder, "Instruct: {instruction}\nQuery:")
    wanted = embedder.embed_queries(["who?", "what?"], "Find it")
    np.testing.assert_allclose(encoder.embed_queries(["who?", "what?"], "Find it"), wanted, atol=2e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_sentence_transformers_model_is_an_encoder(embedder_folder: Path, embedder: Embedder) -> None:
    """Our own checkpoint, loaded by that library: documents must come out as ours do."""
    encoder = SentenceTransformerEncoder(str(embedder_folder), "cpu", offline=True)
    assert isinstance(encoder, Encoder)
    assert encoder.dimensions == embedder.dimensions
    np.testing.assert_allclose(encoder.embed_documents(["a", "bcd"]), embedder.embed_documents(["a", "bcd"]), atol=2e-5)
    assert encoder.embed_documents(["a"], dimensions=32).shape == (1, 32)
    assert len(encoder.fingerprint) == 64


@pytest.mark.filterwarnings("ignore")
def test_the_command_takes_servers_devices_and_other_models(
    tmp_path: Path, embedder: Embedder, reranker: Reranker, embedder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwen3_embedding.serving.server import Server
    from tests.serving.conftest import serving

    monkeypatch.chdir(tmp_path)
    tasks = write_every_kind(tmp_path / "tasks")
    run = CliRunner()

    def scores(out: str, *arguments: str) -> Any:
        done = run.invoke(app, ["evaluate", *arguments, "--out", out, "--candidates", "5", "--json", "--quiet"])
        assert done.exit_code == 0, (done.output, done.exception)
        return {task["name"]: task["scores"] for task in json.loads(done.stdout)["tasks"]}

    local = scores("local/o", str(tasks / "sts"), str(tasks / "retrieval"), "--embedder", str(embedder_folder))
    with serving(Server({"e": embedder}, {"r": reranker})) as url:
        remote = scores(
            "remote/o", str(tasks / "sts"), str(tasks / "retrieval"), "--embedder", f"{url}#e", "--reranker", url
        )
    assert remote["sts"]["embedder"] == pytest.approx(local["sts"]["embedder"], abs=1e-3)
    assert remote["retrieval"]["embedder"] == pytest.approx(local["retrieval"]["embedder"], abs=1e-6)
    assert "reranker" in remote["retrieval"]
    prompt = ["--query-prompt", "Instruct: {instruction}\nQuery:"]
    other = scores("st/o", str(tasks / "retrieval"), "--embedder", f"st:{embedder_folder}", *prompt)
    assert other["retrieval"]["embedder"] == pytest.approx(local["retrieval"]["embedder"], abs=1e-6)
    table = ["--table", "results.md", "--beside", "ST=st/o"]
    scores("local/o", str(tasks / "sts"), str(tasks / "retrieval"), "--embedder", str(embedder_folder), *table)
    page = (tmp_path / "results.md").read_text()
    assert "| ST |" in page
    assert f"ST: {embedder_folder.name}, the same sets" in page
    assert str(embedder_folder) not in page
    for wrong, message in (
        ([], "wanted folders of tasks, or --benchmark NAME"),
        ([str(tasks), "--benchmark", "MLDR"], "wanted folders of tasks, or --benchmark NAME"),
        (
            ["--benchmark", "MLDR", "--rerank-weight", "0.3", "--split", "dev"],
            "--rerank-weight, --split: not taken with --benchmark",
        ),
        ([str(tasks), "--policy", "mteb"], "--policy: not taken without --benchmark"),
    ):
        refused = run.invoke(app, ["evaluate", *wrong]).exception
        assert isinstance(refused, ValueError)
        assert message in str(refused)
