"""Named workloads and shapes of the benchmarks, and checkpoints of random weights to run them on."""

from __future__ import annotations

import json
import lzma
import platform
import resource
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch

from qwen3_embedding.inference.speed import mixed_lengths, random_texts
from qwen3_embedding.inputs.prompts import RERANKER_PREFIX, RERANKER_SUFFIX, query_prompt, reranker_body
from qwen3_embedding.inputs.tokenizer import Tokenizer
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.config import BackboneConfig
from qwen3_embedding.model.weights import save_backbone, write_json

TOKENIZER = Path(__file__).resolve().parents[1] / "tests" / "data" / "qwen3-tokenizer.json.xz"
GIB = 1024**3
INSTRUCTION_TOKENS, QUERY_TOKENS = 24, 12

SHAPES = {
    "0.6B": BackboneConfig(151669, 1024, 3072, 28, 16, 8),
    "4B": BackboneConfig(151665, 2560, 9728, 36, 32, 8, max_position_embeddings=40960),
    "8B": BackboneConfig(151665, 4096, 12288, 36, 32, 8, max_position_embeddings=40960),
}
"""The exact published shapes."""


def shape(name: str, layers: int | None = None) -> BackboneConfig:
    """A published shape, with fewer layers where asked."""
    return SHAPES[name] if layers is None else replace(SHAPES[name], num_hidden_layers=layers)


def random_backbone(config: BackboneConfig, seed: int = 0) -> Backbone:
    """A backbone of random weights in float32, made in memory."""
    return Backbone(config).initialize(seed).requires_grad_(False).eval()


def tokenizer() -> Tokenizer:
    """The published tokenizer."""
    import tokenizers

    return Tokenizer(tokenizers.Tokenizer.from_str(lzma.decompress(TOKENIZER.read_bytes()).decode("utf-8")))


def write_embedder(folder: Path, config: BackboneConfig, dtype: torch.dtype = torch.float32) -> None:
    """A folder of random weights that this package and sentence-transformers both load."""
    save_backbone(folder, random_backbone(config), dtype, 151643)
    (folder / "tokenizer.json").write_bytes(lzma.decompress(TOKENIZER.read_bytes()))
    control: dict[str, Any] = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"}
    write_json(folder / "tokenizer_config.json", {**control, "pad_token": "<|endoftext|>", "model_max_length": 131072})
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(kinds)
    ]
    write_json(folder / "modules.json", modules)
    pooling = {"word_embedding_dimension": config.hidden_size, "pooling_mode_lasttoken": True}
    (folder / "1_Pooling").mkdir(exist_ok=True)
    write_json(folder / "1_Pooling" / "config.json", {**pooling, "pooling_mode_mean_tokens": False})


@dataclass(frozen=True)
class Work:
    """What an engine is asked to do."""

    kind: Literal["documents", "queries", "pairs"]
    texts: list[str]
    """Documents, or queries."""
    prompts: list[str]
    """What the model reads, end token aside: for engines that know no prompts."""
    query: str = ""
    instruction: str = ""
    ids: list[list[int]] = field(default_factory=list)
    """Token ids of the prompts as our tokenizer gives them."""

    @property
    def tokens(self) -> int:
        """Tokens of all prompts, as if nothing was shared."""
        return sum(map(len, self.ids))


@dataclass(frozen=True)
class Case:
    """A named workload."""

    name: str
    lengths: tuple[int, ...]
    """Tokens of each text; of a document in a pair."""
    kind: Literal["documents", "queries", "pairs"] = "documents"
    distinct: bool = False
    repeats: int = 1
    """Runs a round; more than one where a run is short and its latency counts."""

    def texts(self, words: Tokenizer) -> list[str]:
        """Random texts of these lengths."""
        return distinct_texts(words, len(self.lengths)) if self.distinct else random_texts(words, self.lengths)

    def work(self, words: Tokenizer) -> Work:
        """The texts, and the prompts made of them."""
        texts = self.texts(words)
        if self.kind == "documents":
            return Work("documents", texts, texts, ids=words.encode_documents(texts).ids)
        if self.kind == "queries":
            task = task_of(words, INSTRUCTION_TOKENS)
            prompts = [query_prompt(text, task) for text in texts]
            return Work("queries", texts, prompts, instruction=task, ids=words.encode_queries(texts, task).ids)
        query = random_texts(words, [QUERY_TOKENS + 1], seed=3)[0]
        prompts = [RERANKER_PREFIX + reranker_body(query, text) + RERANKER_SUFFIX for text in texts]
        return Work("pairs", texts, prompts, query=query, ids=words.encode_pairs([query] * len(texts), texts).ids)


def distinct_texts(words: Tokenizer, count: int) -> list[str]:
    """Texts of one word each, all different, most of them one token."""
    pieces = words.token_strings(range(words.vocab_size))
    single = list(dict.fromkeys(piece.strip().lower() for piece in pieces if piece.strip().isalpha()))
    compound = (f"{first}{second}" for first in single for second in single)
    found: dict[str, None] = {}
    for word in chain(single, compound):
        if len(found) == count:
            break
        found[word] = None
    return list(found)


def task_of(words: Tokenizer, tokens: int) -> str:
    """A random instruction that takes ``tokens`` tokens together with "Instruct:", the line break and "Query:"."""
    frame = len(words.encode_queries([""], " a").ids[0]) - 2
    return random_texts(words, [tokens - frame + 1], seed=3)[0].strip()


def cases(scale: float = 1.0) -> dict[str, Case]:
    """All cases; ``scale`` multiplies how many texts each has."""

    def some(count: int) -> int:
        return max(1, round(count * scale))

    found = [
        Case("mixed", tuple(mixed_lengths(some(512)))),
        Case("short", (24,) * some(512)),
        Case("queries", (QUERY_TOKENS + 1,) * some(256), "queries"),
        Case("one-word", (2,) * some(10_000), distinct=True),
        Case("512", (512,) * some(16)),
        Case("2048", (2048,) * some(4)),
        Case("8192", (8192,)),
        Case("rerank-100x100", (101,) * some(100), "pairs"),
        # 39 + 9 tokens of frame, the default instruction, a query of 12: about 160 in all.
        Case("rerank-64x160", (75,) * some(64), "pairs"),
        Case("single", (16,), "queries", repeats=20),
    ]
    return {case.name: case for case in found}


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    return {
        "cpu": name,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def resident() -> int:
    """Bytes of memory this process holds now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def save(name: str, result: dict[str, Any]) -> Path:
    """Write a dated result beside the others."""
    from datetime import UTC, datetime

    folder = Path(__file__).resolve().parent / "results"
    path = folder / f"{datetime.now(UTC):%Y-%m-%d}-{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return path
