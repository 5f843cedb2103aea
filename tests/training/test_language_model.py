"""Language models in training: the loss is that of the reference, runs go on exactly, the export loads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from qwen3_embedding.data import Record, write_records
from qwen3_embedding.data.files import PlainText, read_texts
from qwen3_embedding.errors import DataError
from qwen3_embedding.training.config import HeldOutSettings, LoraSettings, RunSettings, SourceSettings, TrainingSettings
from qwen3_embedding.training.distributed import Ranks
from qwen3_embedding.training.embedder import EmbedderObjective
from qwen3_embedding.training.language_model import LanguageModelObjective
from qwen3_embedding.training.next_token import next_token_loss
from qwen3_embedding.training.trainer import Run, train
from tests.training.support import pair_records, settings

CPU = torch.device("cpu")
RUN = RunSettings(chunk_tokens=10**6)


def make(folder: Path, model: Path, learn: str = "queries", **changes: Any) -> TrainingSettings:
    if "data" not in changes:
        write_records(folder / "pairs.jsonl.xz", pair_records())
        changes["data"] = {"sources": [{"path": str(folder / "pairs.jsonl.xz")}]}
    return settings(folder, model, "language_model", language_model={"learn": learn}, **changes)


def plain_lines(folder: Path, lines: list[dict[str, Any]]) -> dict[str, Any]:
    (folder / "plain.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"sources": [{"path": str(folder / "plain.jsonl")}], "batch_size": 2}


def untied(folder: Path, source: Path) -> Path:
    """The checkpoint with a random head of its own."""
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text((source / name).read_text().replace('_embeddings": true', '_embeddings": false'))
    tensors = load_file(source / "model.safetensors")
    table = tensors["embed_tokens.weight"]
    head = torch.randn(table.shape, generator=torch.Generator().manual_seed(3)) * 0.1
    save_file({**tensors, "lm_head.weight": head}, folder / "model.safetensors")
    return folder


def gradients(objective: LanguageModelObjective, run: RunSettings = RUN) -> tuple[float, dict[str, Tensor]]:
    for parameter in objective.parameters.values():
        parameter.grad = None
    loss = objective.backward(0, run, Ranks()).loss
    return loss, {name: p.grad.clone() for name, p in objective.parameters.items() if p.grad is not None}


@pytest.mark.parametrize("tile", [1, 7 * 50, 10**9])
def test_the_tiled_loss_is_cross_entropy(tile: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(33, 8, generator=generator).requires_grad_()
    head = torch.randn(50, 8, generator=generator).requires_grad_()
    targets = torch.randint(0, 50, (33,), generator=generator)
    loss = next_token_loss(hidden, head, targets, tile)
    (loss * 0.5).backward()  # type: ignore[no-untyped-call]
    wide, rows = hidden.detach().double().requires_grad_(), head.detach().double().requires_grad_()
    wanted = torch.nn.functional.cross_entropy(wide @ rows.T, targets, reduction="sum")
    (wanted * 0.5).backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    assert wide.grad is not None
    assert rows.grad is not None
    assert hidden.grad is not None
    assert head.grad is not None
    assert torch.allclose(hidden.grad.double(), wide.grad, atol=1e-5)
    assert torch.allclose(head.grad.double(), rows.grad, atol=1e-5)


def test_the_tiles_bound_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    real = torch.Tensor.logsumexp

    def seen(self: Tensor, *rest: Any, **more: Any) -> Tensor:
        nonlocal largest
        largest = max(largest, self.numel())
        return real(self, *rest, **more)

    monkeypatch.setattr(torch.Tensor, "logsumexp", seen)
    next_token_loss(torch.randn(100, 4), torch.randn(30, 4), torch.zeros(100, dtype=torch.long), 30 * 9)
    assert largest == 30 * 9


@pytest.mark.parametrize("learn", ["texts", "queries"])
@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_gradients_are_those_of_the_reference(
    tmp_path: Path, embedder_folder: Path, tied: bool, learn: str
) -> None:
    """Each sequence alone through transformers' causal LM; mean cross-entropy over the learnt tokens."""
    folder = embedder_folder if tied else untied(tmp_path / "model", embedder_folder)
    objective = LanguageModelObjective(make(tmp_path, folder, learn), CPU)
    loss, got = gradients(objective)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    total, count = torch.zeros(()), 0
    for sequence in objective.batches.batch(0).sequences:
        ids = torch.from_numpy(sequence.ids.astype(np.int64))
        logits = model(ids[None]).logits[0, sequence.given - 1 : -1]
        total = total + torch.nn.functional.cross_entropy(logits, ids[sequence.given :], reduction="sum")
        count += sequence.learnt
    wanted = total / count
    wanted.backward()  # type: ignore[no-untyped-call]
    assert loss == pytest.approx(float(wanted.detach()), rel=1e-5)
    theirs = {name.removeprefix("model."): p.grad for name, p in model.named_parameters()}
    assert got.keys() == theirs.keys()
    for name, gradient in got.items():
        scale = float(theirs[name].abs().max())
        assert float((gradient - theirs[name]).abs().max()) <= 2e-4 * scale, name


def test_chunks_change_nothing(tmp_path: Path, embedder_folder: Path) -> None:
    objective = LanguageModelObjective(make(tmp_path, embedder_folder, "texts"), CPU)
    loss, whole = gradients(objective)
    again, small = gradients(objective, RunSettings(chunk_tokens=40))
    assert again == pytest.approx(loss, rel=1e-6)
    for name, gradient in whole.items():
        assert torch.allclose(gradient, small[name], atol=1e-5 * float(gradient.abs().max()) + 1e-7), name


def test_every_token_of_a_text_is_learnt_once(tmp_path: Path, embedder_folder: Path) -> None:
    texts = ["a river and a bridge " * 30, "one", "ocean"]
    data = {**plain_lines(tmp_path, [{"text": text, "url": "x"} for text in texts]), "max_document_tokens": 9}
    objective = LanguageModelObjective(make(tmp_path, embedder_folder, "texts", data=data), CPU)
    (windows,) = objective.batches.windows
    tokenizer = objective.model.tokenizer
    sequences = [windows.text(row, tokenizer.end_id) for row in range(len(windows.items))]
    assert max(len(sequence.ids) for sequence in sequences) == 9
    for item, text in enumerate(texts):
        (ids,) = tokenizer.token_ids([text])
        learnt = [s.ids[s.given :] for s, owner in zip(sequences, windows.items, strict=True) if owner == item]
        assert np.concatenate(learnt).tolist() == [*ids[1:], tokenizer.end_id]


def test_only_the_query_is_learnt(tmp_path: Path, embedder_folder: Path) -> None:
    objective = LanguageModelObjective(make(tmp_path, embedder_folder), CPU)
    rows = objective.describe_batch(0)["rows"]
    pairs = {(query, text) for r in pair_records() for query in [r.query] for text in r.positives}
    for row in rows:
        document, separator, rest = row["given"].partition("\nQuery:")
        assert (row["learnt"].removesuffix("<|endoftext|>"), document) in pairs
        assert (separator, rest) == ("\nQuery:", "")


def test_a_stopped_run_goes_on_bit_for_bit(
    tmp_path: Path, embedder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(tmp_path, embedder_folder, run={"steps": 6, "checkpoint_every": 2})
    alone = replace(made, output=tmp_path / "alone")
    train(alone, show=False)
    real = Run._step

    def stopping(self: Run, step: int) -> None:
        if step == 5:
            raise KeyboardInterrupt
        real(self, step)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(made, show=False)
    assert not made.output.exists()
    train(made, show=False)
    assert (made.output / "model.safetensors").read_bytes() == (alone.output / "model.safetensors").read_bytes()


@pytest.mark.parametrize("tied", [True, False])
def test_the_export_is_a_causal_lm_that_transformers_loads(tmp_path: Path, embedder_folder: Path, tied: bool) -> None:
    folder = embedder_folder if tied else untied(tmp_path / "model", embedder_folder)
    made = make(tmp_path, folder, run={"steps": 4, "checkpoint_every": 4})
    objective = LanguageModelObjective(made, CPU)
    Run(made, objective, Ranks()).go(show=False)
    model = AutoModelForCausalLM.from_pretrained(made.output, dtype=torch.float32, local_files_only=True)
    assert type(model).__name__ == "Qwen3ForCausalLM"
    tokenizer = AutoTokenizer.from_pretrained(made.output, local_files_only=True)
    ids = tokenizer("the river is very old\nQuery:")["input_ids"]
    assert ids[-1] != objective.model.tokenizer.end_id  # a prompt goes on
    from qwen3_embedding.inputs.packing import pack

    with torch.no_grad():
        hidden = objective.backbone.hidden_states(pack([ids]))
        ours = hidden @ objective.model.head_VD.T
        assert torch.allclose(ours, model(torch.tensor([ids])).logits[0], atol=1e-4)
    assert (model.config.tie_word_embeddings, "lm_head.weight" in load_file(made.output / "model.safetensors")) == (
        tied,
        not tied,
    )


def test_an_embedder_trained_from_a_language_model_ends_its_texts_again(tmp_path: Path, embedder_folder: Path) -> None:
    base = make(tmp_path, embedder_folder, run={"steps": 1})
    train(base, show=False)
    made = settings(tmp_path, base.output, output=str(tmp_path / "embedder"), run={"steps": 1})
    objective = EmbedderObjective(made, CPU)
    objective.export(tmp_path / "embedder")
    ids = AutoTokenizer.from_pretrained(tmp_path / "embedder", local_files_only=True)("a river")["input_ids"]
    assert ids[-1] == objective.tokenizer.end_id


def test_training_lowers_the_loss_on_held_out_texts(tmp_path: Path, embedder_folder: Path) -> None:
    write_records(tmp_path / "held.jsonl", pair_records()[1::7])
    made = make(tmp_path, embedder_folder, run={"steps": 25, "checkpoint_every": 25})
    held_out = HeldOutSettings(sources=(SourceSettings(path=tmp_path / "held.jsonl"),), every=25)
    made = replace(made, held_out=held_out)
    before = LanguageModelObjective(made, CPU).measure(made.run)["held"]
    train(made, show=False)
    after = json.loads((made.folder / "held_out.jsonl").read_text())["held"]
    assert after["loss"] < 0.6 * before["loss"]
    assert after["perplexity"] == pytest.approx(np.exp(after["loss"]), rel=1e-3)


def test_adapters_are_trained_and_merged(tmp_path: Path, embedder_folder: Path) -> None:
    folder = untied(tmp_path / "model", embedder_folder)
    made = replace(make(tmp_path, folder, run={"steps": 2}), lora=LoraSettings(rank=4))
    objective = LanguageModelObjective(made, CPU)
    assert all("lora_" in name for name, p in objective.parameters.items() if p.requires_grad)
    train(made, show=False)
    before, after = load_file(folder / "model.safetensors"), load_file(made.output / "model.safetensors")
    assert torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    assert (made.output / "adapter" / "adapter_model.safetensors").exists()


def test_plain_texts_and_records_are_told_apart(tmp_path: Path) -> None:
    plain_lines(tmp_path, [{"text": "a", "language": "en"}, {"query": "q", "positives": ["p"], "task": "retrieval",
                                                             "source": "s"}])  # fmt: skip
    assert list(read_texts(tmp_path / "plain.jsonl")) == [PlainText("a", "en"), Record("q", ("p",), "retrieval", "s")]


@pytest.mark.parametrize(
    ("lines", "learn", "source", "message"),
    [
        ([{"text": " "}], "texts", {}, r"plain.jsonl:1: text is ' '"),
        ([{"text": "a", "language": 3}], "texts", {}, "language is 3"),
        ([{"text": "a"}, {"text": "b"}], "queries", {}, "learn = 'queries' wants records"),
        ([{"text": "a"}, {"text": "b"}], "texts", {"crop": 0.5}, "crop means nothing to a language model"),
    ],
)
def test_what_cannot_be_learnt_is_refused(
    tmp_path: Path, embedder_folder: Path, lines: list[dict[str, Any]], learn: str, source: dict[str, Any], message: str
) -> None:
    data = plain_lines(tmp_path, lines)
    data["sources"][0].update(source)
    with pytest.raises(DataError, match=message):
        LanguageModelObjective(make(tmp_path, embedder_folder, learn, data=data), CPU)
