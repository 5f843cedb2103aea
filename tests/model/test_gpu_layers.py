"""The GPU's layers on CPU: everything but the kernels themselves, against the plain layers and the formulas."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from qwen3_embedding.inference.runner import Runner, _Window, choose_dtype
from qwen3_embedding.inputs.packing import pack
from qwen3_embedding.model import triton_kernels
from qwen3_embedding.model.attention import AttentionPlan, Block, plan_all, varlen
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.fp8 import E4M3, LARGEST, Fp8Linear, quantize_fp8_, quantize_rows
from qwen3_embedding.model.fused import FusedLayer, before_attention, compile_, fuse_
from qwen3_embedding.model.graphs import SIZES, Inputs, TextGraphs, fill, hidden_of_last, kernel_plan
from qwen3_embedding.model.pooling import normalize
from qwen3_embedding.model.rope import rotation
from qwen3_embedding.model.transfer import HostCopy, to_device
from tests.support.checkpoints import tiny_config

VOCABULARY = 200


@pytest.fixture
def backbone() -> Backbone:
    return Backbone(tiny_config(VOCABULARY)).initialize(0).requires_grad_(False).eval()


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def sequences(count: int = 20, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    head = rng.integers(0, VOCABULARY, 24).tolist()
    return [[*head, *rng.integers(0, VOCABULARY, rng.integers(1, 40)).tolist()] for _ in range(count)]


def test_fused_layers_equal_the_plain_ones(backbone: Backbone) -> None:
    batch = pack(sequences())
    fused = fuse_(copy.deepcopy(backbone))
    assert all(isinstance(layer, FusedLayer) for layer in fused.layers)
    torch.testing.assert_close(fused(batch), backbone(batch), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fused.hidden_states(batch), backbone.hidden_states(batch), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="layer 0 is FusedLayer"):
        fuse_(fused)


def test_long_inputs_take_the_mlp_in_chunks(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen3_embedding.model.fused.MLP_CHUNK_ROWS", 7)
    batch = pack(sequences(5))
    torch.testing.assert_close(fuse_(copy.deepcopy(backbone))(batch), backbone(batch), atol=1e-5, rtol=1e-5)


def test_one_compiled_function_serves_all_layers_and_lengths(backbone: Backbone) -> None:
    counter = CompileCounter()
    compiled = compile_(copy.deepcopy(backbone), backend=counter)
    for seed, count in ((1, 3), (2, 9), (3, 17)):
        batch = pack(sequences(count, seed))
        torch.testing.assert_close(compiled(batch), backbone(batch), atol=1e-5, rtol=1e-5)
    assert counter.frame_count <= 4  # before and after attention; once more where the last layer's few rows differ
    torch._dynamo.reset()


def test_a_fused_half_precision_backbone_can_run_wider(backbone: Backbone) -> None:
    batch = pack(sequences(4))
    half = fuse_(copy.deepcopy(backbone).to(torch.bfloat16))
    wanted = copy.deepcopy(backbone).to(torch.bfloat16).float()(batch)
    torch.testing.assert_close(half(batch, compute_dtype=torch.float32), wanted, atol=1e-5, rtol=1e-5)


def test_a_wide_pass_of_an_fp8_backbone_is_plain_products_of_its_weights(backbone: Backbone) -> None:
    rounded = copy.deepcopy(backbone).to(torch.bfloat16)
    eight = quantize_fp8_(copy.deepcopy(rounded))
    rounded.float()
    for module in rounded.layers.modules():
        if isinstance(module, nn.Linear):
            codes, scale = quantize_rows(module.weight)
            module.weight.copy_(codes.float() * scale)
    batch = pack(sequences(4))
    found = eight(batch, compute_dtype=torch.float32)
    # the scales are kept in float32, but the copy at another type rounds nothing here: both are float32
    torch.testing.assert_close(found, rounded(batch), atol=1e-4, rtol=1e-4)


def test_fp8_rows_are_within_half_a_step_of_e4m3() -> None:
    x = torch.randn(40, 64) * torch.logspace(-6, 6, 40)[:, None]
    codes, scale = quantize_rows(x)
    assert codes.dtype == E4M3
    back = codes.float() * scale
    largest = x.abs().amax(1, keepdim=True)
    assert torch.allclose(codes.float().abs().amax(1), torch.tensor(LARGEST))
    # three bits of mantissa: half a step is 1/16 of a value; below 2^-6 the steps are even, 2^-9 of a unit
    assert ((back - x).abs() <= x.abs() / 16 + largest / LARGEST * 2**-10).all()
    broken = quantize_rows(torch.tensor([[1.0, float("nan")], [float("inf"), 1.0]]))
    assert not torch.isfinite(broken[1]).any()
    zero = quantize_rows(torch.zeros(2, 16))
    assert (zero[0].float() == 0).all()


def test_an_fp8_product_is_the_formula() -> None:
    layer = nn.Linear(64, 32, bias=False)
    x = torch.randn(9, 64)
    (codes, scale), (weights, scales) = quantize_rows(x), quantize_rows(layer.weight.detach())
    wanted = (codes.double() * scale) @ (weights.double() * scales).t()
    torch.testing.assert_close(Fp8Linear(layer)(x).double(), wanted, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="multiples of 16"):
        Fp8Linear(nn.Linear(24, 32, bias=False))


class Formula(nn.Module):
    """The product of fp8 codes in float64."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        codes, scale = quantize_rows(weight)
        self.weight = codes.double() * scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        codes, scale = quantize_rows(x)
        return (codes.double() * scale @ self.weight.t()).to(x.dtype)


def test_an_fp8_backbone_is_the_formula_and_the_same_in_any_batch(backbone: Backbone) -> None:
    eight, formula = quantize_fp8_(copy.deepcopy(backbone)), fuse_(copy.deepcopy(backbone))
    assert eight.type_name == "fp8"
    for layer in formula.layers:
        for name, child in list(layer.named_children()):
            if isinstance(child, nn.Linear):
                setattr(layer, name, Formula(child.weight))
    texts = sequences(12)
    found, wanted = Runner(eight, normalize).run(texts), Runner(formula, normalize).run(texts)
    assert (found * wanted).sum(1).min() >= 0.9999
    alone = np.concatenate([Runner(eight, normalize).run([text]) for text in texts])
    assert (alone * found).sum(1).min() >= 0.9999
    with pytest.raises(ValueError, match="fp8 already"):
        quantize_fp8_(eight)


def test_fp8_and_compile_say_that_they_need_a_gpu(backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="use int8 on CPU"):
        choose_dtype("fp8", torch.device("cpu"))
    with pytest.raises(ValueError, match="compile is for GPUs"):
        Runner(backbone, normalize).compile()
    with pytest.raises(ValueError, match="backbone on a GPU"):
        TextGraphs(backbone)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 30])
def test_the_pass_that_is_recorded_ignores_what_fills_it_up(backbone: Backbone, length: int) -> None:
    ids = sequences(1)[0][:length]
    size = next(size for size in SIZES if size >= length)
    inputs = Inputs(torch.from_numpy(fill(ids, size)), size)
    for row, plan in ((inputs.ids[:length], ids), (inputs.positions[:length], list(range(length)))):
        assert row.tolist() == plan
    kernel = kernel_plan(inputs)
    assert kernel.query_starts.tolist() == [0, length, size]
    assert (kernel.n_queries, kernel.max_key_length) == (size, size)

    def on_cpu(given: Inputs) -> AttentionPlan:
        tokens = int(given.starts[1])
        blocks = [Block(0, 1, tokens, tokens, None)]
        if tokens < given.size:
            blocks.append(Block(tokens, 1, given.size - tokens, given.size - tokens, None))
        plan = kernel_plan(given)
        return AttentionPlan(
            tuple(blocks), given.size, None, None, plan.query_starts, plan.key_starts, given.size, given.size
        )

    for model in (backbone, fuse_(copy.deepcopy(backbone))):
        found = hidden_of_last(model, inputs, on_cpu)
        torch.testing.assert_close(found, backbone(pack([ids])), atol=1e-5, rtol=1e-5)


def test_copies_arrive_whole() -> None:
    rows = np.arange(12).reshape(3, 4)[:, ::2]
    assert to_device(rows, torch.device("cpu")).tolist() == rows.tolist()
    assert HostCopy(torch.arange(3.0)).wait().tolist() == [0, 1, 2]


def test_batches_under_way_keep_the_order(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = sequences(15)
    runner = Runner(backbone, normalize, None)
    runner.settings = type(runner.settings)(batch_tokens=60)
    wanted = runner.run(texts)
    monkeypatch.setattr("qwen3_embedding.inference.runner.batches_ahead", lambda device: 2)
    assert np.abs(runner.run(texts) - wanted).max() <= 1e-5
    distinct: list[Sequence[int]] = list(texts)
    plan = iter([[0, 1], [2], [3, 4, 5], [6]])
    window = _Window(distinct, list(range(len(distinct))))
    results = runner._results((window, batch) for batch in plan)
    _, batch, rows = next(results)
    assert next(plan) == [6]  # three were started before the first was waited for
    assert batch == [0, 1]
    assert np.abs(rows - wanted[:2]).max() <= 1e-5
    assert [batch for _, batch, _ in results] == [[2], [3, 4, 5]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_all_ways_agree(backbone: Backbone) -> None:
    texts = [*sequences(40), [5], sequences(1)[0][:16]]
    exact = Runner(backbone, normalize).run(texts)
    for make in (fuse_, quantize_fp8_):
        if make is quantize_fp8_ and torch.cuda.get_device_capability() < (9, 0):
            continue
        half = make(copy.deepcopy(backbone).to("cuda", torch.bfloat16))
        formula = 1 - (Runner(copy.deepcopy(half).to("cpu"), normalize).run(texts) * exact).sum(1)
        runner = Runner(half, normalize)
        for compiled, kernels in ((False, True), (True, True), (True, False)):
            for layer in runner.backbone.layers:
                assert isinstance(layer, FusedLayer)
                layer.kernels = kernels and triton_kernels.available()
            if compiled:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    runner.compile()
            together, alone = runner.run(texts), np.concatenate([runner.run([text]) for text in texts])
            for found in (together, alone):
                off = 1 - (found * exact).sum(1)
                if make is fuse_:
                    assert off.max() <= 0.01
                # fp8 moves so small a model by up to 0.03, so what counts is to be as near as the formula is
                assert off.mean() <= 1.1 * formula.mean()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_our_gpu_kernels_equal_the_plain_functions(backbone: Backbone, dtype: torch.dtype) -> None:
    if not triton_kernels.available():
        pytest.skip("needs Triton")
    layer = fuse_(copy.deepcopy(backbone).to("cuda", dtype)).layers[0]
    assert isinstance(layer, FusedLayer)
    hidden = torch.randn(37, backbone.config.hidden_size, device="cuda", dtype=dtype)
    norm = layer.input_layernorm
    norm.weight.copy_(torch.rand_like(norm.weight))
    close: dict[str, Any] = {"atol": 2e-2, "rtol": 2e-2}  # two roundings of bfloat16
    torch.testing.assert_close(triton_kernels.rms_norm(hidden, norm.weight, norm.eps), norm(hidden), **close)
    angles = rotation(torch.arange(37, device="cuda"), layer.head_dim, 1e6, dtype)
    wanted = torch.cat([rows.flatten(1) for rows in before_attention(layer, hidden, *angles)], dim=1)
    joined = layer.qkv_proj(norm(hidden))
    heads = [size // layer.head_dim for size in layer.sizes[:2]]
    weights = (layer.q_norm.weight, layer.k_norm.weight)
    triton_kernels.norm_and_rotate_(joined, *weights, layer.q_norm.eps, *angles, *heads)
    torch.testing.assert_close(joined, wanted, **close)
    gate_up = torch.randn(37, 2 * 200, device="cuda", dtype=dtype)
    product = torch.nn.functional.silu(gate_up[:, :200]) * gate_up[:, 200:]
    torch.testing.assert_close(triton_kernels.silu_multiply(gate_up), product, **close)
    codes, scale = quantize_rows(hidden)
    found = triton_kernels.quantize_fp8(hidden)
    assert torch.equal(found[0].float(), codes.float())
    assert torch.equal(found[1], scale)
    for found, plain in (
        (triton_kernels.rms_norm_fp8(hidden, norm.weight, norm.eps), norm(hidden)),
        (triton_kernels.silu_multiply_fp8(gate_up), product),
    ):
        step = plain.float().abs() / 8 + plain.float().abs().amax(1, keepdim=True) / LARGEST * 2**-8
        assert ((found[0].float() * found[1] - plain.float()).abs() <= step).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_texts_of_one_length_give_the_same_on_the_other_attention_kernel() -> None:
    rows = torch.randn(32 * 600, 8, 128, device="cuda", dtype=torch.bfloat16)
    query, key, value = rows[:, :4], rows[:, 4:6], rows[:, 6:]
    batch = pack(np.random.default_rng(0).integers(0, 9, (32, 600)).tolist(), share_prefixes=False)
    plan = plan_all(batch, rows.device)
    assert plan.even is not None
    uneven = dataclasses.replace(plan, blocks=())
    torch.testing.assert_close(varlen(query, key, value, plan), varlen(query, key, value, uneven), atol=2e-2, rtol=2e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_wide_pass_on_a_gpu_is_that_of_the_cpu(backbone: Backbone) -> None:
    batch = pack(sequences())
    for make in (fuse_, quantize_fp8_):
        if make is quantize_fp8_ and torch.cuda.get_device_capability() < (9, 0):
            continue
        half = make(copy.deepcopy(backbone).to("cuda", torch.bfloat16))
        # the very same codes: a scale divided on a GPU can differ in its last bit
        wanted = copy.deepcopy(half).to("cpu")(batch, compute_dtype=torch.float32)
        torch.testing.assert_close(half(batch, compute_dtype=torch.float32).cpu(), wanted, atol=1e-4, rtol=1e-4)
