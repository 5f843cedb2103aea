"""Checkpoints: every layout in, the published layout out, and clear words for what is broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from qwen3_embedding.errors import CheckpointError
from qwen3_embedding.model.config import read_config
from qwen3_embedding.model.weights import Layout, fingerprint, load_backbone, read_tensor, save_weights, yes_no_head
from tests.support.checkpoints import make_embedder_folder, make_reranker_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_embedder_folder(tmp_path / "model")


def state(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_backbone(folder)[0].state_dict())


def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors")


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("prefix", ["", "model.", "model.model."])
def test_both_key_styles_and_the_doubled_one(folder: Path, prefix: str) -> None:
    wanted = state(folder)
    rewrite(folder, {prefix + name: tensor for name, tensor in wanted.items()})
    for name, tensor in state(folder).items():
        assert torch.equal(tensor, wanted[name])


def test_shards_are_read_and_written(folder: Path) -> None:
    wanted = {name: tensor.clone() for name, tensor in state(folder).items()}
    save_weights(folder, wanted, Layout(prefix="model.", shard_bytes=200_000))
    assert not (folder / "model.safetensors").exists()
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    for name, tensor in state(folder).items():
        assert torch.equal(tensor, wanted[name])
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(loaded.model.embed_tokens.weight, wanted["embed_tokens.weight"])


@pytest.mark.parametrize("vocab", [3290, 3283, 4000])
def test_any_number_of_embedding_rows(tmp_path: Path, vocab: int) -> None:
    folder = make_embedder_folder(tmp_path / "m", vocab_size=vocab)
    assert load_backbone(folder)[0].config.vocab_size == vocab


def test_a_config_of_transformers_five(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    for key in ("rope_theta", "rope_scaling", "torch_dtype"):
        raw.pop(key)
    raw |= {"rope_parameters": {"rope_theta": 12345.0, "rope_type": "default"}, "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(raw))
    assert read_config(folder).rope_theta == 12345.0


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    folder = make_reranker_folder(tmp_path / "r")
    backbone, extra = load_backbone(folder)
    head = yes_no_head(backbone, extra, 1, 2, folder)
    assert torch.equal(head.weight[1], backbone.embed_tokens.weight[2])


def test_a_separate_head(tmp_path: Path) -> None:
    folder = make_reranker_folder(tmp_path / "r")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = torch.randn(tensors["model.embed_tokens.weight"].shape)
    rewrite(folder, tensors)
    edit_config(folder, tie_word_embeddings=False)
    backbone, extra = load_backbone(folder)
    head = yes_no_head(backbone, extra, 1, 2, folder)
    assert torch.equal(head.weight, tensors["lm_head.weight"][[1, 2]])


@pytest.mark.parametrize("rows", [1, 2])
def test_a_head_converted_to_classification(tmp_path: Path, rows: int) -> None:
    folder = make_reranker_folder(tmp_path / "r")
    tensors = load_file(folder / "model.safetensors")
    table = tensors["model.embed_tokens.weight"]
    tensors["score.weight"] = table[[1, 2]].clone() if rows == 2 else (table[2] - table[1])[None].clone()
    rewrite(folder, tensors)
    backbone, extra = load_backbone(folder)
    pooled = torch.randn(5, table.shape[1])
    wanted = pooled @ (table[2] - table[1])
    torch.testing.assert_close(yes_no_head(backbone, extra, 1, 2, folder)(pooled), wanted)


def test_untied_without_a_head_is_no_reranker(folder: Path) -> None:
    edit_config(folder, tie_word_embeddings=False)
    backbone, extra = load_backbone(folder)
    with pytest.raises(CheckpointError, match=r"no lm_head\.weight"):
        yes_no_head(backbone, extra, 1, 2, folder)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        load_backbone(tmp_path / "nothing")


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no weights; wanted model\.safetensors"):
        load_backbone(folder)


def test_a_pickle_is_not_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="is a pickle and is not read"):
        load_backbone(folder)


@pytest.mark.parametrize("keep", [0, 7, 5000])
def test_a_truncated_file(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_backbone(folder)


def test_a_missing_tensor(folder: Path) -> None:
    tensors = state(folder)
    del tensors["layers.1.mlp.up_proj.weight"]
    rewrite(folder, tensors)
    with pytest.raises(CheckpointError, match=r"lack layers\.1\.mlp\.up_proj\.weight"):
        load_backbone(folder)


def test_a_foreign_tensor(folder: Path) -> None:
    rewrite(folder, {**state(folder), "layers.0.self_attn.q_proj.bias": torch.zeros(128)})
    with pytest.raises(CheckpointError, match="belongs to no Qwen3 backbone"):
        load_backbone(folder)


def test_a_wrong_shape(folder: Path) -> None:
    edit_config(folder, intermediate_size=96)
    with pytest.raises(CheckpointError, match=r"has shape \(160, 64\); config\.json asks for \(96, 64\)"):
        load_backbone(folder)


def test_a_wrong_type(folder: Path) -> None:
    tensors = state(folder)
    tensors["norm.weight"] = torch.ones(64, dtype=torch.int32)
    rewrite(folder, tensors)
    with pytest.raises(CheckpointError, match=r"norm\.weight is torch\.int32"):
        load_backbone(folder)


def test_an_index_that_names_a_missing_file(folder: Path) -> None:
    save_weights(folder, {k: v.clone() for k, v in state(folder).items()}, Layout(shard_bytes=200_000))
    next(iter(folder.glob("model-00001-*"))).unlink()
    with pytest.raises(CheckpointError, match="the index names this file and it is missing"):
        load_backbone(folder)


def test_an_index_cannot_leave_the_folder(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"norm.weight": "../x.safetensors"}})
    )
    with pytest.raises(CheckpointError, match="outside the folder"):
        load_backbone(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"hidden_size": "wide"}, "invalid literal"),
    ],
)
def test_configs_that_this_backbone_does_not_run(folder: Path, changes: dict, message: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        read_config(folder)


def test_the_fingerprint_follows_the_weights(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    assert fingerprint(folder) == fingerprint(tmp_path / "copy")
    other = make_embedder_folder(tmp_path / "other", seed=3)
    assert fingerprint(folder) != fingerprint(other)


def test_one_tensor_is_read_by_its_plain_name(folder: Path, reranker_folder: Path) -> None:
    assert torch.equal(read_tensor(folder, "norm.weight"), load_backbone(folder)[0].norm.weight)
    written = load_file(reranker_folder / "model.safetensors")
    assert torch.equal(read_tensor(reranker_folder, "norm.weight"), written["model.norm.weight"])
    with pytest.raises(CheckpointError, match=r"no tensor head\.weight"):
        read_tensor(folder, "head.weight")
