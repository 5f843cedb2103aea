"""What texts become before BM25."""

from __future__ import annotations

import pytest

from qwen3_embedding.retrieval.analysis import analyze, stem


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The cats were running", ["cat", "run"]),
        ("Flows are heated quickly", ["flow", "heat", "quick"]),
        ("机器学习", ["机器", "器学", "学习"]),
        ("猫", ["猫"]),
        ("東京タワー", ["東京", "京タ", "タワ", "ワー"]),
        ("ประเทศ", ["ปร", "ระ", "ะเ", "เท", "ทศ"]),
        ("한국어", ["한국", "국어"]),
        ("使用Python3编程", ["使用", "python3", "编程"]),
        ("getUserName(user_id, HTTPServer)", ["get", "user", "nam", "user", "id", "http", "server"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("ＦＵＬＬ　ｗｉｄｔｈ ﬁle", ["full", "width", "fil"]),
        ("Ärger über Maßnahmen", ["ärger", "über", "maßnahmen"]),
        ("", []),
        (' "!?()*:^~\\ ', []),
        ("The Who", ["the", "who"]),
    ],
)
def test_tokens_of_each_script(text: str, tokens: list[str]) -> None:
    assert analyze(text) == tokens


def test_no_token_holds_white_space_or_query_syntax() -> None:
    text = 'a\tb\u2028c\u00a0d "x y" +must -not field:value wild* fuzzy~2 (group) \x00 \ufeff'
    assert all(token.isalnum() for token in analyze(text))


def test_a_long_token_is_cut() -> None:
    assert [len(token) for token in analyze("x" * 100_000)] == [255]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("queries", "query"),
        ("classes", "class"),
        ("stopped", "stop"),
        ("falling", "fall"),
        ("using", "using"),
        ("bus", "bus"),
    ],
)
def test_light_stems(word: str, expected: str) -> None:
    assert stem(word) == expected
