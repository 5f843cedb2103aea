"""What an index folder says of itself: the model its vectors came from, their size, how it was made."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from qwen3_embedding.config import from_mapping
from qwen3_embedding.errors import ConfigError, IndexCorruptError
from qwen3_embedding.retrieval.analysis import ANALYSIS_VERSION
from qwen3_embedding.retrieval.search import unit_vectors
from qwen3_embedding.types import Encoder, FloatArray
from qwen3_embedding.whole import write_text

FILE = "manifest.json"
FORMAT = "qwen3-embedding-index"
VERSION = 1
_PROBE = "The quick brown fox jumps over the lazy dog. 敏捷的棕色狐狸跳过懒狗。"
_SAME_MODEL = 0.98
"""Cosine of the probe text's vectors: the same weights at bfloat16, at int8 or elsewhere stay above, others below."""

FirstPass = Literal["none", "int8", "short", "binary", "ivf-pq", "hnsw-sq"]
SNAPSHOT_PASSES = ("binary", "hnsw-sq")
"""Those that are kept beside the table, mapped into memory (:mod:`qwen3_embedding.retrieval.snapshot`)."""


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """How an index keeps its vectors.

    The first pass goes over smaller vectors and brings ``oversample`` times as many candidates as are wanted, which
    are then compared in float32:

    * ``none``: every vector in float32.
    * ``int8``: every vector at a byte a dimension. ``short``: the first dimensions of every vector (Matryoshka).
    * ``binary``: every vector at a bit a dimension, mapped into memory.
    * ``hnsw-sq``: a graph over vectors of a byte a dimension, mapped into memory (extra ``scale``).
    * ``ivf-pq``: clusters of product-quantised vectors on disk: for more vectors than memory holds.
    """

    dimensions: int | None = None
    """Size of the stored vectors; ``None`` the encoder's own."""
    first_pass: FirstPass = "none"
    short_dimensions: int = 128
    oversample: int | None = None
    """``None``: 2 for ``hnsw-sq``, whose bytes are nearly exact, 4 for the others."""
    effort: int = 128
    """How broadly an approximate first pass searches: candidates that ``hnsw-sq`` follows at a time, clusters that
    ``ivf-pq`` looks at; also the fewest candidates of ``ivf-pq`` and ``binary``, which are coarse."""
    batch_size: int = 1024
    """Documents embedded and committed at a time."""

    def __post_init__(self) -> None:
        if self.first_pass not in get_args(FirstPass):
            raise ValueError(f"first_pass={self.first_pass!r}; wanted one of {', '.join(get_args(FirstPass))}")
        for name in ("oversample", "effort", "batch_size", "short_dimensions"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; wanted 1 or more")


@dataclass(frozen=True, slots=True)
class Manifest:
    """The contents of ``manifest.json``."""

    format: str
    version: int
    analysis: int
    model: str
    source: str | None
    """Folder that the model was loaded from."""
    fingerprint: str | None
    dimensions: int
    instruction: str | None
    first_pass: FirstPass
    short_dimensions: int
    oversample: int
    batch_size: int
    probe: list[float]
    """The model's vector of a fixed text: how another model under the same name is found out."""
    next_id: int = 0
    """The number of the next document; none is given out twice."""
    effort: int = 128

    @property
    def has_snapshot(self) -> bool:
        """The first pass is kept beside the table."""
        return self.first_pass in SNAPSHOT_PASSES


def new_manifest(encoder: Encoder, settings: IndexSettings, instruction: str | None) -> Manifest:
    """The manifest of an empty index.

    Raises:
        ValueError: dimensions that the encoder does not have.
    """
    dimensions = encoder.dimensions if settings.dimensions is None else settings.dimensions
    if not 1 <= dimensions <= encoder.dimensions:
        raise ValueError(f"dimensions={dimensions}; {encoder.name!r} has 1 to {encoder.dimensions}")
    if settings.first_pass == "short" and settings.short_dimensions >= dimensions:
        raise ValueError(
            f"short_dimensions={settings.short_dimensions} must be below the index's {dimensions}; "
            "choose fewer, or first_pass='none'"
        )
    return Manifest(
        format=FORMAT,
        version=VERSION,
        analysis=ANALYSIS_VERSION,
        model=encoder.name,
        source=_folder(encoder),
        fingerprint=_fingerprint(encoder),
        dimensions=dimensions,
        instruction=instruction,
        first_pass=settings.first_pass,
        short_dimensions=settings.short_dimensions,
        oversample=settings.oversample or (2 if settings.first_pass == "hnsw-sq" else 4),
        batch_size=settings.batch_size,
        effort=settings.effort,
        probe=[round(float(value), 6) for value in _probe(encoder, dimensions)],
    )


def check_model(manifest: Manifest, encoder: Encoder, folder: Path) -> None:
    """Refuse an encoder that is not the one the index was made with.

    Raises:
        ValueError: another model: its vectors and those of the index mean different things.
    """
    if manifest.fingerprint is not None and manifest.fingerprint == _fingerprint(encoder):
        return
    made = f"{folder} was made with {manifest.model!r} ({manifest.dimensions} dimensions)"
    if encoder.dimensions < manifest.dimensions:
        raise ValueError(
            f"{made} and {encoder.name!r} has {encoder.dimensions}; open it with the model it was made with"
        )
    likeness = float(np.dot(_probe(encoder, manifest.dimensions), np.array(manifest.probe, dtype=np.float32)))
    if likeness < _SAME_MODEL:
        raise ValueError(
            f"{made} and {encoder.name!r} gives other vectors (cosine {likeness:.3f} on the probe text, wanted "
            f"{_SAME_MODEL} or more); open it with the model it was made with, or index the documents anew"
        )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an index folder.

    Raises:
        IndexCorruptError: no index there, or a manifest that cannot be read.
    """
    path = folder / FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise IndexCorruptError(
            f"{folder} is no search index: it has no {FILE}; make one with SearchIndex.create"
        ) from None
    except (OSError, ValueError) as error:
        raise IndexCorruptError(
            f"{path} cannot be read: {error}; restore it from a copy, the documents beside it are whole"
        ) from None
    return _checked(raw, path)


def model_source(manifest: Manifest) -> str:
    """From where to load the model again: the folder, while it is there, else the name."""
    if manifest.source is not None and Path(manifest.source).is_dir():
        return manifest.source
    return manifest.model


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write beside, then replace: a reader finds the old manifest or the new one, never half of one."""
    write_text(folder / FILE, json.dumps(asdict(manifest), ensure_ascii=False, indent=1) + "\n", shared=True)


def _checked(raw: Any, path: Path) -> Manifest:
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise IndexCorruptError(f"{path} is not the manifest of a search index (format {FORMAT!r})")
    if raw.get("version") != VERSION or raw.get("analysis") != ANALYSIS_VERSION:
        raise IndexCorruptError(
            f"{path}: made by another version of this package (format {raw.get('version')}, text analysis "
            f"{raw.get('analysis')}; this one reads {VERSION} and {ANALYSIS_VERSION}); index the documents anew"
        )
    try:
        manifest = from_mapping(raw, Manifest, where=str(path))
    except ConfigError as error:
        raise IndexCorruptError(
            f"{error}; restore the manifest from a copy, the documents beside it are whole"
        ) from None
    if len(manifest.probe) != manifest.dimensions:
        raise IndexCorruptError(
            f"{path}: the probe has {len(manifest.probe)} values for {manifest.dimensions} dimensions"
        )
    return manifest


def _fingerprint(encoder: Encoder) -> str | None:
    found = getattr(encoder, "fingerprint", None)
    return found if isinstance(found, str) else None


def _folder(encoder: Encoder) -> str | None:
    found = getattr(encoder, "folder", None)
    return str(found.resolve()) if isinstance(found, Path) else None


def _probe(encoder: Encoder, dimensions: int) -> FloatArray:
    vectors = encoder.embed_documents([_PROBE], dimensions=dimensions)
    probe_D: FloatArray = unit_vectors(vectors, 1, dimensions, encoder.name)[0]
    return probe_D
