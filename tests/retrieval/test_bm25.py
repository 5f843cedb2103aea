"""BM25 against its formula, term by term in float64."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from qwen3_embedding.retrieval.bm25 import Bm25


def by_formula(documents: list[list[str]], query: list[str], k1: float, b: float) -> list[float]:
    count, mean = len(documents), sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for token in query:
            holding = sum(token in other for other in documents)
            if token in document:
                idf = math.log(1 + (count - holding + 0.5) / (holding + 0.5))
                frequency = document.count(token)
                score += idf * frequency * (k1 + 1) / (frequency + k1 * (1 - b + b * len(document) / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.2, 0.75), (0.0, 0.0), (2.0, 1.0)])
def test_scores_are_the_formula(k1: float, b: float) -> None:
    chance = random.Random(5)
    words = [f"w{i}" for i in range(12)]
    documents = [chance.choices(words, k=chance.randint(0, 15)) for _ in range(40)]
    bm25 = Bm25(documents, k1, b)
    for _ in range(20):
        query = chance.choices([*words, "unknown"], k=5)
        np.testing.assert_allclose(bm25.scores(query), by_formula(documents, query, k1, b), rtol=1e-6, atol=1e-9)


def test_nothing_to_search_and_nothing_asked() -> None:
    assert Bm25([]).scores(["a"]).shape == (0,)
    assert Bm25([["a"]]).scores([]).tolist() == [0.0]


def test_parameters_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="k1=-1"):
        Bm25([], k1=-1)
