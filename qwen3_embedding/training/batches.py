"""The batch of a step: which records, which of their texts, cut how. A pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from qwen3_embedding.data import TASKS, Task
from qwen3_embedding.data.mixture import Group, Mixture
from qwen3_embedding.errors import DataError
from qwen3_embedding.training.config import DataSettings, SourceSettings
from qwen3_embedding.training.contrastive import Items
from qwen3_embedding.training.token_store import TokenStore, open_store, rows_by
from qwen3_embedding.types import FloatArray, IntArray

Ids = npt.NDArray[np.int32]
_TEXTS = 2  # stream of random numbers, beside the mixture's


@dataclass(frozen=True)
class TrainBatch:
    """The texts of a global batch, all of one task, source and language group."""

    step: int
    group: str
    task: Task
    epoch: int
    queries: list[Ids]
    """N sequences, end token included, as are all."""
    positives: list[Ids]
    """N"""
    negatives: list[Ids]
    """M"""
    items: Items
    grades: FloatArray
    """(N,) NaN where a record has none."""
    records: IntArray
    """(N,) which records of the source they are."""

    @property
    def sequences(self) -> list[Ids]:
        """Queries, positives, negatives, in this order."""
        return [*self.queries, *self.positives, *self.negatives]


@dataclass(frozen=True)
class _Rows:
    """Where a group's records are."""

    store: TokenStore
    source: SourceSettings
    rows: IntArray


class Batches:
    """Batches over token stores."""

    def __init__(self, settings: DataSettings, tokenizer_folder: Path, end_id: int, seed: int) -> None:
        self.settings, self.end_id, self.seed = settings, end_id, seed
        longest = max(settings.max_query_tokens, settings.max_document_tokens)
        groups: list[Group] = []
        self._rows: list[_Rows] = []
        self.stores: list[TokenStore] = []
        for source in settings.sources:
            # Cut at a random place needs more of the text than is used.
            keep = 4 * longest if source.window or source.crop else longest
            store = open_store(source, tokenizer_folder, settings.cache, seed, keep)
            self.stores.append(store)
            _check_prompts(store, source, settings.max_query_tokens)
            labels = Labels(np.asarray(store.tasks), np.asarray(store.languages), store.language_names)
            for group, rows in split_groups(labels, source, settings):
                _check_trainable(store, rows, group.task, source)
                groups.append(group)
                self._rows.append(_Rows(store, source, rows))
        self.mixture = Mixture(groups, seed)

    def facts(self) -> dict[str, dict[str, int]]:
        """Records used of each source, and how many of their texts are longer than the limits, so are cut."""
        facts = {}
        for source, store in zip(self.settings.sources, self.stores, strict=True):
            queries, documents = store.longer_than(
                self.settings.max_query_tokens - 1, self.settings.max_document_tokens - 1
            )
            facts[str(source.path)] = {"records": len(store), "cut_queries": queries, "cut_documents": documents}
        return facts

    def batch(self, step: int) -> TrainBatch:
        """The batch of a step, counted from 0."""
        draw = self.mixture.draw(step)
        group, where = self.mixture.groups[draw.group], self._rows[draw.group]
        records = where.rows[draw.rows]
        rng = np.random.default_rng([self.seed, _TEXTS, step])
        examples = [self._example(where, int(record), group.task, rng) for record in records]
        owners = [row for row, example in enumerate(examples) for _ in example.negatives]
        return TrainBatch(
            step=step,
            group=group.name,
            task=group.task,
            epoch=draw.epoch,
            queries=[example.query for example in examples],
            positives=[example.positive for example in examples],
            negatives=[ids for example in examples for ids in example.negatives],
            items=Items(
                torch.tensor([example.query_hash for example in examples]),
                torch.from_numpy(_padded([example.positive_hashes for example in examples])),
                torch.tensor([h for example in examples for h in example.negative_hashes], dtype=torch.long),
                torch.tensor(owners, dtype=torch.long),
            ),
            grades=np.asarray(where.store.scores[records]),
            records=records,
        )

    def _example(self, where: _Rows, record: int, task: Task, rng: np.random.Generator) -> _Example:
        store, source, settings = where.store, where.source, self.settings
        positives = store.positives(record)
        chosen = positives[int(rng.integers(len(positives)))]
        query, document = store.ids(store.query(record)), store.ids(chosen)
        query_hash, hashes = store.hash(store.query(record)), [store.hash(text) for text in positives]
        hashes = [store.hash(chosen), *(h for h in hashes if h != store.hash(chosen))]
        prefix = store.prefix(record)
        if prefix is not None and source.swap and rng.random() < source.swap:
            query, document = np.concatenate([prefix, document]), query[len(prefix) :]
            query_hash, hashes = hashes[0], [query_hash]
        elif prefix is not None and source.crop and rng.random() < source.crop:
            stretch, document = self._crop(document, rng)
            if stretch is not None:
                query = np.concatenate([prefix, stretch])
                query_hash = int(rng.integers(2**62))  # a new text, equal to no other
        elif prefix is not None and source.hide and rng.random() < source.hide:
            document = without_common_run(query[len(prefix) :], document, settings.hide_tokens)
        negatives = self._negatives(store, record, task, rng)
        return _Example(
            query=self._finish(query, settings.max_query_tokens, 0.0, rng),
            positive=self._finish(document, settings.max_document_tokens, source.window, rng),
            negatives=[self._finish(store.ids(text), settings.max_document_tokens, 0.0, rng) for text in negatives],
            query_hash=query_hash,
            positive_hashes=hashes,
            negative_hashes=[store.hash(text) for text in negatives],
        )

    def _negatives(self, store: TokenStore, record: int, task: Task, rng: np.random.Generator) -> list[int]:
        texts = store.negatives(record)
        if task == "sts" or len(texts) == 0:
            return []
        if len(texts) <= self.settings.negatives:
            return list(texts)
        return [texts[int(at)] for at in np.sort(rng.choice(len(texts), self.settings.negatives, replace=False))]

    def _crop(self, document: Ids, rng: np.random.Generator) -> tuple[Ids | None, Ids]:
        """A stretch of a document to ask for it with, and the document, with or without it."""
        shortest, longest = self.settings.crop_tokens
        within = min(len(document), self.settings.max_document_tokens - 1)
        if within <= longest + shortest:
            return None, document
        length = int(rng.integers(shortest, longest + 1))
        begin = int(rng.integers(within - length + 1))
        stretch = document[begin : begin + length]
        if rng.random() < self.settings.crop_removed:
            document = np.concatenate([document[:begin], document[begin + length :]])
        return stretch, document

    def _finish(self, ids: Ids, limit: int, window: float, rng: np.random.Generator) -> Ids:
        """Cut to the limit, then put on the end token."""
        room = limit - 1
        begin = 0
        if len(ids) > room and window and rng.random() < window:
            begin = int(rng.integers(len(ids) - room + 1))
        return np.append(ids[begin : begin + room], np.int32(self.end_id))


@dataclass(frozen=True)
class _Example:
    query: Ids
    positive: Ids
    negatives: list[Ids]
    query_hash: int
    positive_hashes: list[int]
    negative_hashes: list[int]


def without_common_run(query: Ids, document: Ids, shortest: int) -> Ids:
    """The document without the longest run of tokens that the query has as well, of several the first.

    Left as it is where that run is shorter than ``shortest``, or is all of the document.
    """
    best, end = 0, 0
    ending_here_T = np.zeros(len(document) + 1, dtype=np.int32)
    for token in query:
        # How long a common run ends with this token of the query and each of the document: one more than at the two
        # tokens before them.
        ending_here_T[1:] = np.where(document == token, ending_here_T[:-1] + 1, 0)
        at = int(ending_here_T.argmax())
        if ending_here_T[at] > best:
            best, end = int(ending_here_T[at]), at
    if best < shortest or best == len(document):
        return document
    return np.concatenate([document[: end - best], document[end:]])


def _padded(rows: Sequence[list[int]]) -> IntArray:
    """Rows of different lengths as a matrix, filled up with each row's first value."""
    width = max(len(row) for row in rows)
    return np.array([row + [row[0]] * (width - len(row)) for row in rows], dtype=np.int64)


@dataclass(frozen=True)
class Labels:
    """Task and language of each record of a source."""

    tasks: IntArray
    """(n,) indices into ``TASKS``."""
    languages: IntArray
    """(n,) indices into ``names``."""
    names: list[str]


def split_groups(labels: Labels, source: SourceSettings, settings: DataSettings) -> list[tuple[Group, IntArray]]:
    """The groups of a source with their rows: by task and language, small languages together.

    Raises:
        DataError: no two records have the same task.
    """
    size = source.batch_size or settings.batch_size
    name = source.path.name.split(".")[0]
    parts: list[tuple[str, Task, IntArray]] = []
    for code, rows in rows_by(labels.tasks).items():
        task = TASKS[code]
        if not settings.by_language:
            parts.append((f"{name}/{task}", task, rows))
            continue
        rest: list[IntArray] = []
        for language, places in rows_by(labels.languages[rows]).items():
            if len(places) < size:
                rest.append(rows[places])
            else:
                parts.append((f"{name}/{task}/{labels.names[language] or '-'}", task, rows[places]))
        if rest:
            parts.append((f"{name}/{task}/*", task, np.sort(np.concatenate(rest))))
    parts = [part for part in parts if len(part[2]) > 1]
    if not parts:
        raise DataError(f"{source.path}: a batch needs at least 2 records of one task, and there is no such group")
    weights = np.array([float(len(rows)) ** settings.damping for _, _, rows in parts])
    total = source.weight or float(len(labels.tasks)) ** settings.damping
    shares = total * weights / weights.sum()
    return [
        (Group(label, task, len(rows), float(share), size), rows)
        for (label, task, rows), share in zip(parts, shares, strict=True)
    ]


def _check_prompts(store: TokenStore, source: SourceSettings, limit: int) -> None:
    """A prompt must leave room for a query."""
    longest = max(len(ids) for ids in store.meta["prefixes"])
    if longest + 2 > limit:
        raise DataError(
            f"{source.path}: its longest prompt takes {longest} tokens and max_query_tokens={limit} leaves no room for "
            f"the query and the end token; raise it to {longest + 32} or more"
        )


def _check_trainable(store: TokenStore, rows: IntArray, task: Task, source: SourceSettings) -> None:
    """Labelled records need negatives of their own."""
    if task not in ("classification", "clustering"):
        return
    for row in rows.tolist():
        if len(store.negatives(row)) == 0:
            raise DataError(
                f"{source.path}: record {row + 1} of those used is {task} and has no negatives; others of the batch "
                "may carry its label, so it needs texts of other labels as its own negatives"
            )
