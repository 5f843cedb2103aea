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
    """``RIGHT``, a mistake (several, where the model gives the same for them), or "unknown"."""
    distance: float
    """From the right answer."""
    nearest: float
    """From the most similar answer."""


Variants = Mapping[str, Callable[[], FloatArray]]
"""What the right way and each mistake give, computed when it is asked for."""


def resemble(got: FloatArray, variants: Variants, kind: str) -> Likeness:
    """The variant that ``got`` is most like; the right one unless another is clearly nearer or all are far.

    The mistakes are computed only where the answer is not the right one to rounding in float32.
    """
    distance = _cosine_distance if kind == "vectors" else _difference
    right = distance(got, variants[RIGHT]())
    if right <= NEAR[kind]:
        return Likeness(RIGHT, right, right)
    far = {name: distance(got, wanted()) for name, wanted in variants.items() if name != RIGHT} | {RIGHT: right}
    best = min(far, key=far.__getitem__)
    nearest = far[best]
    if best == RIGHT:
        return Likeness(RIGHT if right <= FAR[kind] else "unknown", right, right)
    if nearest <= right / 4 and nearest <= FAR[kind]:
        equal = [name for name in far if name != RIGHT and far[name] <= nearest + 1e-9]
        return Likeness("; or ".join(equal), right, nearest)
    return Likeness(RIGHT if right <= FAR[kind] else "unknown", right, nearest)


def _cosine_distance(a_ND: FloatArray, b_ND: FloatArray) -> float:
    if a_ND.shape != b_ND.shape:
        return 2.0
    a, b = _unit(a_ND.astype(np.float64)), _unit(b_ND.astype(np.float64))
    return max(float(np.mean(1.0 - np.sum(a * b, axis=1))), 0.0)


def _difference(a_N: FloatArray, b_N: FloatArray) -> float:
    return float(np.mean(np.abs(a_N.astype(np.float64) - b_N)))


def _unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


def document_variants(embedder: Embedder, texts: Sequence[str]) -> dict[str, Callable[[], FloatArray]]:
    """(N, D) vectors of documents, right and by each mistake."""
    tokenizer, end = embedder.tokenizer, embedder.tokenizer.end_id
    bare = [ids or [end] for ids in tokenizer.token_ids(texts)]
    with_end = [[*ids, end] for ids in tokenizer.token_ids(texts)]
    chat_end = tokenizer.reranker_suffix_ids[0]

    def last(sequences: list[list[int]]) -> Callable[[], FloatArray]:
        return lambda: embedder.embed_tokens(sequences)

    def pooled(sequences: list[list[int]], pool: Callable[[FloatArray], FloatArray]) -> Callable[[], FloatArray]:
        return lambda: _rows([pool(_hidden(embedder, ids)) for ids in sequences])

    return {
        RIGHT: last(with_end),
        "the end token <|endoftext|> is missing": last(bare),
        "the end token stands twice": last([[*ids, end] for ids in with_end]),
        "the end token is <|im_end|>, not <|endoftext|>": last([[*ids, chat_end] for ids in bare]),
        "mean pooling instead of the last token": pooled(with_end, lambda rows: rows.mean(axis=0)),
        "mean pooling, and no end token": pooled(bare, lambda rows: rows.mean(axis=0)),
        "pooling of the first token instead of the last": pooled(with_end, lambda rows: rows[0]),
        "pooling of the token before the last": pooled(with_end, lambda rows: rows[max(len(rows) - 2, 0)]),
        "documents get the query's instruction": lambda: embedder.embed_queries(texts),
    }


def query_variants(embedder: Embedder, texts: Sequence[str], instruction: str) -> dict[str, Callable[[], FloatArray]]:
    """(N, D) vectors of queries whose instruction the server puts in, right and by each mistake."""

    def written(write: Callable[[str], str]) -> Callable[[], FloatArray]:
        return lambda: embedder.embed_documents([write(text) for text in texts])

    twice = [query_prefix(instruction) + text for text in texts]
    return {
        RIGHT: lambda: embedder.embed_queries(texts, instruction),
        "the instruction is left out": written(str),
        "a space stands after 'Query:'": written(lambda text: f"Instruct: {instruction}\nQuery: {text}"),
        "the instruction stands without 'Instruct:' and 'Query:'": written(lambda text: f"{instruction} {text}"),
        "the default instruction is used, not the one asked for": lambda: embedder.embed_queries(texts),
        "the instruction is put in twice": lambda: embedder.embed_queries(twice, instruction),
    }


def cut_variants(embedder: Embedder, texts: Sequence[str], limit: int) -> dict[str, Callable[[], FloatArray]]:
    """(N, D) vectors of texts cut to ``limit`` tokens, right (the end is cut, the end token stays) and otherwise."""
    end, all_ids = embedder.tokenizer.end_id, embedder.tokenizer.token_ids(texts)

    def cut(keep: Callable[[list[int]], list[int]]) -> Callable[[], FloatArray]:
        return lambda: embedder.embed_tokens([keep(ids) for ids in all_ids])

    return {
        RIGHT: cut(lambda ids: [*ids[: limit - 1], end]),
        "the end token is lost when a text is cut": cut(lambda ids: ids[:limit]),
        "the beginning is cut, where the instruction stands": cut(lambda ids: [*ids, end][-limit:]),
        "the beginning is cut, and the end token is missing": cut(lambda ids: ids[-limit:]),
    }


def score_variants(
    reranker: Reranker, query: str, documents: Sequence[str], instruction: str | None = None
) -> dict[str, Callable[[], FloatArray]]:
    """(N,) probabilities of "yes", right and by each mistake."""
    tokenizer, task = reranker.tokenizer, DEFAULT_INSTRUCTION if instruction is None else instruction
    before, after, end = tokenizer.reranker_prefix_ids, tokenizer.reranker_suffix_ids, tokenizer.end_id
    open_end = after[: len(after) - len(_control(reranker, RERANKER_SUFFIX[RERANKER_SUFFIX.index("<think>") :]))]

    def body(text: str) -> str:
        return f"<Instruct>: {task}\n<Query>: {query}\n<Document>: {text}"

    def run(head: list[int], write: Callable[[str], str], tail: list[int]) -> Callable[[], FloatArray]:
        def scores() -> FloatArray:
            middles = tokenizer.token_ids([write(document) for document in documents])
            return reranker.score_tokens([[*head, *ids, *tail] for ids in middles])

        return scores

    asked, right = tokenizer.token_ids([query])[0], run(before, body, after)
    variants = {
        RIGHT: right,
        "the template is missing: query and document stand bare": run(asked, str, []),
        "the template is missing, and an end token is put on": run(asked, str, [end]),
        "the template is missing: query and document stand on two lines": run([], lambda text: f"{query}\n{text}", []),
        "the template's end (assistant, closed thought) is missing": run(before, body, []),
        "the template's beginning (system message) is missing": run([], body, after),
        "the system and assistant parts of the template are missing": run([], body, []),
        "the empty thought at the template's end is missing": run(before, body, open_end),
        "an end token stands behind the template": run(before, body, [*after, end]),
        "blank lines stand between the template's fields": run(
            before, lambda text: body(text).replace("\n", "\n\n"), after
        ),
        "the instruction is left out": run(before, lambda text: f"<Query>: {query}\n<Document>: {text}", after),
        "the score is the probability of 'no'": lambda: 1 - right(),
    }
    if instruction is None:
        variants["the default instruction is the repository's, not the model card's"] = run(
            before, lambda text: body(text).replace(task, REPOSITORY_INSTRUCTION, 1), after
        )
    else:
        variants["the default instruction is used, not the one asked for"] = lambda: reranker.score(query, documents)
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


def _rows(rows: list[FloatArray]) -> FloatArray:
    return np.asarray(_unit(np.stack(rows)), dtype=np.float32)
