"""The README's Python runs as it stands, and what it links to is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_the_readme_runs(block: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_there_is_something_to_run() -> None:
    assert len(BLOCKS) >= 1


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_every_verb_has_its_module_and_help() -> None:
    from typer.testing import CliRunner

    from qwen3_embedding.cli import VERBS, app

    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0, result.output
    for verb in VERBS:
        assert verb in result.output
        assert CliRunner().invoke(app, [verb, "--help"]).exit_code == 0, verb
