"""Which instruction goes before which text of a benchmark's task, by one of two policies.

``official``: what the makers' own runner did when the published figures were made. Its task list decides first, then
mteb's metadata. STS and pair classification have one fixed text. The documents of Retrieval tasks carry no
instruction unless the list says both sides; the documents of Reranking tasks *do* carry it, because the runner looked
for the word "Retrieval" in the type.  ``mteb``: the metadata prompts of mteb, queries only.

The two give different scores; a report must say which was used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from qwen3_embedding.evaluation.benchmarks import TaskDefinition, read_data

Policy = Literal["official", "mteb"]
POLICIES: tuple[Policy, ...] = ("official", "mteb")

SIMILARITY = "Retrieve semantically similar text"
RETRIEVAL_WITHOUT_ENTRY = "Retrieval relevant passage for the given query."
"""The runner's text, word for word."""

TYPE_PROMPTS: Mapping[str, str] = {
    "Retrieval": "Retrieve text based on user query.",
    "Reranking": "Retrieve text based on user query.",
    "InstructionReranking": "Retrieve text based on user query.",
    "Classification": "Classify user passages.",
    "MultilabelClassification": "Classify user passages.",
    "Clustering": "Identify categories in user passages.",
    "PairClassification": "Retrieve text that are semantically similar to the given text.",
    "STS": "Retrieve semantically similar text.",
    "BitextMining": "Retrieve parallel sentences.",
    "Summarization": "Given a news summary, retrieve other semantically similar summaries.",
}
"""mteb's prompt of a type, for tasks whose metadata have none."""


@dataclass(frozen=True, slots=True)
class Instructions:
    """The instruction of each side; ``None``: the text goes in bare."""

    query: str | None
    document: str | None


def instructions_for(task: TaskDefinition, policy: Policy = "official") -> Instructions:
    """The instructions of a task; for tasks with one kind of text both sides are the same.

    Raises:
        ValueError: no policy of that name, or a task type without a prompt.
    """
    if policy not in POLICIES:
        raise ValueError(f"no instruction policy {policy!r}; use {' or '.join(POLICIES)}")
    return _official(task) if policy == "official" else _mteb(task)


def official_list() -> dict[str, tuple[str, bool]]:
    """Task -> (instruction, whether it goes before both sides), as the makers' task list has it."""
    return dict(_official_list())


def _official(task: TaskDefinition) -> Instructions:
    if task.type in ("STS", "PairClassification"):
        return Instructions(SIMILARITY, SIMILARITY)
    listed = _official_list().get(task.name)
    text, both_sides = listed if listed else (_metadata_prompt(task), False)
    if "Retrieval" in task.type:
        query = text or RETRIEVAL_WITHOUT_ENTRY
        return Instructions(query, query if both_sides else _document_prompt(task, listed is not None))
    text = text or TYPE_PROMPTS.get(task.type)
    return Instructions(text, text)


def _mteb(task: TaskDefinition) -> Instructions:
    text = _metadata_prompt(task)
    if text is None:
        if task.type not in TYPE_PROMPTS:
            raise ValueError(f"{task.name}: no prompt for the task type {task.type!r}")
        text = TYPE_PROMPTS[task.type]
    return Instructions(text, None if task.asymmetric else text)


def _metadata_prompt(task: TaskDefinition) -> str | None:
    return task.prompt.get("query") if isinstance(task.prompt, Mapping) else task.prompt


def _document_prompt(task: TaskDefinition, listed: bool) -> str | None:
    """mteb's own text for documents, which the runner takes where its list is silent."""
    return task.prompt.get("document") if isinstance(task.prompt, Mapping) and not listed else None


@cache
def _official_list() -> dict[str, tuple[str, bool]]:
    entries = read_data("instructions.json")["instructions"]
    return {task: (entry["instruction"], entry["both_sides"]) for entry in entries for task in entry["tasks"]}
