"""The recipe of the query writer and its proof, whole, at toy size: a real server of its own in another process."""

from __future__ import annotations

import argparse
import importlib.util
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
from qwen3_embedding.synthesis.ledger import read_pairs

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "synthesis"
NOUNS = ("river", "engine", "garden", "market", "letter", "window", "bridge", "planet")
PLACES = ("Oslo", "Quito", "Lagos", "Busan", "Perth", "Turin")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"synthesis_{name}", RECIPE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def passage(noun: str, place: str) -> str:
    return f"The {noun} of {place} is old and well known. Many people go to {place} to see the {noun} in summer."


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, embedder_folder: Path) -> tuple[Any, dict[str, Any], ModuleType]:
    folder = tmp_path_factory.mktemp("recipe")
    for name in ("nq_qed_en", "jaquad_ja", "medquad_en", "wiki_en"):
        pairs = [Record(f"where is the {n}", (passage(n, p),), "retrieval", name, language="en")
                 for n in NOUNS for p in PLACES[:3]]  # fmt: skip
        write_records(folder / "data" / "train" / f"{name}.jsonl.xz", pairs)
    task = folder / "data" / "eval" / "toy"
    (task / "qrels").mkdir(parents=True)
    texts = [(f"d{n}{p}", passage(NOUNS[n], PLACES[p])) for n in range(6) for p in range(6)]
    (task / "corpus.jsonl").write_text("".join(json.dumps({"_id": i, "text": t}) + "\n" for i, t in texts))
    (task / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": f"q{n}", "text": f"when to see the {NOUNS[n]} of Oslo?"}) + "\n" for n in range(6))
    )
    qrels = "".join(f"q{n}\td{n}0\t1\n" for n in range(6))
    (task / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{qrels}")
    run = load("run")
    words = f"--data {folder / 'data'} --corpus toy --embedder {embedder_folder} --out {folder / 'out'} --documents 24"
    words += " --writer-steps 60 --steps 3 --queries-each 2"
    options = run.parse([*words.split(), "--variants", "all filters", "no filter", "only talk", "crops"])
    run.make_writer(options)
    return options, run.run_corpus(options), run


def test_every_variant_is_measured(made: tuple[Any, dict[str, Any], ModuleType]) -> None:
    _, report, _ = made
    assert [row["variant"] for row in report["rows"]] == ["untrained", "all filters", "no filter", "only talk", "crops"]
    by_name = {row["variant"]: row for row in report["rows"]}
    assert by_name["untrained"]["gain"] == 0
    assert 0 < by_name["all filters"]["pairs"] <= by_name["only talk"]["pairs"] <= by_name["no filter"]["pairs"] <= 48
    assert by_name["crops"]["pairs"] == report["documents_written_for"] == 24
    for row in report["rows"]:
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
    with pytest.raises(SystemExit, match="was begun with steps 3, not 4"):
        run.run_corpus(argparse.Namespace(**{**vars(options), "steps": 4}))
    run.print_report(report, options)
    assert "| all filters |" in (options.out / "toy" / "report.md").read_text()
    assert "Samples:" in capsys.readouterr().out


def test_the_server_refuses_what_it_cannot_write(made: tuple[Any, dict[str, Any], ModuleType]) -> None:
    options, _, run = made
    with run.serving(options.out / "writer") as url:
        for body in (b"{", b"[]", json.dumps({"messages": [{"content": "hello"}]}).encode()):
            request = urllib.request.Request(f"{url}/chat/completions", body, {"Content-Type": "application/json"})
            with pytest.raises(urllib.error.HTTPError, match="400") as refused:
                urllib.request.urlopen(request, timeout=60)
            refused.value.close()


def test_the_start_has_the_embedders_words_and_copies(tmp_path: Path, embedder_folder: Path) -> None:
    from qwen3_embedding.inference.generator import Generator
    from qwen3_embedding.model.decoding import Decoder
    from qwen3_embedding.model.weights import load_backbone

    start = load("start").make_start(embedder_folder, tmp_path / "start")
    before, after = (load_backbone(folder)[0].embed_tokens.weight.float() for folder in (embedder_folder, start))
    likeness = torch.nn.functional.cosine_similarity(before, after, dim=-1)
    assert float(likeness.min()) > 1 - 1e-5
    assert torch.allclose(after.norm(dim=-1), torch.ones(len(after)), atol=1e-5)
    generator = Generator.from_folder(start)
    prompt = [500, 900, 1300, 1700, 2100, 40]
    logits = Decoder(generator._backbone, generator._head_VD, [prompt], 1).logits_BV[0]
    ranks = sorted(int((logits > logits[token]).sum()) for token in prompt)
    assert ranks[3] < 50  # of 3,000 tokens, most of those of the document are among the likeliest


def test_the_start_keeps_the_words_and_tells_silent_tokens_apart(tmp_path: Path) -> None:
    from qwen3_embedding.inputs.tokenizer import Tokenizer
    from qwen3_embedding.model.weights import load_backbone
    from qwen3_embedding.training.words import word_vectors

    source = RECIPE.parents[1] / "qwen3_embedding" / "assets" / "nano-embedding"
    start = load("start").make_start(source, tmp_path / "start")
    words_VW = word_vectors(load_backbone(source, dtype=torch.float32)[0])
    after_VD = load_backbone(start, dtype=torch.float32)[0].embed_tokens.weight.detach()
    heard_V = words_VW.norm(dim=-1) > 0
    likeness = torch.nn.functional.cosine_similarity(words_VW, after_VD[:, : words_VW.shape[1]], dim=-1)
    assert float(likeness[heard_V].min()) > 1 - 1e-5
    assert torch.allclose(after_VD.norm(dim=-1), torch.ones(len(after_VD)), atol=1e-5)
    tokenizer = Tokenizer.from_folder(start)
    silent = [tokenizer.end_id, *(tokenizer.token_ids([text])[0][0] for text in ("Query", "Instruct"))]
    assert not heard_V[silent].any()
    alike = after_VD[silent] @ after_VD.T
    alike[range(len(silent)), silent] = 0.0
    assert float(alike.max()) < 0.5  # of random directions; the table whole has over 0.99 between these


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
    assert len(found) == 2 + 2 * len(run.SWITCHES) + 2
    assert found["no filter"].needs_encoder is False
    assert found["without rank"].cosine == 0.5
    assert (found["only copy"].copy, found["only copy"].talk) == (0.8, False)
    assert "run" not in sys.modules
