"""``prompt``: the exact input of the model, and its token ids."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from qwen3_embedding.cli.common import HubName, Json, Offline, hub


def command(
    text: Annotated[str, typer.Argument(help="The query, or with --query the document.")],
    model: Annotated[str, typer.Option("--model", help="Folder, hub id, or bundled name.")] = "nano-embedding",
    query: Annotated[
        str | None, typer.Option("--query", help="Show the reranker's prompt for this query and the text.")
    ] = None,
    document: Annotated[bool, typer.Option("--document", help="Show the text as an embedder's document.")] = False,
    instruction: Annotated[str | None, typer.Option(help="The task; default: web search.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Length limit, to see what would be cut.")] = None,
    parse_special: Annotated[
        bool, typer.Option(help="Read special-token strings as control tokens (the reference).")
    ] = False,
    hub_name: HubName = "huggingface",
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Print the exact rendered input and its token ids."""
    from qwen3_embedding.inference.source import resolve
    from qwen3_embedding.inputs.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_folder(resolve(model, offline=offline, hub=hub(hub_name)), parse_special)
    if query is not None:
        encoded = tokenizer.encode_pairs([query], [text], instruction, max_tokens)
    elif document:
        encoded = tokenizer.encode_documents([text], max_tokens)
    else:
        encoded = tokenizer.encode_queries([text], instruction, max_tokens)
    ids = encoded.ids[0]
    rendered = tokenizer.decode(ids)
    if as_json:
        facts = {
            "prompt": rendered,
            "ids": ids,
            "tokens": tokenizer.token_strings(ids),
            "cut_tokens": encoded.cut_tokens[0],
        }
        print(json.dumps(facts, ensure_ascii=False))
        return
    print(rendered)
    print(f"\n{len(ids)} tokens: {ids}")
    if encoded.cut_tokens[0]:
        print(f"{encoded.cut_tokens[0]} tokens were cut")
