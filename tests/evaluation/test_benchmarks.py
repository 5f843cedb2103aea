"""The shipped definitions against mteb's own, and the instructions of both policies."""

from __future__ import annotations

import warnings

import pytest

from qwen3_embedding.evaluation.benchmarks import BENCHMARKS, BenchmarkTask, TaskDefinition, load_benchmark, load_task
from qwen3_embedding.evaluation.instructions import (
    RETRIEVAL_WITHOUT_ENTRY,
    SIMILARITY,
    TYPE_PROMPTS,
    Instructions,
    instructions_for,
    official_list,
)


def test_sizes_and_types() -> None:
    counts = {name: len(load_benchmark(name).tasks) for name in BENCHMARKS}
    assert counts == {
        "MTEB(Multilingual, v2)": 131,
        "MTEB(eng, v2)": 41,
        "MTEB(cmn, v1)": 31,
        "MTEB(Code, v1)": 12,
        "MLDR": 1,
        "FollowIR": 3,
    }
    assert len(load_benchmark("MTEB(eng, v2)").of_type("Retrieval")) == 10
    assert len(load_benchmark("MTEB(cmn, v1)").of_type("Retrieval")) == 8
    assert len(load_benchmark("MTEB(Multilingual, v2)").of_type("Retrieval")) == 18
    assert load_task("LEMBPasskeyRetrieval").main_score == "ndcg_at_1"
    assert load_task("StatcanDialogueDatasetRetrieval").main_score == "recall_at_10"
    assert {item.task.main_score for item in load_benchmark("FollowIR").tasks} == {"p-MRR"}
    by_name = {item.task.name: item for item in load_benchmark("MTEB(Multilingual, v2)").tasks}
    assert len(by_name["BelebeleRetrieval"].subsets) == 376
    assert len(by_name["FloresBitextMining"].subsets) == 204 * 203
    with pytest.raises(ValueError, match=r"no benchmark 'BEIR'; known: MTEB\(Multilingual, v2\)"):
        load_benchmark("BEIR")
    with pytest.raises(ValueError, match="no task 'X'"):
        load_task("X")


def test_definitions_as_published() -> None:
    def splits(as_published: bool) -> tuple[str, ...]:
        tasks = load_benchmark("MTEB(cmn, v1)", as_published).tasks
        return next(item.splits for item in tasks if item.task.name == "MultilingualSentiment")

    assert splits(True) == ("validation",)
    assert splits(False) == ("validation", "test")
    (mldr,) = load_benchmark("MLDR").tasks
    assert mldr.splits == ("test",)
    assert len(mldr.subsets) == 13


def test_fingerprint_tells_definitions_apart() -> None:
    task = load_task("SCIDOCS")
    same = BenchmarkTask(task, ("test", "dev"), ("default",)).fingerprint
    assert BenchmarkTask(task, ("dev", "test"), ("default",)).fingerprint == same
    assert BenchmarkTask(task, ("test",), ("default",)).fingerprint != same
    assert BenchmarkTask(load_task("ArguAna"), ("dev", "test"), ("default",)).fingerprint != same


@pytest.mark.slow
def test_shipped_definitions_equal_mteb() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mteb = pytest.importorskip("mteb")
    for name in BENCHMARKS:
        if name == "MLDR":
            continue
        theirs = {task.metadata.name: task for task in mteb.get_benchmark(name).tasks}
        ours = {item.task.name: item for item in load_benchmark(name).tasks}
        assert set(ours) == set(theirs)
        for task_name, item in ours.items():
            metadata = theirs[task_name].metadata
            assert item.task.type == metadata.type
            assert item.task.main_score == metadata.main_score
            assert (item.task.dataset, item.task.revision) == (metadata.dataset["path"], metadata.dataset["revision"])
            assert list(item.splits) == list(theirs[task_name].eval_splits)
            assert set(item.subsets) == set(theirs[task_name].hf_subsets)
    types = {item.task.type for name in BENCHMARKS for item in load_benchmark(name).tasks}
    assert types <= set(TYPE_PROMPTS)


def test_every_task_has_instructions_by_both_policies() -> None:
    for name in BENCHMARKS:
        for item in load_benchmark(name).tasks:
            assert instructions_for(item.task, "official").query, item.task.name
            mteb = instructions_for(item.task, "mteb")
            assert mteb.query, item.task.name
            assert (mteb.document is None) == item.task.asymmetric, item.task.name


@pytest.mark.parametrize(
    ("task", "query", "document"),
    [
        ("SCIDOCS", "Given a scientific paper title, retrieve paper abstracts that are cited by the given paper", None),
        ("ArguAna", *["Given a claim, find documents that refute the claim"] * 2),
        ("AskUbuntuDupQuestions", *["Retrieve duplicate questions from AskUbuntu forum"] * 2),
        ("SprintDuplicateQuestions", *[SIMILARITY] * 2),
        ("STS12", *[SIMILARITY] * 2),
        ("Tatoeba", *["Retrieve parallel sentences"] * 2),
        ("MultiLongDocRetrieval", RETRIEVAL_WITHOUT_ENTRY, None),
        ("CodeEditSearchRetrieval", "Given a piece of code, retrieval code that in the ", None),
        ("Banking77Classification", *["Given a online banking query, find the corresponding intents"] * 2),
    ],
)
def test_official_policy(task: str, query: str, document: str | None) -> None:
    assert instructions_for(load_task(task), "official") == Instructions(query, document)


def test_mteb_policy() -> None:
    asked = "Retrieve duplicate questions from AskUbuntu forum"
    assert instructions_for(load_task("AskUbuntuDupQuestions"), "mteb") == Instructions(asked, None)
    assert instructions_for(load_task("AppsRetrieval"), "mteb") == Instructions(TYPE_PROMPTS["Retrieval"], None)
    assert instructions_for(load_task("Tatoeba"), "mteb") == Instructions(*["Retrieve parallel sentences."] * 2)
    with pytest.raises(ValueError, match="no instruction policy 'own'; use official or mteb"):
        instructions_for(load_task("Tatoeba"), "own")  # type: ignore[arg-type]
    strange = TaskDefinition("x", "Riddle", "f1", "d", "r", None)
    with pytest.raises(ValueError, match="no prompt for the task type 'Riddle'"):
        instructions_for(strange, "mteb")


def test_official_list() -> None:
    listed = official_list()
    assert len(listed) > 180
    assert [task for task, (_, both) in listed.items() if both] == [
        "ArguAna",
        "CQADupstackGamingRetrieval",
        "CQADupstackUnixRetrieval",
    ]
