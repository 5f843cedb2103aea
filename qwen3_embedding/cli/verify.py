"""``verify``: is this checkpoint the model it should be?"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Literal

import typer

from qwen3_embedding.cli.common import Device, DType, HubName, Json, Offline, hub


def command(
    source: Annotated[str, typer.Argument(help="Folder, hub id, or bundled name.")],
    kind: Annotated[Literal["auto", "embedder", "reranker"], typer.Option(help="What it should be.")] = "auto",
    device: Device = "auto",
    dtype: DType = "auto",
    hub_name: HubName = "huggingface",
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Check shapes, token ids, prompts, invariances and the published golden values; exit 1 if one fails."""
    from qwen3_embedding.inference.verify import verify

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
