"""The command line: one file a verb, no logic. ``qwen3-embedding VERB --help`` (short: ``q3e``)."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from qwen3_embedding import __version__
from qwen3_embedding.errors import Qwen3EmbeddingError

VERBS = (
    "demo",
    "embed",
    "rerank",
    "index",
    "search",
    "encode",
    "verify",
    "prompt",
    "info",
    "bench",
    "serve",
    "evaluate",
    "sweep",
    "reproduce",
    "report",
    "merge",
    "synthesize",
    "decontaminate",
    "mine",
    "train",
)
"""In the order of the help page; each is a module here with a function ``command``."""

EXIT_CHECK_FAILED, EXIT_CALLER, EXIT_WORLD = 1, 2, 3


class _Verbs(TyperGroup):
    """Loads a verb's module when it is asked for, so that ``q3e embed`` does not pay for the others."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in VERBS:
            return None
        app = typer.Typer(add_completion=False)
        app.command(cmd_name)(import_module(f"qwen3_embedding.cli.{cmd_name}").command)
        return typer.main.get_command(app)


app = typer.Typer(
    cls=_Verbs,
    add_completion=False,
    no_args_is_help=True,
    help="Qwen3 Embedding and Reranker, end to end: embed, rerank, search, serve, train, merge, evaluate.",
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; exit codes: 0 done, 1 a check failed, 2 the caller's mistake, 3 the world's fault."""
    try:
        app()
    except (Qwen3EmbeddingError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            sys.exit(0)
        _fail(error, EXIT_CALLER if isinstance(error, ValueError) else EXIT_WORLD)
    except (ValueError, TypeError) as error:
        _fail(error, EXIT_CALLER)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _fail(error: BaseException, code: int) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(code)
