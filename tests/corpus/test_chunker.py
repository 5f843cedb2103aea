from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_embedding.corpus.chunker import ChunkSettings, TokenCounter, chunk, sentences

if TYPE_CHECKING:
    from qwen3_embedding.inference.embedder import Embedder


def _bytes(texts: Sequence[str]) -> list[int]:
    return [len(text.encode()) for text in texts]


def _words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("It is 3.14 of them. Is it? Yes!", ["It is 3.14 of them. ", "Is it? ", "Yes!"]),
        ('He said "stop." Then he went (home.) And slept', ['He said "stop." ', "Then he went (home.) ", "And slept"]),
        ("approx. five of e.g. these", ["approx. five of e.g. these"]),
        ("今天下雨。他说：“走吧！”我们走了", ["今天下雨。", "他说：“走吧！”", "我们走了"]),
        ("「行こう。」と言った。はい！", ["「行こう。」", "と言った。", "はい！"]),
        ("यह एक है। यह दो है॥ अंत", ["यह एक है। ", "यह दो है॥ ", "अंत"]),
        ("هل هذا؟ نعم۔ آخر", ["هل هذا؟ ", "نعم۔ ", "آخر"]),
        ("ሰላም። ዓለም፧ እሺ", ["ሰላም። ", "ዓለም፧ ", "እሺ"]),
        ("សួស្តី។ ពិភពលោក", ["សួស្តី។ ", "ពិភពលោក"]),
        ("Բարեւ։ Աշխարհ", ["Բարեւ։ ", "Աշխարհ"]),
        ("A title\n\nA wrapped\nsentence. end", ["A title\n\n", "A wrapped\nsentence. end"]),
        ("", []),
    ],
)
def test_sentences(text: str, wanted: list[str]) -> None:
    assert [text[a:b] for a, b in sentences(text)] == wanted


def test_chunks_overlap_in_whole_sentences() -> None:
    text = "One two three. Four five six. Seven eight. Nine ten eleven twelve."
    chunks = chunk("d", text, ChunkSettings(8, overlap=3), _words)
    assert [c.text for c in chunks] == [
        "One two three. Four five six. Seven eight.",
        "Seven eight. Nine ten eleven twelve.",
    ]
    assert [c.id for c in chunks] == ["d#0", "d#1"]
    assert {c.parent for c in chunks} == {"d"}


def test_a_document_that_fits_is_one_chunk() -> None:
    (only,) = chunk("d", "  A b. C d. ", ChunkSettings(10), _words)
    assert (only.id, only.start, only.end, only.text) == ("d#0", 2, 11, "A b. C d.")
    assert [c.text for c in chunk("d", "", ChunkSettings(10), _words)] == [""]


def test_a_long_sentence_is_cut_at_lines_then_spaces_then_characters() -> None:
    chunks = chunk("d", "aaa bbb\nccc ddd eee\n" + "f" * 25, ChunkSettings(10), _bytes)
    assert [c.text for c in chunks] == ["aaa bbb", "ccc ddd", "eee", "f" * 10, "f" * 10, "f" * 5]


@pytest.mark.parametrize("bad", [(0, 0), (4, 4), (4, -1)])
def test_settings_are_checked(bad: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="wanted"):
        ChunkSettings(*bad)


def _check(text: str, limits: ChunkSettings, count: TokenCounter, least: int) -> None:
    chunks = chunk("d", text, limits, count)
    covered = [False] * len(text)
    for number, piece in enumerate(chunks):
        assert piece.text == text[piece.start : piece.end]
        assert piece.index == number
        assert count([piece.text])[0] <= max(limits.max_tokens, least)
        covered[piece.start : piece.end] = [True] * (piece.end - piece.start)
    assert all(done or character.isspace() for done, character in zip(covered, text, strict=True))
    starts = [(piece.start, piece.end) for piece in chunks]
    assert starts == sorted(set(starts)), "chunks go forward"


TEXTS = st.lists(
    st.sampled_from(["word ", "Ω. ", "字。", "。」", "x" * 9, "\n", "\n\n", " ", "ab! ", "३। ", "👩‍👩‍👧"]), max_size=60
).map("".join)


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.integers(1, 40), st.data())
def test_every_character_is_in_a_chunk_and_no_chunk_is_too_long(text: str, limit: int, data: st.DataObject) -> None:
    _check(text, ChunkSettings(limit, data.draw(st.integers(0, limit - 1))), _bytes, least=4)


def test_with_the_models_tokenizer(embedder: Embedder) -> None:
    text = "Der Vertrag gilt. 合同有效。第二条：付款！ " * 40 + "x" * 700 + " สวัสดีชาวโลก" * 30

    def count(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in embedder.tokenizer.token_ids(texts)]

    for overlap in (0, 16):
        _check(text, ChunkSettings(64, overlap), count, least=4)
