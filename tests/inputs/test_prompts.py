"""The exact prompts, character by character."""

from __future__ import annotations

import jinja2
import pytest

from qwen3_embedding.inputs import prompts


def test_the_query_prompt_has_no_space_after_the_colon() -> None:
    assert prompts.query_prompt("What is", "Find it") == "Instruct: Find it\nQuery:What is"


def test_the_default_task_is_that_of_the_model_card() -> None:
    task = "Given a web search query, retrieve relevant passages that answer the query"
    assert prompts.query_prefix() == f"Instruct: {task}\nQuery:"


def test_an_empty_instruction_gives_no_prompt() -> None:
    assert prompts.query_prompt("text", "") == "text"


def test_the_reranker_body_has_single_newlines() -> None:
    assert prompts.reranker_body("q", "d", "t") == "<Instruct>: t\n<Query>: q\n<Document>: d"


def test_the_reranker_suffix_closes_an_empty_thought() -> None:
    assert prompts.RERANKER_SUFFIX == "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


@pytest.mark.parametrize("task", ["Find it", 'It\'s "quoted"\nin two lines', None])
def test_the_chat_template_renders_the_same_prompt(task: str | None) -> None:
    messages = [{"role": "query", "content": "the query"}, {"role": "document", "content": "a document"}]
    if task is not None:
        messages.insert(0, {"role": "system", "content": task})
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(prompts.RERANKER_CHAT_TEMPLATE)
    body = prompts.reranker_body("the query", "a document", task)
    assert template.render(messages=messages) == prompts.RERANKER_PREFIX + body + prompts.RERANKER_SUFFIX


@pytest.mark.parametrize("bad", [None, 3, 2.5, b"bytes", ["list"]])
def test_what_is_no_string_is_refused(bad: object) -> None:
    with pytest.raises(TypeError, match="wanted a string"):
        prompts.check_text(bad)


def test_a_lone_surrogate_is_refused_with_its_place() -> None:
    with pytest.raises(ValueError, match=r"lone surrogate at character 2 \(U\+D800\)"):
        prompts.check_text("ab\ud800")


@pytest.mark.parametrize("bad", ["one string", b"bytes", 3, None])
def test_a_list_of_texts_is_a_list(bad: object) -> None:
    with pytest.raises(TypeError, match="wanted a list of strings"):
        prompts.check_texts(bad)


def test_the_bad_item_is_named() -> None:
    with pytest.raises(TypeError, match=r"texts\[1\] is NoneType"):
        prompts.check_texts(["good", None])
