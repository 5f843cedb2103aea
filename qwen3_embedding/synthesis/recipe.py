"""A recipe: every setting of a run in one TOML file, and the run from documents to records."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from qwen3_embedding.data.decontaminate import Decontaminator
from qwen3_embedding.data.files import write_records
from qwen3_embedding.data.record import Record, from_mapping
from qwen3_embedding.errors import DataError
from qwen3_embedding.synthesis.client import ChatClient, EndpointSettings
from qwen3_embedding.synthesis.completion import LanguageModel, estimate_tokens
from qwen3_embedding.synthesis.document import Document, DocumentSettings, Intake, prepare
from qwen3_embedding.synthesis.filter import Filter, FilterSettings, Pair, Verdict
from qwen3_embedding.synthesis.generate import (
    Generator,
    Progress,
    RunSettings,
    UnitSettings,
    fingerprint,
    make_unit,
    plan,
)
from qwen3_embedding.synthesis.languages import LanguageSettings
from qwen3_embedding.synthesis.ledger import Ledger, read_pairs
from qwen3_embedding.synthesis.personas import PersonaIndex, bundled_personas, load_personas
from qwen3_embedding.synthesis.ray import RaySettings
from qwen3_embedding.synthesis.report import make_report, to_html
from qwen3_embedding.synthesis.tasks import TASKS, Craft, Unit
from qwen3_embedding.synthesis.template import load_templates
from qwen3_embedding.types import Encoder
from qwen3_embedding.whole import write_text


@dataclass(frozen=True, slots=True)
class PersonaSettings:
    """Where personas come from."""

    file: Path | None = None
    """JSONL with one object a line; ``None``: the bundled library."""
    column: str = "persona"


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """The embedding model that finds personas and measures pairs."""

    model: str
    device: str = "auto"
    dtype: str = "auto"


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """A causal language model in this process, in place of an endpoint."""

    model: str
    engine: Literal["transformers", "own"] = "transformers"
    """``own``: this package's backbone, for a folder of the Qwen3 family; ``transformers``: any model."""
    device: str = "cpu"
    max_tokens: int = 1024
    temperature: float = 0.8
    top_p: float = 0.95


@dataclass(frozen=True, slots=True)
class SynthesisRecipe:
    """All settings of ``synthesize``."""

    documents: Path
    """A folder, or a JSONL, CSV, Parquet or Arrow file."""
    out: Path
    """Folder of the ledger, the records, the report."""
    name: str = "synthetic"
    """The ``source`` of the records."""
    seed: int = 0
    text_columns: tuple[str, ...] = ("text",)
    id_column: str | None = None
    templates: Path | None = None
    """Folder of templates that stand in for bundled ones."""
    instruction_variants: bool = False
    attempts: int = 2
    budget: float | None = None
    patience: int = 20
    sync_seconds: float = 1.0
    format: str = "jsonl"
    """``jsonl``, ``jsonl.gz``, ``jsonl.xz``, ``jsonl.zst`` or ``parquet``."""
    endpoint: EndpointSettings | None = None
    local: LocalSettings | None = None
    ray: RaySettings | None = None
    encoder: EncoderSettings | None = None
    units: UnitSettings = field(default_factory=UnitSettings)
    length: DocumentSettings = field(default_factory=DocumentSettings)
    languages: LanguageSettings = field(default_factory=LanguageSettings)
    personas: PersonaSettings = field(default_factory=PersonaSettings)
    filter: FilterSettings = field(default_factory=FilterSettings)

    def __post_init__(self) -> None:
        if sum(table is not None for table in (self.endpoint, self.local, self.ray)) != 1:
            raise ValueError("wanted one of [endpoint], [local] and [ray]")
        if self.filter.needs_encoder and self.encoder is None:
            raise ValueError(
                "the filters cosine and rank need [encoder]; add it, or set filter.cosine = 0 and filter.rank = 0"
            )
        if self.format not in ("jsonl", "jsonl.gz", "jsonl.xz", "jsonl.zst", "parquet"):
            raise ValueError(f"format is {self.format!r}; wanted jsonl, jsonl.gz, jsonl.xz, jsonl.zst or parquet")

    @property
    def ledger(self) -> Path:
        """The ledger's file."""
        return self.out / "ledger.jsonl"

    @property
    def records(self) -> Path:
        """The file that ``train`` takes."""
        return self.out / f"records.{self.format}"

    @property
    def run(self) -> RunSettings:
        """The settings of generation."""
        return RunSettings(self.name, self.seed, self.units, self.attempts, self.budget, self.patience)

    @property
    def craft(self) -> Craft:
        """Languages and templates."""
        return Craft(self.languages, load_templates(self.templates), self.instruction_variants)

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """Price of tokens; 0 for a model of one's own."""
        return self.endpoint.cost(input_tokens, output_tokens) if self.endpoint else 0.0


@dataclass(slots=True)
class Estimate:
    """What a run would ask and cost, roughly."""

    documents: int
    units: int
    requests: int
    input_tokens: int
    output_tokens: int
    cost: float
    prompts: list[str]
    """The first ones, whole."""


class Synthesis:
    """A recipe with its documents.

    Args:
        recipe: the settings.
        documents: (id, text) of all documents; read more than once.
        encoder: for personas and measures, where the recipe names one.
    """

    def __init__(
        self,
        recipe: SynthesisRecipe,
        documents: Callable[[], Iterable[tuple[str, str]]],
        encoder: Encoder | None = None,
        limit: int | None = None,
    ) -> None:
        self.recipe = recipe
        self.intake = Intake()
        self._raw = documents
        self._limit = limit
        self._library = load_personas(recipe.personas.file, recipe.personas.column) if recipe.personas.file else None
        self._personas = PersonaIndex(self._people, encoder)
        self._encoder = encoder

    def documents(self) -> Iterator[Document]:
        """The documents that are used."""
        self.intake = Intake()
        found = prepare(self._raw(), self.recipe.length, self.intake, self.recipe.languages.document)
        return itertools.islice(found, self._limit)

    def count_units(self) -> int:
        """How many units the documents make."""
        return sum(1 for document in self.documents() for _ in plan(document, self.recipe.run))

    def estimate(self, shown: int = 3) -> Estimate:
        """Walk through every unit with a template's example in place of an answer; asks nobody."""
        estimate, craft = Estimate(0, 0, 0, 0, 0, 0.0, []), self.recipe.craft
        drawn = PersonaIndex(self._people, None)
        for document in self.documents():
            estimate.documents += 1
            people = drawn.candidates([document.text], [document.hash])[0]
            for kind, number in plan(document, self.recipe.run):
                estimate.units += 1
                _walk(make_unit(document, kind, number, self.recipe.seed, people), craft, estimate, shown)
        estimate.cost = self.recipe.cost(estimate.input_tokens, estimate.output_tokens)
        return estimate

    def generate(
        self,
        model: LanguageModel | None = None,
        api_key: str | None = None,
        watch: Callable[[Progress], None] = lambda _: None,
    ) -> Progress:
        """Bring all units to their end; see :class:`~qwen3_embedding.synthesis.generate.Generator`.

        Args:
            model: asked in place of the recipe's endpoint.
            api_key: of the endpoint.
            watch: called after every unit.
        """
        return asyncio.run(self._generate(model, api_key, watch))

    def filter(self) -> dict[str, Any]:
        """Judge the ledger's pairs; write records, provenance, dropped pairs and report.

        Returns:
            The report's values.
        """
        recipe, documents = self.recipe, list(self.documents())
        judge = Filter(recipe.filter, documents, self._encoder, load_unseen(recipe.filter.unseen))
        wanted = {document.hash for document in documents}
        pairs = (pair for pair in read_pairs(recipe.ledger) if pair["provenance"]["document_hash"] in wanted)
        verdicts = judge.judge(pairs)
        kept = list(judge.records(verdicts))
        write_records(recipe.records, _records(kept))
        _write_lines(recipe.out / "provenance.jsonl", [pair["provenance"] for pair in kept])
        _write_lines(recipe.out / "dropped.jsonl", [_dropped(verdict) for verdict in verdicts if not verdict.kept])
        report = make_report(verdicts, {**self._facts(), "records": len(kept)})
        write_text(recipe.out / "report.json", json.dumps(report, ensure_ascii=False, indent=1) + "\n")
        write_text(recipe.out / "report.html", to_html(report))
        return report

    @property
    def _people(self) -> list[Any]:
        return self._library if self._library is not None else bundled_personas()

    def _fingerprint(self) -> dict[str, Any]:
        recipe = self.recipe
        if recipe.endpoint:
            names = ("model", "temperature", "top_p", "max_tokens", "extra")
            model = {name: getattr(recipe.endpoint, name) for name in names}
        elif recipe.ray:
            names = ("model", "temperature", "top_p", "max_tokens", "chat_template")
            model = {name: getattr(recipe.ray, name) for name in names}
        else:
            model = {name: value for name, value in asdict(recipe.local).items() if name != "device"}  # type: ignore[arg-type]
            if model["engine"] == "transformers":
                del model["engine"]  # ledgers of before there was a choice
        return fingerprint(recipe.run, recipe.craft, self._personas, self._people, model)

    async def _generate(
        self, model: LanguageModel | None, api_key: str | None, watch: Callable[[Progress], None]
    ) -> Progress:
        recipe, concurrency = self.recipe, 1
        async with AsyncExitStack() as stack:
            client: ChatClient | None = None
            if model is None:
                if recipe.endpoint is None:
                    raise ValueError("the recipe has no [endpoint]; give the model")
                model = client = await stack.enter_async_context(ChatClient(recipe.endpoint, api_key))
            if recipe.endpoint:
                concurrency = recipe.endpoint.concurrency
            if recipe.ray:
                concurrency = recipe.ray.requests
            ledger = stack.enter_context(Ledger(recipe.ledger, self._fingerprint(), recipe.sync_seconds))
            generator = Generator(recipe.run, recipe.craft, self._personas, model, ledger, recipe.cost)
            progress = await generator.run(self.documents(), concurrency, watch)
            self._note(progress, ledger, client)
        return progress

    def _note(self, progress: Progress, ledger: Ledger, client: ChatClient | None) -> None:
        """What the report says about generation; over all runs of the folder where the ledger knows it."""
        totals = ledger.totals
        facts = {
            "settings": ledger.settings,
            "units ended": len(ledger.ended),
            "units without pairs": dict(ledger.failures),
            "units left open": progress.unavailable,
            "answers": totals.answers,
            "input tokens": totals.input_tokens,
            "output tokens": totals.output_tokens,
            "cost": round(self.recipe.cost(totals.input_tokens, totals.output_tokens), 4),
            "documents": asdict(self.intake),
            "structured output": client.structured if client else "none",
            "requests repeated in the last run": dict(client.retried) if client else {},
        }
        facts["answers depend on"] = self._fingerprint()
        write_text(self.recipe.out / "run.json", json.dumps(facts, indent=1) + "\n")

    def _facts(self) -> dict[str, Any]:
        file = self.recipe.out / "run.json"
        known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        model = self.recipe.endpoint or self.recipe.local or self.recipe.ray
        return {
            "model": model.model if model else "",
            "encoder": self._encoder.name if self._encoder else "none",
            "personas": self._personas.how,
            **known,
        }


def load_unseen(paths: Iterable[Path]) -> Decontaminator | None:
    """All texts of evaluation files: the strings of JSONL lines, the columns of TSV lines, the lines of text files.

    Raises:
        DataError: no such file or folder.
    """
    unseen: Decontaminator | None = None
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder; wanted evaluation data to keep out of training")
        unseen = unseen or Decontaminator()
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and file.suffix in (".jsonl", ".tsv", ".txt"):
                unseen.add(str(file), _texts_of_file(file))
    return unseen


def _texts_of_file(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            if file.suffix == ".jsonl":
                row = json.loads(line)
                values = row.values() if isinstance(row, dict) else [row]
            else:
                values = line.rstrip("\n").split("\t")
            yield from (value for value in values if isinstance(value, str) and len(value) > 15)


def _walk(unit: Unit, craft: Craft, estimate: Estimate, shown: int) -> None:
    script = TASKS[unit.kind](unit, craft)
    try:
        ask = next(script)
        while True:
            template = craft.templates[ask.template]
            prompt, answer = template.render(ask.values), template.examples[0].answer
            estimate.requests += 1
            estimate.input_tokens += estimate_tokens(template.system) + estimate_tokens(prompt)
            estimate.output_tokens += estimate_tokens(answer)
            if len(estimate.prompts) < shown:
                estimate.prompts.append(f"[system] {template.system}\n\n{prompt}")
            ask = script.send(json.loads(answer))
    except StopIteration:
        return


def _records(pairs: Iterable[Pair]) -> Iterator[Record]:
    for pair in pairs:
        yield from_mapping(pair["record"], f"pair of unit {pair['provenance']['unit']}")


def _dropped(verdict: Verdict) -> dict[str, Any]:
    return {**verdict.pair, "reasons": verdict.reasons, "cosine": verdict.cosine, "rank": verdict.rank}


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
