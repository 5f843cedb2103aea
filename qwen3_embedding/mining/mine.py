"""Records to records with hard negatives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path

import numpy as np

from qwen3_embedding.data.dedup import record_hash, text_hash
from qwen3_embedding.data.record import Record
from qwen3_embedding.mining.filters import Verdict, Verdicts, ceiling, choose, judge, verify
from qwen3_embedding.mining.report import MiningReport, Sample
from qwen3_embedding.mining.retrieve import top_k
from qwen3_embedding.mining.settings import MiningSettings
from qwen3_embedding.mining.store import VectorStore, key_of
from qwen3_embedding.mining.texts import Corpus
from qwen3_embedding.types import Encoder, FloatArray, IntArray, Scorer

Log = Callable[[str], None]
SCORE_SEGMENT = 1024
"""Reranker scores between two writes to the cache."""


@dataclass(frozen=True)
class Models:
    """Who retrieves and who verifies, and how their cached results are told from those of other models."""

    encoder: Encoder
    encoder_key: str
    """Identity of the encoder's weights and settings: a fingerprint rather than a name that may be reused."""
    scorer: Scorer | None = None
    scorer_key: str = ""


class Miner:
    """Mines hard negatives for records from a corpus. Vectors and reranker scores are cached in a folder.

    The result is a pure function of records, corpus, models and settings, also over a kill and a restart.
    """

    def __init__(self, models: Models, settings: MiningSettings, cache: str | Path, log: Log | None = None) -> None:
        if settings.verify is not None and models.scorer is None:
            raise ValueError("the settings ask for verification and no scorer was given; name a reranker")
        self.models = models
        self.settings = settings
        self.report = MiningReport(encoder=models.encoder.name)
        if settings.verify is not None and models.scorer is not None:
            self.report.scorer = models.scorer.name
        self._cache = Path(cache)
        self._log = log or (lambda line: None)
        self._dimensions = settings.dimensions or models.encoder.dimensions
        self._documents = VectorStore(self._cache, f"document {models.encoder_key}", self._dimensions)
        self._queries = VectorStore(self._cache, f"query {models.encoder_key}", self._dimensions)
        self._scores = VectorStore(self._cache, f"score {models.scorer_key}", 1, SCORE_SEGMENT)

    def mine(self, records: Iterable[Record], corpus: Iterable[str] = ()) -> Iterator[Record]:
        """The records with negatives from the corpus and from all positives and negatives of the records.

        Args:
            records: gone through several times, so a list or an object that starts anew each time it is iterated.
            corpus: further texts to draw negatives from.

        Yields:
            Records in their order; ``report`` is complete when the last one is out.

        Raises:
            TypeError: an iterator, which cannot be gone through twice.
            DataError: a cache that is torn.
            ValueError: nothing to draw negatives from.
        """
        if iter(records) is records:
            raise TypeError("records is an iterator and is gone through several times; give a list or a re-iterable")
        self._cache.mkdir(parents=True, exist_ok=True)
        with Corpus(self._cache / "corpus.scratch") as texts:
            positives = self._collect(records, texts)
            texts.add(corpus)
            self.report.corpus, self.report.corpus_duplicates = len(texts), texts.duplicates
            if not len(texts):
                raise ValueError("the corpus is empty: neither texts nor records of the tasks to mine were given")
            self._log(f"corpus of {len(texts):,} texts")
            rows = self._encode_corpus(texts)
            search = _Search(texts, rows, positives)
            for block in _blocks(records, self.settings.query_block):
                yield from self._mine_block(block, search)
                self._log(f"{self.report.records:,} records mined")

    # --- preparation --------------------------------------------------------------------------------------------------

    def _collect(self, records: Iterable[Record], texts: Corpus) -> dict[int, set[int]]:
        """Fill the corpus with the records' own texts; content hashes of the positives of every query text."""
        positives: dict[int, set[int]] = {}
        for record in records:
            if record.task not in self.settings.tasks:
                continue
            texts.add([*record.positives, *record.negatives])
            positives.setdefault(text_hash(record.query), set()).update(map(text_hash, record.positives))
        return positives

    def _encode_corpus(self, texts: Corpus) -> IntArray:
        keys = texts.keys
        self._encode_documents(keys, texts.texts)
        return self._documents.find(keys)

    def _encode_documents(self, keys: IntArray, texts: Callable[[IntArray], Sequence[str]]) -> None:
        def encode(positions: IntArray) -> FloatArray:
            self._log(f"encoding {len(positions):,} documents")
            vectors = self.models.encoder.embed_documents(texts(positions), self.settings.dimensions)
            return np.asarray(vectors, np.float32)

        self.report.encoded += self._documents.add(keys, encode)

    # --- one block of records -----------------------------------------------------------------------------------------

    def _mine_block(self, block: Sequence[Record], search: _Search) -> Iterator[Record]:
        wanted = [record for record in block if record.task in self.settings.tasks]
        if wanted:
            queries = self._query_vectors(wanted)
            positive_scores = self._positive_scores(wanted, queries)
            blocks = self._documents.blocks(search.rows, self.settings.document_block)
            scores, ids = top_k(
                queries, blocks, self.settings.depth, self.settings.device, self._ceilings(positive_scores)
            )
            found = (
                _Candidates(record, scores_K[np.isfinite(scores_K)], ids_K[np.isfinite(scores_K)], positive)
                for record, scores_K, ids_K, positive in zip(wanted, scores, ids, positive_scores, strict=True)
            )
            judged = [self._judge(candidates, search) for candidates in found]
            answers = iter(self._verified(judged, search))
        for record in block:
            self.report.records += 1
            if record.task not in self.settings.tasks:
                self.report.passed_through[record.task] += 1
                yield record
                continue
            mined = self._finish(next(answers), search)
            if mined is not None:
                yield mined

    def _query_vectors(self, records: Sequence[Record]) -> FloatArray:
        """(N, D) vectors of the records' queries, each with its instruction."""
        keys = np.array([_query_key(record) for record in records], np.int64)
        for instruction in dict.fromkeys(record.instruction for record in records):
            places = np.array([i for i, record in enumerate(records) if record.instruction == instruction])

            def encode(
                positions: IntArray, places: IntArray = places, instruction: str | None = instruction
            ) -> FloatArray:
                texts = [records[int(place)].query for place in places[positions]]
                vectors = self.models.encoder.embed_queries(texts, instruction, self.settings.dimensions)
                return np.asarray(vectors, np.float32)

            self.report.encoded += self._queries.add(keys[places], encode)
        return self._queries.get(self._queries.find(keys))

    def _positive_scores(self, records: Sequence[Record], queries: FloatArray) -> list[float]:
        """Lowest cosine among each record's positives."""
        texts = [text for record in records for text in record.positives]
        owners = np.array([i for i, record in enumerate(records) for _ in record.positives])
        keys = np.array([key_of(text) for text in texts], np.int64)
        self._encode_documents(keys, lambda chosen: [texts[int(i)] for i in chosen])
        scores = np.einsum("nd,nd->n", queries[owners], self._documents.get(self._documents.find(keys)))
        lowest = np.full(len(records), np.inf, np.float32)
        np.minimum.at(lowest, owners, scores)
        return [float(score) for score in lowest]

    def _ceilings(self, positive_scores: Sequence[float]) -> FloatArray | None:
        bounds = self.settings.filter
        if not bounds.below_bounds:
            return None
        return np.array([ceiling(positive, bounds) for positive in positive_scores], np.float32)

    def _judge(self, candidates: _Candidates, search: _Search) -> _Judged:
        record = candidates.record
        query_hash = text_hash(record.query)
        verdicts = judge(
            candidates.scores_K,
            search.hashes[candidates.ids_K],
            query_hash,
            search.positives[query_hash],
            set(map(text_hash, record.negatives)),
            candidates.positive_score,
            self.settings.filter,
        )
        return _Judged(candidates, verdicts)

    # --- the reranker's second opinion --------------------------------------------------------------------------------

    def _verified(self, judged: Sequence[_Judged], search: _Search) -> Sequence[_Judged]:
        settings = self.settings.verify
        if settings is None:
            return judged
        places = [np.flatnonzero(item.verdicts_K == Verdict.PASSED)[: settings.depth] for item in judged]
        documents = [
            [*item.record.positives, *search.texts.texts(item.candidates.ids_K[some])]
            for item, some in zip(judged, places, strict=True)
        ]
        out = []
        for item, some, scores in zip(judged, places, self._reranker_scores(judged, documents), strict=True):
            count = len(item.record.positives)
            verify(item.verdicts_K, some, scores[count:], float(scores[:count].min()), settings)
            behind = np.flatnonzero(item.verdicts_K == Verdict.PASSED)
            item.verdicts_K[behind[~np.isin(behind, some)]] = Verdict.UNUSED
            out.append(replace(item, best_positive=float(scores[:count].max())))
        return out

    def _reranker_scores(self, judged: Sequence[_Judged], documents: Sequence[Sequence[str]]) -> list[FloatArray]:
        """The reranker's scores of each record's documents, from the cache where they are there."""
        scorer = self.models.scorer
        assert scorer is not None  # the constructor saw to it
        pairs = [(owner, text) for owner, texts in enumerate(documents) for text in texts]
        keys = np.array(
            [key_of(_instruction(judged[owner].record), judged[owner].record.query, text) for owner, text in pairs],
            np.int64,
        )

        def encode(positions: IntArray) -> FloatArray:
            parts = []
            for owner, group in groupby((pairs[int(position)] for position in positions), key=lambda pair: pair[0]):
                record = judged[owner].record
                parts.append(scorer.score(record.query, [text for _, text in group], record.instruction))
            self._log(f"verified {len(positions):,} pairs")
            return np.concatenate(parts).astype(np.float32)[:, None]

        self.report.scored_pairs += self._scores.add(keys, encode)
        scores = self._scores.get(self._scores.find(keys))[:, 0]
        return np.split(scores, np.cumsum([len(texts) for texts in documents])[:-1])

    # --- the result ---------------------------------------------------------------------------------------------------

    def _finish(self, judged: _Judged, search: _Search) -> Record | None:
        settings, record = self.settings, judged.record
        verdicts = judged.verdicts_K
        if settings.verify and judged.best_positive < (settings.verify.min_positive or 0.0):
            self.report.dropped_weak_positive += 1
            return None
        passed = np.flatnonzero(verdicts == Verdict.PASSED)
        kept = choose(passed, settings.negatives, settings.sampling, settings.seed, record_hash(record))
        verdicts[passed] = Verdict.UNUSED
        verdicts[kept] = Verdict.KEPT
        self.report.count(verdicts, judged.candidates.scores_K, judged.candidates.positive_score)
        self._sample(judged, search)
        existing = record.negatives if settings.keep_existing else ()
        negatives = (*existing, *search.texts.texts(judged.candidates.ids_K[kept]))
        if len(negatives) < settings.drop_below:
            self.report.dropped_few_negatives += 1
            return None
        self.report.mined += 1
        return replace(record, negatives=negatives)

    def _sample(self, judged: _Judged, search: _Search) -> None:
        for value in np.unique(judged.verdicts_K):
            verdict = Verdict(int(value))
            if self.report.wants(verdict):
                place = int(np.flatnonzero(judged.verdicts_K == value)[0])
                self.report.show(
                    verdict,
                    Sample(
                        query=judged.record.query,
                        positive=judged.record.positives[0],
                        candidate=search.texts[int(judged.candidates.ids_K[place])],
                        score=float(judged.candidates.scores_K[place]),
                        positive_score=judged.candidates.positive_score,
                        rank=place + 1,
                    ),
                )


class _Search:
    """What candidates are drawn from, and what must not be drawn."""

    def __init__(self, texts: Corpus, rows: IntArray, positives: dict[int, set[int]]) -> None:
        self.texts = texts
        self.rows = rows
        self.hashes = texts.hashes
        self.positives = positives


@dataclass(frozen=True)
class _Candidates:
    """What was retrieved for a record."""

    record: Record
    scores_K: FloatArray
    ids_K: IntArray
    positive_score: float


@dataclass(frozen=True)
class _Judged:
    """Candidates with their verdicts."""

    candidates: _Candidates
    verdicts_K: Verdicts
    best_positive: float = 1.0
    """The reranker's highest score among the positives."""

    @property
    def record(self) -> Record:
        return self.candidates.record


def _instruction(record: Record) -> str:
    return "default" if record.instruction is None else f"given {record.instruction}"


def _query_key(record: Record) -> int:
    return key_of(_instruction(record), record.query)


def _blocks(records: Iterable[Record], size: int) -> Iterator[list[Record]]:
    iterator = iter(records)
    while block := list(islice(iterator, size)):
        yield block
