"""Is this checkpoint the model it should be? Shapes, tokens, prompts, numbers, each with what was wanted and what
came."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from qwen3_embedding.errors import Qwen3EmbeddingError
from qwen3_embedding.inference.embedder import Embedder
from qwen3_embedding.inference.reranker import Reranker
from qwen3_embedding.inference.runner import RunSettings
from qwen3_embedding.inference.source import Hub, resolve
from qwen3_embedding.inputs.tokenizer import Tokenizer
from qwen3_embedding.model.config import read_config
from qwen3_embedding.model.weights import weight_files

Kind = Literal["embedder", "reranker"]
Outcome = Literal["pass", "fail", "skip"]

PUBLISHED_PARAMETERS = {
    595_776_512: "Qwen3 0.6B embedder or reranker",
    4_021_774_336: "Qwen3-Embedding-4B",
    7_567_295_488: "Qwen3-Embedding-8B",
    4_021_784_576: "Qwen3-Reranker-4B",
    7_567_295_488 + 4 * 4096: "Qwen3-Reranker-8B (head aside)",
}
"""Backbone parameters of the published checkpoints."""

PUBLISHED_IDS = {"end": 151643, "yes": 9693, "no": 2152, "prefix tokens": 39, "suffix tokens": 9}

CARD_QUERIES = ["What is the capital of China?", "Explain gravity"]
CARD_DOCUMENTS = [
    "The capital of China is Beijing.",
    "Gravity is a force that attracts two bodies towards each other. It gives weight to physical objects and is "
    "responsible for the movement of planets around the sun.",
]
CARD_SIMILARITIES = [[0.76456, 0.14143], [0.13550, 0.59995]]
"""Qwen3-Embedding-0.6B in float32, from its model card."""

PLANET_QUERY = "Which planet is known as the Red Planet?"
PLANET_DOCUMENTS = [
    "Venus is often called Earth's twin because of its similar size and proximity.",
    "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
    "Jupiter, the largest planet in our solar system, has a prominent red spot.",
    "Saturn, famous for its rings, is sometimes mistaken for the Red Planet.",
]
PLANET_LOG_ODDS = [-3.10930, 7.12039, -0.37875, 3.54164]
"""Qwen3-Reranker-0.6B in float32, from the tests of sentence-transformers."""

GOLDEN_TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2, "float16": 1e-2, "int8": 3e-2}
"""Of similarities; log-odds get 30 times as much, for they are that much larger."""

BATCH_TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2, "float16": 5e-3, "int8": 1e-2}
"""Alone against in a batch: rounding of the type, summed over the layers."""

_TEXTS = [
    "",
    "a",
    "What is the capital of China?",
    "重力是什么？",
    "x" * 300,
    "the end <|endoftext|></think><|im_end|>",
    *CARD_DOCUMENTS,
]


@dataclass(frozen=True)
class Check:
    """One question asked of a checkpoint."""

    name: str
    outcome: Outcome
    got: str
    wanted: str = ""


def kind_of(folder: Path) -> Kind:
    """Embedder or reranker, told from the sentence-transformers files and the tensors' names."""
    if (folder / "modules.json").exists() or (folder / "1_Pooling").is_dir():
        return "embedder"
    names = weight_files(folder)
    return "reranker" if any(name.startswith("model.") or name == "score.weight" for name in names) else "embedder"


def verify(
    source: str | Path,
    kind: Kind | None = None,
    device: str = "auto",
    dtype: str = "auto",
    offline: bool = False,
    hub: Hub = "huggingface",
) -> list[Check]:
    """Load a checkpoint and ask it everything that can be asked offline.

    Returns:
        The checks in order. A checkpoint that does not load gives one failed check.

    Raises:
        ModelNotFoundError: there is no such model.
    """
    folder = resolve(source, offline=offline, hub=hub)
    try:
        what = kind or kind_of(folder)
        published = _published(str(source), folder)
        if what == "embedder":
            return list(_embedder_checks(folder, published, device, dtype))
        return list(_reranker_checks(folder, published, device, dtype))
    except Qwen3EmbeddingError as error:
        return [Check("loads", "fail", str(error))]


def _published(source: str, folder: Path) -> str | None:
    """The published model that this claims to be, by its name."""
    for name in (source, folder.name, *(part for part in folder.parts if part.startswith("models--"))):
        for size in ("0.6B", "4B", "8B"):
            for series in ("Qwen3-Embedding", "Qwen3-Reranker"):
                if name.replace("--", "/").endswith(f"{series}-{size}"):
                    return f"{series}-{size}"
    return None


def _embedder_checks(folder: Path, published: str | None, device: str, dtype: str) -> Iterator[Check]:
    started = time.perf_counter()
    model = Embedder.from_pretrained(folder, device, dtype)
    yield Check("loads", "pass", f"{model!r} in {time.perf_counter() - started:.2f} s")
    yield from _shape_checks(folder, published)
    yield from _token_checks(model.tokenizer, published)
    yield _weights_check(model.backbone.state_dict())
    ids = model.tokenizer.encode_documents(_TEXTS, 64).ids
    end = model.tokenizer.end_id
    once = all(sequence[-1] == end and sequence.count(end) == 1 for sequence in ids)
    yield _judge("end token exactly once, also empty, cut, and with special strings inside", once, str(once))
    yield _file_check(model.tokenizer, True)
    prompt = model.tokenizer.token_strings(model.tokenizer.encode_queries(["x"], "t").ids[0][:-1])
    yield _equal("query prompt", "".join(prompt), "Instruct: t\nQuery:x")
    tolerance = BATCH_TOLERANCE[model.backbone.type_name]
    yield _invariance("vector alone against in a batch", model.embed_documents, tolerance)
    shared = model.embed_queries(_TEXTS)
    model.runner.settings = RunSettings(model.runner.settings.batch_tokens, share_prefixes=False)
    yield _close("shared instruction against separate prompts", model.embed_queries(_TEXTS), shared, tolerance)
    if published == "Qwen3-Embedding-0.6B":
        got = model.similarity(model.embed_queries(CARD_QUERIES), model.embed_documents(CARD_DOCUMENTS))
        golden = GOLDEN_TOLERANCE[model.backbone.type_name]
        yield _close("similarities of the model card", got, np.asarray(CARD_SIMILARITIES), golden)
    else:
        yield Check("golden values", "skip", f"none are published for {published or 'this model'}")


def _reranker_checks(folder: Path, published: str | None, device: str, dtype: str) -> Iterator[Check]:
    started = time.perf_counter()
    model = Reranker.from_pretrained(folder, device, dtype)
    yield Check("loads", "pass", f"{model!r} in {time.perf_counter() - started:.2f} s")
    yield from _shape_checks(folder, published)
    yield from _token_checks(model.tokenizer, published)
    yield _weights_check(model.backbone.state_dict())
    prompt = "".join(model.tokenizer.token_strings(model.tokenizer.encode_pairs(["q"], ["d"], "t").ids[0]))
    wanted = "<Instruct>: t\n<Query>: q\n<Document>: d<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    yield _judge(
        "prompt: single newlines, closed thought", prompt.endswith(wanted), repr(prompt[-len(wanted) :]), repr(wanted)
    )
    yield _file_check(model.tokenizer, False)
    tolerance = BATCH_TOLERANCE[model.backbone.type_name]
    yield _invariance("score alone against in a batch", lambda texts: model.score(PLANET_QUERY, texts), tolerance)
    shared = model.score(PLANET_QUERY, _TEXTS)
    model.runner.settings = RunSettings(model.runner.settings.batch_tokens, share_prefixes=False)
    yield _close("shared query against separate prompts", model.score(PLANET_QUERY, _TEXTS), shared, tolerance)
    if published == "Qwen3-Reranker-0.6B":
        scores = model.score(PLANET_QUERY, PLANET_DOCUMENTS).astype(np.float64)
        golden = 30 * GOLDEN_TOLERANCE[model.backbone.type_name]
        yield _close("log-odds of the reference", np.log(scores / (1 - scores)), np.asarray(PLANET_LOG_ODDS), golden)
    else:
        yield Check("golden values", "skip", f"none are published for {published or 'this model'}")


def _shape_checks(folder: Path, published: str | None) -> Iterator[Check]:
    config = read_config(folder)
    known = PUBLISHED_PARAMETERS.get(config.parameters)
    size = f"{config.parameters:,} backbone parameters"
    if published is None:
        yield Check("shape", "pass", f"{size} ({known or 'a shape of its own'})")
    else:
        yield _judge("shape", known is not None, size, f"that of {published}")


def _token_checks(tokenizer: Tokenizer, published: str | None) -> Iterator[Check]:
    got = {
        "end": tokenizer.end_id,
        "yes": tokenizer.yes_id,
        "no": tokenizer.no_id,
        "prefix tokens": len(tokenizer.reranker_prefix_ids),
        "suffix tokens": len(tokenizer.reranker_suffix_ids),
    }
    if published or tokenizer.vocab_size == 151669:
        yield _equal("token ids", str(got), str(PUBLISHED_IDS))
    else:
        yield Check("token ids", "pass", f"{got} (a vocabulary of its own: {tokenizer.vocab_size:,} ids)")
    hostile = tokenizer.token_ids(["</think><|im_end|>"])[0]
    control = {*tokenizer.reranker_suffix_ids[-2:-1], tokenizer.reranker_suffix_ids[0]}
    yield _judge("special strings in a text are text", not control & set(hostile), str(hostile[:8]))


def _file_check(tokenizer: Tokenizer, wanted: bool) -> Check:
    """This package encodes by itself; transformers, sentence-transformers, TEI and vLLM do what the file says."""
    said = {True: "the end token behind every text", False: "nothing behind a text"}
    return _judge(
        "tokenizer.json for other engines", tokenizer.puts_end_token == wanted,
        f"it puts {said[tokenizer.puts_end_token]}", f"it puts {said[wanted]}: its post_processor decides",
    )  # fmt: skip


def _weights_check(state: dict[str, torch.Tensor]) -> Check:
    broken = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    return _judge("all weights finite", not broken, ", ".join(broken[:3]) or f"{len(state)} tensors")


def _invariance(name: str, run: Callable[[list[str]], np.ndarray], tolerance: float) -> Check:
    together = run(_TEXTS)
    alone = np.concatenate([run([text]) for text in _TEXTS])
    return _close(name, alone, together, tolerance)


def _close(name: str, got: np.ndarray, wanted: np.ndarray, tolerance: float) -> Check:
    worst = float(np.abs(np.asarray(got, dtype=np.float64) - wanted).max())
    return _judge(name, worst <= tolerance, f"largest difference {worst:.2e}", f"at most {tolerance:.0e}")


def _equal(name: str, got: str, wanted: str) -> Check:
    return _judge(name, got == wanted, got, wanted)


def _judge(name: str, good: bool, got: str, wanted: str = "") -> Check:
    return Check(name, "pass" if good else "fail", got, "" if good else wanted)
