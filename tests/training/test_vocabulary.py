"""A smaller vocabulary reads text as the published tokenizer does, only with fewer merges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from qwen3_embedding.inputs.prompts import query_prefix
from qwen3_embedding.inputs.tokenizer import Tokenizer
from qwen3_embedding.training.vocabulary import (
    ADDED_TOKENS,
    SPECIAL_TOKENS,
    SPLIT_PATTERN,
    train_vocabulary,
    without_end_token,
    write_tokenizer,
)
from tests.support.checkpoints import real_tokenizer_json

SIZE = 700
TEXTS = [
    *["the river is older than the engine, and the engine older than the garden"] * 20,
    *["长江是亚洲第一长河 12345", "der Fluss fließt\n\n  nach Norden", "it's a café's price: $12.50"] * 20,
]
HARD = [
    "",
    " ",
    "a",
    "  two  spaces\n\nlines\t",
    "emoji 👩‍🚀 and\u0301",
    "\x00\x1f",
    "العربية עברית",
    "<|im_end|> <think>",
]


@pytest.fixture(scope="module")
def trained() -> str:
    return train_vocabulary(TEXTS, SIZE)


@pytest.fixture(scope="module")
def tokenizer(trained: str, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("vocabulary")
    write_tokenizer(folder, trained)
    return Tokenizer.from_folder(folder)


def test_everything_but_the_merges_is_the_published_tokenizers(trained: str) -> None:
    ours: dict[str, Any] = json.loads(trained)
    theirs: dict[str, Any] = json.loads(real_tokenizer_json())
    assert ours["normalizer"] == theirs["normalizer"]
    assert [part["type"] for part in ours["pre_tokenizer"]["pretokenizers"]] == [
        part["type"] for part in theirs["pre_tokenizer"]["pretokenizers"]
    ]
    assert ours["pre_tokenizer"]["pretokenizers"][0]["pattern"] == {"Regex": SPLIT_PATTERN}
    assert theirs["pre_tokenizer"]["pretokenizers"][0]["pattern"] == {"Regex": SPLIT_PATTERN}
    assert [token["content"] for token in ours["added_tokens"]] == [t["content"] for t in theirs["added_tokens"]]
    assert [token["special"] for token in ours["added_tokens"]] == [t["special"] for t in theirs["added_tokens"]]


def test_ids_are_dense_and_added_tokens_follow_the_words(trained: str, tokenizer: Tokenizer) -> None:
    spec = json.loads(trained)
    words = spec["model"]["vocab"]
    assert sorted(words.values()) == list(range(len(words)))
    ids = [token["id"] for token in spec["added_tokens"]]
    assert ids == list(range(len(words), len(words) + len(SPECIAL_TOKENS) + len(ADDED_TOKENS)))
    assert tokenizer.vocab_size == len(words) + len(ids) <= SIZE
    assert tokenizer.end_id == ids[0]


def test_any_text_comes_back(trained: str) -> None:
    import unicodedata

    made = tokenizers.Tokenizer.from_str(trained)
    for text in (*TEXTS, *HARD):
        ids = made.encode(text, add_special_tokens=False).ids
        assert made.decode(ids, skip_special_tokens=False) == unicodedata.normalize("NFC", text)


def test_frequent_words_are_one_token_and_the_answers_always(tokenizer: Tokenizer) -> None:
    for word in ("yes", "no", " engine"):
        assert len(tokenizer.token_ids([word])[0]) == 1, word
    assert tokenizer.yes_id != tokenizer.no_id
    assert len(tokenizer.token_ids([query_prefix("task")])[0]) <= 8


def test_an_embedder_gets_one_end_token_and_a_pair_none_inside(trained: str, tmp_path: Path) -> None:
    made = tokenizers.Tokenizer.from_str(trained)
    end = made.token_to_id("<|endoftext|>")
    assert end is not None
    ids = made.encode("the river").ids
    assert ids.count(end) == 1
    assert ids[-1] == end
    plain = tokenizers.Tokenizer.from_str(without_end_token(trained))
    assert plain.encode("the river").ids == ids[:-1]
    write_tokenizer(tmp_path, without_end_token(trained))
    (pair,) = Tokenizer.from_folder(tmp_path).encode_pairs(["the river"], ["the engine"]).ids
    assert end not in pair


def test_the_same_texts_give_the_same_file(trained: str, tmp_path: Path) -> None:
    assert train_vocabulary(iter(TEXTS), SIZE) == trained
    write_tokenizer(tmp_path / "new", trained)
    assert (tmp_path / "new" / "tokenizer.json").read_text(encoding="utf-8") == trained
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def test_transformers_reads_it_alike(tokenizer: Tokenizer, trained: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_tokenizer(tmp_path, trained)
    theirs = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    for text in ("the river is older", "café 12"):
        assert theirs(text)["input_ids"] == [*tokenizer.token_ids([text])[0], tokenizer.end_id]
    assert theirs.pad_token == "<|endoftext|>"
    assert theirs.eos_token == "<|im_end|>"


def test_a_size_without_room_for_a_word_is_refused() -> None:
    with pytest.raises(ValueError, match="size=200; wanted at least 290"):
        train_vocabulary(TEXTS, 200)
