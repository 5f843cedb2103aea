"""Keep what will be tested out of what is trained on, and say what was found.

A record is contaminated if its query, one of its positives or negatives is an evaluation text: the same after
normalisation, one that shares a long run of words with it, or a near duplicate.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from qwen3_embedding.data.dedup import text_hash
from qwen3_embedding.data.files import read_records, write_records
from qwen3_embedding.data.near_duplicates import MinHashSettings, NearDuplicates, words
from qwen3_embedding.data.record import Record
from qwen3_embedding.whole import write_text

Reason = Literal["same", "run", "near"]


@dataclass(frozen=True)
class DecontaminationSettings:
    """What counts as the same."""

    run_words: int = 13
    """A shared run of so many words (characters of unspaced scripts count twice as many); 0 does not look for runs."""
    near: MinHashSettings | None = field(default_factory=MinHashSettings)
    """How alike near duplicates are; ``None`` does not look for them."""
    min_words: int = 4
    """Shorter evaluation texts ("yes", "Paris") are not looked for in positives and negatives, only as queries."""
    samples: int = 20
    """Examples of each reason in the report."""

    def __post_init__(self) -> None:
        if self.run_words < 0 or self.min_words < 0 or self.samples < 0:
            raise ValueError("run_words, min_words and samples are at least 0")


@dataclass(frozen=True)
class Match:
    """An evaluation text found in a record."""

    reason: Reason
    where: str
    """``query``, ``positive`` or ``negative``."""
    text: str
    """The record's."""
    evaluation_set: str
    evaluation_text: str
    similarity: float


@dataclass
class DecontaminationReport:
    """Counts and samples of what was dropped."""

    seen: int = 0
    dropped: int = 0
    by_reason: Counter[str] = field(default_factory=Counter)
    by_set: Counter[str] = field(default_factory=Counter)
    by_source: Counter[str] = field(default_factory=Counter)
    samples: list[Match] = field(default_factory=list)

    def add(self, record: Record, match: Match, limit: int) -> None:
        """Count a dropped record."""
        self.dropped += 1
        self.by_reason[match.reason] += 1
        self.by_set[match.evaluation_set] += 1
        self.by_source[record.source] += 1
        if self.by_reason[match.reason] <= limit:
            self.samples.append(match)

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "seen": self.seen,
            "dropped": self.dropped,
            "by_reason": dict(self.by_reason),
            "by_set": dict(self.by_set),
            "by_source": dict(self.by_source),
            "samples": [match.__dict__ for match in self.samples],
        }


class Decontaminator:
    """The evaluation texts, and a look at each record."""

    def __init__(self, settings: DecontaminationSettings | None = None) -> None:
        self.settings = settings or DecontaminationSettings()
        self._texts: list[tuple[str, str]] = []
        self._same: dict[int, int] = {}
        self._runs: dict[int, int] = {}
        self._short: set[int] = set()
        self._near = NearDuplicates(self.settings.near) if self.settings.near else None
        self._near_numbers: list[int] = []

    def add(self, evaluation_set: str, texts: Iterable[str]) -> None:
        """Remember the texts of an evaluation set: its queries and its positives."""
        for text in texts:
            key = text_hash(text)
            if key in self._same:
                continue
            number = len(self._texts)
            self._texts.append((evaluation_set, text))
            self._same[key] = number
            items = words(text)
            if len(items) < self.settings.min_words:
                self._short.add(number)
                continue
            for run in self._runs_of(items):
                self._runs.setdefault(run, number)
            if self._near is not None:
                self._near.add(text)
                self._near_numbers.append(number)

    def add_sets(self, sets: Mapping[str, Iterable[str]]) -> None:
        """Remember several evaluation sets."""
        for name, texts in sets.items():
            self.add(name, texts)

    def find(self, record: Record) -> Match | None:
        """The first evaluation text found in a record, or ``None``."""
        fields = [("query", record.query)]
        fields += [("positive", text) for text in record.positives] + [("negative", text) for text in record.negatives]
        for where, text in fields:
            match = self._find(where, text)
            if match is not None:
                return match
        return None

    def clean(self, records: Iterable[Record], report: DecontaminationReport) -> Iterator[Record]:
        """The records in which nothing was found, in order; the rest is counted in ``report``."""
        for record in records:
            report.seen += 1
            match = self.find(record)
            if match is None:
                yield record
            else:
                report.add(record, match, self.settings.samples)

    def _find(self, where: str, text: str) -> Match | None:
        number = self._same.get(text_hash(text))
        if number is not None and (where == "query" or number not in self._short):
            return self._match("same", where, text, number, 1.0)
        items = words(text)
        for run in self._runs_of(items):
            if run in self._runs:
                return self._match("run", where, text, self._runs[run], 1.0)
        if self._near is not None and len(items) >= self.settings.min_words:
            near = self._near.find(text)
            if near is not None:
                return self._match("near", where, text, self._near_numbers[near[0]], near[1])
        return None

    def _match(self, reason: Reason, where: str, text: str, number: int, similarity: float) -> Match:
        evaluation_set, evaluation_text = self._texts[number]
        return Match(reason, where, text[:300], evaluation_set, evaluation_text[:300], round(similarity, 4))

    def _runs_of(self, items: list[str]) -> Iterator[int]:
        """Hashes of all runs of the set length; single characters weigh half a word."""
        if not self.settings.run_words:
            return
        single = sum(len(item) == 1 for item in items) * 2 > len(items)
        size = self.settings.run_words * (2 if single else 1)
        for at in range(len(items) - size + 1):
            key = " ".join(items[at : at + size]).encode()
            yield int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


def clean_files(
    files: Sequence[Path], out: Path, check: Decontaminator, log: Callable[[str], None] = lambda line: None
) -> DecontaminationReport:
    """Write each file's clean records under its own name into ``out``, then ``decontamination.json``.

    Every file is there whole or not at all.

    Raises:
        DataError: a line that is no record.
        ValueError: two files of one name, or ``out`` is where a file is.
    """
    names = Counter(file.name for file in files)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ValueError(f"two files are called {twice[0]}; clean them one by one, or rename one")
    for file in files:
        if (out / file.name).resolve() == file.resolve():
            raise ValueError(f"{file} would be replaced by its clean records; choose another folder for the output")
    report = DecontaminationReport()
    for file in files:
        seen, dropped = report.seen, report.dropped
        write_records(out / file.name, check.clean(read_records(file), report))
        log(f"{file.name}: {report.seen - seen} records, {report.dropped - dropped} dropped")
    text = json.dumps({"settings": asdict(check.settings), **report.to_mapping()}, ensure_ascii=False, indent=2)
    write_text(out / "decontamination.json", text + "\n")
    return report
