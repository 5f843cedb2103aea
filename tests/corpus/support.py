"""What the tests of this room share: small corpora, settings with small windows, what an output folder holds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_embedding.corpus.chunker import ChunkSettings
from qwen3_embedding.corpus.encode import EncodeSettings, VectorSettings
from qwen3_embedding.corpus.manifest import read_manifest
from qwen3_embedding.corpus.reader import ReadOptions
from qwen3_embedding.corpus.window import PlanSettings, WindowSettings

WORDS = ("alpha", "beta", "правда", "水", "gamma ray", "δέλτα", "नमस्ते", "of the", "7.5", "\n")


def text_of(number: int) -> str:
    """A text that differs for every number, of differing length."""
    return " ".join(WORDS[(number * 7 + i * i) % len(WORDS)] for i in range(1 + number % 23)) + f" {number}"


def write_jsonl(path: Path, documents: Iterable[tuple[str, str]]) -> Path:
    """A JSONL corpus."""
    lines = (json.dumps({"id": id_, "text": text}, ensure_ascii=False) + "\n" for id_, text in documents)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def repeating(n: int, different: int) -> list[tuple[str, str]]:
    """n documents with ``different`` different texts, repeats near and far."""
    return [(f"d{i}", text_of((i * i) % different if i >= different else i)) for i in range(n)]


def small(
    rows: int = 32,
    vectors: VectorSettings | None = None,
    chunk: ChunkSettings | None = None,
    read: ReadOptions | None = None,
    repair: bool = False,
) -> EncodeSettings:
    """Settings with windows of a few rows, so that a small corpus has many."""
    plan = PlanSettings(read or ReadOptions(), chunk, WindowSettings(rows=rows))
    return EncodeSettings(vectors or VectorSettings(), plan, repair)


def content(folder: Path) -> dict[str, np.ndarray]:
    """Id to vector, each id once."""
    out: dict[str, np.ndarray] = {}
    for ids, vectors in read_manifest(folder).vectors():
        for id_, vector in zip(ids, vectors, strict=True):
            assert id_ not in out, f"{id_} twice"
            out[id_] = vector
    return out


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Equal ids and equal bits."""
    return first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)


def files_of(folder: Path) -> dict[str, bytes]:
    """Shards and manifest, byte for byte."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".parquet", ".json", ".jsonl")}
