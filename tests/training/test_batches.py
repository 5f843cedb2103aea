"""Batches: one group each, the same for the same step, texts as the tokenizer gives them."""

from __future__ import annotations

from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3_embedding.data import Record, text_hash, write_records
from qwen3_embedding.errors import ConfigError, DataError
from qwen3_embedding.inputs.tokenizer import Tokenizer
from qwen3_embedding.training.batches import Batches, without_common_run
from qwen3_embedding.training.config import DataSettings, SourceSettings, load_settings
from tests.training.support import pair_records, settings, write_sources


def batches(
    folder: Path, model: Path, records: list[Record], source: dict[str, object] | None = None, **data: object
) -> Batches:
    path = folder / f"{len(list(folder.iterdir()))}.jsonl"
    write_records(path, records)
    made = DataSettings(
        sources=(SourceSettings(path=path, **(source or {})),),  # type: ignore[arg-type]
        cache=folder / "cache",
        **{"batch_size": 8, "max_query_tokens": 60, "max_document_tokens": 30, **data},  # type: ignore[arg-type]
    )
    return Batches(made, model, Tokenizer.from_folder(model).end_id, seed=3)


def test_texts_are_those_of_the_tokenizer(tmp_path: Path, embedder_folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(embedder_folder)
    records = [
        Record('"quoted" start', ("d",), "retrieval", "made", instruction="Find it"),
        Record(" space", ("  two\n",), "retrieval", "made"),
        Record("<|im_end|>", ("<|endoftext|> inside",), "retrieval", "made", instruction=""),
        Record("long " * 100, ("words and " * 100,), "retrieval", "made", negatives=("no",)),
    ]
    made = batches(tmp_path, embedder_folder, records, batch_size=4)
    batch = made.batch(0)
    for place, row in enumerate(batch.records.tolist()):
        record = records[row]
        wanted = tokenizer.encode_queries([record.query], record.instruction, max_tokens=60).ids[0]
        assert batch.queries[place].tolist() == wanted
        assert batch.positives[place].tolist() == tokenizer.encode_documents(record.positives, max_tokens=30).ids[0]
        for ids in (batch.queries[place], batch.positives[place]):
            assert (ids == tokenizer.end_id).sum() == 1
            assert ids[-1] == tokenizer.end_id
    assert len(batch.negatives) == 1
    assert list(made.facts().values()) == [{"records": 4, "cut_queries": 1, "cut_documents": 1}]
    assert records[int(batch.records[batch.items.negative_owners[0]])].negatives


def test_a_batch_has_one_task_source_and_language(tmp_path: Path, embedder_folder: Path) -> None:
    made = settings(tmp_path, embedder_folder)
    source = Batches(made.data, embedder_folder, 0, seed=0)
    groups = {source.batch(step).group for step in range(40)}
    assert groups == {
        "pairs/retrieval/en",
        "pairs/retrieval/xx",
        "graded/sts/-",
        "labels/classification/-",
    }
    for step in range(20):
        batch = source.batch(step)
        assert len(batch.queries) == len(batch.positives) == len(batch.items.query_ids) <= 16
        assert (batch.task == "sts") == bool(np.isfinite(batch.grades).all())


def test_small_languages_share_a_group(tmp_path: Path, embedder_folder: Path) -> None:
    records = [
        Record(f"q{n}", (f"d{n}",), "bitext", "made", language="en" if n < 20 else f"l{n % 5}") for n in range(30)
    ]
    made = batches(tmp_path, embedder_folder, records)
    assert [(group.name.split("/")[-1], group.size) for group in made.mixture.groups] == [("en", 20), ("*", 10)]


def test_the_same_step_is_the_same_batch(tmp_path: Path, embedder_folder: Path) -> None:
    made = settings(tmp_path, embedder_folder)
    one, other = (Batches(made.data, embedder_folder, 1, seed=4) for _ in range(2))
    other.batch(11)
    for step in (7, 0, 11):
        a, b = one.batch(step), other.batch(step)
        assert a.group == b.group
        assert all(np.array_equal(x, y) for x, y in zip(a.sequences, b.sequences, strict=True))
        assert a.items.query_ids.equal(b.items.query_ids)
        assert a.items.positive_ids.equal(b.items.positive_ids)


def test_all_positives_of_a_query_are_known(tmp_path: Path, embedder_folder: Path) -> None:
    records = [Record(f"q{n}", (f"a{n}", f"b{n}"), "retrieval", "made") for n in range(8)]
    batch = batches(tmp_path, embedder_folder, records).batch(0)
    for row, known in zip(batch.records.tolist(), batch.items.positive_ids.tolist(), strict=True):
        assert set(known) == {text_hash(f"a{row}"), text_hash(f"b{row}")}


def test_swapped_pairs_change_places_under_the_same_prompt(tmp_path: Path, embedder_folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(embedder_folder)
    records = [Record(f"hello {n}", (f"bonjour {n}",), "bitext", "made", instruction="Translate") for n in range(8)]
    batch = batches(tmp_path, embedder_folder, records, {"swap": 1.0}).batch(0)
    for place, row in enumerate(batch.records.tolist()):
        assert batch.queries[place].tolist() == tokenizer.encode_queries([f"bonjour {row}"], "Translate").ids[0]
        assert batch.positives[place].tolist() == tokenizer.encode_documents([f"hello {row}"]).ids[0]
        assert batch.items.query_ids[place] == text_hash(f"bonjour {row}")
        assert batch.items.positive_ids[place].tolist() == [text_hash(f"hello {row}")]


def test_crops_are_stretches_of_the_document(tmp_path: Path, embedder_folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(embedder_folder)
    records = [Record("title", (" ".join(f"word{n}{k}" for k in range(9)),), "retrieval", "made") for n in range(8)]
    made = batches(
        tmp_path, embedder_folder, records, {"crop": 1.0}, crop_tokens=(3, 5), crop_removed=0.0, max_document_tokens=90
    )
    prefix = tokenizer.encode_queries([""]).ids[0][:-1]
    batch = made.batch(0)
    for query, document in zip(batch.queries, batch.positives, strict=True):
        assert query[: len(prefix)].tolist() == prefix
        stretch = query[len(prefix) : -1].tolist()
        assert 3 <= len(stretch) <= 5
        assert any(document[at : at + len(stretch)].tolist() == stretch for at in range(len(document)))
    assert len(set(batch.items.query_ids.tolist())) == 8


def test_what_a_query_copies_is_hidden_in_its_document(tmp_path: Path, embedder_folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(embedder_folder)
    text = "red one two three four five six blue"
    records = [
        Record("who saw two three four five?", (text,), "retrieval", "made"),
        Record("nothing like it", (text,), "retrieval", "made"),
        Record(text, (text,), "retrieval", "made"),
    ]
    long: dict[str, Any] = {"hide_tokens": 4, "batch_size": 3, "max_document_tokens": 90}
    plain = batches(tmp_path, embedder_folder, records, **long).batch(0)
    hidden = batches(tmp_path, embedder_folder, records, {"hide": 1.0}, **long).batch(0)
    whole = tokenizer.encode_documents([text]).ids[0]
    assert plain.records.tolist() == hidden.records.tolist()
    assert [query.tolist() for query in plain.queries] == [query.tolist() for query in hidden.queries]
    assert plain.items.positive_ids.tolist() == hidden.items.positive_ids.tolist()
    for row, before, after in zip(hidden.records.tolist(), plain.positives, hidden.positives, strict=True):
        assert before.tolist() == whole
        if row == 0:
            assert tokenizer.decode(after[:-1].tolist()) == "red one six blue"
        else:  # no common run that is long enough, or nothing else in the document
            assert after.tolist() == whole


def test_the_longest_common_run_is_what_the_library_finds() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        query, document = (rng.integers(0, 4, rng.integers(1, size)).astype(np.int32) for size in (12, 30))
        found = SequenceMatcher(None, query.tolist(), document.tolist(), autojunk=False).find_longest_match()
        left = without_common_run(query, document, 2)
        if found.size < 2 or found.size == len(document):
            assert left is document
            continue
        assert len(left) == len(document) - found.size
        cut = next(at for at in range(len(left) + 1) if at == len(left) or left[at] != document[at])
        starts = range(max(0, cut - found.size), cut + 1)
        own = query.tolist()
        assert any(
            np.array_equal(left, np.delete(document, slice(at, at + found.size)))
            and any(own[b : b + found.size] == document[at : at + found.size].tolist() for b in range(len(own)))
            for at in starts
        )


def test_an_instruction_of_the_source_replaces_the_records(tmp_path: Path, embedder_folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(embedder_folder)
    records = [Record("q", ("d",), "retrieval", "made", instruction="old") for _ in range(2)]
    for given, meant in (("new", "new"), ("default", None)):
        batch = batches(tmp_path, embedder_folder, records, {"instruction": given}).batch(0)
        assert batch.queries[0].tolist() == tokenizer.encode_queries(["q"], meant).ids[0]


def test_tokens_are_kept_and_made_anew_when_anything_changes(tmp_path: Path, embedder_folder: Path) -> None:
    records = pair_records(20)
    made = batches(tmp_path, embedder_folder, records)
    folder = made.stores[0].folder
    stamp = (folder / "ids.npy").stat().st_mtime_ns
    assert batches(tmp_path, embedder_folder, records).stores[0].folder == folder
    assert (folder / "ids.npy").stat().st_mtime_ns == stamp
    assert batches(tmp_path, embedder_folder, records[:-1]).stores[0].folder != folder
    assert batches(tmp_path, embedder_folder, records, {"cap": 5}).stores[0].folder != folder
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_a_cap_takes_the_same_choice_every_time(tmp_path: Path, embedder_folder: Path) -> None:
    made = batches(tmp_path, embedder_folder, pair_records(50), {"cap": 10})
    assert len(made.stores[0]) == 10


def test_a_prompt_that_leaves_no_room_for_the_query_is_refused(tmp_path: Path, embedder_folder: Path) -> None:
    records = [Record("q", ("d",), "retrieval", "made", instruction="word " * 70) for _ in range(2)]
    with pytest.raises(DataError, match="leaves no room for the query"):
        batches(tmp_path, embedder_folder, records)


def test_labelled_records_without_negatives_are_refused(tmp_path: Path, embedder_folder: Path) -> None:
    records = [Record("q", ("label",), "classification", "made") for _ in range(4)]
    with pytest.raises(DataError, match="record 1 of those used is classification and has no negatives"):
        batches(tmp_path, embedder_folder, records)


def test_recipes_with_mistakes_are_refused(tmp_path: Path, embedder_folder: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    write_sources(tmp_path)
    good = f'kind = "embedder"\nmodel = "{embedder_folder}"\noutput = "{tmp_path}/out"\n'
    for rest, reason in (
        ("[data]\nsources = []\n", "sources is empty"),
        ('[data]\nsources = [{path = "x", swap = 2.0}]\n', "swap=2.0; wanted a share"),
        ('[data]\nsources = [{path = "x"}]\nbatchsize = 2\n', "unknown key 'batchsize'; did you mean 'batch_size'"),
        ('[data]\nsources = [{path = "x"}]\n[loss]\ntemperature = 0\n', "temperature=0"),
        ('[data]\nsources = [{path = "x"}]\n[reranker]\nloss = "distillation"\n', "needs teacher"),
        ('[data]\nsources = [{path = "x"}]\n[run]\nsteps = 0\n', "steps=0; wanted at least 1"),
    ):
        recipe.write_text(good + rest)
        with pytest.raises(ConfigError, match=reason):
            load_settings(recipe)
