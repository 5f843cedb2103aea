"""Which pairs are worth training on: cheap checks first, vectors last, every verdict kept for the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_embedding.data.decontaminate import Decontaminator
from qwen3_embedding.data.dedup import text_hash
from qwen3_embedding.data.near_duplicates import MinHashSettings, NearDuplicates
from qwen3_embedding.data.record import from_mapping
from qwen3_embedding.synthesis.checks import copied, talks_about_the_task, wrong_language, wrong_length
from qwen3_embedding.synthesis.document import Document
from qwen3_embedding.types import Encoder, FloatArray

Pair = dict[str, Any]
"""``record`` and ``provenance``, plain values as in the ledger."""

FILTERS = ("talk", "length", "copy", "language", "duplicate", "near_duplicate", "contamination", "cosine", "rank")
_MEASURED = ("retrieval", "bitext", "code")
_BATCH = 512


@dataclass(frozen=True, slots=True)
class FilterSettings:
    """What is dropped. 0 (or ``false``) switches a filter off."""

    talk: bool = True
    """Texts in which the model speaks of itself, of the prompt or of "the passage"."""
    length: float = 3.0
    """Queries so many times longer or shorter than asked for."""
    copy: float = 0.8
    """Queries of which this share is one run of words out of the document."""
    language: bool = True
    """Texts that are clearly not in the language asked for."""
    near_duplicate: float = 0.8
    """Queries for the same document (pairs, for other kinds) at least so alike: Jaccard of their words."""
    cosine: float = 0.7
    """Retrieval, bitext and code pairs whose cosine is not above this (report on Qwen3 Embedding, section 3.3)."""
    rank: int = 20
    """Retrieval and code pairs whose document is not among the first so many of all documents for its query."""
    unseen: tuple[Path, ...] = ()
    """Files or folders of evaluation data; pairs that hold a text of theirs, or 13 words of one, are dropped."""
    group: float = 0.8
    """Documents so alike (Jaccard of three-word runs) count as one: they become positives of each other's queries."""

    def __post_init__(self) -> None:
        for name in ("copy", "near_duplicate", "cosine", "group"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted 0 (off) to 1")
        if self.length < 0 or 0 < self.length < 1 or self.rank < 0:
            raise ValueError(f"length is {self.length} and rank {self.rank}; wanted 0 (off) or 1 and more")

    @property
    def needs_encoder(self) -> bool:
        """Whether vectors are needed."""
        return self.cosine > 0 or self.rank > 0


@dataclass(slots=True)
class Verdict:
    """What became of one pair."""

    pair: Pair
    reasons: dict[str, str] = field(default_factory=dict)
    """Filter → why; empty: kept.  Cosine and rank are measured only for pairs that pass all other filters."""
    cosine: float | None = None
    rank: int | None = None

    @property
    def kept(self) -> bool:
        """Whether no filter objects."""
        return not self.reasons


class Filter:
    """All filters over the pairs of a run.

    Args:
        settings: thresholds.
        documents: all documents, the corpus of the round trip.
        encoder: measures cosine and rank.
        unseen: texts of evaluation sets.

    Raises:
        ValueError: cosine or rank is wanted and there is no encoder.
    """

    def __init__(
        self,
        settings: FilterSettings,
        documents: Sequence[Document],
        encoder: Encoder | None = None,
        unseen: Decontaminator | None = None,
    ) -> None:
        if settings.needs_encoder and encoder is None:
            raise ValueError("the filters cosine and rank need an encoder; name one, or set cosine = 0 and rank = 0")
        self._settings = settings
        self._encoder = encoder
        self._unseen = unseen
        self._documents = documents
        self._number = {document.hash: number for number, document in enumerate(documents)}
        texts = [document.text for document in documents]
        self._group = group_alike(texts, settings.group) if settings.group else list(range(len(texts)))
        self._members: dict[int, list[int]] = {}
        for number, leader in enumerate(self._group):
            self._members.setdefault(leader, []).append(number)

    def judge(self, pairs: Iterable[Pair]) -> list[Verdict]:
        """A verdict for every pair, in order."""
        verdicts = [Verdict(pair) for pair in pairs]
        for verdict in verdicts:
            self._read(verdict)
        self._find_duplicates(verdicts)
        if self._settings.needs_encoder:
            self._measure(verdicts)
        return verdicts

    def records(self, verdicts: Iterable[Verdict]) -> Iterator[Pair]:
        """The pairs that are kept, ready for training.

        A retrieval or code record gets the documents that are alike as further positives, and a question that several
        documents got is one record with all of them.  So a trainer that masks known positives never takes the document
        of one query for a negative of another that it answers too.
        """
        merged: dict[tuple[str, int], Pair] = {}
        for verdict in verdicts:
            if not verdict.kept:
                continue
            record, provenance = dict(verdict.pair["record"]), dict(verdict.pair["provenance"])
            if verdict.cosine is not None:
                record["score"] = round(verdict.cosine, 4)
            provenance |= {"cosine": verdict.cosine, "rank": verdict.rank}
            pair = {"record": record, "provenance": provenance}
            if provenance["kind"] not in ("retrieval", "code"):
                yield pair
                continue
            self._add_alike(record, provenance)
            first = merged.setdefault((record["instruction"], text_hash(record["query"])), pair)
            if first is not pair:
                known = first["record"]["positives"]
                first["record"]["positives"] = list(dict.fromkeys([*known, *record["positives"]]))
                first["provenance"].setdefault("also", []).append(provenance["document_hash"])
        yield from merged.values()

    def _add_alike(self, record: dict[str, Any], provenance: dict[str, Any]) -> None:
        number = self._number.get(provenance["document_hash"])
        if number is None:
            return
        leader = self._group[number]
        provenance["group"] = self._documents[leader].hash
        alike = [self._documents[n].text for n in self._members[leader] if n != number]
        record["positives"] = list(dict.fromkeys([*record["positives"], *alike]))

    def _parent(self, pair: Pair) -> str:
        number = self._number.get(pair["provenance"]["document_hash"])
        return self._documents[number].text if number is not None else ""

    def _read(self, verdict: Verdict) -> None:
        pair, settings, document = verdict.pair, self._settings, self._parent(verdict.pair)
        checks: dict[str, Callable[[], str | None]] = {}
        if settings.talk:
            checks["talk"] = lambda: talks_about_the_task(pair, document)
        if settings.length:
            checks["length"] = lambda: wrong_length(pair, settings.length)
        if settings.copy:
            checks["copy"] = lambda: copied(pair, document, settings.copy)
        if settings.language:
            checks["language"] = lambda: wrong_language(pair)
        if self._unseen:
            checks["contamination"] = lambda: self._seen(pair)
        for name, check in checks.items():
            reason = check()
            if reason:
                verdict.reasons[name] = reason

    def _seen(self, pair: Pair) -> str | None:
        assert self._unseen is not None
        match = self._unseen.find(from_mapping(pair["record"], "pair"))
        return f"{match.where} in {match.evaluation_set} ({match.reason}): {match.text[:60]!r}" if match else None

    def _find_duplicates(self, verdicts: list[Verdict]) -> None:
        """Mark what repeats an earlier pair that is kept so far."""
        seen: set[tuple[str, int, int]] = set()
        near: dict[tuple[str, int], tuple[NearDuplicates, list[str]]] = {}
        for verdict in verdicts:
            if not verdict.kept:
                continue
            record, provenance = verdict.pair["record"], verdict.pair["provenance"]
            own = provenance["kind"] in ("retrieval", "code")
            text = record["query"] if own else f"{record['query']}\n{record['positives'][0]}"
            number = self._number.get(provenance["document_hash"], -1)
            place = self._group[number] if own and number >= 0 else -1
            key = (provenance["kind"], place, text_hash(text))
            if key in seen:
                verdict.reasons["duplicate"] = "the same query came before for this document"
                continue
            seen.add(key)
            if self._settings.near_duplicate:
                finder, texts = near.setdefault((provenance["kind"], place), (self._finder(), []))
                alike = finder.find(text)
                if alike:
                    verdict.reasons["near_duplicate"] = f"nearly the same as {texts[alike[0]][:60]!r}"
                else:
                    finder.add(text)
                    texts.append(text)

    def _finder(self) -> NearDuplicates:
        """Of queries: they are too short for runs of words."""
        return NearDuplicates(MinHashSettings(self._settings.near_duplicate, shingle=1))

    def _measure(self, verdicts: list[Verdict]) -> None:
        wanted = [v for v in verdicts if v.kept and v.pair["provenance"]["kind"] in _MEASURED]
        assert self._encoder is not None
        if not wanted:
            return
        queries_ND = self._queries(wanted)
        positives = [verdict.pair["record"]["positives"][0] for verdict in wanted]
        positives_ND = _embed_once(self._encoder, positives)
        for verdict, cosine in zip(wanted, np.einsum("nd,nd->n", queries_ND, positives_ND), strict=True):
            verdict.cosine = float(cosine)
            if self._settings.cosine and not verdict.cosine > self._settings.cosine:
                verdict.reasons["cosine"] = f"{verdict.cosine:.3f}, wanted more than {self._settings.cosine}"
        if self._settings.rank:
            self._rank(wanted, queries_ND)

    def _rank(self, wanted: list[Verdict], queries_ND: FloatArray) -> None:
        assert self._encoder is not None
        rows = [n for n, v in enumerate(wanted) if v.pair["provenance"]["document_hash"] in self._number]
        rows = [n for n in rows if wanted[n].pair["provenance"]["kind"] != "bitext"]
        corpus_CD = _embed_once(self._encoder, [document.text for document in self._documents])
        group_C = np.asarray(self._group)
        for start in range(0, len(rows), _BATCH):
            part = rows[start : start + _BATCH]
            scores_NC = queries_ND[part] @ corpus_CD.T
            for row, scores_C in zip(part, scores_NC, strict=True):
                verdict = wanted[row]
                own = self._number[verdict.pair["provenance"]["document_hash"]]
                better_C = (scores_C > scores_C[own]) & (group_C != group_C[own])
                verdict.rank = 1 + int(better_C.sum())
                if verdict.rank > self._settings.rank:
                    verdict.reasons["rank"] = (
                        f"its document is number {verdict.rank}, wanted {self._settings.rank} at most"
                    )

    def _queries(self, wanted: list[Verdict]) -> FloatArray:
        """Query vectors, each with its own instruction."""
        assert self._encoder is not None
        by_instruction: dict[str | None, list[int]] = {}
        for number, verdict in enumerate(wanted):
            by_instruction.setdefault(verdict.pair["record"]["instruction"], []).append(number)
        out: list[FloatArray] = [np.empty(0, np.float32)] * len(wanted)
        for instruction, numbers in by_instruction.items():
            texts = [wanted[number].pair["record"]["query"] for number in numbers]
            vectors = np.asarray(self._encoder.embed_queries(texts, instruction=instruction), np.float32)
            for number, vector in zip(numbers, vectors, strict=True):
                out[number] = vector
        return np.stack(out)


def group_alike(texts: Sequence[str], threshold: float) -> list[int]:
    """For every text the number of the first of its group: the group of the earlier text that it is most like."""
    finder = NearDuplicates(MinHashSettings(threshold))
    leaders: list[int] = []
    for number, text in enumerate(texts):
        alike = finder.find(text)
        leaders.append(leaders[alike[0]] if alike else number)
        finder.add(text)
    return leaders


def _embed_once(encoder: Encoder, texts: list[str]) -> FloatArray:
    """Document vectors, a text that comes again embedded once."""
    number = {text: at for at, text in enumerate(dict.fromkeys(texts))}
    vectors = np.asarray(encoder.embed_documents(list(number)), np.float32)
    picked: FloatArray = vectors[[number[text] for text in texts]]
    return picked
