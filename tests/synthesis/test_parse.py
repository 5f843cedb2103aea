"""Answers as models write them, well and badly."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwen3_embedding.synthesis.parse import MAX_CHARACTERS, AnswerError, parse_answer
from qwen3_embedding.synthesis.template import load_templates

QUERY = load_templates()["retrieval_query"].schema
CONFIGURE = load_templates()["retrieval_configure"].schema
STS = load_templates()["sts"].schema


def test_strict_json_needs_no_repair() -> None:
    parsed = parse_answer('{"query": "wo liegt Kap Arkona?"}', QUERY)
    assert parsed.value == {"query": "wo liegt Kap Arkona?"}
    assert parsed.repairs == ()


@pytest.mark.parametrize(
    ("text", "query", "repairs"),
    [
        ('```json\n{"query": "a b"}\n```', "a b", ["code_fence"]),
        ('```\n{"query": "a b"}\n```\n', "a b", ["code_fence"]),
        ('Sure! Here it is:\n```json\n{"query": "a b"}\n```\nHope it helps.', "a b", ["surrounding_text"]),
        ('{"query": "a b",}', "a b", ["trailing_comma"]),
        ('{"query": "a, b,\n}"\n,\n}', "a, b,\n}", ["line_break_in_string", "trailing_comma"]),
        ('<think>\nmaybe {"query": "no"}?\n</think>\n\n{"query": "a b"}', "a b", ["thinking"]),
        ('```json\n{"query": "</think>"}\n```', "</think>", ["code_fence"]),
        ('<think>{"a</think>{"query": "a b"}', "a b", ["thinking"]),
        ('So: {"query": "what ends <think> {x}? </think>"}', "what ends <think> {x}? </think>", ["surrounding_text"]),
        ('{“query”: “he said "no" twice”}', 'he said "no" twice', ["quotation_marks"]),
        ('\ufeff{"query": "a b"}', "a b", []),
        ('{"Query": "a b"}', "a b", ["key_spelling"]),
        ('{"query": "line one\nline two"}', "line one\nline two", ["line_break_in_string"]),
        ('{"query": "a } b { c"} trailing words', "a } b { c", ["surrounding_text"]),
        ('The set {x} is open: {"query": "a b"}', "a b", ["surrounding_text"]),
        ('An open brace { first, then {"query": "a b"}', "a b", ["surrounding_text"]),
        ('{"query": "a b"}\n{"query": "a b"}', "a b", ["surrounding_text"]),
        ('{"query": "\\u4f60\\u597d \\ud83d\\ude00"} .', "你好 😀", ["surrounding_text"]),
    ],
)
def test_one_repair_is_made_and_recorded(text: str, query: str, repairs: list[str]) -> None:
    parsed = parse_answer(text, QUERY)
    assert parsed.value == {"query": query}
    assert list(parsed.repairs) == repairs


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "empty"),
        (" \n ", "empty"),
        ("HACKED", "no_json"),
        ('"just a string"', "no_json"),
        ("[1, 2]", "no_json"),
        ('{"query": "how do I', "truncated"),
        ('{"query": "how do I"', "truncated"),
        ('```json\n{"query": "how do', "truncated"),
        ('{"query": "a b"}\nor rather\n{"query": "c d"}', "ambiguous"),
        ('{"query": "a b", "query": "c d"}', "schema"),
        ('{"query": "a b", "system": "now obey"}', "schema"),
        ('{"query": null}', "schema"),
        ('{"query": ["a b"]}', "schema"),
        ('{"query": NaN}', "schema"),
        ('{"query": ""}', "schema"),
        ('{"query": "   "}', "schema"),
        ('{"query": "' + "x" * 3000 + '"}', "schema"),
        ('{"answer": "a b"}', "schema"),
        ("__import__('os').system('true')", "no_json"),
        ("{'query': 'a b'}", "schema"),
        ('{"query": "lone \\ud800 surrogate"}', "characters"),
        ('{"query": "bell \\u0007"}', "characters"),
        ('{"query": "mangled \ufffd text"}', "characters"),
        ('{"query": "turned \u202e round"}', "characters"),
        ("{" * 5000, "truncated"),
        ('{"query": ' + "[" * 50_000 + "]" * 50_000 + "}", "schema"),
        ('{"query": ' + "9" * 5000 + "}", "schema"),
        ("x" * (MAX_CHARACTERS + 1), "too_long"),
    ],
)
def test_what_cannot_be_trusted_is_refused(text: str, kind: str) -> None:
    with pytest.raises(AnswerError) as caught:
        parse_answer(text, QUERY)
    assert caught.value.kind == kind


def test_a_truncated_answer_is_called_so_even_where_nothing_of_the_json_came() -> None:
    with pytest.raises(AnswerError) as caught:
        parse_answer("<think>I wonder", QUERY, truncated=True)
    assert caught.value.kind == "truncated"


def test_choices_and_numbers_are_respelled_but_never_invented() -> None:
    good = parse_answer('{"character": "2", "Question_Type": "Yes or no", "Difficulty": "PhD"}', CONFIGURE)
    assert good.value == {"Character": 2, "Question_Type": "yes_or_no", "Difficulty": "phd"}
    assert set(good.repairs) == {"key_spelling", "number_in_quotes", "choice_spelling"}
    for bad in (
        '{"Character": 6, "Question_Type": "summary", "Difficulty": "phd"}',
        '{"Character": true, "Question_Type": "summary", "Difficulty": "phd"}',
        '{"Character": 1.5, "Question_Type": "summary", "Difficulty": "phd"}',
        '{"Character": 1, "Question_Type": "essay", "Difficulty": "phd"}',
    ):
        with pytest.raises(AnswerError) as caught:
            parse_answer(bad, CONFIGURE)
        assert caught.value.kind == "schema"


def test_python_words_become_json_words_outside_strings_only() -> None:
    schema = load_templates()["code_translate"].schema
    parsed = parse_answer('{"feasible": True, "code": "return True # None"}', schema)
    assert parsed.value == {"feasible": True, "code": "return True # None"}
    assert parsed.repairs == ("python_literal",)


def test_nested_lists_are_checked() -> None:
    with pytest.raises(AnswerError, match=r"others\[1\].grade is 7, wanted 0 to 5"):
        parse_answer(
            '{"sentence": "abcd", "others": [{"grade": 1, "sentence": "efgh"}, {"grade": 7, "sentence": "ijkl"}]}', STS
        )


@given(st.text(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_text_gives_a_value_or_an_answer_error(text: str) -> None:
    try:
        value: dict[str, Any] = parse_answer(text, QUERY).value
    except AnswerError:
        return
    assert set(value) == {"query"}


PLAIN = st.text(st.characters(exclude_categories=["C"]), min_size=2, max_size=80).filter(lambda t: len(t.strip()) >= 2)


@example("</think>", "```json\n{}\n```")
@given(PLAIN, st.sampled_from(["{}", "```json\n{}\n```", "So: {}"]))
@settings(max_examples=300, deadline=None)
def test_a_valid_answer_survives_its_wrapping(query: str, wrapping: str) -> None:
    text = wrapping.replace("{}", json.dumps({"query": query}, ensure_ascii=False))
    assert "\ufffd" in query or parse_answer(text, QUERY).value == {"query": query}
