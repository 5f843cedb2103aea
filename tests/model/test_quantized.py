"""int8 products against their integer formula, and what int8 does to vectors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from qwen3_embedding.errors import NumericalError
from qwen3_embedding.inference.embedder import Embedder
from qwen3_embedding.inference.reranker import Reranker
from qwen3_embedding.inference.runner import choose_dtype
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.config import BackboneConfig
from qwen3_embedding.model.layers import Layer
from qwen3_embedding.model.quantized import (
    LARGEST_SCORE_ERROR,
    ONEDNN,
    ONEDNN_NARROW,
    PLAIN,
    WEIGHT_LEVELS,
    Engine,
    QuantizedLinear,
    _is_exact,
    choose_engine,
    quantize_,
    quantize_rows,
    refined_products,
    score_error,
)
from qwen3_embedding.model.weights import load_backbone

TEXTS = [f"text {number} " + "of some words " * (number % 7) for number in range(40)]
ENGINES = [engine for engine in (ONEDNN, ONEDNN_NARROW, PLAIN) if engine is PLAIN or _is_exact(engine)]
"""Those that :func:`choose_engine` may choose on this machine: wide codes need a CPU with VNNI."""


def rows(count: int, size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(count, 1, generator=generator).mul_(12).sub_(6).exp_()  # rows of very different sizes
    return torch.randn(count, size, generator=generator) * spread


def linear(size: int, out: int) -> nn.Linear:
    layer = nn.Linear(size, out, bias=False)
    with torch.no_grad():
        layer.weight.copy_(rows(out, size, seed=1))
    return layer.requires_grad_(False)


@pytest.mark.parametrize("engine", ENGINES, ids=lambda e: e.name)
@torch.inference_mode()
def test_rows_come_back_within_half_a_step(engine: Engine) -> None:
    x = rows(33, 96)
    got = quantize_rows(x, engine)
    assert got.codes_RK.dtype == torch.uint8
    back = (got.codes_RK.double() - engine.zero_point) * got.scale_R1.double()
    assert ((back - x).abs() <= got.scale_R1.double() * 0.5001).all()
    torch.testing.assert_close(got.scale_R1, x.abs().amax(1, keepdim=True) / engine.levels)


@pytest.mark.parametrize("engine", ENGINES, ids=lambda e: e.name)
@pytest.mark.parametrize("count", [1, 2, 40, 300])
@torch.inference_mode()
def test_the_product_is_the_integer_formula(engine: Engine, count: int) -> None:
    layer, x = linear(96, 80), rows(count, 96)
    codes = quantize_rows(x, engine)
    weight = layer.weight.double()
    scale = layer.weight.abs().amax(1) / WEIGHT_LEVELS
    whole = (layer.weight / scale[:, None]).round().double()
    sums = (codes.codes_RK.double() - engine.zero_point) @ whole.t()
    wanted = sums * scale.double() * codes.scale_R1.double()
    got = QuantizedLinear(layer, engine)(x).double()
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-30)
    exact = x.double() @ weight.t()
    of_rows = codes.scale_R1.double() * weight.abs().sum(1)
    step = 0.5 * (of_rows + scale.double() * x.double().abs().sum(1, keepdim=True))
    assert ((got - exact).abs() <= 1.02 * step).all()  # half a step each, their product beside


@torch.inference_mode()
def test_the_largest_codes_do_not_saturate() -> None:
    engine = choose_engine()
    layer = nn.Linear(3072, 8, bias=False).requires_grad_(False)
    layer.weight.fill_(1.0)
    got = QuantizedLinear(layer, engine)(torch.full((4, 3072), 5.0))
    torch.testing.assert_close(got, torch.full((4, 8), 15360.0), rtol=1e-6, atol=0)


def test_older_instruction_sets_get_exact_sums_too() -> None:
    code = (
        "import torch; from qwen3_embedding.model.quantized import choose_engine, _is_exact; engine = choose_engine(); "
        "print(engine.name, _is_exact(engine))"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    name, exact = done.stdout.split()
    assert exact == "True"
    assert name in ("onednn-u8", "onednn-u7", "plain")


@torch.inference_mode()
def test_zero_rows_and_rows_that_are_not_finite() -> None:
    x = rows(4, 64)
    x[0] = 0
    x[1, 5], x[2, 5] = float("nan"), float("inf")
    out = QuantizedLinear(linear(64, 16), choose_engine())(x)
    assert (out[0] == 0).all()
    assert not out[1].isfinite().any()
    assert not out[2].isfinite().any()
    assert out[3].isfinite().all()


def test_a_bias_or_a_second_time_or_another_type_is_refused(embedder_folder: Path) -> None:
    with pytest.raises(ValueError, match="bias"):
        QuantizedLinear(nn.Linear(4, 4), PLAIN)
    backbone = quantize_(load_backbone(embedder_folder)[0])
    with pytest.raises(ValueError, match="int8 already"):
        quantize_(backbone)
    with pytest.raises(ValueError, match="starts from float32"):
        quantize_(load_backbone(embedder_folder, torch.bfloat16)[0])
    with pytest.raises(ValueError, match="runs on the CPU"):
        choose_dtype("int8", torch.device("cuda"))


def test_vectors_stay_close_to_those_of_float32(embedder_folder: Path, embedder: Embedder) -> None:
    small = Embedder.from_pretrained(embedder_folder, dtype="int8")
    assert "int8 on cpu" in repr(small)
    assert small.backbone.type_name == "int8"
    cosines = (small.embed_documents(TEXTS) * embedder.embed_documents(TEXTS)).sum(1)
    assert cosines.min() >= 0.998


def test_alone_and_in_a_crowd(embedder_folder: Path) -> None:
    small = Embedder.from_pretrained(embedder_folder, dtype="int8")
    alone = np.concatenate([small.embed_queries([text]) for text in TEXTS])
    assert np.abs(alone - small.embed_queries(TEXTS)).max() <= 1e-2


def test_scores_stay_close_to_those_of_float32(reranker_folder: Path, reranker: Reranker) -> None:
    small = Reranker.from_pretrained(reranker_folder, dtype="int8")
    assert "int8 on cpu" in repr(small)
    log_odds = [np.log(scores / (1 - scores)) for scores in (m.score("words", TEXTS) for m in (small, reranker))]
    assert np.corrcoef(*log_odds)[0, 1] >= 0.99


def test_weights_that_are_not_finite_are_an_error(embedder_folder: Path) -> None:
    backbone, _ = load_backbone(embedder_folder)
    backbone.layers[1].mlp.down_proj.weight[3, 3] = float("nan")  # type: ignore[union-attr, operator]
    broken = Embedder.from_pretrained(embedder_folder)
    broken.backbone = broken.runner.backbone = quantize_(backbone)
    with pytest.raises(NumericalError):
        broken.embed_documents(["a text"])


@pytest.mark.parametrize("engine", ENGINES, ids=lambda e: e.name)
@torch.inference_mode()
def test_what_rounding_left_is_rounded_once_more(engine: Engine) -> None:
    x = rows(33, 96)
    codes = quantize_rows(x, engine)
    rest = codes.taken_from(x, engine.zero_point)
    again = quantize_rows(rest, engine).taken_from(rest, engine.zero_point)
    assert (rest.abs() <= codes.scale_R1 * 0.5001).all()
    assert (again.abs() <= codes.scale_R1 / engine.levels * 0.2501 + x.abs() * 2e-7).all()


@torch.inference_mode()
def test_random_weights_of_the_published_shape_stay_at_8_bits() -> None:
    backbone = Backbone(BackboneConfig(300, 1024, 3072, 1, 16, 8, head_dim=128)).initialize(0).requires_grad_(False)
    layer = backbone.layers[0]
    assert isinstance(layer, Layer)
    assert max(score_error(layer)) < LARGEST_SCORE_ERROR / 3
    assert not refined_products(quantize_(backbone, PLAIN))


@torch.inference_mode()
def test_scores_that_8_bits_would_move_too_far_get_a_second_product(embedder_folder: Path) -> None:
    backbone, _ = load_backbone(embedder_folder)
    layer = backbone.layers[1]
    assert isinstance(layer, Layer)
    before = score_error(layer)
    layer.self_attn.q_norm.weight.mul_(50)
    assert score_error(layer) == pytest.approx([50 * error for error in before], rel=1e-3)  # linear in the scores
    assert refined_products(quantize_(backbone)) == [f"layers.1.self_attn.{name}_proj" for name in "qk"]
    assert "15 bits" in repr(layer.self_attn.q_proj)
    assert "15 bits" not in repr(layer.self_attn.v_proj)


@pytest.mark.parametrize("kernel", ["native", "library"])
def test_the_bundled_embedder_keeps_its_ranking(kernel: str) -> None:
    """Cosine to float32 was 0.98 to 0.99 with 8 bits for its keys, which cost 1.5% of nDCG@10."""
    try:
        small = Embedder.from_pretrained("nano-embedding", device="cpu", dtype="int8", kernel=kernel)
    except ValueError as error:
        pytest.skip(str(error))
    whole = Embedder.from_pretrained("nano-embedding", device="cpu")
    assert "15-bit activations in 2 of 14 products" in repr(small)
    words = [
        "wing",
        "flow",
        "heat",
        "shock",
        "wave",
        "layer",
        "index",
        "query",
        "library",
        "search",
        "document",
        "drag",
        "lift",
        "pressure",
        "plate",
    ]
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, 40)) for _ in range(30)]
    assert (small.embed_documents(texts) * whole.embed_documents(texts)).sum(1).min() >= 0.9995
