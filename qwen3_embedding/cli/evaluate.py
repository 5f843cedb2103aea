"""``evaluate``: scores of an embedder and a reranker on local tasks, or on a public benchmark through mteb."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from qwen3_embedding.cli.common import Device, DType, HubName, Json, Offline, Quiet, Revision, hub, print_table

if TYPE_CHECKING:
    from qwen3_embedding.evaluation.run import Evaluation
    from qwen3_embedding.types import Encoder, Scorer

Log = Callable[[str], None]

ONLY_BENCHMARK = ("task", "policy")
ONLY_FOLDERS = (
    "table", "beside", "first_stage", "dense_weight", "fusion", "instruction", "max_queries", "rerank_queries",
    "rerank_weight", "training", "split", "cache", "passage_words",
)  # fmt: skip
"""Options that mean nothing to the other way of evaluating."""


def command(
    context: typer.Context,
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Tasks (docs/evaluation.md), or folders of tasks.")
    ] = None,
    embedder: Annotated[
        str, typer.Option(help="Folder, hub id, bundled name, st:NAME (sentence-transformers), URL or URL#MODEL.")
    ] = "nano-embedding",
    reranker: Annotated[
        str | None, typer.Option(help="Folder, hub id, bundled name, URL or URL#MODEL of a server.")
    ] = None,
    benchmark: Annotated[
        str | None, typer.Option(help="Instead of folders, through mteb: 'MTEB(eng, v2)', 'MTEB(Code, v1)', MLDR …")
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option("--task", help="Only this task of the benchmark; repeat it.")
    ] = None,
    policy: Annotated[
        Literal["official", "mteb"], typer.Option(help="Which instructions a benchmark's texts get.")
    ] = "official",
    out: Annotated[Path, typer.Option(help="Results go here; the same command again resumes.")] = Path("runs/evaluate"),
    table: Annotated[
        Path | None, typer.Option(help="Write the table into this Markdown page, between its marks.")
    ] = None,
    beside: Annotated[
        list[str] | None, typer.Option(help="TITLE=DIR: a column of the table from another --out; repeat it.")
    ] = None,
    candidates: Annotated[int, typer.Option(help="Documents that the reranker orders.")] = 100,
    first_stage: Annotated[
        Literal["bm25", "embedder", "hybrid"], typer.Option(help="Whose ranking the reranker orders.")
    ] = "embedder",
    dense_weight: Annotated[
        float, typer.Option(help="Weight of the embedder beside BM25 (1) in the hybrid ranking.")
    ] = 1.0,
    fusion: Annotated[
        Literal["rank", "score"], typer.Option(help="Hybrid by reciprocal ranks, or by cosine plus scaled BM25.")
    ] = "rank",
    dimensions: Annotated[int | None, typer.Option(help="Vector size, 32 to the model's full size.")] = None,
    instruction: Annotated[str | None, typer.Option(help="Instead of each task's own; '' for none.")] = None,
    query_prompt: Annotated[
        str | None, typer.Option(help="Put before queries here; {instruction} in it is filled. For other models.")
    ] = None,
    document_prompt: Annotated[str | None, typer.Option(help="Put before documents here.")] = None,
    max_queries: Annotated[int | None, typer.Option(help="A fixed sample of so many queries a task.")] = None,
    rerank_queries: Annotated[
        int | None, typer.Option(help="The reranker orders a fixed sample of so many queries a task.")
    ] = None,
    rerank_weight: Annotated[
        float, typer.Option(help="The reranker's share in the final order, the first stage having the rest.")
    ] = 1.0,
    passage_words: Annotated[
        int | None,
        typer.Option(help="Embed each document's passages of so many words, too; the best one has half of the score."),
    ] = None,
    training: Annotated[
        list[Path] | None, typer.Option(help="Records the models learnt from: report test texts in them; repeat it.")
    ] = None,
    split: Annotated[str, typer.Option(help="Which qrels/SPLIT.tsv.")] = "test",
    cache: Annotated[
        Path | None, typer.Option(help="File of kept vectors; default: cache.sqlite beside --out.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(envvar="QWEN3_EMBEDDING_API_KEY", help="For servers.")] = None,
    device: Device = "auto",
    devices: Annotated[
        str | None, typer.Option(help="Several, one process each: cuda:0,cuda:1, or all. cpu,cpu shares the cores.")
    ] = None,
    dtype: DType = "auto",
    revision: Revision = None,
    hub_name: HubName = "huggingface",
    offline: Offline = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Score BM25, embedder, hybrid and embedder + reranker on every task in the folders, or models on a benchmark."""
    from qwen3_embedding.evaluation.devices import parse_devices
    from qwen3_embedding.evaluation.prompted import PromptedEncoder
    from qwen3_embedding.evaluation.run import evaluate
    from qwen3_embedding.evaluation.tasks import TaskSettings
    from qwen3_embedding.retrieval.fusion import Fusion

    if bool(folders) == bool(benchmark):
        raise ValueError("wanted folders of tasks, or --benchmark NAME, and not both")
    _refuse_unused(context, ONLY_FOLDERS if benchmark else ONLY_BENCHMARK, "with" if benchmark else "without")
    where = parse_devices(devices) if devices else [device]
    more = {"dtype": dtype, "offline": offline, "hub": hub(hub_name)}
    log: Log = (lambda line: None) if quiet else (lambda line: print(line, file=sys.stderr, flush=True))
    with ExitStack() as opened:
        encoder = _embedder(embedder, api_key, where, opened, {**more, "revision": revision})
        if query_prompt is not None or document_prompt is not None:
            encoder = PromptedEncoder(encoder, query_prompt or "", document_prompt or "")
        scorer = _reranker(reranker, api_key, where, opened, more) if reranker else None
        if benchmark:
            _run_benchmark(benchmark, task, encoder, scorer, out, policy, dimensions, candidates, log, as_json)
            return
        settings = TaskSettings(
            fusion=Fusion(dense_weight=dense_weight, method=fusion),
            dimensions=dimensions,
            candidates=candidates,
            first_stage=first_stage,
            instruction=instruction,
            max_queries=max_queries,
            rerank_queries=rerank_queries,
            rerank_weight=rerank_weight,
            split=split,
            passage_words=passage_words,
        )
        evaluated = evaluate(folders or [], encoder, scorer, settings, out, cache, log, training or [])
        _show(evaluated, out, table, beside or [], as_json)


def _refuse_unused(context: typer.Context, names: Sequence[str], preposition: str) -> None:
    """See that no option was given which this way of evaluating would pass over.

    Raises:
        ValueError: one was.
    """
    sources = {name: context.get_parameter_source(name) for name in names}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        options = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(f"{options}: not taken {preposition} --benchmark; leave it out")


def _show(evaluation: Evaluation, out: Path, table: Path | None, beside: list[str], as_json: bool) -> None:
    from qwen3_embedding.evaluation.scoreboard import Board, parse_beside, to_markdown, write_into
    from qwen3_embedding.evaluation.tables import score_rows

    if table is not None:
        others = {title: Board.read(folder) for title, folder in parse_beside(beside).items()}
        write_into(table, to_markdown(Board.read(out), others))
        print(f"wrote {table}", file=sys.stderr)
    if as_json:
        print(json.dumps(evaluation.to_mapping(), ensure_ascii=False))
        return
    headers, rows = score_rows(evaluation)
    print_table(
        rows, headers, title=f"{evaluation.embedder}{' + ' + evaluation.reranker if evaluation.reranker else ''}"
    )
    print(f"wrote {out / 'report.json'}", file=sys.stderr)


def _run_benchmark(
    name: str,
    names: list[str] | None,
    encoder: Encoder,
    scorer: Scorer | None,
    out: Path,
    policy: Literal["official", "mteb"],
    dimensions: int | None,
    candidates: int,
    log: Log,
    as_json: bool,
) -> None:
    from qwen3_embedding.evaluation.mteb import MtebSettings, benchmark_tasks, evaluate_stages
    from qwen3_embedding.evaluation.report import build_page, to_markdown

    reports = evaluate_stages(
        lambda types: benchmark_tasks(name, types=types, names=names),
        encoder,
        scorer,
        out,
        MtebSettings(policy, dimensions),
        candidates,
        log,
    )
    for report in reports:
        print(report.to_json() if as_json else to_markdown(build_page([report], name, plots=False)), end="")
    print(f"wrote {out}", file=sys.stderr)


def _server(name: str) -> tuple[str, str | None] | None:
    """URL and model of ``http://…#MODEL``; ``None`` for what is no URL."""
    if not name.startswith(("http://", "https://")):
        return None
    url, _, model = name.partition("#")
    return url, model or None


def _embedder(name: str, api_key: str | None, devices: list[str], opened: ExitStack, more: dict[str, Any]) -> Encoder:
    if server := _server(name):
        from qwen3_embedding.serving.client import RemoteEmbedder

        return opened.enter_context(RemoteEmbedder(*server, api_key=api_key))
    load: Callable[[str], Any]
    if name.startswith("st:"):
        from qwen3_embedding.evaluation.prompted import SentenceTransformerEncoder

        load = partial(SentenceTransformerEncoder, name[3:], revision=more["revision"], offline=more["offline"])
    else:
        from qwen3_embedding.inference.embedder import Embedder

        from_pretrained: Callable[..., Any] = Embedder.from_pretrained
        load = partial(from_pretrained, name, **more)
    if len(devices) == 1:
        encoder: Encoder = load(devices[0])
        return encoder
    from qwen3_embedding.evaluation.devices import DeviceEncoder

    return opened.enter_context(DeviceEncoder(load, devices))


def _reranker(name: str, api_key: str | None, devices: list[str], opened: ExitStack, more: dict[str, Any]) -> Scorer:
    if server := _server(name):
        from qwen3_embedding.serving.client import RemoteReranker

        return opened.enter_context(RemoteReranker(*server, api_key=api_key))
    from qwen3_embedding.inference.reranker import Reranker

    from_pretrained: Callable[..., Any] = Reranker.from_pretrained
    load = partial(from_pretrained, name, **more)
    if len(devices) == 1:
        scorer: Scorer = load(devices[0])
        return scorer
    from qwen3_embedding.evaluation.devices import DeviceScorer

    return opened.enter_context(DeviceScorer(load, devices))
