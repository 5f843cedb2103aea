"""The documents that pairs are made from."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from qwen3_embedding.synthesis.detect import detect_language
from qwen3_embedding.synthesis.languages import AUTO

_SENTENCE_END = re.compile(r"[.!?…][\"')\]]?\s|[。！？؟।။።]|\n")


@dataclass(frozen=True, slots=True)
class Document:
    """One document: what a query has to find."""

    id: str
    text: str
    language: str | None = None
    """Code, or ``None`` where it is not known."""
    hash: str = field(init=False, compare=False)
    """16 hex digits of the text; seeds, units and provenance hang on it, not on the id."""

    def __post_init__(self) -> None:
        digest = hashlib.blake2b(self.text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        object.__setattr__(self, "hash", digest)


@dataclass(frozen=True, slots=True)
class DocumentSettings:
    """Which documents are used, and how long they may be."""

    shortest: int = 40
    """Characters; what is shorter is left out."""
    longest: int = 8000
    """Characters of a passage in a prompt."""
    when_longer: Literal["cut", "skip"] = "cut"
    """``cut`` takes the beginning up to a sentence's end: it is then the text that the record holds."""

    def __post_init__(self) -> None:
        if not 0 < self.shortest < self.longest:
            raise ValueError(f"shortest is {self.shortest} and longest {self.longest}; wanted 0 < shortest < longest")


@dataclass(slots=True)
class Intake:
    """What became of the documents that came."""

    seen: int = 0
    used: int = 0
    too_short: int = 0
    too_long: int = 0
    cut: int = 0
    repeated: int = 0


def prepare(
    documents: Iterable[tuple[str, str]], settings: DocumentSettings, intake: Intake, language: str = AUTO
) -> Iterator[Document]:
    """Documents out of (id, text): too short ones and repeated texts left out, long ones cut or left out, all counted.

    Args:
        documents: ids and texts.
        settings: lengths.
        intake: is filled.
        language: a code, or ``auto`` to guess each document's.
    """
    seen: set[str] = set()
    for identity, raw in documents:
        intake.seen += 1
        text = raw.strip()
        if len(text) < settings.shortest:
            intake.too_short += 1
            continue
        if len(text) > settings.longest:
            if settings.when_longer == "skip":
                intake.too_long += 1
                continue
            intake.cut += 1
            text = cut(text, settings.longest)
        document = Document(identity, text, detect_language(text) if language == AUTO else language)
        if document.hash in seen:
            intake.repeated += 1
            continue
        seen.add(document.hash)
        intake.used += 1
        yield document


def opening(text: str) -> str:
    """How a text begins: a third of it, but at least 60 and at most 160 characters, :func:`cut` at a sentence's end."""
    return cut(text, max(60, min(160, len(text) // 3)))


def cut(text: str, longest: int) -> str:
    """The beginning of a text, at most so many characters, up to the last end of a sentence in its second half."""
    head = text[:longest]
    ends = [match.end() for match in _SENTENCE_END.finditer(head)]
    return (head[: ends[-1]] if ends and ends[-1] > longest // 2 else head).strip()
