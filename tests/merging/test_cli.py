"""``qwen3-embedding merge``: what it prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.checkpoints import make_embedder_folder
from tests.support.command_line import CommandLine
from tests.support.tasks import write_task


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merge")
    for seed in range(2):
        make_embedder_folder(folder / f"run-{seed}", seed=seed)
    sources = "".join(f'[[sources]]\npath = "run-{seed}"\n' for seed in range(2))
    (folder / "recipe.toml").write_text(f'method = "slerp"\noutput = "merged"\noverwrite = true\n{sources}')
    return folder


def test_summary_goes_to_stdout_and_the_place_to_stderr(workplace: Path, q3e: CommandLine) -> None:
    done = q3e("merge", "recipe.toml", "--json", cwd=workplace)
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    assert summary["sources"] == ["run-0", "run-1"]
    assert summary["largest_angle_degrees"] > 45
    assert done.err == "wrote merged\n"
    assert (workplace / "merged" / "model.safetensors").exists()


def test_exit_codes_tell_the_callers_mistake_from_the_worlds_fault(workplace: Path, q3e: CommandLine) -> None:
    wrong = workplace / "wrong.toml"
    wrong.write_text((workplace / "recipe.toml").read_text().replace("slerp", "slurp"))
    done = q3e("merge", "wrong.toml", cwd=workplace)
    assert (done.code, done.out) == (2, "")
    assert "wanted one of 'linear'" in done.err
    wrong.write_text((workplace / "recipe.toml").read_text().replace("run-1", "run-9"))
    done = q3e("merge", "wrong.toml", cwd=workplace)
    assert (done.code, done.out) == (3, "")
    assert "run-9" in done.err


def test_search_scores_merges_on_held_out_tasks_and_resumes(workplace: Path, q3e: CommandLine) -> None:
    texts = ["tides follow the moon", "banks lend money", "leaves turn red", "code has errors", "rivers carry soil"]
    documents = {f"d{n}": text for n, text in enumerate(texts)}
    queries = {f"q{n}": text.split()[-1] for n, text in enumerate(texts)}
    write_task(workplace / "dev" / "small", documents, queries, dict(zip(queries, documents, strict=True)))
    text = (workplace / "recipe.toml").read_text().replace('"merged"', '"best"')
    search = '[search]\nfolders = ["dev"]\nevaluations = {}\nstrategy = "random"\n'
    (workplace / "search.toml").write_text(text + search.format(3))
    first = q3e("merge", "search.toml", cwd=workplace)
    assert first.code == 0, first.err
    (workplace / "search.toml").write_text(text + search.format(4))
    done = q3e("merge", "search.toml", "--json", cwd=workplace)
    assert done.code == 0, done.err
    assert len(done.err.splitlines()) == 3  # one new trial, the best, and where it was written
    stored = json.loads((workplace / "best" / "merge-search.json").read_text())
    assert len(stored["trials"]) == 4
    assert stored["best"]["score"] == max(trial["score"] for trial in stored["trials"]) > 0
    from qwen3_embedding import Embedder
    from qwen3_embedding.evaluation.run import evaluate
    from qwen3_embedding.evaluation.tasks import TaskSettings

    again = evaluate(
        [workplace / "dev"], Embedder.from_pretrained(workplace / "best"), None, TaskSettings(), workplace / "evaluated"
    )
    assert again.tasks[0].scores["embedder"]["ndcg@10"] == pytest.approx(stored["best"]["score"])


def test_a_search_without_held_out_tasks_is_a_mistake(workplace: Path, q3e: CommandLine) -> None:
    (workplace / "wrong.toml").write_text((workplace / "recipe.toml").read_text() + "[search]\nevaluations = 5\n")
    done = q3e("merge", "wrong.toml", cwd=workplace)
    assert done.code == 2
    assert "search" in done.err
