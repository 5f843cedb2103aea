"""Request fields that every dialect understands beside its own, and what they mean."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from qwen3_embedding.serving.errors import BadRequestError, EmptyInputError, TooLargeError
from qwen3_embedding.serving.prompts import Prompt, PromptFields, resolve_instruction, resolve_prompt
from qwen3_embedding.serving.services import Limit
from qwen3_embedding.serving.settings import ServerSettings, Truncation

TOKEN_IDS_REFUSED = (
    "got arrays of token ids, wanted texts: ids of another tokenizer (OpenAI clients use cl100k) would give "
    "meaningless vectors. In LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False)"
)

TEXTS_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}],
    "description": "One text or several.",
}


class Asked(BaseModel):
    """Fields common to all requests; the dialects add theirs."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="allow", protected_namespaces=())

    model: str | None = Field(
        None, description="Name of a served model; one ending in :query or :document says the role."
    )
    instruction: str | None = Field(None, description="The task in one English sentence; makes the texts queries.")
    instruct: str | None = Field(None, description="Same as instruction.")
    task: str | None = Field(None, description="Same as instruction, or one of Jina's names such as retrieval.query.")
    prompt_name: str | None = Field(None, description="query or document.")
    input_type: str | None = Field(None, description="search_query or search_document, query or document.")
    truncation: Truncation | None = Field(None, description="For texts beyond the model's context.")
    truncate: bool | str | None = Field(None, description="true or END, false or NONE: same as truncation.")
    truncation_direction: str | None = Field(None, description="Right; Left is not supported.")
    truncation_side: str | None = Field(None, description="right; left is not supported.")
    truncate_prompt_tokens: int | None = Field(None, ge=-1, description="Cut to so many tokens; -1 is the model's own.")
    user: str | None = None

    def fields(self, suffix: str | None = None) -> PromptFields:
        """What was said about role and task."""
        return PromptFields(self.instruction, self.instruct, self.task, self.prompt_name, self.input_type, suffix)

    def prompt(self, suffix: str | None) -> Prompt:
        """How the texts are put to the embedder."""
        return resolve_prompt(self.fields(suffix))

    def wanted_instruction(self) -> str | None:
        """The task for a reranker."""
        return resolve_instruction(self.fields())

    def limit(self, settings: ServerSettings, dialect_default: Truncation = "error") -> Limit:
        """What happens to long texts: the request's word, else the operator's, else the dialect's.

        Raises:
            BadRequestError: cutting the beginning, or a word that is not known.
        """
        for name in ("truncation_direction", "truncation_side"):
            side = getattr(self, name)
            if side is not None and side.lower() != "right":
                raise BadRequestError(
                    f"{name}={side!r}: only the end can be cut; instruction and query stand at the beginning",
                    param=name,
                )
        if self.truncate_prompt_tokens is not None:
            if self.truncate_prompt_tokens == 0:
                raise BadRequestError(
                    "truncate_prompt_tokens=0; wanted -1 or at least 1", param="truncate_prompt_tokens"
                )
            return Limit("end", None if self.truncate_prompt_tokens < 0 else self.truncate_prompt_tokens)
        return Limit(self.truncation or self._truncate() or settings.truncation or dialect_default)

    def _truncate(self) -> Truncation | None:
        if self.truncate is None:
            return None
        known: dict[bool | str, Truncation] = {True: "end", False: "error", "END": "end", "NONE": "error"}
        word = self.truncate.upper() if isinstance(self.truncate, str) else self.truncate
        if word not in known:
            raise BadRequestError(
                f"truncate={self.truncate!r}: use END (or true) or NONE (or false); only the end can be cut",
                param="truncate",
            )
        return known[word]


def texts_of(value: Any, field: str, settings: ServerSettings, allow_empty_text: bool = True) -> list[str]:
    """One text or a list of texts, as a list.

    Raises:
        EmptyInputError, BadRequestError, TooLargeError: nothing, not texts, or too many.
    """
    if isinstance(value, str):
        texts = [value]
    elif isinstance(value, list):
        texts = _strings(value, field)
    else:
        raise BadRequestError(f"`{field}` is {_kind(value)}; wanted a string or an array of strings", param=field)
    if not texts:
        raise EmptyInputError(f"`{field}` cannot be empty", param=field)
    check_count(len(texts), settings)
    if not allow_empty_text and "" in texts:
        raise EmptyInputError(f"`{field}` cannot be an empty string (item {texts.index('')})", param=field)
    return texts


def check_count(count: int, settings: ServerSettings) -> None:
    """Refuse too many texts in one request."""
    if count > settings.max_items:
        raise TooLargeError(f"batch size {count} > maximum allowed batch size {settings.max_items}")


def _strings(values: list[Any], field: str) -> list[str]:
    for index, value in enumerate(values):
        if isinstance(value, str):
            continue
        if isinstance(value, int) or (isinstance(value, list) and all(isinstance(item, int) for item in value)):
            raise BadRequestError(f"`{field}`: {TOKEN_IDS_REFUSED}", param=field)
        raise BadRequestError(f"`{field}[{index}]` is {_kind(value)}; wanted a string", param=field)
    return values


def document_texts(
    values: list[Any] | None, field: str, settings: ServerSettings, rank_fields: list[str] | None = None
) -> list[str]:
    """Documents as strings or as objects with a ``text``; Cohere v1's ``rank_fields`` picks and joins other keys.

    Raises:
        EmptyInputError, BadRequestError, TooLargeError: none, not texts, or too many.
    """
    if not values:
        raise EmptyInputError(f"`{field}` cannot be empty", param=field)
    check_count(len(values), settings)
    return [_document(value, index, field, rank_fields) for index, value in enumerate(values)]


def _document(value: Any, index: int, field: str, rank_fields: list[str] | None) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        if rank_fields:
            missing = [name for name in rank_fields if name not in value]
            if missing:
                raise BadRequestError(f"`{field}[{index}]` lacks the rank field {missing[0]!r}", param="rank_fields")
            return "\n".join(f"{name}: {value[name]}" for name in rank_fields)
        if isinstance(value.get("text"), str):
            return str(value["text"])
    raise BadRequestError(
        f"`{field}[{index}]` is {_kind(value)}; wanted a string or an object with `text`", param=field
    )


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "an object without `text`" if "text" not in value else "an object"
    return {list: "an array", bool: "a boolean", int: "a number", float: "a number", str: "a string"}[type(value)]
