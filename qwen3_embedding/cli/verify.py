"""``verify``: is this checkpoint, or this server, the model it should be?"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import Annotated, Literal

import typer

from qwen3_embedding.cli.common import Device, DType, HubName, Json, Offline, hub


def command(
    source: Annotated[str | None, typer.Argument(help="Folder, hub id, or bundled name.")] = None,
    url: Annotated[
        str | None,
        typer.Option(help="A server instead, of any make: OpenAI, TEI, Cohere, Jina or vLLM dialect."),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(help="With --url: the model it should be (folder, hub id, bundled name). Repeatable: one a kind."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="With --url: the model's name there. Default: asked.")] = None,
    api_key: Annotated[
        str | None, typer.Option(help="With --url: the key. QWEN3_EMBEDDING_API_KEY is read otherwise.")
    ] = None,
    kind: Annotated[Literal["auto", "embedder", "reranker"], typer.Option(help="What it should be.")] = "auto",
    device: Device = "auto",
    dtype: DType = "auto",
    hub_name: HubName = "huggingface",
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Check shapes, token ids, prompts, invariances and the published golden values; exit 1 if one fails.

    With --url a running server is asked instead, and the likely cause of each failure is named.
    """
    if (source is None) == (url is None):
        raise ValueError("wanted a model or --url, one of the two")
    if url is not None:
        _server(
            url, against or [], model, api_key or os.environ.get("QWEN3_EMBEDDING_API_KEY"), offline, hub_name, as_json
        )
        return
    from qwen3_embedding.inference.verify import verify

    assert source is not None
    checks = verify(source, None if kind == "auto" else kind, device, dtype, offline, hub(hub_name))
    failed = [check for check in checks if check.outcome == "fail"]
    if as_json:
        print(
            json.dumps(
                {"source": source, "passed": not failed, "checks": [asdict(c) for c in checks]}, ensure_ascii=False
            )
        )
    else:
        for check in checks:
            wanted = f" (wanted: {check.wanted})" if check.wanted else ""
            print(f"{check.outcome:4}  {check.name}: {check.got}{wanted}")
        print(f"{source}: {'FAILED ' + str(len(failed)) + ' of ' if failed else 'passed all '}{len(checks)} checks")
    if failed:
        raise typer.Exit(1)


def _server(
    url: str, against: list[str], model: str | None, api_key: str | None, offline: bool, hub_name: str, as_json: bool
) -> None:
    from qwen3_embedding.optional import require

    require("httpx", extra="serve")
    from qwen3_embedding.serving.anyserver import AnyServer
    from qwen3_embedding.serving.verify import load_reference, verify_server

    reference = load_reference(against, offline, hub(hub_name))
    with AnyServer(url, api_key, model) as server:
        findings = verify_server(server, reference)
    failed = [finding for finding in findings if finding.outcome == "fail"]
    if as_json:
        checks = [asdict(finding) for finding in findings]
        print(json.dumps({"url": url, "passed": not failed, "checks": checks}, ensure_ascii=False))
    else:
        for finding in findings:
            wanted = f" (wanted: {finding.wanted})" if finding.wanted else ""
            print(f"{finding.outcome:4}  {finding.name}: {finding.got}{wanted}")
            if finding.cause:
                print(f"      likely cause: {finding.cause}")
        skipped = sum(finding.outcome == "skip" for finding in findings)
        verdict = f"FAILED {len(failed)} of" if failed else "passed"
        print(f"{url}: {verdict} {len(findings) - skipped} checks" + (f", {skipped} skipped" if skipped else ""))
    if failed:
        raise typer.Exit(1)
