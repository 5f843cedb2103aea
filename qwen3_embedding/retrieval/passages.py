"""Short stretches of a document, each with a vector of its own: a document is as near as its nearest stretch.

One vector has to say everything that a document says; a question is mostly about one place in it.

Source: MaxP of Dai and Callan 2019, "Deeper Text Understanding for IR with Contextual Neural Language Modeling".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qwen3_embedding.retrieval.analysis import word_starts
from qwen3_embedding.types import FloatArray, IntArray

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


def with_best_passage(whole_N: FloatArray, passages_P: FloatArray, first_N: IntArray) -> FloatArray:
    """(N,) mean of each document's own cosine and that of its best passage.

    Args:
        whole_N: cosines of the documents.
        passages_P: cosines of all their passages, document after document, at least one for each.
        first_N: where each document's passages begin.
    """
    best_N = np.maximum.reduceat(passages_P, first_N) if len(first_N) else passages_P
    return np.asarray((whole_N + best_N) / 2, dtype=np.float32)


def split(texts: Sequence[str], words: int) -> tuple[list[str], IntArray]:
    """All passages of the texts, one text's after the other's, and (N,) where each text's begin."""
    found = [passages(text, words) for text in texts]
    sizes = np.array([0, *map(len, found)], dtype=np.int64)
    return [passage for some in found for passage in some], np.cumsum(sizes)[:-1]
