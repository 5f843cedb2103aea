"""Weights that sum words: against the sum itself; their training; the reranker that grows from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from transformers import Qwen3Model

from qwen3_embedding import Embedder, Reranker
from qwen3_embedding.data import write_records
from qwen3_embedding.errors import CheckpointError
from qwen3_embedding.inputs.packing import pack
from qwen3_embedding.inputs.tokenizer import Tokenizer
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.config import BackboneConfig
from qwen3_embedding.model.weights import load_backbone
from qwen3_embedding.training import matching
from qwen3_embedding.training.bag import BagObjective
from qwen3_embedding.training.base import BaseSettings, make_base
from qwen3_embedding.training.config import LoraSettings, TrainingSettings
from qwen3_embedding.training.distributed import Ranks
from qwen3_embedding.training.matching import MatchingSettings, matching_start
from qwen3_embedding.training.trainer import train
from qwen3_embedding.training.words import RANGE, SPECIAL_DIMENSIONS, one_token, word_vectors, write_words
from tests.training.support import pair_records, settings

TEXTS = [
    "every rocket makes a loud noise",
    "the river is very old. " * 300,
    "select Query from the table",
    "x",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_records(folder / "pairs.jsonl", pair_records())
    shape = {"vocab_size": 700, "hidden_size": 64, "intermediate_size": 32, "heads": 2, "head_dim": 32}
    return make_base(BaseSettings(folder / "base", folder / "pairs.jsonl", **shape))


@pytest.fixture(scope="module")
def wide(base: Path) -> Path:
    """Wide enough for a reranker to grow from."""
    shape = {"vocab_size": 700, "hidden_size": 192, "intermediate_size": 32, "heads": 3, "head_dim": 64}
    return make_base(BaseSettings(base.parent / "wide", base.parent / "pairs.jsonl", **shape))


def backbone_of(vocab_size: int, layers: int = 2) -> Backbone:
    return Backbone(
        BackboneConfig(
            vocab_size=vocab_size, hidden_size=64, intermediate_size=32, num_hidden_layers=layers,
            num_attention_heads=2, num_key_value_heads=2, head_dim=32, max_position_embeddings=32768,
        )
    )  # fmt: skip


def sums(vectors_VW: torch.Tensor, texts: list[list[int]]) -> torch.Tensor:
    return torch.stack([F.normalize(vectors_VW[ids].double().sum(0), dim=0) for ids in texts])


@pytest.mark.parametrize("instruction", [None, "", "Given a river and a rocket, find every Query", "is very old " * 40])
def test_vectors_are_sums_of_words(base: Path, instruction: str | None) -> None:
    """Against float64 sums, weights over four orders of magnitude, with and without a task before the query."""
    tokenizer = Tokenizer.from_folder(base)
    generator = torch.Generator().manual_seed(3)
    lengths = torch.exp(6 * torch.rand(tokenizer.vocab_size, 1, generator=generator) - 3)
    vectors_VW = lengths * F.normalize(torch.randn(tokenizer.vocab_size, 60, generator=generator), dim=1)
    (colon,) = tokenizer.token_ids([":"])[0]
    vectors_VW[colon] = 0.0  # the prompt's last sign is not told from the query
    backbone = write_words(backbone_of(tokenizer.vocab_size), tokenizer, vectors_VW)
    encoded = tokenizer.encode_queries(TEXTS, instruction).ids
    with torch.inference_mode():
        vectors = F.normalize(backbone(pack([np.array(ids, dtype=np.int32) for ids in encoded])), dim=1)
    marker = tokenizer.token_ids(["Query"])[0][0]
    bare = [ids[ids.index(marker) + 1 : -1] if instruction != "" else ids[:-1] for ids in encoded]
    vectors_VW[[tokenizer.token_ids([text])[0][0] for text in ("Instruct", "Query")]] = 0.0
    cosines = (vectors[:, :60].double() * sums(vectors_VW, bare)).sum(1)
    # What the smallest weight, e^-12, leaves of a long task beside one light word is the largest difference.
    assert cosines.min() > 0.999
    assert vectors[:, 60:].abs().max() == 0


def test_written_words_come_back(base: Path) -> None:
    tokenizer = Tokenizer.from_folder(base)
    vectors_VW = torch.randn(tokenizer.vocab_size, 60, generator=torch.Generator().manual_seed(1))
    found = word_vectors(write_words(backbone_of(tokenizer.vocab_size), tokenizer, vectors_VW))
    silent = [tokenizer.end_id, *(tokenizer.token_ids([text])[0][0] for text in ("Instruct", "Query"))]
    kept = [i for i in range(tokenizer.vocab_size) if i not in silent]
    ratio = (found[kept] / vectors_VW[kept]).flatten()
    assert torch.allclose(ratio, ratio.mean().expand_as(ratio), rtol=1e-3)
    assert found[silent].abs().max() == 0


def test_an_empty_text_has_a_direction(base: Path) -> None:
    vectors = Embedder.from_pretrained(base).embed_documents(["", "the river"])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_other_shapes_are_refused(base: Path) -> None:
    tokenizer = Tokenizer.from_folder(base)
    size = tokenizer.vocab_size
    with pytest.raises(ValueError, match="wanted 2 layers"):
        write_words(backbone_of(size, layers=3), tokenizer, torch.zeros(size, 60))
    with pytest.raises(ValueError, match=r"wanted \(\d+, 60\)"):
        write_words(backbone_of(size), tokenizer, torch.zeros(size, 64))
    assert RANGE > 10
    assert SPECIAL_DIMENSIONS == 4


def bag_settings(folder: Path, base: Path, **changes: object) -> TrainingSettings:
    made = settings(folder, base)
    data = replace(made.data, sources=tuple(s for s in made.data.sources if "pairs" in s.path.name), batch_size=24)
    loss = replace(made.loss, dimensions=(32,), dimension_weights=(), both_ways=True)
    optimizer = replace(made.optimizer, learning_rate=0.1, embedding_learning_rate=0.1, warmup_steps=2)
    run = replace(made.run, steps=12, checkpoint_every=4)
    made = replace(made, kind="bag", data=data, loss=loss, optimizer=optimizer, run=run)
    return replace(made, **changes)  # type: ignore[arg-type]


def test_bag_gradient_is_the_backbone_s(base: Path, tmp_path: Path) -> None:
    """The sums of the bag are what the exported layers give."""
    made = bag_settings(tmp_path, base)
    objective = BagObjective(made, torch.device("cpu"))
    batch = objective.batches.batch(0)
    with torch.inference_mode():
        through_layers = F.normalize(objective._encoder(made.run)(pack(batch.queries)), dim=1)[:, :60]
        summed = F.normalize(objective._sums([objective._heard(ids) for ids in batch.queries]), dim=1)
    assert (through_layers * summed).sum(1).min() > 0.999


def test_bag_trains_and_exports(base: Path, tmp_path: Path) -> None:
    made = bag_settings(tmp_path, base)
    train(made, show=False)
    lines = [json.loads(line)["loss"] for line in (made.folder / "log.jsonl").read_text().splitlines()]
    assert np.mean(lines[-3:]) < 0.8 * np.mean(lines[:3])
    backbone, _ = load_backbone(made.output, dtype=torch.float32)
    assert len(backbone.layers) == 2
    embedder = Embedder.from_pretrained(made.output)
    similarity = embedder.similarity(
        embedder.embed_queries(["what about the rocket, number 7"]),
        embedder.embed_documents(["the rocket makes a loud noise", "the garden makes a loud noise"]),
    )
    assert similarity[0, 0] > similarity[0, 1]


def test_bag_goes_on_bit_for_bit(base: Path, tmp_path: Path) -> None:
    whole, cut = (bag_settings(tmp_path, base, output=tmp_path / name) for name in ("whole", "cut"))
    train(whole, show=False)
    short = replace(cut, output=tmp_path / "short", run_folder=cut.folder)
    objective = BagObjective(cut, torch.device("cpu"))
    from qwen3_embedding.training.trainer import Run

    stopped = Run(short, objective, Ranks(0, 1))
    for step in range(4):
        stopped._step(step)
    train(cut, show=False)
    name = "model.safetensors"
    assert (whole.output / name).read_bytes() == (cut.output / name).read_bytes()


def test_bag_refuses_lora(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="trains the table whole"):
        BagObjective(bag_settings(tmp_path, base, lora=LoraSettings()), torch.device("cpu"))


def test_matching_start_scores_shared_words(wide: Path, tmp_path: Path) -> None:
    """Before any training the passage with the query's words comes first."""
    made = MatchingSettings(source=wide, output=tmp_path / "start")
    reranker = Reranker.from_pretrained(matching_start(made))
    documents = [f"the {noun} needs repair" for noun in ("garden", "rocket", "ocean", "castle")]
    for number, noun in enumerate(("garden", "rocket", "ocean", "castle")):
        scores = reranker.score(f"what about the {noun}", documents)
        assert scores.argmax() == number
        assert 0 < scores.min() < scores.max() < 1
    with pytest.raises(ValueError, match="is there already"):
        matching_start(made)
    said = ("ocean", "rocket", "rocket rocket rocket", "rocket garden")
    none, once, thrice, both = reranker.score(
        "what about the rocket garden", [f"the {words} needs repair" for words in said]
    )
    assert none < once < thrice < both, "repeating a word adds less than another word"


def test_finds_fall_with_every_repetition(wide: Path, tmp_path: Path) -> None:
    """A word's first, second and third occurrence give the query a half, a third and a fourth of their attention."""
    start = matching_start(MatchingSettings(source=wide, output=tmp_path / "start"))
    tokenizer, dims = Tokenizer.from_folder(start), matching._Dims(192)
    (ids,) = tokenizer.encode_pairs(["the rocket needs repair"], ["rocket ocean rocket castle rocket needs repair"]).ids
    states = Qwen3Model.from_pretrained(str(start), dtype=torch.float32)(torch.tensor([ids]), output_hidden_states=True)
    found = states.hidden_states[2][0].detach()
    in_document = found[:, dims["document"]] > 1
    rocket, ocean, repair = (one_token(tokenizer, word) for word in (" rocket", " ocean", " repair"))
    of = {name: found[in_document, dims[name]].tolist() for name in ("found", "found_pair")}
    document = [one for one, inside in zip(ids, in_document, strict=True) if inside]
    places = [i for i, one in enumerate(document) if one == rocket]
    first, second, third = (of["found"][i] for i in places[-3:])
    assert (second / first, third / first) == pytest.approx((2 / 3, 1 / 2), rel=0.05)
    assert of["found"][document.index(ocean)] == pytest.approx(0, abs=0.02)
    assert of["found_pair"][document.index(repair)] > 0.3, "needs repair stands in both"
    assert of["found_pair"][places[-1]] == pytest.approx(0, abs=0.02), "castle rocket does not"


def test_a_matching_start_is_a_rerankers_folder(wide: Path, tmp_path: Path) -> None:
    start = matching_start(MatchingSettings(source=wide, output=tmp_path / "start"))
    assert (start / "chat_template.jinja").exists()
    assert not (start / "modules.json").exists()
    assert not Tokenizer.from_folder(start).puts_end_token
    with safe_open(start / "model.safetensors", "pt") as tensors:
        assert "model.embed_tokens.weight" in tensors.keys()  # noqa: SIM118


def test_matching_start_wants_markers(base: Path, tmp_path: Path, embedder_folder: Path) -> None:
    with pytest.raises((CheckpointError, ValueError)):
        matching_start(MatchingSettings(source=embedder_folder, output=tmp_path / "start"))


@pytest.mark.parametrize(
    ("changes", "words"), [({"heads": 2}, "at least 4"), ({"head_dim": 64}, "wanted 80"), ({"hidden_size": 96}, "182")]
)
def test_matching_shapes_are_checked(changes: dict[str, int], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        MatchingSettings(source=tmp_path, output=tmp_path / "out", **changes)
