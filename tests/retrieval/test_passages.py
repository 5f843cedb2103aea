"""Passages of documents: what they cover, and the score that they give."""

from __future__ import annotations

import numpy as np
import pytest

from qwen3_embedding.retrieval.analysis import word_starts
from qwen3_embedding.retrieval.passages import passages, split, with_best_passage

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
    assert text.endswith(found[-1].rstrip()[-1:] + text[len(text.rstrip()) :])


def test_short_and_empty_texts_are_their_own_passage() -> None:
    assert passages("", 4) == [""]
    assert passages("  four words are here ", 4) == ["  four words are here "]
    with pytest.raises(ValueError, match="passages of 3 words; wanted at least 4"):
        passages("a", 3)


def test_the_best_passage_has_half_of_the_score() -> None:
    generator = np.random.default_rng(0)
    texts = ["word " * count for count in (3, 30, 1, 12)]
    parts, first_N = split(texts, 4)
    assert len(parts) == sum(len(passages(text, 4)) for text in texts)
    whole_N, passages_P = generator.normal(size=4).astype(np.float32), generator.normal(size=len(parts))
    borders = [*first_N.tolist(), len(parts)]
    wanted = [(whole_N[i] + max(passages_P[borders[i] : borders[i + 1]])) / 2 for i in range(4)]
    assert with_best_passage(whole_N, passages_P.astype(np.float32), first_N) == pytest.approx(wanted, rel=1e-6)
    empty = np.empty(0, dtype=np.float32)
    assert with_best_passage(empty, empty, np.empty(0, dtype=np.int64)).shape == (0,)
