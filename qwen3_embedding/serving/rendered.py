"""The exact input of a model, token by token: what each token is there for, and what a limit cuts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from qwen3_embedding.inputs.prompts import END_OF_TEXT, RERANKER_SUFFIX, query_prefix
from qwen3_embedding.inputs.tokenizer import Encoded, Tokenizer
from qwen3_embedding.serving.errors import BadRequestError
from qwen3_embedding.serving.prompts import Prompt
from qwen3_embedding.serving.services import EmbedderService, RerankerService
from qwen3_embedding.types import DEFAULT_INSTRUCTION

Part = Literal["control", "instruction", "text", "end"]
SHOWN_TOKENS = 4_096
"""So many tokens are listed; all are counted."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """An input before any cut, and how it is made up."""

    text: str
    ids: list[int]
    begin: int
    """Control tokens at the beginning."""
    instruction: int
    """Tokens of the instruction behind them."""
    end: int
    """Tokens that always stay at the end."""
    tail: str
    """Their text."""
    cut: int = 0
    """Tokens that are cut before the end."""

    def part(self, place: int) -> Part:
        """What the token at that place is there for."""
        if place >= len(self.ids) - self.end:
            return "end" if self.tail == END_OF_TEXT else "control"
        if place < self.begin:
            return "control"
        return "instruction" if place < self.begin + self.instruction else "text"

    def as_dict(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """The answer of ``/prompt``; ``parts`` is the text before, inside and behind the cut."""
        to = len(self.ids) - self.end
        lost = range(to - self.cut, to)
        pieces = tokenizer.token_strings(self.ids[:SHOWN_TOKENS])
        return {
            "rendered": self.text,
            "parts": self._parts(tokenizer, lost),
            "count": len(self.ids) - self.cut,
            "cut": self.cut,
            "left": max(0, len(self.ids) - SHOWN_TOKENS),
            "tokens": [
                {"id": token, "text": piece, "kind": self.part(place), "cut": place in lost}
                for place, (token, piece) in enumerate(zip(self.ids, pieces, strict=False))
            ],
        }

    def _parts(self, tokenizer: Tokenizer, lost: range) -> list[str]:
        if not self.cut:
            return [self.text, "", ""]
        # The tokenizer composes characters (NFC), so counting its characters from the end is as near as one comes.
        body = self.text.removesuffix(self.tail)
        kept = len(tokenizer.decode(self.ids[: lost.start]).rstrip("\ufffd"))
        return [body[:kept], body[kept:], self.tail]


def render_text(service: EmbedderService, text: str, prompt: Prompt, max_tokens: int) -> Rendered:
    """An embedder's input."""
    tokenizer, prefix = service.tokenizer, ""
    encode: Callable[[int | None], Encoded] = partial(tokenizer.encode_documents, [text])
    if prompt.role == "query":
        prefix = query_prefix(prompt.instruction)
        encode = partial(tokenizer.encode_queries, [text], prompt.instruction)
    ids, cut = _encoded(encode, max_tokens)
    return Rendered(
        service.rendered(text, prompt), ids, 0, _common(tokenizer, prefix, ids), 1, END_OF_TEXT, min(cut, len(ids) - 1)
    )


def render_pair(
    service: RerankerService, query: str, document: str, instruction: str | None, max_tokens: int
) -> Rendered:
    """A reranker's input; only the document's end is ever cut."""
    tokenizer = service.tokenizer
    ids, cut = _encoded(partial(tokenizer.encode_pairs, [query], [document], instruction), max_tokens)
    begin, end = len(tokenizer.reranker_prefix_ids), len(tokenizer.reranker_suffix_ids)
    task = f"<Instruct>: {DEFAULT_INSTRUCTION if instruction is None else instruction}\n"
    known = _common(tokenizer, task, ids[begin:])
    return Rendered(service.rendered(query, document, instruction), ids, begin, known, end, RERANKER_SUFFIX, cut)


def _encoded(encode: Callable[[int | None], Encoded], max_tokens: int) -> tuple[list[int], int]:
    """All ids, and how many of them the limit cuts."""
    try:
        return encode(None).ids[0], encode(max_tokens).cut_tokens[0]
    except ValueError as error:
        raise BadRequestError(str(error)) from None


def _common(tokenizer: Tokenizer, prefix: str, ids: list[int]) -> int:
    """How many of the first ids are those of ``prefix``; its last may have joined the text's first."""
    if not prefix:
        return 0
    alone = tokenizer.token_ids([prefix])[0]
    return next((n for n, (a, b) in enumerate(zip(alone, ids, strict=False)) if a != b), min(len(alone), len(ids)))
