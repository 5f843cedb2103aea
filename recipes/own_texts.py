"""An embedder that knows a collection from its texts alone: no questions, no language model, minutes.

    python recipes/own_texts.py notes/ --out runs/own                         # a folder or file of documents
    python recipes/own_texts.py SETS --reranker nano-reranker --out runs/own  # tasks with questions: before and after

Stretches of the documents ask for the documents that they were taken out of (the inverse cloze task, Lee et al. 2019),
drawn anew at every step.  A base that sums words trains its table, any other low-rank adapters that are merged.

1. NAME/documents.jsonl: every document, as a record.
2. NAME/tuned/: the base, trained on them.
3. NAME/model/: the tuned model averaged with the base, which keeps what the base knew.
4. report.md, report.json: where the collection has questions (queries.jsonl, qrels/) BM25, the base, the averaged
   model, both with BM25 and with the reranker, on the same questions.

Every step leaves its output whole or not at all and is skipped if it is there; a killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qwen3_embedding.cli.synthesize import read_documents
from qwen3_embedding.config import check_begun
from qwen3_embedding.data import Record, read_records, write_records
from qwen3_embedding.errors import DataError
from qwen3_embedding.inference.source import resolve
from qwen3_embedding.synthesis.document import Document, DocumentSettings, Intake, opening, prepare
from qwen3_embedding.training.adapting import Adapting, adapting_settings, sums_its_words
from qwen3_embedding.whole import write_text

if TYPE_CHECKING:
    from qwen3_embedding import Embedder, Reranker
    from qwen3_embedding.evaluation.ablation import AblationCard
    from qwen3_embedding.evaluation.results import Report

BM25 = "BM25"
FREE = ("collections", "out", "threads")
"""Options that may change between two parts of a run."""
OFTEN, FEWEST, MOST = 80, 250, 1000
"""How often a sum of words asks for each document, and the steps that are taken for that at least and at most."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing."""
    options = parse(arguments)
    import torch

    torch.set_num_threads(options.threads)
    check_begun(options.out / "settings.json", {key: value for key, value in vars(options).items() if key not in FREE})
    found = collections(options.collections)
    for name, folder in found.items():
        learn(name, folder, options)
    asked = {name: folder for name, folder in found.items() if is_task(folder)}
    if not asked:
        print(
            f"{', '.join(found)}: no questions (queries.jsonl, qrels/test.tsv), so nothing is measured; the models are "
            f"{', '.join(str(options.out / name / 'model') for name in found)}",
            file=sys.stderr,
        )
        return
    card = measure(asked, options)
    write_text(options.out / "report.json", json.dumps(card.to_mapping(), indent=2) + "\n")
    write_text(options.out / "report.md", card.to_markdown())
    print(card.to_markdown(), end="")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; what depends on the base is filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "collections", type=Path, nargs="+", help="folders or files of documents; a task (BEIR's layout) has questions"
    )
    parser.add_argument("--base", default="nano-embedding", help="folder, hub id or bundled name")
    parser.add_argument("--out", type=Path, default=Path("runs/own-texts"))
    parser.add_argument(
        "--steps",
        type=int,
        help=f"default 300; where the base sums words so many that each document is asked for {OFTEN} times, "
        f"{FEWEST} to {MOST}",
    )
    parser.add_argument("--batch-size", type=int, help="documents of a step; default 512 where it sums words, else 64")
    parser.add_argument("--learning-rate", type=float, help="default 0.1 where the base sums words, else 1e-4")
    parser.add_argument("--merge-weight", type=float, default=0.5, help="of the tuned model beside the base")
    parser.add_argument("--text-columns", nargs="+", default=["text"], help="of JSONL, CSV, Parquet and Arrow files")
    parser.add_argument("--reranker", help="folder, hub id or bundled name: further rows of the report")
    parser.add_argument("--candidates", type=int, default=50, help="documents that the reranker orders")
    parser.add_argument("--rerank-weight", type=float, default=1.0, help="its share in their order")
    parser.add_argument(
        "--passage-words",
        type=int,
        help="embed each document's passages of so many words, too; the best one has half of the score",
    )
    parser.add_argument("--max-queries", type=int, help="a fixed random sample of so many questions a collection")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="of torch; part of what makes the files the same")
    options = parser.parse_args(arguments)
    if not 0 < options.merge_weight < 1:
        parser.error(f"--merge-weight {options.merge_weight}; wanted more than 0, less than 1")
    bag = sums_its_words(resolve(options.base))
    options.batch_size = options.batch_size or (512 if bag else 64)
    if not bag:
        options.steps = options.steps or 300
    return options


def steps_for(documents: int, options: argparse.Namespace) -> int:
    """The steps of a run over so many documents."""
    steps: int = options.steps or min(MOST, max(FEWEST, round(OFTEN * documents / options.batch_size)))
    return steps


def collections(paths: Iterable[Path]) -> dict[str, Path]:
    """Name to place; a folder whose folders are tasks stands for these.

    Raises:
        DataError: nothing there, or two of one name.
    """
    found: dict[str, Path] = {}
    for path in paths:
        inside = sorted(task.parent for task in path.glob("*/corpus.jsonl")) if path.is_dir() else []
        for place in inside or [path]:
            if not place.exists():
                raise DataError(f"{place}: no such file or folder; wanted documents")
            name = place.stem if place.is_file() else place.resolve().name
            if name in found:
                raise DataError(f"{found[name]} and {place}: both are called {name}; give each an --out of its own")
            found[name] = place
    return found


def is_task(folder: Path) -> bool:
    """Whether a collection has questions and judgements."""
    return all((folder / name).exists() for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"))


def learn(name: str, folder: Path, options: argparse.Namespace) -> None:
    """Steps 1 to 3 for one collection."""
    from qwen3_embedding.merging.merge import merge
    from qwen3_embedding.merging.settings import MergeSettings, Source
    from qwen3_embedding.training.config import SourceSettings
    from qwen3_embedding.training.trainer import train

    place = options.out / name
    base, records, tuned, model = (
        resolve(options.base), place / "documents.jsonl", place / "tuned", place / "model",
    )  # fmt: skip
    if not records.exists():
        count = write_records(records, map(record_of, documents(folder, options.text_columns)))
        if not count:
            records.unlink()
            raise DataError(f"{folder}: no document of at least {DocumentSettings().shortest} characters")
        print(f"{name}: {count:,} documents", file=sys.stderr)
    if model.exists():
        print(f"{name}: {model} is there", file=sys.stderr)
        return
    steps = steps_for(sum(1 for _ in read_records(records)), options)
    wanted = Adapting(steps, options.batch_size, options.learning_rate, max_query_tokens=64)
    source = SourceSettings(path=records, crop=1.0, window=1.0, hide=1.0, instruction=task_instruction(folder))
    settings = adapting_settings(
        base, tuned, source, wanted,
        cache=place / "token-cache", crop_removed=1.0, seed=options.seed,
    )  # fmt: skip
    if not tuned.exists():
        train(settings, show=sys.stderr.isatty())
    weight = options.merge_weight
    merge(MergeSettings(method="slerp", sources=(Source(base, 1 - weight), Source(tuned, weight)), output=model))


def documents(folder: Path, text_columns: Sequence[str]) -> Iterator[Document]:
    """The documents of a task, or of a folder or file in any form that ``encode`` reads; each text once."""
    from qwen3_embedding.evaluation.collection import read_collection

    if is_task(folder):
        texts: Iterable[tuple[str, str]] = read_collection(folder).documents.items()
    else:
        texts = read_documents(folder, text_columns)
    return prepare(texts, DocumentSettings(), Intake())


def record_of(document: Document) -> Record:
    """The document behind its first sentence, which asks where the document is too short to take a stretch out of."""
    return Record(opening(document.text), (document.text,), "retrieval", "own texts", language=document.language)


def task_instruction(folder: Path) -> str:
    """A task's own instruction; empty is the default one."""
    from qwen3_embedding.evaluation.collection import read_info

    return (read_info(folder).instruction or "") if is_task(folder) else ""


def measure(tasks: dict[str, Path], options: argparse.Namespace) -> AblationCard:
    """Step 4: all rows on the same questions."""
    from qwen3_embedding import Embedder, Reranker
    from qwen3_embedding.evaluation.ablation import ablation_card

    base = Embedder.from_pretrained(resolve(options.base))
    scorer = Reranker.from_pretrained(options.reranker) if options.reranker else None
    rows: dict[str, list[Report]] = {}
    for name, folder in tasks.items():
        print(f"{name}: measuring", file=sys.stderr, flush=True)
        for title, report in rows_of(folder, options.out / name, base, scorer, options).items():
            rows.setdefault(title, []).append(report)
    reports = {title: joined(parts) for title, parts in rows.items()}
    steps = f"{options.steps:,}" if options.steps else f"{FEWEST} to {MOST:,}"
    notes = {
        "trained": f"for each collection {steps} steps of {options.batch_size} of its documents, from "
        f"{options.base}, then averaged with it ({options.merge_weight:g} of the tuned); no questions, no judgements",
        "questions": f"at most {options.max_queries} a collection" if options.max_queries else "all",
    }
    if options.reranker:
        notes["reranker"] = f"{options.reranker} orders {options.candidates} documents, with a share of "
        notes["reranker"] += f"{options.rerank_weight:g} in their order"
    if options.passage_words:
        notes["passages"] = f"of {options.passage_words} words; the best one has half of an embedder's score"
    return ablation_card(reports, BM25, notes)


def rows_of(
    folder: Path, place: Path, base: Embedder, scorer: Reranker | None, options: argparse.Namespace
) -> dict[str, Report]:
    """The rows of one task: base and averaged model, alone, with BM25 and with the reranker."""
    from qwen3_embedding import Embedder
    from qwen3_embedding.evaluation.run import evaluate
    from qwen3_embedding.evaluation.tasks import TaskSettings
    from qwen3_embedding.retrieval.fusion import Fusion

    settings = TaskSettings(
        candidates=options.candidates,
        max_queries=options.max_queries,
        rerank_weight=options.rerank_weight,
        passage_words=options.passage_words,
        fusion=Fusion(method="score"),
    )
    rows: dict[str, Report] = {}
    for title, model in (("base", base), ("own texts", Embedder.from_pretrained(place / "model"))):
        out = place / "evaluation" / title.replace(" ", "-")
        evaluated = evaluate([folder], model, scorer, settings, out, out.with_suffix(".sqlite"))
        rows.setdefault(BM25, evaluated.report("bm25"))
        rows[title] = evaluated.report("embedder")
        rows[f"{title}, with BM25"] = evaluated.report("hybrid")
        if scorer is not None:
            rows[f"{title}, reranked"] = evaluated.report("reranker")
    return rows


def joined(parts: Sequence[Report]) -> Report:
    """One report of several tasks."""
    return dataclasses.replace(parts[0], tasks=tuple(task for part in parts for task in part.tasks))


if __name__ == "__main__":
    from qwen3_embedding.errors import Qwen3EmbeddingError

    try:
        main()
    except Qwen3EmbeddingError as error:
        raise SystemExit(f"error: {error}") from None
