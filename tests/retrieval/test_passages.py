"""Passages of documents: what they cover, and the score that they give."""

from __future__ import annotations

import numpy as np
import pytest

from qwen3_embedding.retrieval.analysis import word_starts
from qwen3_embedding.retrieval.passages import best_passages, passages
from qwen3_embedding.types import FloatArray

ENGLISH = "One two three four, five six. Seven (eight) nine ten's eleven!"
CHINESE = "東京都は日本の首都である。人口は多い。"


def test_windows_begin_half_a_window_behind_each_other() -> None:
    assert passages(ENGLISH, 4) == [
        "One two three four,",
        "three four, five six.",
        "five six. Seven (eight)",
        "Seven (eight) nine ten'",
        "nine ten's eleven!",
    ]
    assert passages(CHINESE, 4) == [
        "東京都は日本の首",
        "日本の首都である。",
        "都である。人口は多",
        "ある。人口は多い。",
    ]


@pytest.mark.parametrize("text", [ENGLISH, CHINESE, "กรุงเทพมหานครเป็นเมืองหลวง and more words in here", "a-b c_d " * 9])
@pytest.mark.parametrize("words", [4, 5, 7])
def test_every_word_is_in_a_passage_and_none_is_too_long(text: str, words: int) -> None:
    found = passages(text, words)
    assert all(len(word_starts(passage)) <= words for passage in found)
    covered, at = set(), 0
    for passage in found:
        at = text.index(passage, at)
        covered |= set(range(at, at + len(passage)))
    assert set(word_starts(text)) <= covered
    assert text.rstrip().endswith(found[-1])


def test_short_and_empty_texts_are_their_own_passage() -> None:
    assert passages("", 4) == [""]
    assert passages("  four words are here ", 4) == ["  four words are here "]
    with pytest.raises(ValueError, match="passages of 3 words; wanted at least 4"):
        passages("a", 3)


def test_the_best_passage_of_each_text() -> None:
    """Against a loop, in one go and in several."""
    generator = np.random.default_rng(0)
    queries_QD = generator.normal(size=(3, 8)).astype(np.float32)
    texts = ["word " * count for count in (3, 30, 1, 12, 5)]

    def embed(parts: list[str]) -> FloatArray:
        rows = [np.random.default_rng(len(part)).normal(size=8) for part in parts]
        return np.asarray(rows, dtype=np.float32)

    wanted = [(embed(passages(text, 4)) @ queries_QD.T).max(axis=0) for text in texts]
    for at_once in (10**6, 3, 1):
        assert best_passages(texts, 4, queries_QD, embed, at_once) == pytest.approx(np.stack(wanted), rel=1e-5)
    assert best_passages([], 4, queries_QD, embed).shape == (0, 3)
