"""Short passages of whole sentences: what the writer reads.

In training it reads the passage that the labelled query is about, the one that has most of the query's signs two in a
row; a query about what was cut off would teach it to write about nothing it can see.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

from qwen3_embedding.data import Record

_SENTENCE = re.compile(r".+?(?:[。！？!?\n]+[」』）)]*|\.(?=\s)|$)\s*", re.DOTALL)
_WORD = re.compile(r"\w+")
_AT_ONCE = 2048


class Tokens(Protocol):
    """A tokenizer."""

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, no special ones."""
        ...


def is_qwen3(folder: Path) -> bool:
    """Whether a checkpoint has Qwen3's layers, which this package trains and runs itself."""
    found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    return bool(found == "qwen3")


def sentences(text: str) -> list[str]:
    """The sentences of a text, with what stands between them; together they are the text."""
    return _SENTENCE.findall(text)


def passages(parts: Sequence[str], sizes: Sequence[int], longest: int) -> list[str]:
    """For each sentence the passage that begins with it: as many sentences as have ``longest`` tokens, at least one."""
    found = []
    for begin in range(len(parts)):
        end, size = begin + 1, sizes[begin]
        while end < len(parts) and size + sizes[end] <= longest:
            size, end = size + sizes[end], end + 1
        found.append("".join(parts[begin:end]).strip())
    return found


def passages_of(texts: Sequence[str], tokenizer: Tokens, longest: int) -> list[list[str]]:
    """The passages of each text."""
    split = [sentences(text) for text in texts]
    counts = iter([len(ids) for ids in tokenizer.token_ids([part for parts in split for part in parts])])
    return [passages(parts, list(islice(counts, len(parts))), longest) for parts in split]


def about(query: str, found: Sequence[str]) -> str:
    """The passage, of several the first, that has most of the query's pairs of signs."""
    wanted = _pairs(query)
    return max(found, key=lambda passage: len(wanted & _pairs(passage)))


def lessons(
    records: Iterable[Record], tokenizer: Tokens, longest: int, without: Collection[str] = ()
) -> Iterator[Record]:
    """Each record with, as its only positive, the passage that its query is about.

    Args:
        records: labelled pairs.
        tokenizer: counts.
        longest: tokens of a passage; a longer sentence stands alone, whole.
        without: records with one of these texts are left out.
    """
    stream = (record for record in records if not any(text in without for text in record.positives))
    while batch := list(islice(stream, _AT_ONCE)):
        found = passages_of([record.positives[0] for record in batch], tokenizer, longest)
        for record, its in zip(batch, found, strict=True):
            if its:
                yield dataclasses.replace(record, positives=(about(record.query, its),), negatives=())


def respelt(query: str, document: str) -> str:
    """A query without a capital letter in the document's spelling, its first letter a capital; any other as it is.

    Natural Questions are all in lower case, and so is what a writer learns from them; for an embedder of few pieces of
    words "newton" and "Newton" are strangers.
    """
    if not query.islower():
        return query
    spelt = {word: Counter[str]() for word in _WORD.findall(query)}
    for word in _WORD.findall(document):
        if (folded := word.lower()) in spelt:
            spelt[folded][word] += 1

    def as_there(found: re.Match[str]) -> str:
        forms = spelt[found.group()]
        return found.group() if not forms or found.group() in forms else forms.most_common(1)[0][0]

    written = _WORD.sub(as_there, query)
    return written[:1].upper() + written[1:]


def _pairs(text: str) -> set[str]:
    folded = text.casefold()
    return {folded[place : place + 2] for place in range(len(folded) - 1)}
