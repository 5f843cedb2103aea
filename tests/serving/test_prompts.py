"""What clients say about role and task, and what it means."""

from __future__ import annotations

import pytest

from qwen3_embedding.serving.errors import BadRequestError
from qwen3_embedding.serving.prompts import Prompt, PromptFields, resolve_prompt, split_suffix
from qwen3_embedding.types import DEFAULT_INSTRUCTION


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        (PromptFields(), Prompt("document")),
        (PromptFields(instruction="t"), Prompt("query", "t")),
        (PromptFields(instruction=""), Prompt("query", "")),
        (PromptFields(task="Find it"), Prompt("query", "Find it")),
        (PromptFields(task="retrieval.passage"), Prompt("document")),
        (PromptFields(input_type="search_query"), Prompt("query")),
        (PromptFields(input_type="passage"), Prompt("document")),
        (PromptFields(input_type="document", instruction=""), Prompt("document")),
        (PromptFields(input_type="clustering"), Prompt("document")),
        (PromptFields(input_type="clustering", instruction="t"), Prompt("query", "t")),
        (PromptFields(suffix="query", input_type="query"), Prompt("query")),
    ],
)
def test_meaning(fields: PromptFields, prompt: Prompt) -> None:
    assert resolve_prompt(fields) == prompt


@pytest.mark.parametrize(
    "fields",
    [
        PromptFields(suffix="query", input_type="document"),
        PromptFields(suffix="document", instruction="t"),
        PromptFields(input_type="image"),
        PromptFields(prompt_name="web"),
        PromptFields(instruct="a", task="b"),
    ],
)
def test_contradictions_are_refused(fields: PromptFields) -> None:
    with pytest.raises(BadRequestError):
        resolve_prompt(fields)


def test_suffixes_of_model_names() -> None:
    assert split_suffix("a/b:query") == ("a/b", "query")
    assert split_suffix("a:b:document") == ("a:b", "document")
    assert split_suffix("ollama:latest") == ("ollama:latest", None)
    assert split_suffix(":query") == ("", "query")


def test_the_task_in_force_is_told() -> None:
    assert Prompt("query").shown == DEFAULT_INSTRUCTION
    assert Prompt("query", "t").shown == "t"
    assert Prompt("document").shown == ""
