"""``qwen3-embedding merge``: what it prints, and its exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen3_embedding.cli import main
from tests.support.checkpoints import make_embedder_folder


class Done:
    """Exit code and output of one call of the command line."""

    def __init__(self, code: object, out: str, err: str) -> None:
        self.returncode, self.stdout, self.stderr = code, out, err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    def call(*arguments: str, cwd: Path) -> Done:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["qwen3-embedding", "merge", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return Done(ended.value.code, *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merge")
    for seed in range(2):
        make_embedder_folder(folder / f"run-{seed}", seed=seed)
    sources = "".join(f'[[sources]]\npath = "run-{seed}"\n' for seed in range(2))
    (folder / "recipe.toml").write_text(f'method = "slerp"\noutput = "merged"\noverwrite = true\n{sources}')
    return folder


def test_summary_goes_to_stdout_and_the_place_to_stderr(workplace: Path, run: Callable[..., Done]) -> None:
    done = run("recipe.toml", "--json", cwd=workplace)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["sources"] == ["run-0", "run-1"]
    assert summary["largest_angle_degrees"] > 45
    assert done.stderr == "wrote merged\n"
    assert (workplace / "merged" / "model.safetensors").exists()


def test_exit_codes_tell_the_callers_mistake_from_the_worlds_fault(workplace: Path, run: Callable[..., Done]) -> None:
    wrong = workplace / "wrong.toml"
    wrong.write_text((workplace / "recipe.toml").read_text().replace("slerp", "slurp"))
    done = run("wrong.toml", cwd=workplace)
    assert (done.returncode, done.stdout) == (2, "")
    assert "wanted one of 'linear'" in done.stderr
    wrong.write_text((workplace / "recipe.toml").read_text().replace("run-1", "run-9"))
    done = run("wrong.toml", cwd=workplace)
    assert (done.returncode, done.stdout) == (3, "")
    assert "run-9" in done.stderr
