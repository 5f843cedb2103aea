"""Personas: who might search. A library of our own, a loader for others, and retrieval of the nearest per document."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_embedding.errors import DataError
from qwen3_embedding.synthesis.draws import Draws
from qwen3_embedding.types import Encoder, FloatArray

CANDIDATES = 5
"""Personas that are offered for a document, as in the report on the Qwen3 Embedding models (section 3.3)."""

INSTRUCTION = "Given a text, retrieve the description of a person who would want to read it"


@dataclass(frozen=True, slots=True)
class Persona:
    """Somebody who might search."""

    id: str
    text: str
    """One English sentence."""


def bundled_personas() -> list[Persona]:
    """The library that comes with the package."""
    return list(_bundled())


@lru_cache(maxsize=1)
def _bundled() -> tuple[Persona, ...]:
    text = (files("qwen3_embedding.synthesis") / "personas.jsonl").read_text(encoding="utf-8")
    return tuple(_parse(text.splitlines(), "personas.jsonl", "persona"))


def load_personas(path: str | Path, column: str = "persona") -> list[Persona]:
    """Personas out of a JSONL file with one object a line; repeated ones are left out.

    Args:
        path: the file.
        column: the key of the description; an ``id`` is used where there is one.

    Raises:
        DataError: no such file, a line that is no object or has no such text, or fewer than five personas.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            personas = _parse(file, str(path), column)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; wanted personas, one JSON object a line") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: {error}") from None
    if len(personas) < CANDIDATES:
        raise DataError(f"{path}: {len(personas)} personas, wanted at least {CANDIDATES}")
    return personas


def library_hash(personas: Sequence[Persona]) -> str:
    """16 hex digits over all personas, in their order."""
    digest = hashlib.blake2b(digest_size=8)
    for persona in personas:
        digest.update(persona.text.encode() + b"\0")
    return digest.hexdigest()


class PersonaIndex:
    """The nearest personas of documents.

    Args:
        personas: the library.
        encoder: finds the nearest by cosine, the documents as queries.  ``None``: five are drawn per document from its
            hash; provenance says so.
    """

    def __init__(self, personas: Sequence[Persona], encoder: Encoder | None) -> None:
        if len(personas) < CANDIDATES:
            raise ValueError(f"got {len(personas)} personas, wanted at least {CANDIDATES}")
        self._personas = list(personas)
        self._encoder = encoder
        self._vectors_PD: FloatArray | None = None

    @property
    def how(self) -> str:
        """For provenance: the encoder's name, or ``drawn``."""
        return self._encoder.name if self._encoder else "drawn"

    def candidates(self, texts: Sequence[str], keys: Sequence[str]) -> list[list[Persona]]:
        """Five personas per document, the nearest first.

        Args:
            texts: the documents' texts.
            keys: what draws depend on where there is no encoder: the documents' hashes.
        """
        if self._encoder is None:
            return [Draws(f"personas/{key}").sample("persona", self._personas, CANDIDATES) for key in keys]
        if self._vectors_PD is None:
            described = [persona.text for persona in self._personas]
            self._vectors_PD = np.asarray(self._encoder.embed_documents(described), np.float32)
        queries_ND = np.asarray(self._encoder.embed_queries(texts, instruction=INSTRUCTION), np.float32)
        scores_NP = queries_ND @ self._vectors_PD.T
        nearest_NK = np.argsort(-scores_NP, axis=1, kind="stable")[:, :CANDIDATES]
        return [[self._personas[index] for index in row] for row in nearest_NK]


def _parse(lines: Iterable[str], where: str, column: str) -> list[Persona]:
    personas: dict[str, Persona] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = _row(line, f"{where}:{number}")
        text = row.get(column)
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}:{number}: {column!r} is {text!r:.60}, wanted a text (keys: {', '.join(row)})")
        text = " ".join(text.split())
        personas.setdefault(text.casefold(), Persona(str(row.get("id", number)), text))
    return list(personas.values())


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: got {type(row).__name__}, wanted an object")
    return row
