"""Generation with our own backbone: the reference's logits, greedy texts and sampling by the definition."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from qwen3_embedding.errors import CheckpointError
from qwen3_embedding.inference.generator import Generator, Sampling, choose
from qwen3_embedding.model.decoding import Decoder
from qwen3_embedding.types import TextGenerator
from tests.support.checkpoints import make_embedder_folder

PROMPTS = [[5, 9, 200, 31, 7], [17], [44, 2, 8, 90, 300, 12, 6, 5, 1]]


@pytest.fixture(scope="module")
def generator(embedder_folder: Path) -> Generator:
    return Generator.from_folder(embedder_folder, sampling=Sampling(max_tokens=12, temperature=0))


def test_cached_logits_are_those_of_the_reference(generator: Generator, embedder_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(embedder_folder, dtype=torch.float32, local_files_only=True)
    decoder = Decoder(generator._backbone, generator._head_VD, PROMPTS, 4)
    texts = [list(prompt) for prompt in PROMPTS]
    for token in (3, 70, 1):
        with torch.no_grad():
            wanted = torch.stack([model(torch.tensor([ids])).logits[0, -1] for ids in texts])
        assert torch.allclose(decoder.logits_BV, wanted, atol=1e-4)
        decoder.step(torch.full((3,), token))
        texts = [[*ids, token] for ids in texts]
    decoder.keep([2, 0])
    decoder.step(torch.tensor([11, 12]))
    with torch.no_grad():
        wanted = torch.stack([model(torch.tensor([[*texts[n], t]])).logits[0, -1] for n, t in ((2, 11), (0, 12))])
    assert torch.allclose(decoder.logits_BV, wanted, atol=1e-4)
    with pytest.raises(ValueError, match="room for"):
        decoder.step(torch.tensor([1, 2]))


def test_greedy_texts_are_those_of_the_reference(generator: Generator, embedder_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(embedder_folder, dtype=torch.float32, local_files_only=True)
    end = generator.tokenizer.end_id
    for prompt, written in zip(PROMPTS, generator.write(PROMPTS, [None] * 3), strict=True):
        made = model.generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=end, pad_token_id=end
        )
        wanted = made[0, len(prompt) :].tolist()
        assert written.ids == [token for token in wanted if token != end]
        assert written.truncated == (end not in wanted)


def test_a_text_does_not_depend_on_its_batch(generator: Generator) -> None:
    sampling = Sampling(max_tokens=10, temperature=1.0)
    together = generator.write(PROMPTS, [1, 2, 3], sampling)
    alone = [generator.write([p], [seed], sampling)[0] for p, seed in zip(PROMPTS, (1, 2, 3), strict=True)]
    assert together == alone
    assert generator.write(PROMPTS[:1], [1], sampling) == together[:1]
    assert generator.write(PROMPTS[:1], [5], sampling) != together[:1]


def test_sampling_follows_the_nucleus() -> None:
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    logits = torch.tensor(np.log(probabilities), dtype=torch.float32).repeat(4000, 1)
    draws = [np.random.default_rng(number) for number in range(4000)]

    def shares(sampling: Sampling) -> list[float]:
        counts = np.bincount(choose(logits, draws, sampling), minlength=4)
        return [float(count) / 4000 for count in counts]

    assert shares(Sampling(temperature=1.0, top_p=1.0)) == pytest.approx(probabilities.tolist(), abs=0.03)
    assert shares(Sampling(temperature=1.0, top_p=0.7)) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    assert shares(Sampling(temperature=1.0, top_p=1.0, top_k=1)) == [1, 0, 0, 0]
    sharp = probabilities**2 / (probabilities**2).sum()
    assert shares(Sampling(temperature=0.5, top_p=1.0)) == pytest.approx(sharp.tolist(), abs=0.03)


def test_the_end_token_ends(generator: Generator) -> None:
    logits = generator._backbone.embed_tokens.weight
    (first,) = generator.write([PROMPTS[0]], [None], Sampling(max_tokens=1, temperature=0))
    generator.end_ids.add(first.ids[0])
    try:
        (written,) = generator.write([PROMPTS[0]], [None])
    finally:
        generator.end_ids.discard(first.ids[0])
    assert (written.ids, written.truncated) == ([], False)
    assert len(logits) > first.ids[0]


def test_it_is_a_text_generator_in_chat_form(tmp_path: Path, generator: Generator) -> None:
    plain: TextGenerator = generator
    assert isinstance(plain.generate("a river", seed=3), str)
    folder = make_embedder_folder(tmp_path / "chat")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    chat = Generator.from_folder(folder)
    text = chat.tokenizer.decode(chat.prompt_ids("go <|im_end|>", "be brief"))
    assert text.startswith(
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\ngo <|im_end|><|im_end|>\n<|im_sta"
    )
    ends = chat.tokenizer.control_ids("<|im_end|>")
    assert chat.prompt_ids("go <|im_end|>").count(ends[0]) == 1  # the user's own is text
    assert ends[0] in chat.end_ids


def test_a_folder_without_a_head_is_refused(tmp_path: Path) -> None:
    folder = make_embedder_folder(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(CheckpointError, match="no language model"):
        Generator.from_folder(folder)


@pytest.mark.parametrize("bad", [{"max_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"top_k": -1}])
def test_bad_sampling_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="wanted"):
        Sampling(**bad)  # type: ignore[arg-type]
