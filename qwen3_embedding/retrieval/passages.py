"""Short stretches of a document, each with a vector of its own: a document is as near as its nearest stretch.

One vector has to say everything that a document says; a question is mostly about one place in it.

Source: MaxP of Dai and Callan 2019, "Deeper Text Understanding for IR with Contextual Neural Language Modeling".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qwen3_embedding.retrieval.analysis import word_starts
from qwen3_embedding.types import FloatArray

SHORTEST = 4
"""Words of a passage at least."""


def passages(text: str, words: int) -> list[str]:
    """Stretches of ``words`` words of a text, each beginning half a stretch behind the last, in order.

    Two characters of a script that writes no spaces count as a word. A text that is no longer is its only passage.

    Raises:
        ValueError: ``words`` is below 4.
    """
    check_passage_words(words)
    starts = word_starts(text)
    if len(starts) <= words:
        return [text]
    ends = [*starts[words:], len(text)]
    step = words // 2
    last = len(starts) - words
    return [text[starts[first] : ends[first]].strip() for first in [*range(0, last, step), last]]


def check_passage_words(words: int) -> None:
    """See that passages can be so long.

    Raises:
        ValueError: they cannot.
    """
    if words < SHORTEST:
        raise ValueError(f"passages of {words} words; wanted at least {SHORTEST}")


def best_passages(
    texts: Sequence[str],
    words: int,
    queries_QD: FloatArray,
    embed: Callable[[list[str]], FloatArray],
    at_once: int = 20_000,
) -> FloatArray:
    """(N, Q) cosine of each text's best passage with each query.

    Their vectors are dropped again as soon as they are compared: there are many more passages than texts.

    Args:
        texts: N texts.
        words: see :func:`passages`.
        queries_QD: unit vectors.
        embed: P passages to (P, D) unit vectors.
        at_once: passages that are embedded together at least, whole texts of them.

    Raises:
        ValueError: ``words`` is below 4.
    """
    best_NQ = np.empty((len(texts), len(queries_QD)), dtype=np.float32)
    done = 0
    parts: list[str] = []
    starts: list[int] = []
    for number, text in enumerate(texts, 1):
        starts.append(len(parts))
        parts += passages(text, words)
        if len(parts) >= at_once or number == len(texts):
            best_NQ[done:number] = np.maximum.reduceat(embed(parts) @ queries_QD.T, starts, axis=0)
            done, parts, starts = number, [], []
    return best_NQ
