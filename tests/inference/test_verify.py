"""``verify`` passes what is whole and names what is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen3_embedding.errors import ModelNotFoundError
from qwen3_embedding.inference.verify import PUBLISHED_PARAMETERS, kind_of, verify
from qwen3_embedding.model.config import BackboneConfig
from tests.support.checkpoints import make_embedder_folder, make_reranker_folder


def test_whole_checkpoints_pass(embedder_folder: Path, reranker_folder: Path) -> None:
    for folder, kind in ((embedder_folder, "embedder"), (reranker_folder, "reranker")):
        assert kind_of(folder) == kind
        checks = verify(folder)
        assert len(checks) >= 9
        assert [check for check in checks if check.outcome == "fail"] == []


def test_a_tokenizer_that_misleads_other_engines_fails(tmp_path: Path) -> None:
    embedder, reranker = make_embedder_folder(tmp_path / "e"), make_reranker_folder(tmp_path / "r")
    with_end = (embedder / "tokenizer.json").read_text()
    (embedder / "tokenizer.json").write_text((reranker / "tokenizer.json").read_text())
    (reranker / "tokenizer.json").write_text(with_end)
    for folder, got in ((embedder, "nothing behind a text"), (reranker, "the end token behind every text")):
        (failed,) = (check for check in verify(folder) if check.outcome == "fail")
        assert failed.name == "tokenizer.json for other engines"
        assert failed.got == f"it puts {got}"


def test_broken_weights_fail(tmp_path: Path) -> None:
    folder = make_embedder_folder(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors["layers.0.mlp.up_proj.weight"][3, 3] = torch.inf
    save_file(tensors, folder / "model.safetensors")
    failed = {check.name for check in verify(folder) if check.outcome == "fail"}
    assert failed & {"all weights finite", "loads"}


def test_a_torn_folder_fails_with_the_reason(tmp_path: Path) -> None:
    folder = make_embedder_folder(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    (check,) = verify(folder)
    assert (check.name, check.outcome) == ("loads", "fail")
    assert "tokenizer.json" in check.got


def test_one_that_only_has_the_name_fails(tmp_path: Path) -> None:
    folder = make_embedder_folder(tmp_path / "Qwen3-Embedding-0.6B")
    failed = {check.name for check in verify(folder) if check.outcome == "fail"}
    assert {"shape", "token ids", "similarities of the model card"} <= failed


def test_no_such_model() -> None:
    with pytest.raises(ModelNotFoundError):
        verify("absent", offline=True)


def test_the_parameter_counts_of_the_family() -> None:
    shapes = [
        BackboneConfig(151669, 1024, 3072, 28, 16, 8),
        BackboneConfig(151665, 2560, 9728, 36, 32, 8),
        BackboneConfig(151665, 4096, 12288, 36, 32, 8),
        BackboneConfig(151669, 2560, 9728, 36, 32, 8),
        BackboneConfig(151669, 4096, 12288, 36, 32, 8),
    ]
    assert [shape.parameters for shape in shapes] == list(PUBLISHED_PARAMETERS)
    assert shapes[4].parameters + 151669 * 4096 == 8_188_548_096  # with its separate head
