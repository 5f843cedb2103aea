"""The persona library is broad, and the nearest personas are the nearest."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from qwen3_embedding.errors import DataError
from qwen3_embedding.synthesis.personas import INSTRUCTION, PersonaIndex, bundled_personas, library_hash, load_personas

if TYPE_CHECKING:
    from qwen3_embedding.inference.embedder import Embedder


def test_the_library_is_broad() -> None:
    rows = [
        json.loads(line)
        for line in (files("qwen3_embedding.synthesis") / "personas.jsonl").read_text("utf-8").splitlines()
    ]
    assert len(rows) == len(bundled_personas()) >= 500
    assert len({row["id"] for row in rows}) == len(rows)
    assert len({row["role"] for row in rows}) >= 140
    assert len({row["field"] for row in rows}) >= 20
    assert len({row["place"] for row in rows}) >= 150
    assert min(row["age"] for row in rows) <= 16
    assert max(row["age"] for row in rows) >= 85
    assert sum(30 <= row["age"] < 60 for row in rows) < 0.75 * len(rows)
    assert max(Counter(row["place"] for row in rows).values()) <= 12
    concerns = Counter(
        re.split(r" who (?:, at \d+, )?", row["persona"].replace(" who,", " who ,"), maxsplit=1)[1] for row in rows
    )
    assert max(concerns.values()) == 1


def test_no_two_personas_are_nearly_the_same() -> None:
    words = [frozenset(persona.text.casefold().split()) for persona in bundled_personas()]
    alike = [(a, b) for number, a in enumerate(words) for b in words[:number] if len(a & b) > 0.75 * len(a | b)]
    assert alike == []


def test_candidates_are_the_nearest_by_cosine(embedder: Embedder) -> None:
    library = bundled_personas()[::12]
    texts = ["Bees die in winter.", "A judge decides a dispute about seeds.", "Slate roofs"]
    found = PersonaIndex(library, embedder).candidates(texts, ["a", "b", "c"])
    queries = embedder.embed_queries(texts, instruction=INSTRUCTION).astype(np.float64)
    people = embedder.embed_documents([persona.text for persona in library]).astype(np.float64)
    for row, text_scores in zip(found, queries @ people.T, strict=True):
        fifth = np.sort(text_scores)[-5]
        scores = [text_scores[library.index(persona)] for persona in row]
        assert len(set(row)) == 5
        assert scores == sorted(scores, reverse=True)
        assert min(scores) >= fifth - 1e-6


def test_without_an_encoder_candidates_are_drawn_by_the_document() -> None:
    index = PersonaIndex(bundled_personas(), None)
    assert index.how == "drawn"
    first, second = index.candidates(["x", "y"], ["hash1", "hash2"])
    assert first == index.candidates(["other text"], ["hash1"])[0]
    assert first != second
    assert len(set(first)) == 5


def test_any_jsonl_of_personas_loads(tmp_path: Path) -> None:
    path = tmp_path / "hub.jsonl"
    lines: Sequence[dict[str, str]] = [{"text": f"A  person of kind {n}"} for n in range(5)]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"text": "a person of KIND 3"}]))
    personas = load_personas(path, "text")
    assert [persona.text for persona in personas] == [f"A person of kind {n}" for n in range(5)]
    assert library_hash(personas) != library_hash(personas[::-1])
    with pytest.raises(DataError, match=r"hub.jsonl:1: 'persona' is None, wanted a text \(keys: text\)"):
        load_personas(path)
    path.write_text('{"persona": "only one"}\n')
    with pytest.raises(DataError, match="1 personas, wanted at least 5"):
        load_personas(path)
    path.write_text("[]\n")
    with pytest.raises(DataError, match=r"hub.jsonl:1: got list, wanted an object"):
        load_personas(path)
    with pytest.raises(DataError, match="no such file"):
        load_personas(tmp_path / "none.jsonl")
