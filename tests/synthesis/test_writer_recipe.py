"""The recipe of the query writer and its proof, whole, at toy size: a real server of its own in another process."""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from qwen3_embedding.data import Record, write_records
from qwen3_embedding.errors import ConfigError
from qwen3_embedding.synthesis.ledger import read_pairs
from qwen3_embedding.training.config import load_settings
from tests.support.recipes import RECIPES, load_recipe
from tests.synthesis.support import NOUNS, write_toy

RECIPE = RECIPES / "synthesis"
NANO = RECIPES.parent / "qwen3_embedding" / "assets" / "nano-embedding"
PLACES = ("Oslo", "Quito", "Lagos", "Busan", "Perth", "Turin")
VARIANTS = ("all filters", "no filter", "only talk", "crops", "no filter and first sentences")
ELSEWHERE = ("Paris", "Milan", "Delhi")


def load(name: str) -> ModuleType:
    return load_recipe(f"synthesis/{name}")


def passage(noun: str, place: str) -> str:
    return f"The {noun} of {place} is old and well known. Many people go to {place} to see the {noun} in summer."


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, embedder_folder: Path) -> tuple[Any, dict[str, Any], ModuleType]:
    folder = tmp_path_factory.mktemp("recipe")
    write_toy(folder / "data", passage, PLACES, ELSEWHERE)
    run = load("run")
    words = f"--data {folder / 'data'} --corpus toy --embedder {embedder_folder} --out {folder / 'out'} --documents 24"
    words += " --writer-steps 60 --steps 3 --queries-each 2"
    options = run.parse([*words.split(), "--variants", *VARIANTS])
    run.make_writer(options)
    return options, run.run_corpus(options), run


def test_every_variant_is_measured(made: tuple[Any, dict[str, Any], ModuleType]) -> None:
    _, report, _ = made
    assert [row["variant"] for row in report["rows"]] == ["untrained", *VARIANTS]
    by_name = {row["variant"]: row for row in report["rows"]}
    assert by_name["untrained"]["gain"] == 0
    assert 0 < by_name["all filters"]["pairs"] <= by_name["only talk"]["pairs"] <= by_name["no filter"]["pairs"] <= 48
    assert by_name["crops"]["pairs"] == report["documents_written_for"] == 24
    assert by_name[VARIANTS[-1]]["pairs"] == by_name["no filter"]["pairs"] + 24
    assert [name for name, row in by_name.items() if "over" in row] == [n for n in VARIANTS if n != "crops"]
    for row in report["rows"]:
        if over := row.get("over"):
            assert list(over) == ["crops"]
            assert over["crops"]["gain"] == pytest.approx(row["gain"] - by_name["crops"]["gain"], abs=0.02)
        assert 0 <= row["ndcg@10"] <= 100
        assert row["interval"][0] <= row["gain"] <= row["interval"][1]


def test_the_pairs_are_the_writers(made: tuple[Any, dict[str, Any], ModuleType]) -> None:
    options, report, _ = made
    pairs = list(read_pairs(options.out / "toy" / "ledger.jsonl"))
    assert len(pairs) > 24
    assert {pair["provenance"]["model"] for pair in pairs} == {"writer"}
    right = [pair["record"]["query"].split()[-1] in pair["record"]["positives"][0] for pair in pairs]
    assert sum(right) > 0.8 * len(right)  # "where is the river" for a passage about a river
    assert report["samples"][0]["query"]
    assert all(pair["provenance"]["steps"][-1]["tokens"][1] > 0 for pair in pairs)


def test_again_does_nothing_anew(made: tuple[Any, dict[str, Any], ModuleType], capsys: Any) -> None:
    options, report, run = made
    files = [options.out / "toy" / "ledger.jsonl", options.out / "writer" / "model.safetensors"]
    before = [file.stat().st_mtime_ns for file in files]
    assert run.run_corpus(options) == report
    assert [file.stat().st_mtime_ns for file in files] == before
    with pytest.raises(ConfigError, match="was begun with steps = 3 and now it is 4"):
        run.run_corpus(argparse.Namespace(**{**vars(options), "steps": 4}))
    with pytest.raises(ConfigError, match=r"was begun with lessons = None and now it is \['nq_qed_en\.jsonl\.xz'\]"):
        run.make_writer(argparse.Namespace(**{**vars(options), "lessons": ["nq_qed_en.jsonl.xz"]}))
    with pytest.raises(ConfigError, match="was begun with reads = None and now it is 'opening'"):
        run.make_writer(argparse.Namespace(**{**vars(options), "reads": "opening"}))
    run.print_report(report, options)
    text = (options.out / "toy" / "report.md").read_text()
    assert "| gain (95 % interval) | over crops |" in text
    (crops, pairs) = (next(line for line in text.splitlines() if line.startswith(f"| {n} |")) for n in VARIANTS[3:1:-1])
    assert crops.endswith("|  |")
    assert pairs.count(" to ") == 2
    assert "Samples:" in capsys.readouterr().out


def test_the_lessons_are_the_recipes_or_the_named_ones(made: tuple[Any, dict[str, Any], ModuleType]) -> None:
    options, _, run = made
    recipe = load_settings(RECIPE / "writer.toml")
    weights = {name: source.weight for name, source in run.lesson_sources(recipe, options).items()}
    assert weights == {"nq_qed_en.jsonl.xz": 1.0, "jaquad_ja.jsonl.xz": 3.0, "medquad_en.jsonl.xz": 0.4}
    named = argparse.Namespace(**{**vars(options), "lessons": ["medquad_en.jsonl.xz"]})
    (source,) = run.lesson_sources(recipe, named).values()
    assert (source.path, source.weight) == (options.data / "train" / "medquad_en.jsonl.xz", 1.0)


def test_the_server_refuses_what_it_cannot_write(made: tuple[Any, dict[str, Any], ModuleType]) -> None:
    options, _, run = made
    with run.serving(options.out / "writer") as url:
        for body in (b"{", b"[]", json.dumps({"messages": [{"content": "hello"}]}).encode()):
            request = urllib.request.Request(f"{url}/chat/completions", body, {"Content-Type": "application/json"})
            with pytest.raises(urllib.error.HTTPError, match="400") as refused:
                urllib.request.urlopen(request, timeout=60)
            refused.value.close()


def test_the_start_copies_in_order(tmp_path: Path) -> None:
    from qwen3_embedding.inference.generator import Generator, Sampling

    load("start").make_start(NANO, tmp_path / "start")
    writer = Generator.from_folder(tmp_path / "start", sampling=Sampling(8, temperature=0.0))
    (separator,) = writer.tokenizer.token_ids(["\nQuery:"])
    rng = torch.Generator().manual_seed(1)
    # Words that occur once, in the order of a random document; one word is given, and those behind it are wanted.
    documents = [torch.randperm(30_000, generator=rng)[:120].add(1000).tolist() for _ in range(8)]
    given = [int(torch.randint(100, (), generator=rng)) for _ in documents]
    prompts = [[*d, *separator, d[place]] for d, place in zip(documents, given, strict=True)]
    written = [answer.ids for answer in writer.write(prompts, [None] * len(prompts))]
    assert written == [d[place + 1 : place + 9] for d, place in zip(documents, given, strict=True)]


def test_the_start_goes_on_where_two_words_match(tmp_path: Path) -> None:
    from qwen3_embedding.inference.generator import Generator, Sampling

    load("start").make_start(NANO, tmp_path / "start")
    writer = Generator.from_folder(tmp_path / "start", sampling=Sampling(4, temperature=0.0))
    texts = ["the bank of the river was built in 1874, and the bank of the city was robbed in 1911.", "\nQuery:"]
    document, separator = writer.tokenizer.token_ids(texts)
    for begin in (" the river", " the city"):
        (asked,) = writer.tokenizer.token_ids([begin])
        (written,) = writer.write([[*document, *separator, *asked]], [None])
        place = next(n for n in range(len(document)) if document[n : n + len(asked)] == asked) + len(asked)
        assert written.ids == document[place : place + 4]


def test_an_embedder_with_few_dimensions_gets_room_beside_its_words(tmp_path: Path, embedder_folder: Path) -> None:
    from qwen3_embedding.model.weights import load_backbone

    start = load("start").make_start(embedder_folder, tmp_path / "start")
    before, after = (load_backbone(folder)[0].embed_tokens.weight.float() for folder in (embedder_folder, start))
    assert after.shape[1] > before.shape[1]
    likeness = torch.nn.functional.cosine_similarity(before, after[:, : before.shape[1]], dim=-1)
    assert float(likeness.min()) > 1 - 1e-5
    assert torch.allclose(after.norm(dim=-1), torch.ones(len(after)), atol=1e-5)


def test_the_start_keeps_the_words_and_tells_silent_tokens_apart(tmp_path: Path) -> None:
    from qwen3_embedding.inputs.tokenizer import Tokenizer
    from qwen3_embedding.model.weights import load_backbone
    from qwen3_embedding.training.words import word_vectors

    start = load("start")
    folder = start.make_start(NANO, tmp_path / "start")
    words_VW = torch.nn.functional.normalize(word_vectors(load_backbone(NANO, dtype=torch.float32)[0]), dim=-1)
    after_VD = load_backbone(folder, dtype=torch.float32)[0].embed_tokens.weight.detach()
    assert torch.allclose(after_VD.norm(dim=-1), torch.ones(len(after_VD)), atol=1e-5)
    assert after_VD.shape[1] == words_VW.shape[1] + 4
    heard_V = words_VW.norm(dim=-1) > 0
    told_VW = torch.nn.functional.normalize(after_VD[:, : -start.BESIDE], dim=-1)
    # Fewer dimensions, the same neighbourhood: what two words have in common is much as it was.
    some = torch.nonzero(heard_V)[::40, 0]
    before, after = words_VW[some] @ words_VW[some].T, told_VW[some] @ told_VW[some].T
    assert float((before - after).abs().mean()) < 0.02
    tokenizer = Tokenizer.from_folder(folder)
    silent = [tokenizer.end_id, *(tokenizer.token_ids([text])[0][0] for text in ("Query", "Instruct"))]
    assert not heard_V[silent].any()
    assert float(after_VD[silent, -2].max()) < float(after_VD[heard_V, -2].min()) + 1e-6
    alike = told_VW[silent] @ told_VW.T
    alike[range(len(silent)), silent] = 0.0
    assert float(alike.max()) < 0.5  # of random directions; the table whole has over 0.99 between these


def test_passages_are_whole_sentences(embedder_folder: Path) -> None:
    from qwen3_embedding.inputs.tokenizer import Tokenizer

    passages, tokenizer = load("passages"), Tokenizer.from_folder(embedder_folder)
    text = "One is short. 二つ目は日本語です。「三つ目です。」 Version 2.5 came in 1999! Was it good?\nNo end here"
    parts = passages.sentences(text)
    assert "".join(parts) == text
    first = ["One is short.", "二つ目は日本語です。", "「三つ目です。」", "Version 2.5 came in 1999!"]
    assert [part.strip() for part in parts] == [*first, "Was it good?", "No end here"]
    assert passages.sentences("") == []
    assert passages.passages(["a ", "b ", "c "], [2, 2, 2], 4) == ["a b", "b c", "c"]
    assert passages.passages(["long ", "b"], [9, 1], 4) == ["long", "b"]
    for found in passages.passages_of([text], tokenizer, 30)[0]:
        assert found in text


def test_a_lesson_has_the_passage_that_its_query_is_about(embedder_folder: Path) -> None:
    from qwen3_embedding.inputs.tokenizer import Tokenizer

    passages, tokenizer = load("passages"), Tokenizer.from_folder(embedder_folder)
    text = " ".join(passage(noun, "Oslo") for noun in NOUNS)
    records = [Record(f"who built the {noun}?", (text,), "retrieval", "toy", negatives=("x",)) for noun in NOUNS]
    made = list(passages.lessons(iter(records), tokenizer, 40))
    assert [record.query for record in made] == [record.query for record in records]
    for noun, record in zip(NOUNS, made, strict=True):
        assert noun in record.positives[0]
        assert record.positives[0] in text
        assert len(record.positives[0]) < len(text) / 2
        assert record.negatives == ()
    assert list(passages.lessons(iter(records), tokenizer, 40, without={text})) == []


def test_the_writer_reads_the_opening_alone_where_it_is_told_to(
    made: tuple[Any, dict[str, Any], ModuleType], embedder_folder: Path
) -> None:
    from qwen3_embedding.inference.generator import Sampling
    from qwen3_embedding.inputs.tokenizer import Tokenizer

    passages, tokenizer = load("passages"), Tokenizer.from_folder(embedder_folder)
    text = " ".join(passage(noun, "Oslo") for noun in NOUNS)
    records = [Record(f"who built the {noun}?", (text,), "retrieval", "toy") for noun in NOUNS]
    (opening,) = {r.positives[0] for r in passages.lessons(iter(records), tokenizer, 40, reads="opening")}
    assert text.startswith(opening)
    writer = made[0].out / "writer"
    told = load("server").Writer(writer, Sampling(), "opening")
    (found,) = passages.passages_of([text], told.generator.tokenizer, told.longest)
    (first,) = told.generator.tokenizer.token_ids(found[:1])
    assert [told.prompt(text, seed) for seed in range(4)] == [[*first[: told.longest], *told.separator]] * 4
    free = load("server").Writer(writer, Sampling())
    assert len({tuple(free.prompt(text, seed)) for seed in range(4)}) > 1


def test_code_with_a_description_is_in_the_languages_of_a_corpus_of_both() -> None:
    fits = load("passages").in_languages
    assert fits("en-python", ["en", "python"])
    assert fits("en", ["en", "python"])
    assert fits("zh-Hant", ["zh-Hant"])
    assert not fits("en-java", ["en", "python"])
    assert not fits("en-python", ["en"])


def test_a_described_function_gets_its_docstring_back() -> None:
    passages = load("passages")
    pair = Record("Return the sum .", ("def add ( a , b ) : return a + b",), "retrieval", "toy", language="en-python")
    made = passages.documented(pair, 1.0)
    assert made.query == pair.query
    code = made.positives[0]
    assert passages.docstring(code) == "Return the sum."
    assert code.startswith('def add ( a , b ) :\n    """')
    assert code.endswith("\n    return a + b")
    assert passages.documented(pair, 0.0) == pair
    assert passages.documented(Record("x", ("y",), "retrieval", "toy", language="en-python"), 1.0).positives == ("y",)
    java = Record("x", ("def add ( a ) : 1",), "retrieval", "toy", language="en-java")
    assert passages.documented(java, 1.0) == java
    many = [Record(f"q{n}", (f"def f{n} ( ) : pass",), "retrieval", "t", language="en-python") for n in range(400)]
    assert 0.7 < sum(passages.documented(r, 0.8) != r for r in many) / len(many) < 0.9


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ('def f():\n    """One line."""\n    return 1', "One line."),
        ("def f():\n    '''\n    Two\n    lines.\n\n    More.\n    '''", "Two lines."),
        ('def f(x):\n    """Add.\n    :param x: it\n    """', "Add."),
        ("def f(): return 1", ""),
    ],
)
def test_a_docstrings_first_paragraph_is_found(code: str, wanted: str) -> None:
    assert load("passages").docstring(code) == wanted


def test_of_an_embedder_that_sums_words_only_the_words_are_trained(tmp_path: Path) -> None:
    from qwen3_embedding.model.weights import load_backbone

    run = load("run")
    options = run.parse(["--out", str(tmp_path), "--steps", "2"])
    pairs = [Record(f"when to see the {n} of {p}", (passage(n, p),), "retrieval", "toy", language="en")
             for n in NOUNS for p in PLACES]  # fmt: skip
    write_records(tmp_path / "toy.jsonl", pairs)
    made = run.train_embedder(tmp_path / "toy.jsonl", "toy", 0, options, tmp_path)
    before, after = (
        dict(load_backbone(m, dtype=torch.float32)[0].named_parameters()) for m in (options.embedder, made)
    )
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert "embed_tokens.weight" in changed
    # Projections whose output is shut are drawn anew; what adds to a state, and every norm, is as it was.
    assert not [name for name in changed if name.endswith(("o_proj.weight", "down_proj.weight", "norm.weight"))]


def test_every_filter_has_its_variants() -> None:
    run = load("run")
    found = run.variants(0.5)
    assert len(found) == 2 + 2 * len(run.SWITCHES) + len(run.BASELINES) + 1
    assert found["no filter"].needs_encoder is False
    assert found["without rank"].cosine == 0.5
    assert (found["only copy"].copy, found["only copy"].talk) == (0.8, False)
    assert "run" not in sys.modules


def test_variants_that_are_not_there_are_refused(
    made: tuple[Any, dict[str, Any], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    options, _, run = made
    with pytest.raises(SystemExit, match="docstrings: fewer than half of the documents of toy have one"):
        run.run_corpus(argparse.Namespace(**{**vars(options), "variants": ["docstrings"]}))
    monkeypatch.setattr(sys, "argv", ["run.py", "--variants", "crops", "lead", "--out", str(options.out / "x")])
    with pytest.raises(SystemExit, match="--variants lead: not known; wanted some of all filters, no filter, "):
        run.main()
    assert not (options.out / "x").exists()


def test_a_query_in_lower_case_takes_its_documents_spelling() -> None:
    respelt = load("passages").respelt
    text = "Newton met Halley in London. The comet of HALLEY, of Halley, is a comet. Comet!"
    assert respelt("when did newton meet halley's comet in oslo", text) == "When did Newton meet Halley's comet in oslo"
    for query in ("When did newton write?", "ニュートンとは", ""):
        assert respelt(query, text) == query
