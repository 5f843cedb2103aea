"""Texts to token ids, on the ``tokenizers`` library, with what every Qwen3 embedding integration gets wrong done here.

* The end token is put on by this module, exactly once, after truncation; a tokenizer's own post-processor is never
used.
* Special-token strings inside a text are text: they are spelled with ordinary tokens, so that no document can close its
  own prompt.  ``parse_special=True`` gives the behaviour of the reference implementations, for comparison.
* What is cut is counted, for the caller to report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import tokenizers

from qwen3_embedding.errors import CheckpointError
from qwen3_embedding.inputs.prompts import (
    END_OF_TEXT,
    RERANKER_PREFIX,
    RERANKER_SUFFIX,
    check_texts,
    query_prefix,
    reranker_head,
)


@dataclass(frozen=True)
class Encoded:
    """Token ids of texts, in the caller's order, and what had to be cut."""

    ids: list[list[int]]
    cut_tokens: list[int]
    """Tokens cut from each text; 0 where it is whole."""

    @property
    def n_cut(self) -> int:
        """How many texts were cut."""
        return sum(count > 0 for count in self.cut_tokens)


class Tokenizer:
    """The tokenizer of a checkpoint folder."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, parse_special: bool = False) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._with_special = tokenizer
        self.parse_special = parse_special
        end = tokenizer.token_to_id(END_OF_TEXT)
        if end is None:
            raise CheckpointError(f"the tokenizer has no {END_OF_TEXT} token; this is not a Qwen3 tokenizer")
        self.end_id: int = end

    @classmethod
    def from_folder(cls, folder: str | Path, parse_special: bool = False) -> Tokenizer:
        """Read ``tokenizer.json``.

        Raises:
            CheckpointError: missing, not a tokenizer, or one without Qwen3's special tokens.
        """
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(
                f"{path}: no such file; wanted the fast tokenizer of the model (vocab.json and merges.txt alone "
                "lose the end token and are not read)"
            )
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{path}: not a tokenizer: {error}") from None
        return cls(tokenizer, parse_special)

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """The same vocabulary and rules without added tokens: any text is only text."""
        plain = tokenizers.Tokenizer(self._with_special.model)
        plain.normalizer = self._with_special.normalizer
        plain.pre_tokenizer = self._with_special.pre_tokenizer
        plain.decoder = self._with_special.decoder
        return plain

    @cached_property
    def puts_end_token(self) -> bool:
        """Whether ``tokenizer.json`` itself puts the end token behind a text, for the engines that do what it says.

        An embedder's must; a reranker's must not, since the template's end is added to what it gives.  This package
        encodes by itself and does not ask.
        """
        return bool(self._with_special.encode("x").ids[-1] == self.end_id)

    @property
    def vocab_size(self) -> int:
        """Ids that this tokenizer can give, added tokens included."""
        return self._with_special.get_vocab_size(with_added_tokens=True)

    @cached_property
    def yes_id(self) -> int:
        """Id of "yes" (9693 in the published tokenizers)."""
        return self._answer_id("yes")

    @cached_property
    def no_id(self) -> int:
        """Id of "no" (2152 in the published tokenizers)."""
        return self._answer_id("no")

    @cached_property
    def reranker_prefix_ids(self) -> list[int]:
        """Ids before every reranker body (39 in the published tokenizers)."""
        return self.control_ids(RERANKER_PREFIX)

    @cached_property
    def reranker_suffix_ids(self) -> list[int]:
        """Ids after every reranker body (9 in the published tokenizers)."""
        return self.control_ids(RERANKER_SUFFIX)

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of the bare texts: no prompt, no end token."""
        items = check_texts(texts)
        if not items:
            return []
        engine = self._with_special if self.parse_special else self._plain
        return [encoding.ids for encoding in engine.encode_batch_fast(items, add_special_tokens=False)]

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """What each id stands for, readable; part of a character shows as ``\\ufffd``."""
        return [self._with_special.decode([token], skip_special_tokens=False) for token in ids]

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """The text of ids; special tokens are written out, or left out with ``skip_special``."""
        return self._with_special.decode(list(ids), skip_special_tokens=skip_special)

    def encode_documents(self, texts: Sequence[str], max_tokens: int | None = None) -> Encoded:
        """Embedder documents: the bare text and the end token; no instruction ever."""
        return self._with_end(self.token_ids(texts), max_tokens)

    def encode_queries(
        self, texts: Sequence[str], instruction: str | None = None, max_tokens: int | None = None
    ) -> Encoded:
        """Embedder queries: ``Instruct: {instruction}\\nQuery:{text}`` and the end token.

        Args:
            texts: the queries.
            instruction: the task; ``None`` is the web-search task of the model card, ``""`` gives no prompt at all.
            max_tokens: length limit, end token included; what goes over is cut from the text's end.
        """
        prefix = query_prefix(instruction)
        return self._with_end(self.token_ids([prefix + text for text in check_texts(texts)]), max_tokens)

    def encode_pairs(
        self,
        queries: Sequence[str],
        documents: Sequence[str],
        instruction: str | None = None,
        max_tokens: int | None = None,
    ) -> Encoded:
        """Reranker inputs: prefix, body, suffix. Only the body's end, the document's, is ever cut.

        Raises:
            ValueError: unequal lists, or a query so long that no token of the document is left.
        """
        questions, texts = check_texts(queries, "queries"), check_texts(documents, "documents")
        if len(questions) != len(texts):
            raise ValueError(f"{len(questions)} queries and {len(texts)} documents; wanted pairs")
        heads = {question: reranker_head(question, instruction) for question in questions}
        bodies = self.token_ids([heads[question] + text for question, text in zip(questions, texts, strict=True)])
        before, after = self.reranker_prefix_ids, self.reranker_suffix_ids
        if max_tokens is not None:
            self._check_heads(list(heads.values()), max_tokens - len(before) - len(after))
        ids, cut = [], []
        for body in bodies:
            room = len(body) if max_tokens is None else max_tokens - len(before) - len(after)
            ids.append(before + body[:room] + after)
            cut.append(max(0, len(body) - room))
        return Encoded(ids, cut)

    def _check_heads(self, heads: list[str], room: int) -> None:
        for head, ids in zip(heads, self.token_ids(heads), strict=True):
            if len(ids) >= room:
                raise ValueError(
                    f"instruction and query take {len(ids)} tokens and leave no room for a document (room: {room}); "
                    f"shorten the query that begins {head[:60]!r}"
                )

    def _with_end(self, sequences: list[list[int]], max_tokens: int | None) -> Encoded:
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"max_tokens={max_tokens}; wanted at least 1, the end token")
        ids, cut = [], []
        for sequence in sequences:
            room = len(sequence) if max_tokens is None else max_tokens - 1
            cut.append(max(0, len(sequence) - room))
            ids.append([*sequence[:room], self.end_id])
        return Encoded(ids, cut)

    def control_ids(self, text: str) -> list[int]:
        """Ids of a text of our own, in which special-token strings are special tokens."""
        return self._with_special.encode(text, add_special_tokens=False).ids

    def _answer_id(self, word: str) -> int:
        token = self._with_special.token_to_id(word)
        if token is None:
            raise CheckpointError(f"the tokenizer has no token {word!r}; a reranker needs one")
        return token
