"""Short passages of whole sentences: what the writer reads.

In training it reads the passage that the labelled query is about, the one that has most of the query's signs two in a
row; a query about what was cut off would teach it to write about nothing it can see.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

from qwen3_embedding.data import Record

_SENTENCE = re.compile(r".+?(?:[。！？!?\n]+[」』）)]*|\.(?=\s)|$)\s*", re.DOTALL)
_WORD = re.compile(r"\w+")
_SIGNATURE = re.compile(r"(?:async )?def \w+ ?\(.*?\) ?(?:->.*?)?:\s*")
_DOCSTRING = re.compile(r"(\"\"\"|''')\s*(.*?)(?:\n\s*\n|\1|\n\s*[:@])", re.DOTALL)
_AT_ONCE = 2048
ANY, OPENING = "any", "opening"
READS = (ANY, OPENING)
"""What of a document the writer reads: a passage from anywhere, or its first one (a function says at its beginning what
it does)."""


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


def readable(found: Sequence[str], reads: str) -> Sequence[str]:
    """Of a text's passages those that the writer may read: all of them, or its ``opening`` alone."""
    return found[:1] if reads == OPENING else found


def documented(record: Record, share: float) -> Record:
    """A pair of description and Python function with the description as its docstring, in a share of the pairs.

    Collections of such pairs (CodeXGLUE) took it out of the function to have a query; functions at large have it.
    """
    signature = _SIGNATURE.match(record.positives[0])
    draw = random.Random(record.positives[0])
    if signature is None or not record.language.endswith("python") or draw.random() >= share:
        return record
    body, described = record.positives[0][signature.end() :], re.sub(r"\s+(?=[.,])", "", record.query.strip())
    opened, closed = draw.choice((('"""', '"""'), ('""" ', '\n    """'), ('"""\n    ', '\n    """')))
    text = f"{signature[0].rstrip()}\n    {opened}{described}{closed}\n    {body}"
    return dataclasses.replace(record, positives=(text,))


def docstring(text: str) -> str:
    """The first paragraph of a Python function's docstring; empty where there is none."""
    found = _DOCSTRING.search(text)
    return " ".join(found[2].split()) if found else ""


def in_languages(language: str, wanted: Collection[str]) -> bool:
    """Whether a record is in the languages of a corpus; ``en-python`` is where both are."""
    return language in wanted or all(part in wanted for part in language.split("-"))


def lessons(
    records: Iterable[Record], tokenizer: Tokens, longest: int, without: Collection[str] = (), reads: str = ANY
) -> Iterator[Record]:
    """Each record with, as its only positive, the passage that its query is about.

    Args:
        records: labelled pairs.
        tokenizer: counts.
        longest: tokens of a passage; a longer sentence stands alone, whole.
        without: records with one of these texts are left out.
        reads: one of :data:`READS`.
    """
    stream = (record for record in records if not any(text in without for text in record.positives))
    while batch := list(islice(stream, _AT_ONCE)):
        found = passages_of([record.positives[0] for record in batch], tokenizer, longest)
        for record, its in zip(batch, found, strict=True):
            if its:
                passage = about(record.query, readable(its, reads))
                yield dataclasses.replace(record, positives=(passage,), negatives=())


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
