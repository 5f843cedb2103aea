"""What mining kept and dropped, and why, with samples to read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qwen3_embedding.mining.filters import Verdict, Verdicts
from qwen3_embedding.types import FloatArray

SAMPLES = 5
SAMPLE_CHARACTERS = 300
REASONS = {
    Verdict.SELF: "same text as the query",
    Verdict.POSITIVE: "a positive of this query",
    Verdict.EXISTING: "a negative of the record already",
    Verdict.SKIPPED: "among the first skip_first",
    Verdict.MAX_SCORE: "score above max_score",
    Verdict.POSITIVE_SHARE: "score above positive_share of the positive's",
    Verdict.MARGIN: "score above the positive's less margin",
    Verdict.MIN_SCORE: "score below min_score",
    Verdict.RERANKER: "the reranker takes it for an answer",
    Verdict.UNUSED: "passed, not needed",
    Verdict.KEPT: "kept as a negative",
}


@dataclass(frozen=True)
class Sample:
    """A candidate with its verdict, to read."""

    query: str
    positive: str
    candidate: str
    score: float
    positive_score: float
    rank: int


@dataclass
class MiningReport:
    """Counts of one run of mining."""

    encoder: str = ""
    scorer: str | None = None
    corpus: int = 0
    corpus_duplicates: int = 0
    encoded: int = 0
    """Texts encoded in this run; the others came from the cache."""
    scored_pairs: int = 0
    """Pairs that the reranker scored in this run; the others came from the cache."""
    records: int = 0
    passed_through: Counter[str] = field(default_factory=Counter)
    """Records of other tasks, unchanged, by task."""
    mined: int = 0
    dropped_weak_positive: int = 0
    dropped_few_negatives: int = 0
    candidates: Counter[Verdict] = field(default_factory=Counter)
    negatives: Counter[int] = field(default_factory=Counter)
    """Mined records by how many negatives were found for them."""
    positive_score_sum: float = 0.0
    negative_score_sum: float = 0.0
    samples: dict[Verdict, list[Sample]] = field(default_factory=dict)

    def count(self, verdicts_K: Verdicts, scores_K: FloatArray, positive_score: float) -> None:
        """Count one record's candidates."""
        kept = verdicts_K == Verdict.KEPT
        for value, number in zip(*np.unique(verdicts_K, return_counts=True), strict=True):
            self.candidates[Verdict(int(value))] += int(number)
        self.negatives[int(kept.sum())] += 1
        self.positive_score_sum += positive_score
        self.negative_score_sum += float(scores_K[kept].sum())

    def wants(self, verdict: Verdict) -> bool:
        """Whether there is room for a sample of this verdict."""
        return verdict != Verdict.UNUSED and len(self.samples.get(verdict, ())) < SAMPLES

    def show(self, verdict: Verdict, sample: Sample) -> None:
        """Keep a sample; long texts are cut."""
        cut = Sample(
            query=sample.query[:SAMPLE_CHARACTERS],
            positive=sample.positive[:SAMPLE_CHARACTERS],
            candidate=sample.candidate[:SAMPLE_CHARACTERS],
            score=sample.score,
            positive_score=sample.positive_score,
            rank=sample.rank,
        )
        self.samples.setdefault(verdict, []).append(cut)

    @property
    def judged(self) -> int:
        """Records whose candidates were judged."""
        return sum(self.negatives.values())

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        kept = self.candidates[Verdict.KEPT]
        return {
            "encoder": self.encoder,
            "scorer": self.scorer,
            "corpus": self.corpus,
            "corpus_duplicates": self.corpus_duplicates,
            "encoded": self.encoded,
            "scored_pairs": self.scored_pairs,
            "records": self.records,
            "passed_through": dict(sorted(self.passed_through.items())),
            "mined": self.mined,
            "dropped_weak_positive": self.dropped_weak_positive,
            "dropped_few_negatives": self.dropped_few_negatives,
            "mean_positive_score": self.positive_score_sum / self.judged if self.judged else None,
            "mean_negative_score": self.negative_score_sum / kept if kept else None,
            "candidates": {verdict.name.lower(): self.candidates[verdict] for verdict in REASONS},
            "records_by_negatives": {str(number): self.negatives[number] for number in sorted(self.negatives)},
            "samples": {
                verdict.name.lower(): [
                    {name: getattr(sample, name) for name in Sample.__dataclass_fields__} for sample in samples
                ]
                for verdict, samples in sorted(self.samples.items())
            },
        }

    def lines(self) -> list[str]:
        """The report for people, without samples."""
        scored = f", verified by {self.scorer} ({self.scored_pairs:,} pairs scored now)" if self.scorer else ""
        out = [
            f"{self.records:,} records, corpus of {self.corpus:,} texts, retrieved by {self.encoder} "
            f"({self.encoded:,} texts encoded now){scored}",
            f"{self.mined:,} records mined, {sum(self.passed_through.values()):,} passed unchanged, "
            f"{self.dropped_weak_positive:,} left out for a weak positive, "
            f"{self.dropped_few_negatives:,} for few negatives",
        ]
        kept = self.candidates[Verdict.KEPT]
        if self.judged and kept:
            positive, negative = self.positive_score_sum / self.judged, self.negative_score_sum / kept
            out.append(f"mean cosine: positives (lowest of each record) {positive:.3f}, kept negatives {negative:.3f}")
        total = max(1, sum(self.candidates.values()))
        for verdict, reason in REASONS.items():
            number = self.candidates[verdict]
            if number:
                out.append(f"  {number:>12,}  {number / total:6.1%}  {reason}")
        found = ", ".join(f"{number}: {self.negatives[number]:,}" for number in sorted(self.negatives))
        return [*out, f"records by negatives found: {found or 'none'}"]
