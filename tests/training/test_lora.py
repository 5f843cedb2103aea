"""Adapters: what is exported is what was trained, merged and as PEFT reads it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qwen3_embedding import Embedder, Reranker
from qwen3_embedding.errors import CheckpointError
from qwen3_embedding.inputs.packing import pack
from qwen3_embedding.model.weights import load_backbone
from qwen3_embedding.training import lora
from qwen3_embedding.training.config import LoraSettings, TrainingSettings
from qwen3_embedding.training.embedder import EmbedderObjective
from qwen3_embedding.training.trainer import train
from tests.support.checkpoints import make_embedder_folder
from tests.training.support import settings

ADAPTER = {"rank": 4, "alpha": 16.0, "dropout": 0.1}
IDS = [[5, 9, 11, 40, 3], [8, 1]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, embedder_folder: Path) -> TrainingSettings:
    made = settings(
        tmp_path_factory.mktemp("lora"),
        embedder_folder,
        lora=ADAPTER,
        run={"steps": 6},
        optimizer={"learning_rate": 1e-2},
    )
    train(made, show=False)
    return made


def vectors(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = load_backbone(folder, dtype=torch.float32)[0](pack(IDS))
    return found


def test_peft_reads_the_adapter_and_gives_the_merged_vectors(trained: TrainingSettings) -> None:
    from peft import PeftModel
    from transformers import AutoModel

    base = AutoModel.from_pretrained(trained.model, dtype=torch.float32, local_files_only=True)
    model = PeftModel.from_pretrained(base, str(trained.output / "adapter")).eval()
    with torch.no_grad():
        theirs = torch.stack([model(torch.tensor([ids])).last_hidden_state[0, -1] for ids in IDS])
    ours = vectors(trained.output)
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert not torch.allclose(ours, vectors(trained.model), atol=1e-2)


def test_only_the_target_layers_changed(trained: TrainingSettings) -> None:
    before, after = (load_backbone(folder)[0].state_dict() for folder in (trained.model, trained.output))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.split(".")[-2] in LoraSettings().targets for name in changed)
    assert Embedder.from_pretrained(trained.output).embed_queries(["a"]).shape == (1, 64)


def test_the_hash_of_the_outputs_tells_merged_from_base(trained: TrainingSettings) -> None:
    base, _ = load_backbone(trained.model, dtype=torch.float32)
    again, _ = lora.merge_adapter(trained.model, trained.output / "adapter")
    exported, _ = load_backbone(trained.output, dtype=torch.float32)
    assert lora.output_hash(again) == lora.output_hash(exported) != lora.output_hash(base)


def test_an_export_that_was_not_merged_is_refused(trained: TrainingSettings) -> None:
    objective = EmbedderObjective(trained, torch.device("cpu"))
    for name, parameter in objective.backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    with pytest.raises(CheckpointError, match="merged vectors differ"):
        lora.check_export(trained.model, objective.backbone.eval(), trained.model, torch.float32)


def test_an_adapter_of_another_base_is_refused(tmp_path: Path, trained: TrainingSettings) -> None:
    adapter = trained.output / "adapter"
    other = make_embedder_folder(tmp_path / "other", seed=8)
    with pytest.raises(CheckpointError, match="was trained on another checkpoint"):
        lora.merge_adapter(other, adapter)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (foreign / name).write_bytes((adapter / name).read_bytes())
    narrow = make_embedder_folder(tmp_path / "narrow", hidden_size=32)
    with pytest.raises(CheckpointError, match=r"does not fit .* another base"):
        lora.merge_adapter(narrow, foreign)
    with pytest.raises(CheckpointError, match="not a LoRA adapter"):
        lora.merge_adapter(narrow, narrow)


def test_a_run_with_dropout_goes_on_exactly(tmp_path: Path, embedder_folder: Path) -> None:
    made = settings(tmp_path, embedder_folder, lora=ADAPTER, run={"steps": 4, "checkpoint_every": 2})
    train(made, show=False)
    from qwen3_embedding.training.distributed import Ranks
    from qwen3_embedding.training.trainer import Run, make_objective

    cut = replace(made, output=tmp_path / "cut")
    torch.manual_seed(cut.run.seed)
    run = Run(cut, make_objective(cut, torch.device("cpu")), Ranks())
    for step in range(3):  # one step beyond the last checkpoint, then gone
        run._step(step)
    torch.manual_seed(99)
    train(cut, show=False)
    files = [(s.output / "model.safetensors").read_bytes() for s in (made, cut)]
    assert files[0] == files[1]


def test_unknown_targets_are_refused(tmp_path: Path, embedder_folder: Path) -> None:
    made = settings(tmp_path, embedder_folder, lora={"targets": ["q_proj", "query"]})
    with pytest.raises(ValueError, match="no linear layer is called 'query'; there are down_proj"):
        EmbedderObjective(made, torch.device("cpu"))


def test_a_reranker_can_be_adapted(tmp_path: Path, reranker_folder: Path) -> None:
    made = settings(tmp_path, reranker_folder, "reranker", lora=ADAPTER, run={"steps": 2, "checkpoint_every": 2})
    made = replace(made, data=replace(made.data, sources=made.data.sources[:1]))
    train(made, show=False)
    assert Reranker.from_pretrained(made.output).score("a", ["b"]).shape == (1,)
    config = json.loads((made.output / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["task_type"]) == (4, "CAUSAL_LM")
