"""A domain in an afternoon: an embedder that knows the documents of a folder.

    python recipes/adapt.py recipes/adapt.toml --dry-run     # prompts, tokens, cost; asks nobody
    python recipes/adapt.py recipes/adapt.toml               # the whole; repeat it to go on after a break

1. synthetic/: questions for the documents, through a language model, filtered (``synthesize``).
2. held-out/ and train.jsonl: the questions of a share of the documents measure and are never learnt from.
3. mined.jsonl: hard negatives by the base (``mine``).
4. tuned/: low-rank adapters on the base, merged into it (``train``).
5. model/: the tuned model averaged with the base (``merge``), which keeps what the base knew.
6. report.md: base, tuned and model on the held-out questions (``evaluate``).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen3_embedding.cli.synthesize import documents, encoder, local_model, show_estimate, watch
from qwen3_embedding.config import check_begun, load_toml, to_mapping
from qwen3_embedding.data import Record, read_records, write_records
from qwen3_embedding.errors import DataError
from qwen3_embedding.inference.source import resolve
from qwen3_embedding.mining.settings import MiningSettings
from qwen3_embedding.synthesis.client import EndpointSettings
from qwen3_embedding.synthesis.document import DocumentSettings
from qwen3_embedding.synthesis.draws import Draws
from qwen3_embedding.synthesis.filter import FilterSettings
from qwen3_embedding.synthesis.generate import UnitSettings
from qwen3_embedding.synthesis.languages import LanguageSettings
from qwen3_embedding.synthesis.recipe import (
    EncoderSettings,
    LocalSettings,
    PersonaSettings,
    Synthesis,
    SynthesisRecipe,
)
from qwen3_embedding.training.adapting import Adapting, adapting_settings, sums_its_words
from qwen3_embedding.training.config import LoraSettings
from qwen3_embedding.whole import write_text

if TYPE_CHECKING:
    from qwen3_embedding.evaluation.run import Evaluation

FREE = ("endpoint", "local", "budget")
"""Settings that may change between two parts of a run; the ledger looks after what answers depend on."""


@dataclass(frozen=True)
class HeldOut:
    """What measures."""

    share: float = 0.1
    questions: Path | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share={self.share}; wanted more than 0, less than 1")


@dataclass(frozen=True)
class Merge:
    """How much of the tuned model is in the result."""

    weight: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.weight < 1:
            raise ValueError(f"weight={self.weight}; wanted more than 0, less than 1")


@dataclass(frozen=True)
class AdaptRecipe:
    """All settings; the tables of ``synthesize`` and ``mine`` are theirs."""

    documents: Path
    out: Path
    base: str
    name: str = "my-domain"
    seed: int = 0
    text_columns: tuple[str, ...] = ("text",)
    instruction: str = ""
    budget: float | None = None
    device: str = "auto"
    endpoint: EndpointSettings | None = None
    local: LocalSettings | None = None
    units: UnitSettings = field(default_factory=UnitSettings)
    length: DocumentSettings = field(default_factory=DocumentSettings)
    languages: LanguageSettings = field(default_factory=LanguageSettings)
    personas: PersonaSettings = field(default_factory=PersonaSettings)
    filter: FilterSettings = field(default_factory=FilterSettings)
    held_out: HeldOut = field(default_factory=HeldOut)
    mining: MiningSettings = field(default_factory=MiningSettings)
    training: Adapting = field(default_factory=Adapting)
    lora: LoraSettings = field(default_factory=LoraSettings)
    merge: Merge = field(default_factory=Merge)

    @property
    def synthesis(self) -> SynthesisRecipe:
        """The recipe of the first stage."""
        unseen = (self.held_out.questions,) if self.held_out.questions else ()
        return SynthesisRecipe(
            documents=self.documents,
            out=self.out / "synthetic",
            name=self.name,
            seed=self.seed,
            text_columns=self.text_columns,
            budget=self.budget,
            endpoint=self.endpoint,
            local=self.local,
            encoder=EncoderSettings(self.base, self.device),
            units=self.units,
            length=self.length,
            languages=self.languages,
            personas=self.personas,
            filter=dataclasses.replace(self.filter, unseen=(*self.filter.unseen, *unseen)),
        )


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="TOML file, such as recipes/adapt.toml")
    parser.add_argument("--dry-run", action="store_true", help="show prompts, tokens and cost; ask nobody")
    parser.add_argument("--api-key-env", default="OPENAI_API_KEY", help="environment variable with the endpoint's key")
    options = parser.parse_args(arguments)
    recipe = load_toml(options.recipe, AdaptRecipe)
    if options.dry_run:
        show_estimate(Synthesis(recipe.synthesis, lambda: documents(recipe.synthesis)).estimate(), as_json=False)
        return
    check_begun(
        recipe.out / "recipe.json", {key: value for key, value in to_mapping(recipe).items() if key not in FREE}
    )
    stages: list[tuple[str, Path, Any]] = [
        (
            "questions",
            recipe.out / "synthetic" / "records.jsonl",
            lambda: ask(recipe, os.environ.get(options.api_key_env)),
        ),
        ("held out", recipe.out / "train.jsonl", lambda: split(recipe)),
        ("negatives", recipe.out / "mined.jsonl", lambda: mine(recipe)),
        ("training", recipe.out / "tuned", lambda: tune(recipe)),
        ("merging", recipe.out / "model", lambda: merge(recipe)),
        ("measuring", recipe.out / "report.md", lambda: measure(recipe)),
    ]
    for name, output, stage in stages:
        if output.exists():
            print(f"{name}: {output} is there", file=sys.stderr)
            continue
        print(f"{name} …", file=sys.stderr, flush=True)
        stage()
    print((recipe.out / "report.md").read_text(encoding="utf-8"), end="")


def ask(recipe: AdaptRecipe, api_key: str | None) -> None:
    """Stage 1.

    Raises:
        DataError: units are left open, so that the questions are not all there; repeat the command.
    """
    settings = recipe.synthesis
    synthesis = Synthesis(settings, lambda: documents(settings), encoder(settings))
    progress = synthesis.generate(local_model(settings), api_key, watch(synthesis))
    if progress.unavailable:
        raise DataError(f"{progress.unavailable} units got no answer; repeat the command when the server is well")
    report = synthesis.filter()
    print(f"{report['kept']:,} of {report['pairs']:,} questions kept: {settings.out / 'report.html'}", file=sys.stderr)


def split(recipe: AdaptRecipe) -> None:
    """Stage 2: a retrieval task of the held-out questions over all documents, and the records to learn from.

    A document's questions are all on one side, and a question that documents of both sides answer is left out.

    Raises:
        DataError: one side is empty, or a real question's document is not in the folder.
    """
    texts = {document.text: f"d{n}" for n, document in enumerate(prepared(recipe))}
    records = [record for record in read_records(recipe.synthesis.records) if record.task == "retrieval"]
    rest = [record for record in read_records(recipe.synthesis.records) if record.task != "retrieval"]
    if recipe.held_out.questions:
        questions, learnt = list(read_records(recipe.held_out.questions)), records
    else:
        sides = [{held_out(recipe, text) for text in record.positives} for record in records]
        questions = [record for record, side in zip(records, sides, strict=True) if side == {True}]
        learnt = [record for record, side in zip(records, sides, strict=True) if side == {False}]
    if not questions or not learnt:
        raise DataError(
            f"{len(questions)} questions to measure with and {len(learnt)} to learn from; wanted some of both: take "
            "more documents, more units.retrieval, weaker filters, or another held_out.share"
        )
    write_task(recipe.out / "held-out", texts, questions, recipe.instruction or None)
    write_records(recipe.out / "train.jsonl", [*learnt, *rest])


def prepared(recipe: AdaptRecipe) -> Iterable[Any]:
    """The documents as synthesis used them."""
    settings = recipe.synthesis
    return Synthesis(settings, lambda: documents(settings)).documents()


def held_out(recipe: AdaptRecipe, text: str) -> bool:
    """Whether a document's questions measure: a draw from the seed and its text alone."""
    return Draws(f"{recipe.seed}/{text}").uniform("held out") < recipe.held_out.share


def write_task(folder: Path, texts: dict[str, str], questions: list[Record], instruction: str | None) -> None:
    """A collection in BEIR's layout, for ``evaluate``."""
    rows = []
    for number, question in enumerate(questions):
        known = [texts[text] for text in map(str.strip, question.positives) if text in texts]
        if not known:
            raise DataError(
                f"the question {question.query[:80]!r} has no positive that is a document of the folder, word for word"
            )
        rows += [f"q{number}\t{identity}\t1\n" for identity in known]
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    corpus = ({"_id": identity, "title": "", "text": text} for text, identity in texts.items())
    asked = ({"_id": f"q{number}", "text": question.query} for number, question in enumerate(questions))
    write_text(folder / "corpus.jsonl", lines(corpus))
    write_text(folder / "queries.jsonl", lines(asked))
    write_text(folder / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\n" + "".join(rows))
    facts = {"name": "held-out", "kind": "retrieval", "task_instruction": instruction or questions[0].instruction}
    write_text(folder / "dataset.json", json.dumps(facts, ensure_ascii=False) + "\n")


def mine(recipe: AdaptRecipe) -> None:
    """Stage 3."""
    from qwen3_embedding.cli.mine import models
    from qwen3_embedding.mining.recipe import EncoderRecipe, MineRecipe, run

    settings = MineRecipe(
        records=(recipe.out / "train.jsonl",),
        output=recipe.out / "mined.jsonl",
        encoder=EncoderRecipe(recipe.base, recipe.device),
        cache=recipe.out / "mining-cache",
        mining=recipe.mining,
    )
    corpus = [document.text for document in prepared(recipe)]
    report = run(settings, models(settings), corpus, lambda line: print(line, file=sys.stderr, flush=True))
    print("\n".join(report.lines()), file=sys.stderr)


def tune(recipe: AdaptRecipe) -> None:
    """Stage 4."""
    from qwen3_embedding.training.config import SourceSettings
    from qwen3_embedding.training.trainer import train

    base = resolve(recipe.base)
    if sums_its_words(base):
        print(
            f"{recipe.base} sums words: its table is trained, without adapters, and [lora] does not count",
            file=sys.stderr,
        )
    train(
        adapting_settings(
            base,
            recipe.out / "tuned",
            SourceSettings(path=recipe.out / "mined.jsonl", instruction=recipe.instruction),
            recipe.training,
            cache=recipe.out / "token-cache",
            lora=recipe.lora,
            negatives=recipe.mining.negatives,
            seed=recipe.seed,
        )
    )


def merge(recipe: AdaptRecipe) -> None:
    """Stage 5."""
    from qwen3_embedding.merging.merge import merge as run
    from qwen3_embedding.merging.settings import MergeSettings, Source

    weight = recipe.merge.weight
    sources = (Source(resolve(recipe.base), 1 - weight), Source(recipe.out / "tuned", weight))
    run(MergeSettings(method="slerp", sources=sources, output=recipe.out / "model"))


def measure(recipe: AdaptRecipe) -> None:
    """Stage 6."""
    from qwen3_embedding import Embedder
    from qwen3_embedding.evaluation.run import evaluate
    from qwen3_embedding.evaluation.tasks import TaskSettings

    folders = {"base": resolve(recipe.base), "tuned": recipe.out / "tuned", "model": recipe.out / "model"}
    found = {}
    for name, folder in folders.items():
        model = Embedder.from_pretrained(folder, device=recipe.device)
        out = recipe.out / "evaluation" / name
        cache = out.with_name(f"{name}.sqlite")
        found[name] = evaluate([recipe.out / "held-out"], model, None, TaskSettings(), out, cache)
    write_text(recipe.out / "report.md", table(recipe, found))


def table(recipe: AdaptRecipe, found: dict[str, Evaluation]) -> str:
    """Before and after, in points, with BM25 beside."""
    from qwen3_embedding.evaluation.statistics import compare_reports

    metrics = ("ndcg@10", "recall@100", "mrr@10")
    (task,) = found["base"].tasks
    kind = "questions of yours" if recipe.held_out.questions else "synthetic questions on documents not learnt from"
    out = [
        f"{task.counts['queries']:,} {kind}, {task.counts['documents']:,} documents",
        "",
        f"| model | {' | '.join(metrics)} | gain in ndcg@10 (95 % interval) |",
        f"|---|{'---|' * (len(metrics) + 1)}",
        "| BM25 | " + " | ".join(points(task.scores["bm25"][metric]) for metric in metrics) + " | |",
    ]
    for name, evaluation in found.items():
        scores = evaluation.tasks[0].scores["embedder"]
        gain = ""
        if name != "base":
            (compared,) = compare_reports(found["base"].report("embedder"), evaluation.report("embedder"))
            d = compared.difference
            gain = f"{100 * d.value:+.1f} ({100 * d.low:+.1f} to {100 * d.high:+.1f})"
        label = {"base": f"base ({recipe.base})", "model": f"merged: {recipe.out / 'model'}"}.get(name, name)
        out.append(f"| {label} | " + " | ".join(points(scores[metric]) for metric in metrics) + f" | {gain} |")
    return "\n".join(out) + "\n"


def points(value: float) -> str:
    """A share in points."""
    return f"{100 * value:.1f}"


def lines(rows: Iterable[dict[str, Any]]) -> str:
    """JSONL."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    from qwen3_embedding.errors import Qwen3EmbeddingError

    try:
        main()
    except Qwen3EmbeddingError as error:
        raise SystemExit(f"error: {error}") from None
