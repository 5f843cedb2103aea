"""``synthesize``: documents into training records, through a language model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from qwen3_embedding.synthesis.completion import LanguageModel
    from qwen3_embedding.synthesis.generate import Progress
    from qwen3_embedding.synthesis.recipe import Estimate, Synthesis, SynthesisRecipe


def command(
    recipe: Annotated[Path, typer.Argument(help="TOML recipe: documents, model, units, filters (docs/synthesis.md).")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show prompts, tokens and cost; ask nobody.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first so many documents.")] = None,
    generate: Annotated[bool, typer.Option(help="Ask the model; --no-generate filters what is there.")] = True,
    filter_pairs: Annotated[bool, typer.Option("--filter/--no-filter", help="Filter and write the records.")] = True,
    api_key_env: Annotated[str, typer.Option(help="Environment variable with the endpoint's key.")] = "OPENAI_API_KEY",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Make training records from documents. Repeat the command to resume."""
    import os

    from qwen3_embedding.config import load_toml
    from qwen3_embedding.synthesis.recipe import Synthesis, SynthesisRecipe

    settings = load_toml(recipe, SynthesisRecipe)
    synthesis = Synthesis(settings, partial(documents, settings), None if dry_run else encoder(settings), limit)
    if dry_run:
        show_estimate(synthesis.estimate(), as_json)
        return
    if generate:
        progress = synthesis.generate(local_model(settings), os.environ.get(api_key_env), watch(synthesis))
        print(_done(progress), file=sys.stderr)
    if filter_pairs:
        _show_report(synthesis.filter(), settings, as_json)


def documents(settings: SynthesisRecipe) -> Iterator[tuple[str, str]]:
    """(id, text) of the recipe's documents."""
    return read_documents(settings.documents, settings.text_columns, settings.id_column)


def read_documents(
    source: Path, text_columns: Sequence[str], id_column: str | None = None
) -> Iterator[tuple[str, str]]:
    """(id, text) of a folder or file, in any form that ``encode`` reads."""
    from qwen3_embedding.corpus.reader import Document, ReadOptions, read_file
    from qwen3_embedding.corpus.source import open_source

    options = ReadOptions(text_columns=tuple(text_columns), id_column=id_column)
    for file in open_source(source).files:
        items: Iterable[Any] = read_file(file, options)
        yield from ((item.id, item.text) for item in items if isinstance(item, Document))


def encoder(settings: SynthesisRecipe) -> Any:
    """The recipe's embedder, or nothing."""
    if settings.encoder is None:
        return None
    from qwen3_embedding import Embedder

    wanted = settings.encoder
    return Embedder.from_pretrained(wanted.model, device=wanted.device, dtype=wanted.dtype)


def local_model(settings: SynthesisRecipe) -> LanguageModel | None:
    """The recipe's model in this process or on its cluster, or nothing."""
    if settings.ray is not None:
        from qwen3_embedding.synthesis.batch import Batched
        from qwen3_embedding.synthesis.ray import RayEngine

        return Batched(settings.ray.model, RayEngine(settings.ray), settings.ray.requests)
    if settings.local is None:
        return None
    from qwen3_embedding.synthesis.completion import OneAtATime
    from qwen3_embedding.synthesis.local import LocalGenerator

    wanted = settings.local
    if wanted.engine == "own":
        from qwen3_embedding.inference.generator import Generator, Sampling
        from qwen3_embedding.inference.source import resolve

        sampling = Sampling(wanted.max_tokens, wanted.temperature, wanted.top_p)
        return OneAtATime(Generator.from_folder(resolve(wanted.model), wanted.device, sampling=sampling))
    return OneAtATime(LocalGenerator(wanted.model, wanted.device, wanted.max_tokens, wanted.temperature, wanted.top_p))


def watch(synthesis: Synthesis) -> Callable[[Progress], None]:
    """A line on stderr, renewed twice a second, with cost and time to go."""
    import time

    total, start, last = synthesis.count_units(), time.monotonic(), [0.0]

    def show(progress: Progress) -> None:
        now = time.monotonic()
        behind = progress.skipped + progress.done + progress.unavailable
        if now - last[0] < 0.5 and behind < total:
            return
        last[0] = now
        rate = progress.done / max(1e-9, now - start)
        left = (total - behind) / rate if rate else 0.0
        cost = synthesis.recipe.cost(progress.input_tokens, progress.output_tokens)
        line = f"{behind:,}/{total:,} units · {progress.pairs:,} pairs · {progress.failed:,} failed · {rate:.1f}/s"
        end = "\r" if sys.stderr.isatty() else "\n"
        print(f"{line} · cost {cost:.2f} · {left / 60:.1f} min to go", end=end, file=sys.stderr, flush=True)

    return show


def _done(progress: Progress) -> str:
    rest = "; budget reached" if progress.out_of_budget else ""
    rest += f"; {progress.unavailable:,} got no answer, repeat the command" if progress.unavailable else ""
    return (
        f"{progress.done:,} units ended now, {progress.skipped:,} before; {progress.pairs:,} pairs; "
        f"{progress.failed:,} without pairs; {progress.input_tokens:,} + {progress.output_tokens:,} tokens{rest}"
    )


def show_estimate(estimate: Estimate, as_json: bool) -> None:
    """Prompts, then the numbers."""
    from dataclasses import asdict

    if as_json:
        print(json.dumps(asdict(estimate), ensure_ascii=False))
        return
    for prompt in estimate.prompts:
        print(f"{prompt}\n{'-' * 100}")
    print(
        f"{estimate.documents:,} documents, {estimate.units:,} units, {estimate.requests:,} requests, about "
        f"{estimate.input_tokens:,} + {estimate.output_tokens:,} tokens, cost about {estimate.cost:.2f}"
    )


def _show_report(report: dict[str, Any], settings: SynthesisRecipe, as_json: bool) -> None:
    print(f"wrote {settings.records} and {settings.out / 'report.html'}", file=sys.stderr)
    if as_json:
        print(json.dumps(report, ensure_ascii=False))
        return
    print(f"{report['kept']:,} of {report['pairs']:,} pairs kept, {report['run']['records']:,} records")
    for name, counts in report["filters"].items():
        if counts["dropped"]:
            print(f"  {name}: {counts['dropped']:,} dropped, {counts['alone']:,} by this filter alone")
