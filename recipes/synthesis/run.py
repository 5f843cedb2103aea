"""Synthetic pairs alone, from a language model of our own: do they teach an embedder a corpus that has no labels?

    python recipes/synthesis/run.py --data FOLDER --corpus xquad-en          # FOLDER/train, FOLDER/eval

1. start: the embedder's words in a small language model that copies.
2. writer: it learns to write the query behind a passage, from labelled pairs of other corpora in the corpus' language:
   no pair whose document is in the corpus. --lessons names others: titles and abstracts teach it to write titles.
3. pairs: a server with the writer in another process; ``synthesize`` asks it about a sample of the corpus' documents.
   What a writer of lower-case lessons asks takes its document's spelling.
4. variants: the pairs with all filters, with none, with each one left out and with each one alone; baselines without
   a language model: crops of the documents (inverse cloze), their first sentences and, of Python functions, their
   docstrings, as queries; and the pairs together with the first sentences.
5. For each variant the embedder is trained anew on these pairs, with the same settings, and measured on the corpus'
   real queries, beside the untrained embedder.  No query or judgement of the corpus is seen before that.

Every stage leaves a folder in --out and is skipped if its folder is there; a killed stage goes on where it was.
The table is printed, and written to report.md and report.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from qwen3_embedding.evaluation.collection import Collection
    from qwen3_embedding.synthesis.document import Document
    from qwen3_embedding.synthesis.filter import FilterSettings
    from qwen3_embedding.synthesis.recipe import Synthesis
    from qwen3_embedding.training.config import SourceSettings, TrainingSettings

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # the scripts beside this one, also where it is loaded by its path
ASSETS = HERE.parents[1] / "qwen3_embedding" / "assets"
SWITCHES: dict[str, dict[str, Any]] = {
    "talk": {"talk": False},
    "length": {"length": 0},
    "copy": {"copy": 0},
    "language": {"language": False},
    "near_duplicate": {"near_duplicate": 0},
    "cosine": {"cosine": 0},
    "rank": {"rank": 0},
}
"""What switches each filter off."""
FIRST = "first sentences"
DOCSTRINGS = "docstrings"
BASELINES = ("crops", FIRST, DOCSTRINGS)
"""What needs no language model; the last one needs a corpus of Python functions."""


def main() -> None:
    """Run what is missing."""
    options = parse()
    import torch

    torch.set_num_threads(options.threads)
    known = variants(0.5)
    if unknown := sorted(set(options.variants or ()) - set(known)):
        raise SystemExit(f"--variants {', '.join(unknown)}: not known; wanted some of {', '.join(known)}")
    options.out.mkdir(parents=True, exist_ok=True)
    make_writer(options)
    print_report(run_corpus(options), options)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    from passages import ANY, READS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with train/ and eval/")
    parser.add_argument("--corpus", default="xquad-en", help="folder of eval/ in BEIR's layout")
    parser.add_argument("--embedder", type=Path, default=ASSETS / "nano-embedding", help="checkpoint folder")
    parser.add_argument("--out", type=Path, default=Path("runs/synthesis"))
    parser.add_argument("--documents", type=int, default=6000, help="of the corpus, drawn by --seed, are written for")
    parser.add_argument("--queries-each", type=float, default=4.0, help="queries a document")
    parser.add_argument(
        "--lessons", nargs="+", help="files of train/ that the writer learns from, alike; default the recipe's"
    )
    parser.add_argument(
        "--reads",
        choices=READS,
        default=ANY,
        help="the passage that the writer reads, in training and in writing: any of the document, or its opening, "
        "where documents say at their beginning what they are (code)",
    )
    parser.add_argument(
        "--docstrings",
        type=float,
        default=0.0,
        help="share of the lessons that are a description and its Python function whose function has the description "
        "as docstring, as functions at large have",
    )
    parser.add_argument("--writer-steps", type=int, help="in place of writer.toml's, public_writer.toml's")
    parser.add_argument(
        "--writer-model",
        help="a public causal language model (folder or hub id, HuggingFaceTB/SmolLM2-135M-Instruct …) that learns to "
        "write in place of our own; needs transformers and peft",
    )
    parser.add_argument("--steps", type=int, default=30, help="of every embedder")
    parser.add_argument("--batch-size", type=int, default=512, help="pairs of a step")
    parser.add_argument(
        "--hide",
        type=float,
        default=1.0,
        help="share of pairs whose document is read without what the query copies from it, crops alike",
    )
    parser.add_argument(
        "--learning-rate", type=float, default=1e-4, help="of matrices; one that sums words trains none"
    )
    parser.add_argument(
        "--table-rate", type=float, help="of token embeddings; default 0.1 of words that are summed, 4e-3"
    )
    parser.add_argument("--variants", nargs="*", help="only these; default all")
    parser.add_argument("--seeds", type=int, default=1, help="embedders trained for each variant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(arguments)


def make_writer(options: argparse.Namespace) -> Path:
    """Stages 1 and 2."""
    from passages import ANY, is_qwen3

    from qwen3_embedding.config import check_begun
    from qwen3_embedding.inference.source import resolve
    from qwen3_embedding.model.weights import fingerprint
    from qwen3_embedding.training.config import load_settings
    from qwen3_embedding.training.trainer import make_objective, train

    names = ("writer_steps", "corpus", "lessons", "writer_model")
    facts = {"embedder": fingerprint(options.embedder), **{name: getattr(options, name) for name in names}}
    later = {"reads": ANY, "docstrings": 0.0}  # a folder begun without them goes on
    facts |= {name: getattr(options, name) for name, usual in later.items() if getattr(options, name) != usual}
    check_begun(options.out / "begun.json", facts)
    writer = options.out / "writer"
    model = resolve(options.writer_model) if options.writer_model else None
    made = load_settings(HERE / ("public_writer.toml" if model else "writer.toml"))
    by_name = lesson_sources(made, options)
    lessons = write_lessons(list(by_name), made.data.max_document_tokens, model or options.embedder, options)
    if writer.exists():
        return writer
    make = make_objective
    if model is not None and not is_qwen3(model):
        from public_writer import PublicObjective

        make = PublicObjective
    sources = tuple(dataclasses.replace(by_name[name], path=path) for name, path in lessons.items())
    data = dataclasses.replace(made.data, sources=sources, cache=options.out / "token-cache")
    run = dataclasses.replace(made.run, steps=options.writer_steps or made.run.steps)
    start = model or make_own_start(lessons.values(), options)
    train(dataclasses.replace(made, model=start, output=writer, data=data, run=run), make=make)
    return writer


def make_own_start(lessons: Iterable[Path], options: argparse.Namespace) -> Path:
    """Stage 1: the small language model that copies."""
    from start import make_start

    from qwen3_embedding.data import read_records

    start: Path = options.out / "start"
    if not start.exists():
        make_start(options.embedder, start, (record.query for path in lessons for record in read_records(path)))
    return start


def lesson_sources(made: TrainingSettings, options: argparse.Namespace) -> dict[str, SourceSettings]:
    """File name to source: those of the recipe, or the named ones, all alike."""
    from qwen3_embedding.training.config import SourceSettings

    if not options.lessons:
        return {source.path.name: source for source in made.data.sources}
    return {name: SourceSettings(path=options.data / "train" / name, weight=1.0) for name in options.lessons}


def write_lessons(names: Sequence[str], longest: int, model: Path, options: argparse.Namespace) -> dict[str, Path]:
    """What the writer learns from: of each labelled pair in the corpus' languages the passage that its query is about.

    Returns:
        Files with pairs, by their names; pairs of all languages where there are none in the corpus'.
    """
    from passages import Tokens, documented, in_languages, is_qwen3, lessons

    from qwen3_embedding.data import read_records, write_records
    from qwen3_embedding.evaluation.collection import read_collection, read_info
    from qwen3_embedding.inputs.tokenizer import Tokenizer

    folder = options.data / "eval" / options.corpus
    corpus = set(read_collection(folder).documents.values())
    counter: Tokens
    if is_qwen3(model):
        counter = Tokenizer.from_folder(model)
    else:
        from public_writer import PublicTokens

        counter = PublicTokens(model)
    for languages in (read_info(folder).languages, ()):
        found = {name: options.out / "lessons" / name.replace(".xz", "") for name in names}
        for name, path in found.items():
            if not path.exists() or not path.stat().st_size:
                records = read_records(options.data / "train" / name)
                fitting = (
                    documented(record, options.docstrings)
                    for record in records
                    if not languages or in_languages(record.language, languages)
                )
                write_records(path, lessons(fitting, counter, longest, corpus, options.reads))
        found = {name: path for name, path in found.items() if path.stat().st_size}
        if found:
            return found
    raise SystemExit(
        f"{options.data / 'train'}: no labelled pairs in {', '.join(names)} but of the corpus' own documents"
    )


def run_corpus(options: argparse.Namespace) -> dict[str, Any]:
    """Stages 3 to 5 for one corpus."""
    from qwen3_embedding.config import check_begun
    from qwen3_embedding.evaluation.collection import read_collection, read_info
    from qwen3_embedding.synthesis.ledger import read_pairs

    names = ("documents", "queries_each", "steps", "batch_size", "learning_rate", "table_rate", "seed", "hide")
    check_begun(options.out / options.corpus / "begun.json", {name: getattr(options, name) for name in names})
    folder = options.data / "eval" / options.corpus
    collection, info = read_collection(folder), read_info(folder)
    out = options.out / options.corpus
    synthesis = write_pairs(options, collection, out)
    documents = list(synthesis.documents())
    pairs = list(read_pairs(synthesis.recipe.ledger))
    before = measure(options.embedder, collection, info.instruction)
    rows: list[dict[str, Any]] = [{"variant": "untrained", "pairs": 0, **compared(before, [before])}]
    measured: dict[str, list[dict[str, float]]] = {}
    threshold = middle_cosine(pairs, documents, options.embedder)
    ways = variants(threshold)
    if not documented_code(documents):
        if DOCSTRINGS in (options.variants or ()):
            raise SystemExit(f"--variants {DOCSTRINGS}: fewer than half of the documents of {options.corpus} have one")
        ways.pop(DOCSTRINGS)
    for name, filters in ways.items():
        if name not in (options.variants or ways):
            continue
        records = out / "records" / f"{name.replace(' ', '-')}.jsonl"
        count = write_variant(name, filters, pairs, documents, options, records)
        after = [
            measure(train_embedder(records, name, seed, options, out), collection, info.instruction)
            for seed in range(options.seed, options.seed + options.seeds)
        ]
        measured[name] = after
        rows.append({"variant": name, "pairs": count, **compared(before, after)})
        print(row_line(rows[-1], ()), file=sys.stderr, flush=True)
    for row in rows:
        if row["variant"] in measured and row["variant"] not in BASELINES:
            row["over"] = {
                base: compared(mean_run(measured[base]), measured[row["variant"]])
                for base in BASELINES
                if base in measured
            }
    return {
        "corpus": options.corpus,
        "documents": len(collection.documents),
        "documents_written_for": len(documents),
        "queries": len(collection.queries),
        "bm25": info.bm25.get("ndcg@10"),
        "cosine_threshold": round(threshold, 4),
        "samples": samples(pairs),
        "rows": rows,
    }


def write_pairs(options: argparse.Namespace, collection: Collection, out: Path) -> Synthesis:
    """Stage 3: all pairs of the sampled documents, in the ledger."""
    from qwen3_embedding.synthesis.client import EndpointSettings
    from qwen3_embedding.synthesis.filter import FilterSettings
    from qwen3_embedding.synthesis.generate import UnitSettings
    from qwen3_embedding.synthesis.languages import LanguageSettings
    from qwen3_embedding.synthesis.recipe import Synthesis, SynthesisRecipe

    ids = sorted(collection.documents)
    chosen = np.random.default_rng([options.seed, len(ids)]).permutation(len(ids))[: options.documents]
    texts = [(ids[number], collection.documents[ids[number]]) for number in sorted(chosen)]

    def recipe(url: str) -> SynthesisRecipe:
        return SynthesisRecipe(
            documents=options.data / "eval" / options.corpus,
            out=out,
            name=f"synthetic-{options.corpus}",
            seed=options.seed,
            endpoint=EndpointSettings(model="writer", url=url, concurrency=64),
            units=UnitSettings(retrieval=options.queries_each),
            languages=LanguageSettings(across=0.0),
            filter=FilterSettings(cosine=0, rank=0),
        )

    planned = Synthesis(recipe("http://127.0.0.1:1/v1"), lambda: texts)
    done = out / "pairs.done"
    wanted = f"{planned.count_units()}\n"
    if not done.exists() or done.read_text() != wanted:
        with serving(options.out / "writer", options.threads, options.reads) as url:
            Synthesis(recipe(url), lambda: texts).generate()
        done.write_text(wanted)
    return planned


@contextmanager
def serving(model: Path, threads: int = 1, reads: str = "any") -> Iterator[str]:
    """The address of a server with the writer, in a process of its own."""
    command = [sys.executable, str(HERE / "server.py"), "--model", str(model), "--threads", str(threads)]
    command += ["--reads", reads]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise SystemExit(f"the server with {model} did not start; its message is above")
        yield url
    finally:
        process.terminate()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def variants(threshold: float) -> dict[str, FilterSettings | None]:
    """Name → filters; ``None``: no language model's queries."""
    from qwen3_embedding.synthesis.filter import FilterSettings

    everything = FilterSettings(cosine=threshold)
    nothing = dataclasses.replace(everything, **{key: value for off in SWITCHES.values() for key, value in off.items()})
    found: dict[str, FilterSettings | None] = {"all filters": everything, "no filter": nothing}
    for name, off in SWITCHES.items():
        found[f"without {name}"] = dataclasses.replace(everything, **off)
    for name, off in SWITCHES.items():
        on = {key: getattr(everything, key) for key in off}
        found[f"only {name}"] = dataclasses.replace(nothing, **on)
    return {**found, **dict.fromkeys(BASELINES), f"no filter and {FIRST}": nothing}


def documented_code(documents: Sequence[Document]) -> bool:
    """Whether most documents are functions with a docstring."""
    from passages import docstring

    return 2 * sum(bool(docstring(document.text)) for document in documents) > len(documents)


def middle_cosine(pairs: list[dict[str, Any]], documents: list[Document], embedder: Path) -> float:
    """The cosine that a fifth of the pairs do not reach: 0.7 is a threshold for another model's cosines."""
    from qwen3_embedding import Embedder
    from qwen3_embedding.synthesis.filter import Filter, FilterSettings

    judge = Filter(FilterSettings(cosine=0, rank=1), documents, Embedder.from_pretrained(embedder))
    found = [verdict.cosine for verdict in judge.judge(pairs) if verdict.cosine is not None]
    return max(0.01, float(np.quantile(found, 0.2)))


def write_variant(
    name: str,
    filters: FilterSettings | None,
    pairs: list[dict[str, Any]],
    documents: list[Document],
    options: argparse.Namespace,
    path: Path,
) -> int:
    """Stage 4: the records of a variant; returns how many there are."""
    from passages import docstring, respelt

    from qwen3_embedding import Embedder
    from qwen3_embedding.data import Record, read_records, write_records
    from qwen3_embedding.data.record import from_mapping
    from qwen3_embedding.synthesis.document import opening
    from qwen3_embedding.synthesis.filter import Filter

    if path.exists():
        return sum(1 for _ in read_records(path))
    records: list[Record] = []
    if filters is not None:
        judge = Filter(filters, documents, Embedder.from_pretrained(options.embedder))
        kept = (from_mapping(pair["record"], "pair") for pair in judge.records(judge.judge(pairs)))
        records += [dataclasses.replace(r, query=respelt(r.query, r.positives[0])) for r in kept]
    if filters is None or name.endswith(FIRST):
        first = docstring if name == DOCSTRINGS else opening
        asked = ((first(document.text), document) for document in documents)
        records += [Record(q, (d.text,), "retrieval", name, language=d.language) for q, d in asked if q]
    return write_records(path, records)


def train_embedder(records: Path, name: str, seed: int, options: argparse.Namespace, out: Path) -> Path:
    """Stage 5: the embedder, trained on the records and nothing else."""
    from qwen3_embedding.training.adapting import sums_its_words
    from qwen3_embedding.training.config import parse_settings
    from qwen3_embedding.training.trainer import train

    output = out / "embedders" / f"{records.stem}-{seed}"
    if output.exists():
        return output
    source: dict[str, Any] = {"path": str(records), "hide": options.hide}
    if name == "crops":
        source |= {"crop": 1.0, "window": 1.0}
    sums = sums_its_words(options.embedder)
    table_rate = options.table_rate or (0.1 if sums else 4e-3)
    settings: dict[str, Any] = {
        "kind": "embedder",
        "model": str(options.embedder),
        "output": str(output),
        "data": {
            "sources": [source],
            "batch_size": options.batch_size,
            "max_query_tokens": 64,
            "max_document_tokens": 512,
            "by_language": False,
            "crop_removed": options.hide,
            "cache": str(options.out / "token-cache"),
        },
        "loss": {"temperature": 0.05, "query_query": False, "document_document": False},
        "optimizer": {
            "learning_rate": options.learning_rate,
            "embedding_learning_rate": table_rate,
            "warmup_steps": max(1, options.steps // 10),
            "weight_decay": 0.0,
        },
        "run": {
            "steps": options.steps,
            "seed": seed,
            "kept_tokens": 1_000_000,
            "checkpoint_every": max(1, options.steps // 2),
        },
    }
    if sums:  # its layers are written by hand with large gains: steps that teach others destroy them
        settings["kind"] = "bag"
        settings["loss"]["mask_by_margin"] = False
        settings["optimizer"] |= {"learning_rate": table_rate, "clip": 0.0, "betas": [0.9, 0.99]}
        del settings["run"]["kept_tokens"]
    train(parse_settings(settings), show=False)
    return output


def measure(model: Path, collection: Collection, instruction: str | None) -> dict[str, float]:
    """Query → nDCG@10 on the real queries, over the whole corpus."""
    from qwen3_embedding import Embedder
    from qwen3_embedding.evaluation.metrics import evaluate_run

    embedder = Embedder.from_pretrained(model, dtype="float32")
    ids, queries = list(collection.documents), list(collection.queries)
    corpus_CD = np.asarray(embedder.embed_documents(list(collection.documents.values())))
    asked_QD = np.asarray(embedder.embed_queries(list(collection.queries.values()), instruction=instruction))
    run: dict[str, dict[str, float]] = {}
    for query, scores_C in zip(queries, asked_QD @ corpus_CD.T, strict=True):
        best = np.argpartition(-scores_C, min(100, len(ids) - 1))[:100]
        run[query] = {ids[number]: float(scores_C[number]) for number in best}
    return dict(evaluate_run(collection.qrels, run, ["ndcg@10"]).per_query["ndcg@10"])


def compared(before: Mapping[str, float], after: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Mean nDCG@10 in points over the seeds, and the difference to the untrained with a 95 % bootstrap interval."""
    from qwen3_embedding.evaluation.statistics import bootstrap_interval, randomisation_p_value

    means = [100 * float(np.mean(list(run.values()))) for run in after]
    differences = [100 * (float(np.mean([run[query] for run in after])) - before[query]) for query in before]
    interval = bootstrap_interval(differences)
    return {
        "ndcg@10": round(float(np.mean(means)), 2),
        "seeds": [round(mean, 2) for mean in means],
        "gain": round(interval.value, 2),
        "interval": [round(interval.low, 2), round(interval.high, 2)],
        "p": round(randomisation_p_value(differences), 4) if any(differences) else 1.0,
    }


def mean_run(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Query → mean over the seeds."""
    return {query: float(np.mean([run[query] for run in runs])) for query in runs[0]}


def samples(pairs: Iterable[dict[str, Any]], count: int = 8) -> list[dict[str, str]]:
    """Some pairs to look at."""
    shown = sorted(pairs, key=lambda pair: str(pair["provenance"]["unit"]))[:count]
    return [{"query": p["record"]["query"], "document": p["record"]["positives"][0][:200]} for p in shown]


def row_line(row: Mapping[str, Any], baselines: Sequence[str]) -> str:
    """A row of the table: gain over the untrained embedder, and over each baseline."""
    gains = [row, *(row.get("over", {}).get(base) for base in baselines)]
    return f"| {row['variant']} | {row['pairs']:,} | {row['ndcg@10']} | {' | '.join(map(gain_cell, gains))} |"


def gain_cell(gain: Mapping[str, Any] | None) -> str:
    """``+1.2 (+0.3 to +2.0)``; empty where nothing was compared."""
    return "" if gain is None else f"{gain['gain']:+} ({gain['interval'][0]:+} to {gain['interval'][1]:+})"


def print_report(report: dict[str, Any], options: argparse.Namespace) -> None:
    """Write and print the table and the samples."""
    from qwen3_embedding.whole import write_text

    about = (
        f"{report['corpus']}: {report['queries']:,} real queries, {report['documents']:,} documents, of which "
        f"{report['documents_written_for']:,} were written for; {options.steps} steps of "
        f"{options.batch_size} pairs; BM25 {100 * (report['bm25'] or 0):.1f}"
    )
    baselines = [row["variant"] for row in report["rows"] if row["variant"] in BASELINES]
    columns = ["trained on", "pairs", "nDCG@10", "gain (95 % interval)", *(f"over {base}" for base in baselines)]
    head = [about, "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines = [*head, *(row_line(row, baselines) for row in report["rows"]), "", "Samples:"]
    lines += [f"- {sample['query']}  ←  {sample['document']}" for sample in report["samples"]]
    text = "\n".join(lines) + "\n"
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    out = options.out / options.corpus
    write_text(out / "report.md", text)
    write_text(out / "report.json", json.dumps({"settings": settings, **report}, ensure_ascii=False, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    from qwen3_embedding.errors import Qwen3EmbeddingError

    try:
        main()
    except Qwen3EmbeddingError as error:
        raise SystemExit(f"error: {error}") from None
