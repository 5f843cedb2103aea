"""A mining recipe: record files in, a record file and a report out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qwen3_embedding import __version__
from qwen3_embedding.config import to_mapping
from qwen3_embedding.data.files import file_hash, read_records, record_files, write_records
from qwen3_embedding.data.record import Record
from qwen3_embedding.mining.mine import Log, Miner, Models
from qwen3_embedding.mining.report import MiningReport
from qwen3_embedding.mining.settings import MiningSettings
from qwen3_embedding.whole import write_text


@dataclass(frozen=True)
class EncoderRecipe:
    """The model that retrieves."""

    model: str
    """Folder, hub id or bundled name."""
    device: str = "auto"
    dtype: str = "auto"
    max_tokens: int | None = None


@dataclass(frozen=True)
class ScorerRecipe:
    """The model that verifies."""

    model: str
    device: str = "auto"
    dtype: str = "auto"
    max_tokens: int | None = None


@dataclass(frozen=True)
class CorpusRecipe:
    """Documents to draw negatives from, besides the records' own texts."""

    paths: tuple[Path, ...]
    """Files or folders of JSONL, CSV, Parquet, Arrow or text."""
    text_columns: tuple[str, ...] = ("text",)


@dataclass(frozen=True)
class MineRecipe:
    """What ``mine RECIPE.toml`` does."""

    records: tuple[Path, ...]
    """Record files, or folders of them."""
    output: Path
    encoder: EncoderRecipe
    scorer: ScorerRecipe | None = None
    corpus: CorpusRecipe | None = None
    cache: Path = Path("mining-cache")
    """Folder of cached vectors and reranker scores; can be shared by recipes, removed at any time."""
    mining: MiningSettings = field(default_factory=MiningSettings)

    def __post_init__(self) -> None:
        if not self.records:
            raise ValueError("records is empty; wanted files or folders of records")
        if (self.scorer is None) != (self.mining.verify is None):
            raise ValueError(
                "verification takes both a table [scorer] and a table [mining.verify]; one of them is missing"
            )

    @property
    def report_path(self) -> Path:
        """Where the report goes: beside the output."""
        return self.output.with_name(self.output.name + ".report.json")


class RecordFiles:
    """The records of files and folders, read anew each time they are iterated."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.files = [file for path in paths for file in record_files(path)]

    def __iter__(self) -> Iterator[Record]:
        for file in self.files:
            yield from read_records(file)


def run(recipe: MineRecipe, models: Models, corpus: Iterable[str] = (), log: Log | None = None) -> MiningReport:
    """Mine the recipe's records and write ``output`` and its report; the files are there whole or not at all.

    Raises:
        DataError: a line that is no record, a torn cache.
        ValueError: the output is one of the inputs.
    """
    records = RecordFiles(recipe.records)
    if any(file.resolve() == recipe.output.resolve() for file in records.files):
        raise ValueError(f"output={recipe.output} is one of the record files; wanted another name")
    miner = Miner(models, recipe.mining, recipe.cache, log)
    inputs = [{"path": str(file), "sha256": file_hash(file)} for file in records.files]
    write_records(recipe.output, miner.mine(records, corpus))
    report = {"version": __version__, "recipe": to_mapping(recipe), "inputs": inputs, **miner.report.to_json()}
    write_text(recipe.report_path, json.dumps(report, ensure_ascii=False, indent=2) + "\n")
    return miner.report
