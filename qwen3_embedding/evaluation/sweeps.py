"""How quality falls with smaller vectors, and how it moves with the wording of the instruction.

A cut vector is the first dimensions of the full one, normalised (Matryoshka), so each text is encoded once and all
sizes and precisions are made from its full vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen3_embedding.evaluation.collection import Collection
from qwen3_embedding.evaluation.figures import line_plot
from qwen3_embedding.evaluation.metrics import RankingScores, evaluate_run
from qwen3_embedding.evaluation.statistics import Interval, bootstrap_interval, randomisation_p_value
from qwen3_embedding.retrieval.search import top_ranking
from qwen3_embedding.types import PRECISIONS, Encoder, FloatArray, Precision

METRIC = "ndcg@10"
DEPTH = 1000
"""Documents of a ranking that are scored; deeper than any metric here looks."""

RoundTrip = Callable[[FloatArray, Precision], FloatArray]
"""Float32 unit vectors to a precision and back to float32 unit vectors, as an index of that precision sees them."""

BITS: Mapping[Precision, int] = {"float32": 32, "float16": 16, "int8": 8, "uint8": 8, "binary": 1, "ubinary": 1}

PARAPHRASES = (
    "Find passages relevant to the query",
    "Search for texts that answer this question",
    "Given a query, return the most relevant document",
)
"""Other wordings of a plain search instruction."""


@dataclass(frozen=True, slots=True)
class SweepCell:
    """Quality at one size and precision."""

    dimensions: int
    precision: Precision
    score: float
    bytes_per_vector: int
    kept: float
    """Share of the score of the full float32 vectors."""


@dataclass(frozen=True, slots=True)
class InstructionResult:
    """Quality with one instruction."""

    name: str
    instruction: str | None
    """``None``: the queries went in bare."""
    score: Interval
    difference: float
    """To the first one."""
    p_value: float
    """Paired, against the first one; 1 for the first one itself."""


def sweep_dimensions(
    collection: Collection,
    encoder: Encoder,
    round_trip: RoundTrip,
    dimensions: Sequence[int],
    precisions: Sequence[Precision] = ("float32", "int8", "binary"),
    instruction: str | None = None,
    metric: str = METRIC,
) -> list[SweepCell]:
    """Retrieval quality for every size and precision.

    Args:
        collection: documents, queries and judgements.
        encoder: its full float32 vectors are taken once.
        round_trip: what a precision does to vectors.
        dimensions: sizes; each at most the encoder's own, multiples of 8 for binary vectors.
        precisions: of the documents and queries both.
        instruction: of the queries; ``None`` the encoder's default.
        metric: any of :func:`qwen3_embedding.evaluation.metrics.evaluate_run`.

    Raises:
        ValueError: a size outside 1 to the encoder's own, or an unknown precision.
    """
    for size in dimensions:
        if not 1 <= size <= encoder.dimensions:
            raise ValueError(f"dimensions={size}; wanted 1 to {encoder.dimensions}, the size of {encoder.name}")
    as_precisions(precisions)
    documents_ND = _full(encoder.embed_documents(list(collection.documents.values())))
    queries_QD = _full(encoder.embed_queries(list(collection.queries.values()), instruction))
    best = _score(collection, documents_ND, queries_QD, metric).mean[metric]
    cells = []
    for size in dimensions:
        cut_ND, cut_QD = _cut(documents_ND, size), _cut(queries_QD, size)
        for precision in precisions:
            found = _score(collection, round_trip(cut_ND, precision), round_trip(cut_QD, precision), metric)
            score = found.mean[metric]
            width = -(-size * BITS[precision] // 8)
            cells.append(SweepCell(size, precision, score, width, score / best if best else 0.0))
    return cells


def sweep_instructions(
    collection: Collection,
    encoder: Encoder,
    instructions: Mapping[str, str | None],
    metric: str = METRIC,
    seed: int = 0,
) -> list[InstructionResult]:
    """Retrieval quality for several instructions of the queries; documents are encoded once.

    Args:
        collection: documents, queries and judgements.
        encoder: any.
        instructions: name -> instruction, ``None`` for none at all; the first is what the others are tested against.
        metric: any of :func:`qwen3_embedding.evaluation.metrics.evaluate_run`.
        seed: of the bootstrap and the test.

    Raises:
        ValueError: no instruction.
    """
    if not instructions:
        raise ValueError("there are no instructions to compare")
    documents_ND = _full(encoder.embed_documents(list(collection.documents.values())))
    queries = list(collection.queries.values())
    results: list[InstructionResult] = []
    first: np.ndarray | None = None
    for name, instruction in instructions.items():
        bare = instruction is None
        vectors = encoder.embed_documents(queries) if bare else encoder.embed_queries(queries, instruction)
        per_query = _score(collection, documents_ND, _full(vectors), metric).per_query[metric]
        values_Q = np.array([per_query[query] for query in collection.queries])
        first = values_Q if first is None else first
        difference_Q = values_Q - first
        results.append(
            InstructionResult(
                name,
                instruction,
                bootstrap_interval(values_Q, seed=seed),
                float(difference_Q.mean()),
                randomisation_p_value(difference_Q, seed=seed),
            )
        )
    return results


def default_instructions(tuned: str) -> dict[str, str | None]:
    """The tuned instruction, three other wordings, and none."""
    return {"tuned": tuned, **{f"paraphrase {i}": text for i, text in enumerate(PARAPHRASES, start=1)}, "none": None}


def halves(full: int, smallest: int = 32) -> list[int]:
    """The full size and its halves down to ``smallest``, upwards: 1024 gives 32, 64, … 1024."""
    sizes = [full]
    while sizes[0] % 16 == 0 and sizes[0] // 2 >= smallest:
        sizes.insert(0, sizes[0] // 2)
    return sizes


def as_precisions(names: Sequence[str]) -> list[Precision]:
    """Names from outside as precisions.

    Raises:
        ValueError: an unknown one.
    """
    unknown = [name for name in names if name not in PRECISIONS]
    if unknown:
        raise ValueError(f"precision={unknown[0]!r}; wanted one of {', '.join(PRECISIONS)}")
    return [known for name in names for known in PRECISIONS if known == name]


def plot_sweep(cells: Sequence[SweepCell], title: str, metric: str = METRIC) -> Any:
    """Quality over dimensions, a line a precision; save it with :func:`figures.save_figure`."""
    series: dict[str, dict[float, float]] = {}
    for cell in cells:
        series.setdefault(cell.precision, {})[cell.dimensions] = cell.score
    return line_plot(series, title, "dimensions", metric, log_x=True)


def _score(collection: Collection, documents_ND: FloatArray, queries_QD: FloatArray, metric: str) -> RankingScores:
    ids = list(collection.documents)
    run = {
        query: dict(top_ranking(ids, np.asarray(documents_ND @ vector_D, dtype=np.float32), DEPTH))
        for query, vector_D in zip(collection.queries, queries_QD, strict=True)
    }
    return evaluate_run(collection.qrels, run, [metric])


def _cut(vectors_ND: FloatArray, size: int) -> FloatArray:
    cut_ND = vectors_ND[:, :size]
    norms_N1 = np.linalg.norm(cut_ND, axis=1, keepdims=True)
    return np.asarray(cut_ND / np.maximum(norms_N1, np.finfo(np.float32).tiny), dtype=np.float32)


def _full(vectors: np.ndarray) -> FloatArray:
    if not np.isfinite(vectors).all():
        raise ValueError("the encoder gave vectors that are not finite")
    return np.asarray(vectors, dtype=np.float32)
