"""``mine``: records into records with hard negatives."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from qwen3_embedding.mining.mine import Models
    from qwen3_embedding.mining.recipe import CorpusRecipe, MineRecipe


def command(
    recipe: Annotated[Path, typer.Argument(help="TOML recipe: records, output, models, filters (docs/mining.md).")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Mine hard negatives for training records. Repeat the command to resume."""
    from qwen3_embedding.config import load_toml
    from qwen3_embedding.mining.recipe import MineRecipe, run

    settings = load_toml(recipe, MineRecipe)
    corpus = _texts(settings.corpus) if settings.corpus else ()
    report = run(settings, models(settings), corpus, lambda line: print(line, file=sys.stderr, flush=True))
    print(f"wrote {settings.output} and {settings.report_path}", file=sys.stderr)
    print(json.dumps(report.to_json(), ensure_ascii=False, indent=2) if as_json else "\n".join(report.lines()))


def models(settings: MineRecipe) -> Models:
    """The recipe's encoder and scorer."""
    from qwen3_embedding import Embedder, Reranker
    from qwen3_embedding.mining.mine import Models

    wanted, verifier = settings.encoder, settings.scorer
    encoder = Embedder.from_pretrained(wanted.model, wanted.device, wanted.dtype, max_tokens=wanted.max_tokens)
    encoder_key = f"{encoder.fingerprint} {encoder.backbone.type_name} {encoder.max_tokens}"
    if verifier is None:
        return Models(encoder, encoder_key)
    scorer = Reranker.from_pretrained(verifier.model, verifier.device, verifier.dtype, max_tokens=verifier.max_tokens)
    return Models(encoder, encoder_key, scorer, f"{scorer.fingerprint} {scorer.backbone.type_name} {scorer.max_tokens}")


def _texts(corpus: CorpusRecipe) -> Iterator[str]:
    from qwen3_embedding.corpus.reader import Document, ReadOptions, read_file
    from qwen3_embedding.corpus.source import open_source

    options = ReadOptions(text_columns=corpus.text_columns)
    for path in corpus.paths:
        for file in open_source(path).files:
            yield from (item.text for item in read_file(file, options) if isinstance(item, Document))
