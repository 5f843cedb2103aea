"""The batch of a step of a language model: which texts, cut how, learnt from where. A pure function of (seed, step)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qwen3_embedding.data.mixture import Group, Mixture
from qwen3_embedding.errors import DataError
from qwen3_embedding.inputs.tokenizer import Tokenizer
from qwen3_embedding.training.batches import Labels, split_groups
from qwen3_embedding.training.config import DataSettings, LanguageModelSettings, SourceSettings
from qwen3_embedding.training.text_store import TextStore, open_texts
from qwen3_embedding.types import IntArray

Ids = npt.NDArray[np.int32]
_TEXTS = 4  # stream of random numbers, beside the mixture's, the embedder's and the reranker's


@dataclass(frozen=True)
class Sequence:
    """Token ids and how many of them are given: the loss is on those from ``given`` on."""

    ids: Ids
    given: int

    @property
    def learnt(self) -> int:
        """How many tokens are predicted."""
        return len(self.ids) - self.given


@dataclass(frozen=True)
class LanguageBatch:
    """The sequences of a global batch, all of one group."""

    step: int
    group: str
    epoch: int
    sequences: list[Sequence]


class Windows:
    """A source as rows to draw from: to learn texts, stretches of each text; to learn queries, records.

    The stretches of a text overlap by one token, so every token but a text's first is learnt once an epoch; the last
    one ends with the end token.
    """

    def __init__(self, store: TextStore, source: SourceSettings, settings: DataSettings, learn: str) -> None:
        self.store, self.source, self.settings = store, source, settings
        self.width = settings.max_document_tokens
        if learn == "queries":
            self.items, self.begins = np.arange(len(store)), np.zeros(len(store), dtype=np.int64)
            return
        with_end = store.sizes + 1
        counts = np.maximum(1, -(-(with_end - 1) // (self.width - 1)))
        self.items = np.repeat(np.arange(len(store)), counts)
        first = np.repeat(np.cumsum(counts) - counts, counts)
        self.begins = (np.arange(len(self.items)) - first) * (self.width - 1)

    def labels(self) -> Labels:
        """Task and language of each row."""
        store = self.store
        return Labels(
            np.asarray(store.tasks)[self.items], np.asarray(store.languages)[self.items], store.language_names
        )

    def text(self, row: int, end_id: int) -> Sequence:
        """A stretch of a text; all but its first token is learnt."""
        ids = np.append(self.store.ids(int(self.items[row])), np.int32(end_id))
        begin = int(self.begins[row])
        return Sequence(ids[begin : begin + self.width], 1)

    def query(self, row: int, separator: Ids, end_id: int, rng: np.random.Generator) -> Sequence:
        """A document, the separator and a query; query and end token are learnt."""
        texts = self.store.texts(int(self.items[row]))
        query, document = self.store.ids(texts[0]), self.store.ids(texts[int(rng.integers(1, len(texts)))])
        begin = 0
        if len(document) > self.width and self.source.window and rng.random() < self.source.window:
            begin = int(rng.integers(len(document) - self.width + 1))
        given = np.concatenate([document[begin : begin + self.width], separator])
        asked = query[: self.settings.max_query_tokens - 1]
        return Sequence(np.concatenate([given, np.append(asked, np.int32(end_id))]), len(given))


class LanguageBatches:
    """Batches over text stores."""

    def __init__(
        self, settings: DataSettings, learning: LanguageModelSettings, folder: Path, tokenizer: Tokenizer, seed: int
    ) -> None:
        self.settings, self.learning, self.end_id, self.seed = settings, learning, tokenizer.end_id, seed
        self.separator = np.asarray(tokenizer.token_ids([learning.separator])[0], dtype=np.int32)
        self._folder = folder
        if settings.max_document_tokens < 2:
            raise ValueError(f"max_document_tokens={settings.max_document_tokens}; a language model wants at least 2")
        groups: list[Group] = []
        self._rows: list[tuple[Windows, IntArray]] = []
        self.windows: list[Windows] = []
        for source in settings.sources:
            windows = self.open(source)
            self.windows.append(windows)
            for group, rows in split_groups(windows.labels(), source, settings):
                groups.append(group)
                self._rows.append((windows, rows))
        self.mixture = Mixture(groups, seed)

    def open(self, source: SourceSettings) -> Windows:
        """The rows of a source.

        Raises:
            DataError: a setting that says nothing here, or unreadable data.
        """
        for name in ("swap", "crop", "hide", "instruction"):
            if getattr(source, name):
                raise DataError(f"{source.path}: {name} means nothing to a language model; leave it out")
        store = open_texts(source, self.learning.learn, self._folder, self.settings.cache, self.seed)
        return Windows(store, source, self.settings, self.learning.learn)

    def facts(self) -> dict[str, dict[str, int]]:
        """Texts of each source, their tokens, and the sequences that they make."""
        return {
            str(windows.source.path): {
                "items": len(windows.store),
                "tokens": int(windows.store.sizes.sum()),
                "sequences": len(windows.items),
            }
            for windows in self.windows
        }

    def batch(self, step: int) -> LanguageBatch:
        """The batch of a step, counted from 0."""
        draw = self.mixture.draw(step)
        windows, rows = self._rows[draw.group]
        rng = np.random.default_rng([self.seed, _TEXTS, step])
        group = self.mixture.groups[draw.group].name
        return LanguageBatch(step, group, draw.epoch, self.sequences(windows, rows[draw.rows], rng))

    def sequences(self, windows: Windows, rows: IntArray, rng: np.random.Generator) -> list[Sequence]:
        """Rows of a source as sequences."""
        if self.learning.learn == "queries":
            return [windows.query(int(row), self.separator, self.end_id, rng) for row in rows]
        return [windows.text(int(row), self.end_id) for row in rows]
