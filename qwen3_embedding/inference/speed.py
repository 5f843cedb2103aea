"""How fast a model runs here, how near that is to the machine's limit, and where the time goes."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from qwen3_embedding.inference.embedder import Embedder
from qwen3_embedding.inputs.packing import pack, plan_batches
from qwen3_embedding.inputs.tokenizer import Tokenizer
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.config import BackboneConfig
from qwen3_embedding.model.quantized import QuantizedLinear, choose_engine

GEMM_SHAPE = (1024, 1024, 3072)
"""Rows, inner size and columns of the product that stands for the machine's matrix-product rate."""

PARTS = (
    ("matrix products", ("aten::mm", "aten::addmm", "onednn::qlinear", "aten::_int_mm", "aten::linear", "mkldnn")),
    ("attention", ("scaled_dot_product", "flash_attention", "aten::bmm", "softmax", "aten::expand")),
    ("quantise", ("aten::abs", "aten::amax", "aten::round", "aten::reciprocal", "aten::clamp", "aten::view")),
    ("activation", ("aten::silu",)),
    ("norms", ("aten::mean", "aten::sum", "aten::rsqrt", "rms_norm")),
    ("copies and gathers", ("aten::copy_", "aten::cat", "aten::index", "aten::embedding", "aten::clone")),
    ("other element-wise", ("aten::mul", "aten::add", "aten::div", "aten::cos", "aten::sin", "aten::neg")),
)
"""Operators by the beginning of their names, or a part of it; whatever matches nothing is "other"."""


@dataclass(frozen=True)
class Timing:
    """Seconds of some rounds of one piece of work."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Longest minus shortest, as a share of the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


Clock = Literal["wall", "cpu"]
"""Seconds that pass, or of this process on any core: the second is steadier on a machine that others use too."""

CLOCKS: dict[Clock, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def interleave(
    runs: Mapping[str, Callable[[], object]], rounds: int, warm_up: bool = True, clock: Clock = "wall"
) -> dict[str, Timing]:
    """Time each piece of work once a round, one after the other, so that a busy minute hits all of them."""
    now = CLOCKS[clock]
    if rounds < 1:
        raise ValueError(f"rounds={rounds}; wanted at least 1")
    if warm_up:
        for run in runs.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            begin = now()
            run()
            seconds[name].append(now() - begin)
    return {name: Timing(tuple(times)) for name, times in seconds.items()}


def matrix_operations(config: BackboneConfig) -> int:
    """Multiplications and additions of a token in the linear layers (attention aside): 0.88e9 at the 0.6B shape."""
    norms = 2 * config.hidden_size + 2 * config.head_dim
    return 2 * config.num_hidden_layers * (config.layer_parameters - norms)


def gemm_rate(int8: bool, repeats: int = 5, clock: Clock = "wall") -> float:
    """Operations a second of the library's matrix product on this CPU, best of some repeats."""
    rows, inner, columns = GEMM_SHAPE
    left = torch.randn(rows, inner)
    layer = nn.Linear(inner, columns, bias=False).requires_grad_(False)
    multiply: Callable[[], object] = lambda: layer(left)  # noqa: E731
    if int8:
        engine = choose_engine()
        quantized = QuantizedLinear(layer, engine)
        codes = torch.randint(1, 2 * engine.levels, (rows, inner)).to(torch.uint8)
        multiply = lambda: engine.multiply(codes, quantized.prepared, quantized.scale_N, engine.zero_point)  # noqa: E731
    with torch.inference_mode():
        fastest = min(interleave({"product": multiply}, repeats, clock=clock)["product"].seconds)
    return 2 * rows * inner * columns / fastest


def peak_memory() -> int:
    """Largest resident set of this process so far, in bytes."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def count_tokens(backbone: Backbone, run: Callable[[], object]) -> int:
    """Tokens that the backbone computes while ``run`` runs: what is shared counts once."""
    counts: list[int] = []
    hook = backbone.register_forward_pre_hook(lambda _, args: counts.append(args[0].n_tokens))
    try:
        run()
    finally:
        hook.remove()
    return sum(counts)


def random_texts(tokenizer: Tokenizer, lengths: Sequence[int], seed: int = 0) -> list[str]:
    """Texts of random English-looking words, one token each, of about the lengths asked for (end token included)."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, tokenizer.vocab_size, 4000).tolist()
    words = [
        word for word in tokenizer.token_strings(ids) if word[:1] == " " and word[1:].isascii() and word[1:].isalpha()
    ]
    words = words or [" a"]
    return ["".join(words[i] for i in rng.integers(0, len(words), max(1, length - 1))) for length in lengths]


def mixed_lengths(count: int, mean: float = 120, longest: int = 512, seed: int = 0) -> list[int]:
    """Log-normal lengths, as real collections have them."""
    rng = np.random.default_rng(seed)
    sizes = rng.lognormal(0, 0.7, count)
    return [int(size) for size in np.clip(np.rint(sizes * mean / sizes.mean()), 2, longest)]


@dataclass(frozen=True)
class Speed:
    """What :func:`measure` found."""

    model: str
    dtype: str
    texts: int
    tokens: int
    tokens_per_second: float
    texts_per_second: float
    seconds: tuple[float, ...]
    spread: float
    single_query_ms: float
    share_of_gemm: float | None
    """Matrix products done, against what this CPU's library does at its best in the same process; CPU only."""
    gemm_gops: float | None
    peak_memory_mib: int
    threads: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measure(embedder: Embedder, count: int = 64, mean_tokens: float = 120, rounds: int = 3) -> Speed:
    """Speed of an embedder, called as people call it, on random texts of mixed lengths, and of a single query."""
    if count < 1:
        raise ValueError(f"count={count}; wanted at least 1")
    texts = random_texts(embedder.tokenizer, mixed_lengths(count, mean_tokens))
    tokens = sum(map(len, embedder.tokenizer.encode_documents(texts, embedder.max_tokens).ids))
    timing = interleave({"texts": lambda: embedder.embed_documents(texts)}, rounds)["texts"]
    single = interleave({"one": lambda: embedder.embed_queries([texts[0][:60]])}, 5)["one"]
    rate = gemm_rate(embedder.backbone.type_name == "int8") if embedder.backbone.device.type == "cpu" else None
    per_second = tokens / timing.median
    operations = matrix_operations(embedder.backbone.config)
    return Speed(
        model=embedder.name,
        dtype=embedder.backbone.type_name,
        texts=count,
        tokens=tokens,
        tokens_per_second=per_second,
        texts_per_second=count / timing.median,
        seconds=timing.seconds,
        spread=timing.spread,
        single_query_ms=single.median * 1000,
        share_of_gemm=None if rate is None else per_second * operations / rate,
        gemm_gops=None if rate is None else rate / 1e9,
        peak_memory_mib=peak_memory() >> 20,
        threads=torch.get_num_threads(),
    )


def time_by_part(embedder: Embedder, texts: Sequence[str]) -> dict[str, float]:
    """Seconds of each part of embedding documents on CPU: tokenise, pack, and the operators of the model by kind.

    The profiler adds its own time, mostly to "between operators"; compare shares, not sums.
    """
    begin = time.perf_counter()
    ids = embedder.tokenizer.encode_documents(texts, embedder.max_tokens).ids
    tokenised = time.perf_counter()
    settings = embedder.runner.settings
    for batch in plan_batches([len(sequence) for sequence in ids], settings.batch_tokens):
        pack([ids[i] for i in batch], share_prefixes=settings.share_prefixes)
    packed = time.perf_counter()
    parts = {"tokenise": tokenised - begin, "pack": packed - tokenised}
    start = time.perf_counter()
    operators = operators_by_part(lambda: embedder.embed_tokens(ids), embedder.backbone)
    whole = time.perf_counter() - start
    between = whole - sum(operators.values()) - parts["pack"]
    return {**parts, **operators, "between operators": max(0.0, between)}


def operators_by_part(run: Callable[[], object], backbone: Backbone | None = None) -> dict[str, float]:
    """Seconds of torch's operators on CPU while ``run`` runs, by :data:`PARTS`, and of a backbone's native kernel."""
    native = None if backbone is None or backbone.native is None else backbone.native.library
    if native is not None:
        native.seconds()  # begins to count
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    parts = dict.fromkeys([*(name for name, _ in PARTS), "other"], 0.0)
    for event in profile.key_averages():
        parts[_part(event.key)] += event.self_cpu_time_total / 1e6
    for name, seconds in ({} if native is None else native.seconds()).items():
        parts[name] = parts.get(name, 0.0) + seconds
    return parts


def _part(operator: str) -> str:
    for name, beginnings in PARTS:
        if any(operator.startswith(begin) or (":" not in begin and begin in operator) for begin in beginnings):
            return name
    return "other"
