"""A public causal language model as the query writer: learnt, killed, served, and the same text for the same seed."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from qwen3_embedding.data import write_records
from qwen3_embedding.errors import CheckpointError, ConfigError, DataError
from qwen3_embedding.inference.generator import Sampling
from qwen3_embedding.synthesis.ledger import read_pairs
from qwen3_embedding.training.config import LoraSettings, load_settings
from tests.support.recipes import RECIPES, load_recipe
from tests.synthesis.support import NOUNS, write_toy

FOLDER = RECIPES / "synthesis"
PLACES = ("Oslo", "Quito", "Lagos", "Busan")
STEPS = 40


def passage(noun: str, place: str) -> str:
    return f"The {noun} of {place} is old and well known, and many people go to {place} to see the {noun} in summer."


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, reranker_folder: Path) -> Path:
    """A tiny model of another family than Qwen3, which has learnt to ask otherwise than the lessons do."""
    folder = tmp_path_factory.mktemp("llama")
    tokens = transformers.AutoTokenizer.from_pretrained(reranker_folder)
    config = transformers.LlamaConfig(
        vocab_size=len(tokens), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, eos_token_id=tokens.eos_token_id, pad_token_id=tokens.pad_token_id,
        bos_token_id=None, tie_word_embeddings=True, initializer_range=0.1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    texts = [f"{passage(n, p)}\nQuery: who saw the {n}" + tokens.eos_token for n in NOUNS for p in PLACES]
    batch = torch.tensor([row + [tokens.pad_token_id] * (80 - len(row)) for row in tokens(texts)["input_ids"]])
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("data"), passage, PLACES[:3], ("Paris", "Milan"))


def recipe_with(tmp_path: Path) -> Path:
    """A copy of the recipe with a rate that teaches a tiny model in seconds and a checkpoint every other step."""
    folder = tmp_path / "synthesis"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    settings = (folder / "public_writer.toml").read_text()
    for before, after in (("learning_rate = 0.0005", "learning_rate = 0.02"), ("every = 10", "every = 2")):
        assert before in settings
        settings = settings.replace(before, after)
    (folder / "public_writer.toml").write_text(settings)
    return folder


def command(folder: Path, data: Path, llama: Path, out: Path) -> list[str]:
    words = f"--data {data} --corpus toy --embedder {FOLDER.parents[1] / 'qwen3_embedding/assets/nano-embedding'}"
    words += f" --out {out} --writer-model {llama} --writer-steps {STEPS} --steps 2 --batch-size 8 --queries-each 2"
    return [sys.executable, str(folder / "run.py"), *words.split(), "--variants", "no filter"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, data: Path, llama: Path) -> Path:
    """The recipe's folder after a run that was killed in the middle of the writer's lessons."""
    tmp_path = tmp_path_factory.mktemp("made")
    wanted = command(recipe_with(tmp_path), data, llama, tmp_path / "out")
    with subprocess.Popen(wanted, stderr=subprocess.PIPE) as process:
        until = time.monotonic() + 120
        while not list((tmp_path / "out" / "writer.run").glob("checkpoint*/*")) and time.monotonic() < until:
            time.sleep(0.02)
        process.kill()
    assert not (tmp_path / "out" / "writer").exists()
    done = subprocess.run(wanted, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return tmp_path / "out"


def test_the_pairs_are_the_public_models(made: Path) -> None:
    pairs = list(read_pairs(made / "toy" / "ledger.jsonl"))
    assert len(pairs) >= 16  # of 9 documents with 2 queries each; an empty one is no pair
    assert {pair["provenance"]["model"] for pair in pairs} == {"writer"}
    asked = [pair["record"]["query"].startswith("where is the") for pair in pairs]
    assert sum(asked) > len(asked) / 2  # before the lessons it asks "who saw the"
    report = json.loads((made / "toy" / "report.json").read_text())
    assert [row["variant"] for row in report["rows"]] == ["untrained", "no filter"]
    log = [json.loads(line)["loss"] for line in (made / "writer.run" / "log.jsonl").read_text().splitlines()]
    assert len(log) == STEPS
    assert log[-1] < 0.5 * log[0]


def test_killed_is_as_uninterrupted(made: Path, tmp_path: Path, data: Path, llama: Path) -> None:
    folder = recipe_with(tmp_path)
    program = f"import sys; sys.path.insert(0, {str(folder)!r}); import run; run.make_writer(run.parse(sys.argv[1:]))"
    arguments = command(folder, data, llama, tmp_path / "out")[2:]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, capture_output=True, timeout=300)
    name = "writer/model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (made / name).read_bytes()


@pytest.fixture(scope="module")
def public() -> Any:
    return load_recipe("synthesis/public_writer")


def test_a_seed_says_what_is_written(made: Path, public: Any) -> None:
    writer = public.PublicGenerator(made / "writer", Sampling(12, temperature=1.5, top_p=0.99, top_k=0))
    prompts = writer.tokenizer.token_ids([f"{passage(noun, 'Oslo')}\nQuery:" for noun in NOUNS])
    together = writer.write(prompts, range(8))
    assert [writer.write([prompt], [seed])[0] for seed, prompt in enumerate(prompts)] == together
    assert writer.write(prompts, range(8, 16)) != together
    assert all(len(written.ids) == 12 for written in together if written.truncated)
    assert all(writer.tokenizer.hf.eos_token_id not in written.ids for written in together)


def test_draws_follow_the_models_probabilities(made: Path, public: Any) -> None:
    writer = public.PublicGenerator(made / "writer", Sampling(1, temperature=2.0, top_p=1.0, top_k=4))
    (prompt,) = writer.tokenizer.token_ids([f"{passage('river', 'Oslo')}\nQuery:"])
    with torch.inference_mode():
        logits = writer._model(input_ids=torch.tensor([prompt])).logits[0, -1]
    best = logits.topk(4)
    expected = (best.values / 2.0).softmax(0)
    written = [
        w.ids[0] if w.ids else writer.tokenizer.hf.eos_token_id for w in writer.write([prompt] * 600, range(600))
    ]
    shares = torch.tensor([written.count(int(token)) / 600 for token in best.indices])
    assert torch.allclose(shares, expected, atol=0.08)  # four standard deviations of a share of a half


def test_without_temperature_the_likeliest_is_written(made: Path, public: Any) -> None:
    writer = public.PublicGenerator(made / "writer", Sampling(6, temperature=0.0))
    (prompt,) = writer.tokenizer.token_ids([f"{passage('river', 'Oslo')}\nQuery:"])
    ids, answer = list(prompt), writer.write([prompt], [None])[0].ids
    for token in answer:
        with torch.inference_mode():
            assert int(writer._model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == token
        ids.append(token)


def test_layers_of_other_names_are_said(public: Any, tmp_path: Path, data: Path, llama: Path) -> None:
    made = load_settings(FOLDER / "public_writer.toml")
    source = replace(made.data.sources[0], path=data / "train" / "nq_qed_en.jsonl.xz")
    wanted = replace(
        made, model=llama, data=replace(made.data, sources=(source,)), lora=LoraSettings(targets=("c_attn",))
    )
    with pytest.raises(ConfigError, match=r"c_attn.*name its linear layers in public_writer\.toml"):
        public.PublicObjective(wanted, torch.device("cpu"))


def test_only_the_query_is_learnt(public: Any) -> None:
    ids, mask, targets = public._padded([([5, 6, 7], [8, 9]), ([1], [2])], pad_id=0)
    assert ids.tolist() == [[5, 6, 7, 8, 9], [1, 2, 0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert targets.tolist() == [[-100, -100, -100, 8, 9], [-100, 2, -100, -100, -100]]


def test_no_lessons_is_said(tmp_path: Path, data: Path, llama: Path) -> None:
    run = load_recipe("synthesis/run")
    write_records(tmp_path / "data" / "train" / "none.jsonl.xz", [])
    shutil.copytree(data / "eval", tmp_path / "data" / "eval")
    options = run.parse(["--data", str(tmp_path / "data"), "--corpus", "toy", "--out", str(tmp_path / "out"),
                         "--writer-model", str(llama), "--lessons", "none.jsonl.xz"])  # fmt: skip
    with pytest.raises((DataError, SystemExit), match=r"no labelled pairs in none\.jsonl\.xz"):
        run.make_writer(options)


def test_a_qwen3_learns_in_this_packages_own_trainer(
    made: Path, tmp_path: Path, data: Path, reranker_folder: Path
) -> None:
    run = load_recipe("synthesis/run")
    settings = argparse.Namespace(
        **{**vars(run.parse([])), "data": data, "corpus": "toy", "out": tmp_path / "out", "writer_steps": 2}
    )
    settings.writer_model = str(reranker_folder)
    writer = run.make_writer(settings)
    assert (writer / "adapter" / "adapter_config.json").exists()
    with run.serving(writer) as url:
        assert url.startswith("http://127.0.0.1:")


def test_a_conversion_from_gguf_overwrites_nothing(tmp_path: Path) -> None:
    convert = load_recipe("synthesis/from_gguf").convert
    with pytest.raises(CheckpointError, match="no such file; wanted a GGUF file"):
        convert(tmp_path / "none.gguf", tmp_path / "out")
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="is there already"):
        convert(tmp_path / "a.gguf", tmp_path)
