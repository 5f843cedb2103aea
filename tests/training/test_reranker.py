"""Rerankers in training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from qwen3_embedding import Reranker
from qwen3_embedding.data import Record, write_records
from qwen3_embedding.errors import DataError
from qwen3_embedding.inputs.packing import pack
from qwen3_embedding.inputs.tokenizer import Tokenizer
from qwen3_embedding.training.config import RunSettings, TrainingSettings
from qwen3_embedding.training.distributed import Ranks
from qwen3_embedding.training.reranker import SATURATED, RerankerObjective
from qwen3_embedding.training.trainer import train
from tests.support.checkpoints import make_embedder_folder, make_reranker_folder
from tests.training.support import graded_records, settings

CPU = torch.device("cpu")
RUN = RunSettings(chunk_tokens=10**6, kept_tokens=10**6)


def make(folder: Path, model: Path, **changes: object) -> TrainingSettings:
    made = settings(folder, model, "reranker", **changes)
    return replace(made, data=replace(made.data, sources=made.data.sources[:1]))


def gradients(objective: RerankerObjective, run: RunSettings = RUN) -> tuple[float, dict[str, Tensor]]:
    for parameter in objective.parameters.values():
        parameter.grad = None
    loss = objective.backward(0, run, Ranks()).loss
    return loss, {name: p.grad.clone() for name, p in objective.parameters.items() if p.grad is not None}


@pytest.mark.parametrize("tied", [True, False])
def test_the_loss_is_the_cross_entropy_of_the_reference_logits(tmp_path: Path, tied: bool) -> None:
    """Each pair alone through transformers' causal LM, all its logits, cross-entropy over the two answers."""
    from transformers import AutoModelForCausalLM

    folder = make_reranker_folder(tmp_path / "model")
    if not tied:
        untie(folder)
    objective = RerankerObjective(make(tmp_path, folder, reranker={"balanced": False}), CPU)
    loss, got = gradients(objective)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    queries = objective.batches.batch(0).queries
    total, count = torch.zeros(()), 0
    places = iter(objective._encode(objective.judge, queries))
    for query in queries:
        for number in range(len(query.documents)):
            ids = next(places)
            logits = model(torch.tensor([ids])).logits[0, -1, objective.judge.answers]
            total = total + torch.nn.functional.cross_entropy(logits[None], torch.tensor([int(number == 0)]))
            count += 1
    wanted = total / count
    assert loss == pytest.approx(wanted.item(), rel=1e-4)
    torch.autograd.backward(wanted)
    theirs = dict(model.named_parameters())
    for name in (
        "layers.0.self_attn.q_proj.weight",
        "layers.2.mlp.down_proj.weight",
        "embed_tokens.weight",
        "norm.weight",
    ):
        reference = theirs["model." + name].grad
        assert reference is not None
        assert torch.allclose(got[name], reference, atol=1e-4 * float(reference.abs().max())), name
    if not tied:
        head = theirs["lm_head.weight"].grad
        assert head is not None
        wanted_rows = head[objective.judge.answers]
        assert torch.allclose(got["lm_head.answers"], wanted_rows, atol=1e-4 * float(wanted_rows.abs().max()))


def untie(folder: Path) -> None:
    import json

    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(3)
    weights["lm_head.weight"] = 0.1 * torch.randn(weights["model.embed_tokens.weight"].shape, generator=generator)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))


def test_chunks_change_no_gradient(tmp_path: Path, reranker_folder: Path) -> None:
    objective = RerankerObjective(make(tmp_path, reranker_folder), CPU)
    loss, wanted = gradients(objective)
    got_loss, got = gradients(objective, RunSettings(chunk_tokens=300, kept_tokens=500))
    assert got_loss == pytest.approx(loss, rel=1e-5)
    largest = max(float(g.abs().max()) for g in wanted.values())
    for name, gradient in got.items():
        scale = max(float(wanted[name].abs().max()), 1e-3 * largest)
        assert float((gradient - wanted[name]).abs().max()) <= 1e-5 * scale, name


def test_what_the_pairs_of_a_query_share_is_computed_once(tmp_path: Path, reranker_folder: Path) -> None:
    objective = RerankerObjective(make(tmp_path, reranker_folder), CPU)
    sequences = objective._encode(objective.judge, objective.batches.batch(0).queries)
    report = objective.backward(0, RUN, Ranks())
    assert report.tokens == pack(sequences).n_tokens < sum(len(ids) for ids in sequences) / 2


def test_a_run_ends_in_a_reranker_that_prefers_the_positives(tmp_path: Path, reranker_folder: Path) -> None:
    made = make(tmp_path, reranker_folder, run={"steps": 60, "checkpoint_every": 60}, optimizer={"learning_rate": 2e-3})
    objective = RerankerObjective(made, CPU)
    queries = objective.batches.batch(0).queries
    train(made, show=False)

    def margin(folder: Path) -> float:
        reranker = Reranker.from_pretrained(folder)
        scores = [reranker.score(q.query, list(q.documents), q.instruction) for q in queries]
        return float(np.mean([s[0] - s[1:].mean() for s in scores if len(s) > 1]))

    assert margin(made.output) > margin(reranker_folder) + 0.3


def test_an_embedder_can_become_a_reranker(tmp_path: Path, embedder_folder: Path) -> None:
    made = make(tmp_path, embedder_folder, run={"steps": 2, "checkpoint_every": 2})
    train(made, show=False)
    assert Reranker.from_pretrained(made.output).score("a", ["b", "c"]).shape == (2,)
    assert not (made.output / "modules.json").exists()


def test_a_separate_head_is_trained_and_exported(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = make_reranker_folder(tmp_path / "model")
    untie(folder)
    made = make(tmp_path, folder, run={"steps": 2, "checkpoint_every": 2})
    train(made, show=False)
    before, after = (load_file(f / "model.safetensors")["lm_head.weight"] for f in (folder, made.output))
    changed = (before != after).any(dim=1).nonzero()[:, 0].tolist()
    assert changed == sorted(RerankerObjective(made, CPU).judge.answers)


def test_grown_from_an_embedder_it_puts_no_end_token_behind_a_pair(tmp_path: Path) -> None:
    folder, embedder = make_reranker_folder(tmp_path / "model"), make_embedder_folder(tmp_path / "embedder")
    (folder / "tokenizer.json").write_bytes((embedder / "tokenizer.json").read_bytes())
    made = make(tmp_path, folder, run={"steps": 1, "checkpoint_every": 1})
    train(made, show=False)
    assert [Tokenizer.from_folder(f).puts_end_token for f in (folder, made.output)] == [True, False]


@pytest.mark.parametrize("loss", ["listwise", "distillation"])
def test_the_other_losses_train(tmp_path: Path, reranker_folder: Path, loss: str) -> None:
    teacher = make_reranker_folder(tmp_path / "teacher", seed=9)
    made = make(
        tmp_path,
        reranker_folder,
        reranker={"loss": loss, "teacher": str(teacher) if loss == "distillation" else ""},
        run={"steps": 20, "checkpoint_every": 20},
    )
    objective = RerankerObjective(made, CPU)
    before = objective.backward(0, RUN, Ranks()).loss
    train(made, show=False)
    after = RerankerObjective(replace(made, model=made.output), CPU).backward(0, RUN, Ranks()).loss
    assert after < before


def test_pairs_that_score_one_are_counted(tmp_path: Path, reranker_folder: Path) -> None:
    objective = RerankerObjective(make(tmp_path, reranker_folder), CPU)
    assert objective.backward(0, RUN, Ranks()).saturated_fraction == 0
    with torch.no_grad():
        objective.backbone.norm.weight.mul_(1e4)  # certain of everything, of yes and of no
    fraction = objective.backward(0, RUN, Ranks()).saturated_fraction
    assert 0 < fraction < 1
    sure = torch.tensor([SATURATED - 1, SATURATED + 1]).sigmoid()
    assert (sure == 1).tolist() == [False, True]


def test_random_negatives_are_of_other_records_and_answer_nothing_known(tmp_path: Path, reranker_folder: Path) -> None:
    records = [Record(f"q{n // 2}", (f"d{n}", f"also {n}"), "retrieval", "made") for n in range(12)]
    write_records(tmp_path / "bare.jsonl", records)
    sources = [{"path": str(tmp_path / "bare.jsonl")}]
    bare = settings(tmp_path, reranker_folder, "reranker", data={"sources": sources, "batch_size": 12})
    with pytest.raises(DataError, match="has negatives; mine some first"):
        RerankerObjective(bare, CPU).batches.batch(0)
    objective = RerankerObjective(replace(bare, reranker=replace(bare.reranker, random_negatives=2)), CPU)
    for query in objective.batches.batch(0).queries:
        own = {text for r in records if r.query == query.query for text in r.positives}
        assert len(query.documents) == 3
        assert own.isdisjoint(query.documents[1:])


def test_graded_records_are_refused(tmp_path: Path, reranker_folder: Path) -> None:
    write_records(tmp_path / "graded.jsonl", graded_records())
    made = settings(tmp_path, reranker_folder, "reranker", data={"sources": [{"path": str(tmp_path / "graded.jsonl")}]})
    with pytest.raises(DataError, match="sts records are graded"):
        RerankerObjective(made, CPU)
