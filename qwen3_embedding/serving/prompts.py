"""One meaning for the many ways in which clients say "this is a query" and "the task is …".

Fields read on every route: ``instruction`` and its aliases ``instruct`` and ``task`` (a sentence); ``input_type``
(Cohere), ``prompt_name`` (sentence-transformers, TEI), ``task`` (Jina's names) and the suffix of the model's name
(``nano-embedding:query``) for the role.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qwen3_embedding.serving.errors import BadRequestError
from qwen3_embedding.types import DEFAULT_INSTRUCTION

Role = Literal["query", "document"]

ROLES: dict[str, Role] = {
    "query": "query",
    "search_query": "query",
    "retrieval.query": "query",
    "document": "document",
    "passage": "document",
    "search_document": "document",
    "retrieval.passage": "document",
    "classification": "document",
    "clustering": "document",
    "separation": "document",
    "text-matching": "document",
}
"""What clients call the two roles. Classification, clustering, matching: bare texts unless an instruction comes."""

_SYMMETRIC = ("classification", "clustering", "separation", "text-matching")


@dataclass(frozen=True, slots=True)
class Prompt:
    """How a text is put to the embedder."""

    role: Role = "document"
    instruction: str | None = None
    """``None`` is the web-search task of the model card. Documents never have one."""

    @property
    def shown(self) -> str:
        """The task in force; empty for documents."""
        if self.role == "document":
            return ""
        return DEFAULT_INSTRUCTION if self.instruction is None else self.instruction


@dataclass(frozen=True, slots=True)
class PromptFields:
    """What a request said, field by field."""

    instruction: str | None = None
    instruct: str | None = None
    task: str | None = None
    prompt_name: str | None = None
    input_type: str | None = None
    suffix: str | None = None


_NOTHING_SAID = PromptFields()


def split_suffix(model: str) -> tuple[str, str | None]:
    """``name:query`` to the name and the role's name; a name without such a suffix is left alone."""
    name, colon, suffix = model.rpartition(":")
    return (name, suffix) if colon and suffix in ("query", "document") else (model, None)


def resolve_prompt(fields: PromptFields) -> Prompt:
    """The prompt that the fields ask for; without any, a bare document as in the OpenAI interface.

    Raises:
        BadRequestError: an unknown role, two that contradict each other, or an instruction for a document.
    """
    if fields == _NOTHING_SAID:
        return Prompt()
    roles = _roles(fields)
    instruction = resolve_instruction(fields)
    if len(set(roles.values())) > 1:
        said = ", ".join(f"{name}={getattr(fields, name)!r}" for name in roles)
        raise BadRequestError(f"the request says both query and document ({said}); say one", param=next(iter(roles)))
    role = next(iter(roles.values()), None)
    if instruction is None:
        return Prompt(role or "document")
    symmetric = any(getattr(fields, name) in _SYMMETRIC for name in roles)
    if role == "document" and not symmetric and instruction:
        name = next(iter(roles))
        raise BadRequestError(
            f"{name}={getattr(fields, name)!r} says document, and documents never get an instruction with this model; "
            "leave the instruction out, or ask for a query",
            param="instruction",
        )
    return Prompt("query", instruction) if role != "document" or symmetric else Prompt("document")


def resolve_instruction(fields: PromptFields) -> str | None:
    """The task's sentence, from whichever field has it.

    Raises:
        BadRequestError: two fields with different sentences.
    """
    task = None if fields.task in ROLES else fields.task
    named = {"instruction": fields.instruction, "instruct": fields.instruct, "task": task}
    said = {name: text for name, text in named.items() if text is not None}
    if len(set(said.values())) > 1:
        raise BadRequestError(f"{' and '.join(said)} mean the same and differ; send one of them", param=list(said)[-1])
    return next(iter(said.values()), None)


def _roles(fields: PromptFields) -> dict[str, Role]:
    roles: dict[str, Role] = {}
    if fields.suffix is not None:
        roles["suffix"] = ROLES[fields.suffix]
    if fields.task in ROLES:
        roles["task"] = ROLES[str(fields.task)]
    for name in ("input_type", "prompt_name"):
        value = getattr(fields, name)
        if value is None:
            continue
        if value not in ROLES:
            raise BadRequestError(f"{name}={value!r} is not known; use one of {', '.join(sorted(ROLES))}", param=name)
        roles[name] = ROLES[value]
    return roles
