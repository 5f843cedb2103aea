"""One call of the command line, in the tests' own process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Done:
    """How a call ended, and what it printed."""

    code: int
    out: str
    err: str


CommandLine = Callable[..., Done]
"""``q3e("mine", "recipe.toml", cwd=folder)``."""


def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """The command line as a function of its arguments and the folder that it is called in."""
    from qwen3_embedding.cli import main

    def call(*arguments: str, cwd: Path | None = None) -> Done:
        if cwd is not None:
            monkeypatch.chdir(cwd)
        monkeypatch.setattr("sys.argv", ["qwen3-embedding", *arguments])
        capsys.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        assert isinstance(code, int), code
        return Done(code, *capsys.readouterr())

    return call
