"""LoRA adapters as models of their own: PEFT's numbers, one base in memory, nothing that the operator did not name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from qwen3_embedding import Embedder, Reranker
from qwen3_embedding.errors import CheckpointError
from qwen3_embedding.inference.adapters import with_adapter
from qwen3_embedding.serving.models import LoadSettings, find_models
from qwen3_embedding.serving.processes import WorkerPool
from qwen3_embedding.serving.server import Server
from qwen3_embedding.serving.settings import ServerSettings
from tests.serving.conftest import serving

peft = pytest.importorskip("peft")

TEXTS = ["a bright star", "größer 漢字 🦊"]


def write_adapter(base: Path, folder: Path, seed: int, causal: bool = False, **options: Any) -> Any:
    """A random adapter, written by PEFT itself; gives PEFT's model."""
    kind = transformers.Qwen3ForCausalLM if causal else transformers.Qwen3Model
    model = kind.from_pretrained(base, dtype=torch.float32)
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]} | options
    config["task_type"] = "CAUSAL_LM" if causal else "FEATURE_EXTRACTION"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = peft.get_peft_model(model, peft.LoraConfig(**config))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model.eval()


@pytest.fixture(scope="module")
def adapters(embedder_folder: Path, reranker_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    write_adapter(embedder_folder, folder / "french", 1)
    write_adapter(embedder_folder, folder / "legal", 2)
    write_adapter(reranker_folder, folder / "judge", 3, causal=True)
    return folder


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 16}}]
)
def test_an_adapter_gives_pefts_vectors(embedder_folder: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    reference = write_adapter(embedder_folder, tmp_path / "adapter", 7, **options)
    base = Embedder.from_pretrained(embedder_folder, "cpu")
    before = base.embed_documents(TEXTS)
    ours = with_adapter(base, tmp_path / "adapter", "adapted")
    rows = []
    for ids in ours.tokenizer.encode_documents(TEXTS).ids:
        with torch.no_grad():
            hidden = reference(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        rows.append(torch.nn.functional.normalize(hidden, dim=0).numpy())
    np.testing.assert_allclose(ours.embed_documents(TEXTS), np.stack(rows), atol=2e-5)
    np.testing.assert_array_equal(base.embed_documents(TEXTS), before)
    assert np.abs(before - np.stack(rows)).max() > 0.01
    own = sum(p.numel() for n, p in ours.backbone.named_parameters() if n.endswith((".down", ".up")))
    theirs = {parameter.data_ptr() for parameter in base.backbone.parameters()}
    shared = sum(p.numel() for p in ours.backbone.parameters() if p.data_ptr() in theirs)
    assert shared == sum(p.numel() for p in base.backbone.parameters())
    assert own < shared / 10


@pytest.mark.parametrize("processes", [False, True])
def test_all_are_served_by_name(embedder_folder: Path, reranker_folder: Path, adapters: Path, processes: bool) -> None:
    named = [f"french={adapters / 'french'}", f"legal=base:{adapters / 'legal'}", f"judge={adapters / 'judge'}"]
    specs = find_models([f"base={embedder_folder}"], [f"rank={reranker_folder}"], named)
    load = LoadSettings(device="cpu")
    server = (
        Server.over(WorkerPool(specs, load, ["cpu"]), specs, ServerSettings())
        if processes
        else Server.load(specs, load, ServerSettings())
    )
    embedder, reranker = Embedder.from_pretrained(embedder_folder, "cpu"), Reranker.from_pretrained(reranker_folder)
    with serving(server) as url, httpx.Client(base_url=url, timeout=60) as client:
        listed = [model["id"] for model in client.get("/v1/models").json()["data"]]
        assert listed == ["base", "french", "legal", "rank", "judge"]
        seen = []
        for name in ("base", "french", "legal"):
            answer = client.post("/v1/embeddings", json={"input": TEXTS, "model": name})
            vectors = np.asarray([item["embedding"] for item in answer.json()["data"]])
            alone = embedder if name == "base" else with_adapter(embedder, adapters / name, name)
            np.testing.assert_allclose(vectors, alone.embed_documents(TEXTS), atol=2e-5)
            seen.append(vectors)
        assert np.abs(seen[0] - seen[1]).max() > 0.01
        assert np.abs(seen[1] - seen[2]).max() > 0.01
        query = client.post("/v1/embeddings", json={"input": TEXTS, "model": "french:query"}).json()["data"]
        french = with_adapter(embedder, adapters / "french", "french")
        np.testing.assert_allclose([item["embedding"] for item in query], french.embed_queries(TEXTS), atol=2e-5)
        ranked = client.post("/rerank", json={"query": "q", "texts": TEXTS, "model": "judge"}).json()
        scores = [item["score"] for item in sorted(ranked, key=lambda item: int(item["index"]))]
        judge = with_adapter(reranker, adapters / "judge", "judge")
        np.testing.assert_allclose(scores, judge.score("q", TEXTS), atol=2e-5)
        for name in (str(adapters / "french"), str(embedder_folder), "nano-embedding", "../french", "judge"):
            refused = client.post("/v1/embeddings", json={"input": "x", "model": name})
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")


def test_what_is_no_adapter_of_the_base_is_refused(embedder_folder: Path, adapters: Path, tmp_path: Path) -> None:
    base = Embedder.from_pretrained(embedder_folder, "cpu")

    def spoiled(name: str, **config: Any) -> Path:
        folder = tmp_path / name
        shutil.copytree(adapters / "french", folder)
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return folder

    with pytest.raises(CheckpointError, match="use_dora"):
        with_adapter(base, spoiled("dora", use_dora=True), "x")
    with pytest.raises(CheckpointError, match="peft_type=IA3"):
        with_adapter(base, spoiled("ia3", peft_type="IA3"), "x")
    wide = spoiled("wide")
    tensors = load_file(wide / "adapter_model.safetensors")
    save_file({name: torch.zeros(4, 999) if "lora_A" in name else value for name, value in tensors.items()},
              wide / "adapter_model.safetensors")  # fmt: skip
    with pytest.raises(CheckpointError, match="another base"):
        with_adapter(base, wide, "x")
    other = spoiled("other")
    (other / "base.json").write_text('{"fingerprint": "0"}')
    with pytest.raises(CheckpointError, match="fingerprints differ"):
        with_adapter(base, other, "x")
    with pytest.raises(CheckpointError, match="PEFT"):
        with_adapter(base, tmp_path, "x")
    with pytest.raises(ValueError, match="float type"):
        with_adapter(Embedder.from_pretrained(embedder_folder, "cpu", "int8"), adapters / "french", "x")


@pytest.mark.parametrize(
    ("adapter", "word"),
    [("french", "has no name"), ("x=nowhere", "no adapter_config.json"), ("x={judge}", "needs a reranker")],
)
def test_adapters_that_cannot_be_named(embedder_folder: Path, adapters: Path, adapter: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        find_models([f"base={embedder_folder}"], [], [adapter.format(judge=adapters / "judge")])
    with pytest.raises(ValueError, match="two models"):
        find_models([f"base={embedder_folder}"], [], [f"base={adapters / 'french'}"])
