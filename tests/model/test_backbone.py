"""The packed backbone against transformers, alone against in a crowd, shared against separate, short against long."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers

from qwen3_embedding.inputs.packing import PackedBatch, pack
from qwen3_embedding.model.attention import plan_all, plan_rows, sdpa
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.config import BackboneConfig
from qwen3_embedding.model.weights import load_backbone
from tests.support.checkpoints import make_embedder_folder, tiny_config

VOCAB = 3000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_embedder_folder(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return load_backbone(folder)[0]


@pytest.fixture(scope="module")
def reference(folder: Path) -> torch.nn.Module:
    model: torch.nn.Module = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def sequences(seed: int, count: int, shared: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    head = rng.integers(0, VOCAB, shared).tolist()
    return [head + rng.integers(0, VOCAB, rng.integers(1, 120)).tolist() for _ in range(count)]


def unit(pooled: torch.Tensor) -> torch.Tensor:
    return F.normalize(pooled, dim=-1)


@torch.inference_mode()
def padded_reference(model: torch.nn.Module, batch: list[list[int]], side: str) -> torch.Tensor:
    longest = max(map(len, batch))
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(batch):
        place = slice(longest - len(sequence), None) if side == "left" else slice(0, len(sequence))
        ids[row, place] = torch.tensor(sequence)
        mask[row, place] = 1
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    last = torch.full((len(batch),), longest - 1) if side == "left" else mask.sum(1) - 1
    return hidden[torch.arange(len(batch)), last]  # type: ignore[no-any-return]


@pytest.mark.parametrize("side", ["left", "right"])
def test_it_equals_transformers_with_either_padding(backbone: Backbone, reference: torch.nn.Module, side: str) -> None:
    batch = sequences(0, 24) + sequences(1, 24, shared=30)
    with torch.inference_mode():
        ours = unit(backbone(pack(batch)))
    assert (ours - unit(padded_reference(reference, batch, side))).abs().max() <= 2e-5


def test_every_hidden_state_equals_transformers(backbone: Backbone, reference: torch.nn.Module) -> None:
    (sequence,) = sequences(2, 1, shared=40)
    with torch.inference_mode():
        ours = backbone.hidden_states(pack([sequence]))
        wanted = reference(input_ids=torch.tensor([sequence])).last_hidden_state[0]
    torch.testing.assert_close(ours, wanted, atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_the_exact_shape_of_the_small_model() -> None:
    config = transformers.Qwen3Config(
        vocab_size=151669, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=32768, rope_theta=1e6, rms_norm_eps=1e-6,
        tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        reference = transformers.Qwen3Model(config)
        backbone = Backbone(BackboneConfig(151669, 1024, 3072, 28, 16, 8))
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.ones(p.shape) if p.ndim == 1 else torch.empty(p.shape).normal_(0, 0.02, generator=generator)
        for name, p in backbone.named_parameters()
    }
    backbone.load_state_dict(state, assign=True)
    reference.load_state_dict(state, assign=True)  # the very same memory
    reference.rotary_emb = type(reference.rotary_emb)(config)
    assert backbone.config.parameters == 595_776_512
    rng = np.random.default_rng(0)
    head = rng.integers(0, 151643, 20).tolist()
    batch = [head + rng.integers(0, 151643, n).tolist() for n in (3, 17, 40)]
    wanted = torch.stack([reference(input_ids=torch.tensor([s])).last_hidden_state[0, -1] for s in batch])
    assert (unit(backbone(pack(batch))) - unit(wanted)).abs().max() <= 2e-5


@torch.inference_mode()
def test_alone_and_in_a_crowd(backbone: Backbone) -> None:
    batch = sequences(3, 64)
    together = unit(backbone(pack(batch)))
    alone = torch.cat([unit(backbone(pack([sequence]))) for sequence in batch])
    assert (together - alone).abs().max() <= 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("shared", [0, 20, 90])
def test_shared_and_separate_prefixes(backbone: Backbone, shared: int) -> None:
    batch = sequences(4, 40, shared)
    batch += [*batch[:4], batch[0][: max(1, shared)]]  # equal ones, and one that is another's beginning
    sharing, separate = pack(batch), pack(batch, share_prefixes=False)
    assert sharing.n_tokens < separate.n_tokens
    assert (unit(backbone(sharing)) - unit(backbone(separate))).abs().max() <= 1e-5
    everything = backbone.hidden_states(sharing)[torch.from_numpy(sharing.pooled_rows)]
    assert (unit(everything) - unit(backbone(sharing))).abs().max() <= 1e-5


def test_gradients_do_not_depend_on_sharing(folder: Path) -> None:
    backbone = load_backbone(folder)[0].requires_grad_(True)
    batch = sequences(5, 20, shared=40)
    gradients = []
    for share in (True, False):
        backbone.zero_grad()
        unit(backbone(pack(batch, share_prefixes=share))).pow(3).sum().backward()  # type: ignore[no-untyped-call]
        gradients.append([p.grad.clone() for p in backbone.parameters() if p.grad is not None])
    for ours, wanted in zip(*gradients, strict=True):
        assert (ours - wanted).abs().max() <= 1e-5 * wanted.abs().max() + 1e-7


def test_gradient_checkpointing_changes_nothing(folder: Path) -> None:
    backbone = load_backbone(folder)[0].requires_grad_(True)
    batch = pack(sequences(6, 10))
    gradients = []
    for checkpointing in (False, True):
        backbone.zero_grad()
        backbone.gradient_checkpointing = checkpointing
        backbone(batch).sum().backward()
        gradients.append(backbone.embed_tokens.weight.grad.clone())  # type: ignore[union-attr]
    torch.testing.assert_close(gradients[0], gradients[1])


@torch.inference_mode()
def test_attention_equals_its_formula() -> None:
    batch = pack(sequences(7, 30, shared=25))
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(batch.n_tokens, h, 16, generator=generator, dtype=torch.float64) for h in (4, 2, 2)
    )
    out = sdpa(query, key, value, plan_all(batch, torch.device("cpu")))
    for number in range(batch.n_sequences):
        rows = torch.from_numpy(batch.sequence_rows(number))
        q, k, v = query[rows], key[rows].repeat_interleave(2, 1), value[rows].repeat_interleave(2, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / 4.0
        scores = scores.masked_fill(~torch.ones(len(rows), len(rows), dtype=torch.bool).tril(), -torch.inf)
        torch.testing.assert_close(out[rows], torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
    unique = np.unique(batch.pooled_rows)
    rows_ = unique[np.argsort(batch.positions[unique], kind="stable")]
    pooled = sdpa(query[rows_], key, value, plan_rows(batch, rows_, torch.device("cpu")))
    torch.testing.assert_close(pooled, out[rows_])


def test_the_plan_for_one_kernel_call_names_every_key() -> None:
    """What the variable-length GPU kernel is given, checked without a GPU: bounds and key rows of every run."""
    batch = pack(sequences(8, 30, shared=25))
    plan = plan_all(batch, torch.device("cpu"))
    assert plan.query_starts[-1] == batch.n_tokens
    keys = plan.gathered_rows
    assert plan.key_starts[-1] == len(keys)
    for segment in range(batch.n_segments):
        begin, end = int(plan.key_starts[segment]), int(plan.key_starts[segment + 1])
        own = np.arange(batch.segment_starts[segment], batch.segment_starts[segment + 1])
        assert keys[begin:end].tolist() == [*batch.context_rows(segment).tolist(), *own.tolist()]


@torch.inference_mode()
def test_long_input_in_chunks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load_backbone(folder)[0]
    batch: PackedBatch = pack([list(range(40)) + sequences(9, 1, shared=1500)[0], list(range(40)) + [7] * 1300])
    whole = unit(backbone(batch))
    monkeypatch.setattr("qwen3_embedding.model.layers.MLP_CHUNK_ROWS", 100)
    monkeypatch.setattr("qwen3_embedding.model.attention.MAX_MASKED_QUERIES", 64)
    assert (unit(backbone(batch)) - whole).abs().max() <= 1e-5


@torch.inference_mode()
def test_a_wider_type_than_the_weights(folder: Path) -> None:
    narrow = load_backbone(folder, torch.bfloat16)[0]
    widened = narrow.float()
    batch = pack(sequences(10, 8))
    torch.testing.assert_close(load_backbone(folder, torch.bfloat16)[0](batch, torch.float32), widened(batch))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 3}, "no multiple"),
        ({"head_dim": 31}, "even"),
        ({"hidden_size": 0}, "hidden_size=0"),
    ],
)
def test_impossible_shapes(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config(100, **changes)
