"""``qwen3-embedding merge``: what it prints, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.checkpoints import make_embedder_folder

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qwen3_embedding", "merge", *arguments]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merge")
    for seed in range(2):
        make_embedder_folder(folder / f"run-{seed}", seed=seed)
    sources = "".join(f'[[sources]]\npath = "run-{seed}"\n' for seed in range(2))
    (folder / "recipe.toml").write_text(f'method = "slerp"\noutput = "merged"\noverwrite = true\n{sources}')
    return folder


def test_merge_prints_a_summary_on_stdout_and_where_it_wrote_on_stderr(workplace: Path) -> None:
    done = run("recipe.toml", "--json", cwd=workplace)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["sources"] == ["run-0", "run-1"]
    assert summary["largest_angle_degrees"] > 45
    assert done.stderr == "wrote merged\n"
    assert (workplace / "merged" / "model.safetensors").exists()


def test_exit_codes_tell_the_callers_mistake_from_the_worlds_fault(workplace: Path) -> None:
    wrong = workplace / "wrong.toml"
    wrong.write_text((workplace / "recipe.toml").read_text().replace("slerp", "slurp"))
    done = run("wrong.toml", cwd=workplace)
    assert (done.returncode, done.stdout) == (2, "")
    assert "wanted one of 'linear'" in done.stderr
    wrong.write_text((workplace / "recipe.toml").read_text().replace("run-1", "run-9"))
    done = run("wrong.toml", cwd=workplace)
    assert (done.returncode, done.stdout) == (3, "")
    assert "run-9" in done.stderr
