"""The native kernel against integer formulas, the plain path and itself: alone, in crowds, other instruction sets."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from qwen3_embedding.errors import NumericalError
from qwen3_embedding.inference.embedder import Embedder
from qwen3_embedding.inference.kernel import choose_kernel, use_kernel
from qwen3_embedding.inference.reranker import Reranker
from qwen3_embedding.inputs.packing import PackedBatch, pack
from qwen3_embedding.model import quantized
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.config import BackboneConfig
from qwen3_embedding.model.native import forward
from qwen3_embedding.model.native.forward import NativeForward
from qwen3_embedding.model.native.library import (
    COMPILERS,
    Library,
    Matrix,
    NativeUnavailableError,
    build,
    cache_folder,
    pointer,
)
from qwen3_embedding.model.quantized import native_engine, quantize_, quantize_rows, refined_products
from qwen3_embedding.model.rope import rotation

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="no C++ compiler")
SETS = {
    "this machine": None,
    "avx-vnni": ["-mavx2", "-mfma", "-mavxvnni", "-O1"],
    "avx2": ["-mavx2", "-mfma", "-O1"],
}
"""Compiler options of the instruction sets that are tried, where this machine has them; -O1 compiles faster."""
ODD = BackboneConfig(300, 52, 70, 3, 6, 2, head_dim=10)
"""No size is a multiple of a vector."""
WIDE = BackboneConfig(300, 128, 320, 2, 4, 1, head_dim=64)
LENGTHS = (1, 2, 3, 5, 6, 7, 13, 40, 127, 128, 129, 260, 400)
"""Tails of six rows, edges of key blocks (128), and more than one chunk of rows (192) together."""
TEXTS = [f"text {number} " + "of some words " * (number % 7) for number in range(40)]


def _flags() -> str:
    return Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""


@pytest.fixture(scope="module", params=SETS)
def library(request: pytest.FixtureRequest) -> Library:
    options = SETS[request.param]
    needed = [option[2:].replace("avxvnni", "avx_vnni") for option in options or [] if option.startswith("-m")]
    if missing := [name for name in needed if name not in _flags()]:
        pytest.skip(f"this CPU has no {missing}")
    try:
        return Library(build(cache_folder(), options))
    except NativeUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def rows(count: int, size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(count, 1, generator=generator).mul_(12).sub_(6).exp_()  # rows of very different sizes
    return torch.randn(count, size, generator=generator) * spread


def batch_of(lengths: tuple[int, ...] = LENGTHS, share: bool = True) -> PackedBatch:
    rng = np.random.default_rng(0)
    common = rng.integers(0, 300, 30).tolist()
    own = [rng.integers(0, 300, length).tolist() for length in lengths]
    return pack([common + ids if number % 2 else ids for number, ids in enumerate(own)], share_prefixes=share)


def backbone_of(
    config: BackboneConfig, library: Library | None, dtype: torch.dtype = torch.float32, sharper: float = 1.0
) -> Backbone:
    backbone = Backbone(config).initialize(1).requires_grad_(False)
    for number, weight in enumerate(backbone.parameters()):
        if weight.ndim == 1:
            weight.add_(rows(1, len(weight), seed=number)[0].clamp(-0.5, 0.5))  # norms that are not all one
        elif number:
            weight.mul_(8)  # scores and activations far from zero
    for layer in backbone.layers:
        layer.self_attn.q_norm.weight.mul_(sharper)  # type: ignore[union-attr, operator]
    return use_kernel(backbone, library, dtype)


@pytest.mark.parametrize("inner", [4, 7, 64, 258])
@pytest.mark.parametrize("columns", [1, 16, 63, 65])
def test_int8_products_are_exact(library: Library, columns: int, inner: int) -> None:
    generator = torch.Generator().manual_seed(columns)
    codes_NK = torch.randint(-127, 128, (columns, inner), generator=generator).to(torch.int8)
    packed, start = library.pack(codes_NK)
    scale = torch.zeros(len(start))
    scale[:columns] = torch.rand(columns, generator=generator)
    for count in (1, 2, 5, 6, 7, 11, 12, 13):
        codes_RK = torch.randint(-127, 128, (count, inner), generator=generator)
        codes_RK[0] = 127
        stored = torch.full((count, -(-inner // 4) * 4), library.zero_point, dtype=torch.uint8)
        stored[:, :inner] = (codes_RK + library.zero_point).to(torch.uint8)
        row_scale = torch.rand(count, generator=generator)
        got = library.multiply(
            Matrix(pointer(packed), pointer(scale), pointer(start), columns, inner), stored, row_scale
        )
        sums = codes_RK.double() @ codes_NK.double().t()
        wanted = sums * scale[:columns].double() * row_scale[:, None].double()
        torch.testing.assert_close(got.double(), wanted, rtol=3e-7, atol=0)


@pytest.mark.parametrize("inner", [1, 16, 33, 96])
def test_rows_are_quantised_as_the_plain_path_does(library: Library, inner: int) -> None:
    x = rows(40, inner)
    x[0], x[1] = 0, 1e-42
    codes, scale = library.quantize(x)
    wanted = quantize_rows(x, native_engine(library))
    torch.testing.assert_close(scale, wanted.scale_R1[:, 0], rtol=2e-7, atol=0)
    steps = (codes[:, :inner].int() - wanted.codes_RK.int()).to(torch.int8)  # the codes are bytes that wrap
    assert steps.abs().max() <= 1  # a tie may fall to the other side
    assert (steps != 0).float().mean() < 0.01
    x[3, inner // 2], x[4, 0], x[5, inner - 1] = float("nan"), float("inf"), float("-inf")
    assert library.quantize(x)[1].isfinite().tolist() == [number not in (3, 4, 5) for number in range(40)]


@pytest.mark.parametrize("config", [ODD, WIDE], ids=["odd", "wide"])
@torch.inference_mode()
def test_float32_layers_are_those_of_float64(library: Library, config: BackboneConfig) -> None:
    batch = batch_of()
    exact = backbone_of(config, None).double()
    angles = backbone_of(config, None)
    wanted = exact.hidden_states(batch)
    got = backbone_of(config, library).hidden_states(batch)
    plain = angles.hidden_states(batch)
    # The angles are float32 in all three, and so are the norms of the plain path.
    error, usual = ((x.double() - wanted).abs().max().item() for x in (got, plain))
    assert error <= max(2 * usual, 1e-5)
    torch.testing.assert_close(backbone_of(config, library)(batch), got[batch.pooled_rows], rtol=0, atol=0)


@pytest.mark.parametrize("config", [ODD, WIDE], ids=["odd", "wide"])
@torch.inference_mode()
def test_int8_layers_are_those_of_the_plain_path(library: Library, config: BackboneConfig) -> None:
    batch = batch_of()
    got = backbone_of(config, library, torch.int8)
    plain = backbone_of(config, None)
    quantize_(plain, native_engine(library))
    one = got.hidden_states(batch), plain.hidden_states(batch)
    # Rounding of float32 between the products tips single codes over; the rest is the same arithmetic.
    assert torch.nn.functional.cosine_similarity(*one).min() > 0.995
    assert (one[0] - one[1]).abs().median() < 0.02 * one[1].abs().median()


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=["float32", "int8"])
@pytest.mark.parametrize("config", [ODD, WIDE], ids=["odd", "wide"])
@torch.inference_mode()
def test_every_bit_is_the_same_alone_shared_in_chunks_and_by_threads(
    library: Library, config: BackboneConfig, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = backbone_of(config, library, dtype)
    batch = batch_of()
    wanted = backbone(batch)
    assert torch.equal(backbone(batch_of(share=False)), wanted)
    assert torch.equal(backbone.hidden_states(batch)[batch.pooled_rows], wanted)
    sequences = [batch.token_ids[batch.sequence_rows(number)] for number in range(batch.n_sequences)]
    assert torch.equal(torch.cat([backbone(pack([sequence])) for sequence in sequences]), wanted)
    assert torch.equal(backbone(pack(sequences[::-1])).flip(0), wanted)
    torch.set_num_threads(1)
    monkeypatch.setattr(forward, "CHUNK_ROWS", 25)
    assert torch.equal(backbone(batch), wanted)


@torch.inference_mode()
def test_instruction_sets_agree_to_the_rounding_of_float32(library: Library) -> None:
    batch = batch_of()
    here = choose_kernel("auto", CPU, torch.float32)
    one, two = (backbone_of(WIDE, kernel).hidden_states(batch) for kernel in (here, library))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=["float32", "int8"])
@torch.inference_mode()
def test_a_broken_text_breaks_no_other(dtype: torch.dtype, value: float, library: Library) -> None:
    backbone = backbone_of(WIDE, library, dtype)
    sequences = [[1, 2, 3], [4, 299, 5, 6], [7, 8], [9] * 30, [9] * 20 + [299], [9] * 20 + [1]]
    wanted = backbone(pack(sequences))
    backbone.embed_tokens.weight[299] = value
    got = backbone(pack(sequences))
    broken = torch.tensor([299 in sequence for sequence in sequences])
    assert not got[broken].isfinite().any()
    assert torch.equal(got[~broken], wanted[~broken])


@torch.inference_mode()
def test_weights_that_moved_are_found(library: Library) -> None:
    backbone = backbone_of(ODD, library)
    batch = batch_of((5, 9))
    backbone(batch)
    other = backbone_of(ODD, None)
    for weight in other.parameters():
        weight.mul_(1.25)
    backbone.load_state_dict(other.state_dict(), assign=True)
    torch.testing.assert_close(backbone(batch), other(batch), rtol=1e-4, atol=1e-4)


def test_gradients_take_the_plain_path(library: Library) -> None:
    backbone = backbone_of(ODD, library).requires_grad_(True)
    backbone(batch_of((5, 9))).sum().backward()
    assert all(weight.grad is not None for weight in backbone.parameters())


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_vectors_and_scores_are_bit_equal_alone(embedder_folder: Path, reranker_folder: Path, dtype: str) -> None:
    for kernel in ("native", "library"):
        try:
            embedder = Embedder.from_pretrained(embedder_folder, dtype=dtype, kernel=kernel, reproducible=True)
        except ValueError as error:
            pytest.skip(str(error))
        assert kernel == ("native" if "native" in repr(embedder) else "library")
        alone = np.concatenate([embedder.embed_queries([text]) for text in TEXTS])
        assert np.array_equal(alone, embedder.embed_queries(TEXTS))
        assert np.array_equal(alone[:17], embedder.embed_queries(TEXTS[:17]))
        reranker = Reranker.from_pretrained(reranker_folder, dtype=dtype, kernel=kernel, reproducible=True)
        one = np.concatenate([reranker.score("words", [text]) for text in TEXTS])
        assert np.array_equal(one, reranker.score("words", TEXTS))


def test_native_and_library_agree(embedder_folder: Path) -> None:
    models = [Embedder.from_pretrained(embedder_folder, kernel=kernel) for kernel in ("auto", "library")]
    assert np.abs(models[0].embed_documents(TEXTS) - models[1].embed_documents(TEXTS)).max() <= 1e-5
    small = [Embedder.from_pretrained(embedder_folder, dtype="int8", kernel=kernel) for kernel in ("auto", "library")]
    assert (small[0].embed_documents(TEXTS) * small[1].embed_documents(TEXTS)).sum(1).min() >= 0.998


def test_broken_weights_are_an_error(embedder_folder: Path) -> None:
    embedder = Embedder.from_pretrained(embedder_folder)
    embedder.backbone.layers[1].mlp.down_proj.weight[3, 3] = float("nan")  # type: ignore[union-attr, operator]
    with pytest.raises(NumericalError):
        embedder.embed_documents(["a text"])


def test_a_wrong_name_or_type_is_refused(embedder_folder: Path) -> None:
    with pytest.raises(ValueError, match="wanted auto, native, library"):
        Embedder.from_pretrained(embedder_folder, kernel="fast")
    with pytest.raises(ValueError, match="runs float32 and int8 on the CPU; got bfloat16"):
        Embedder.from_pretrained(embedder_folder, dtype="bfloat16", kernel="native")
    assert "PyTorch" in repr(Embedder.from_pretrained(embedder_folder, dtype="bfloat16"))


def test_a_machine_without_a_compiler_says_so_and_runs(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": "", "HOME": str(tmp_path)}
    base = [sys.executable, "-W", "ignore", "-m", "qwen3_embedding"]
    done = subprocess.run([*base, "info"], env=environment, capture_output=True, text=True, check=True)
    assert "kernel          PyTorch" in done.stdout
    assert "no C++ compiler is installed" in done.stdout
    assert "PyTorch's kernels are used, ours is not: no C++ compiler" in done.stderr
    refused = subprocess.run(
        [*base, "embed", "--kernel", "native"], input="a text\n", env=environment, capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert "no C++ compiler" in refused.stderr


@needs_compiler
def test_a_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(NativeUnavailableError, match=r"failed: .*-mno-such-thing"):
        build(tmp_path, ["-mno-such-thing"])
    assert not list(tmp_path.glob("*.so"))


@needs_compiler
def test_processes_that_build_at_once_do_no_harm(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from qwen3_embedding.model.native.library import Library, build; "
        "library = Library(build(Path(sys.argv[1]), ['-march=native', '-O0'])); print(library.isa, library.path)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=250)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == said[1] != ""
    assert [path.name for path in tmp_path.iterdir() if path.name != "lock"] == [Path(said[0].split()[1]).name]


@torch.inference_mode()
def test_a_forked_child_computes_too(library: Library) -> None:
    # The kernel alone: PyTorch's own threads do not outlive a fork.
    backbone, batch = backbone_of(WIDE, library), batch_of()
    parts = backbone.layers, backbone.norm.weight, batch
    hidden = rows(batch.n_tokens, WIDE.hidden_size)
    angles = rotation(torch.from_numpy(batch.positions), WIDE.head_dim, 1e6, torch.float32)
    run = NativeForward(library, threads=2)
    wanted = run(*parts, hidden, angles, None).numpy()
    child = os.fork()
    if child == 0:  # pragma: no cover
        torch.set_num_threads(1)  # its pool of threads, if it had one, is gone and would be waited for for ever
        os._exit(0 if np.array_equal(run(*parts, hidden, angles, None).numpy(), wanted) else 1)
    deadline = time.monotonic() + 200
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.05)
    if done == (0, 0):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert done == (child, 0)


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("config", [ODD, WIDE], ids=["odd", "wide"])
@torch.inference_mode()
def test_products_of_15_bits_are_those_of_the_plain_path_and_the_same_in_any_batch(
    library: Library, config: BackboneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of()
    got = backbone_of(config, library, torch.int8, sharper=8)
    assert len(refined_products(got)) == 2 * config.num_hidden_layers
    plain = quantize_(backbone_of(config, None, sharper=8), native_engine(library))
    exact = backbone_of(config, None, sharper=8).hidden_states(batch)
    one, two = got.hidden_states(batch), plain.hidden_states(batch)
    assert torch.nn.functional.cosine_similarity(one, two).median() > 0.999
    monkeypatch.setattr(quantized, "LARGEST_SCORE_ERROR", float("inf"))
    coarse = backbone_of(config, library, torch.int8, sharper=8).hidden_states(batch)
    assert (one - exact).square().mean() < 0.7 * (coarse - exact).square().mean()
    wanted = got(batch)
    assert torch.equal(one[batch.pooled_rows], wanted)
    sequences = [batch.token_ids[batch.sequence_rows(number)] for number in range(batch.n_sequences)]
    assert torch.equal(torch.cat([got(pack([sequence])) for sequence in sequences]), wanted)
    monkeypatch.setattr(forward, "CHUNK_ROWS", 25)
    assert torch.equal(got(batch), wanted)
