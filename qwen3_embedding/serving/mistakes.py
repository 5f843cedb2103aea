"""The classic mistakes of servers, computed on a local model, so that a wrong answer can be told by its likeness.

Each mistake is a way in which real deployments went wrong: no end token, the wrong pooling, a missing template. The
same texts are run through each of them here; the one that a server's answers resemble is the likely cause.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from qwen3_embedding.inference.embedder import Embedder
from qwen3_embedding.inference.reranker import Reranker
from qwen3_embedding.inputs.packing import pack
from qwen3_embedding.inputs.prompts import RERANKER_SUFFIX, query_prefix
from qwen3_embedding.types import DEFAULT_INSTRUCTION, FloatArray

RIGHT = ""
"""The name of no mistake."""

REPOSITORY_INSTRUCTION = "Given the user query, retrieval the relevant passages"
"""Default of the published repository's example, which differs from the model card's."""

FAR = {"vectors": 2e-2, "scores": 3e-2}
"""Mean cosine distance and mean difference of probabilities from which an answer is wrong whatever it resembles: more
than rounding to half precision or int8 moves them."""

NEAR = {"vectors": 1e-5, "scores": 1e-4}
"""Below this an answer is right, and nothing else is looked for."""


@dataclass(frozen=True, slots=True)
class Likeness:
    """What an answer resembles most."""

    mistake: str
    """``RIGHT``, a mistake, or "unknown"."""
    distance: float
    """From the right answer."""
    nearest: float
    """From the most similar answer."""


def resemble(got: FloatArray, variants: Mapping[str, FloatArray], kind: str) -> Likeness:
    """The variant that ``got`` is most like; the right one unless another is clearly nearer or all are far."""
    distance = _cosine_distance if kind == "vectors" else _difference
    far = {name: distance(got, wanted) for name, wanted in variants.items()}
    best = min(far, key=far.__getitem__)
    right, nearest = far[RIGHT], far[best]
    if right <= NEAR[kind] or best == RIGHT:
        return Likeness(RIGHT if right <= FAR[kind] else "unknown", right, right)
    if nearest <= right / 4 and nearest <= FAR[kind]:
        return Likeness(best, right, nearest)
    return Likeness(RIGHT if right <= FAR[kind] else "unknown", right, nearest)


def _cosine_distance(a_ND: FloatArray, b_ND: FloatArray) -> float:
    if a_ND.shape != b_ND.shape:
        return 2.0
    a, b = _unit(a_ND.astype(np.float64)), _unit(b_ND.astype(np.float64))
    return float(np.mean(1.0 - np.sum(a * b, axis=1)))


def _difference(a_N: FloatArray, b_N: FloatArray) -> float:
    return float(np.mean(np.abs(a_N.astype(np.float64) - b_N)))


def _unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


def document_variants(embedder: Embedder, texts: Sequence[str]) -> dict[str, FloatArray]:
    """(N, D) vectors of documents, right and by each mistake."""
    tokenizer, end = embedder.tokenizer, embedder.tokenizer.end_id
    bare = [ids or [end] for ids in tokenizer.token_ids(texts)]
    with_end = [[*ids, end] for ids in tokenizer.token_ids(texts)]
    chat_end = tokenizer.reranker_suffix_ids[0]
    hidden = [_hidden(embedder, ids) for ids in with_end]
    variants = {
        RIGHT: embedder.embed_tokens(with_end),
        "the end token <|endoftext|> is missing": embedder.embed_tokens(bare),
        "the end token stands twice": embedder.embed_tokens([[*ids, end] for ids in with_end]),
        "the end token is <|im_end|>, not <|endoftext|>": embedder.embed_tokens([[*ids, chat_end] for ids in bare]),
        "mean pooling instead of the last token": _rows(rows.mean(axis=0) for rows in hidden),
        "mean pooling, and no end token": _rows(_hidden(embedder, ids).mean(axis=0) for ids in bare),
        "pooling of the first token instead of the last": _rows(rows[0] for rows in hidden),
        "pooling of the token before the last": _rows(rows[max(len(rows) - 2, 0)] for rows in hidden),
        "documents get the query's instruction": embedder.embed_queries(texts),
    }
    return variants


def query_variants(embedder: Embedder, texts: Sequence[str], instruction: str) -> dict[str, FloatArray]:
    """(N, D) vectors of queries whose instruction the server puts in, right and by each mistake."""
    spaced = [f"Instruct: {instruction}\nQuery: {text}" for text in texts]
    plain = [f"{instruction} {text}" for text in texts]
    return {
        RIGHT: embedder.embed_queries(texts, instruction),
        "the instruction is left out": embedder.embed_documents(texts),
        "a space stands after 'Query:'": embedder.embed_documents(spaced),
        "the instruction stands without 'Instruct:' and 'Query:'": embedder.embed_documents(plain),
        "the default instruction is used, not the one asked for": embedder.embed_queries(texts),
        "the instruction is put in twice": embedder.embed_queries(
            [query_prefix(instruction) + text for text in texts], instruction
        ),
    }


def cut_variants(embedder: Embedder, texts: Sequence[str], limit: int) -> dict[str, FloatArray]:
    """(N, D) vectors of texts cut to ``limit`` tokens, right (the end is cut, the end token stays) and otherwise."""
    end, all_ids = embedder.tokenizer.end_id, embedder.tokenizer.token_ids(texts)
    return {
        RIGHT: embedder.embed_tokens([[*ids[: limit - 1], end] for ids in all_ids]),
        "the end token is lost when a text is cut": embedder.embed_tokens([ids[:limit] for ids in all_ids]),
        "the beginning is cut, where the instruction stands": embedder.embed_tokens(
            [[*ids, end][-limit:] for ids in all_ids]
        ),
        "the beginning is cut, and the end token is missing": embedder.embed_tokens([ids[-limit:] for ids in all_ids]),
        NOT_CUT: embedder.embed_tokens([[*ids, end] for ids in all_ids]),
    }


NOT_CUT = "the limit is not heeded"


def score_variants(
    reranker: Reranker, query: str, documents: Sequence[str], instruction: str | None = None
) -> dict[str, FloatArray]:
    """(N,) probabilities of "yes", right and by each mistake."""
    tokenizer, task = reranker.tokenizer, DEFAULT_INSTRUCTION if instruction is None else instruction
    before, after = tokenizer.reranker_prefix_ids, tokenizer.reranker_suffix_ids
    thought = RERANKER_SUFFIX.index("<think>")
    open_end = after[: len(after) - len(_control(reranker, RERANKER_SUFFIX[thought:]))]

    def bodies(write: Callable[[str], str]) -> list[list[int]]:
        return tokenizer.token_ids([write(document) for document in documents])

    def run(sequences: list[list[int]]) -> FloatArray:
        return reranker.score_tokens(sequences)

    def templated(write: Callable[[str], str]) -> FloatArray:
        return run([[*before, *ids, *after] for ids in bodies(write)])

    def body(text: str) -> str:
        return f"<Instruct>: {task}\n<Query>: {query}\n<Document>: {text}"

    pair = tokenizer.token_ids([query])[0]
    pairs = [[*pair, *ids] for ids in tokenizer.token_ids(documents)]
    right = templated(body)
    variants = {
        RIGHT: right,
        "the template is missing: query and document stand bare": run(pairs),
        "the template is missing, and an end token is put on": run([[*ids, tokenizer.end_id] for ids in pairs]),
        "the template is missing: query and document stand on two lines": run(bodies(lambda d: f"{query}\n{d}")),
        "the template's end (assistant, closed thought) is missing": run([[*before, *ids] for ids in bodies(body)]),
        "the template's beginning (system message) is missing": run([[*ids, *after] for ids in bodies(body)]),
        "the system and assistant parts of the template are missing": run(bodies(body)),
        "the empty thought at the template's end is missing": run(
            [[*before, *ids, *open_end] for ids in bodies(body)]
        ),
        "an end token stands behind the template": run(
            [[*before, *ids, *after, tokenizer.end_id] for ids in bodies(body)]
        ),
        "blank lines stand between the template's fields": templated(lambda d: body(d).replace("\n", "\n\n")),
        "the instruction is left out": templated(lambda d: f"<Query>: {query}\n<Document>: {d}"),
        "the score is the probability of 'no'": 1 - right,
    }
    if instruction is None:
        variants["the default instruction is the repository's, not the model card's"] = templated(
            lambda d: body(d).replace(task, REPOSITORY_INSTRUCTION, 1)
        )
    else:
        variants["the default instruction is used, not the one asked for"] = reranker.score(query, documents)
    return variants


def _control(reranker: Reranker, text: str) -> list[int]:
    """Ids of a piece of the template, whose special tokens are meant."""
    whole = reranker.tokenizer.reranker_suffix_ids
    for begin in range(len(whole)):
        if reranker.tokenizer.decode(whole[begin:]) == text:
            return whole[begin:]
    return []


def _hidden(embedder: Embedder, ids: list[int]) -> FloatArray:
    """(T, D) hidden states of one text's tokens."""
    with torch.inference_mode():
        return np.asarray(embedder.backbone.hidden_states(pack([ids])).float().cpu().numpy())


def _rows(rows: object) -> FloatArray:
    return np.asarray(_unit(np.stack(list(rows))), dtype=np.float32)  # type: ignore[call-overload]
