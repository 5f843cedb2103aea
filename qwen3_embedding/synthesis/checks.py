"""What can be said against a pair by reading it: talk about the task, length, copying, language."""

from __future__ import annotations

import re
from typing import Any

from qwen3_embedding.data.dedup import normalise
from qwen3_embedding.synthesis.detect import agreement, script_counts

_TALK = re.compile(
    r"\bas an ai\b|\blanguage model\b|\bi (?:cannot|can't|am unable to|won't) (?:help|assist|answer|comply|provide)"
    r"|\bi(?:'m| am) sorry\b|\bvalid json\b|\bjson (?:object|output|response)\b"
    r"|\bignore (?:all |any )?(?:the )?(?:previous|prior|above)\b|\bsystem prompt\b"
    r"|\{\{|>>> (?:passage|material)|<<< (?:passage|material)|\bquestion_type\b|\bas requested\b"
    r"|\bhere is (?:the|a|your) ",
    re.IGNORECASE,
)
_CONTROL = re.compile(r"<\|(?:im_start|im_end|endoftext)\||</?think>", re.IGNORECASE)
"""Dropped also where the document holds it: prompts show a document's control tokens loosened, so this is a leak."""
_POINTING = re.compile(
    r"\b(?:the|this|that) (?:passage|text|article|document|excerpt|paragraph|author|snippet)"
    r"(?! (?:of|about|on|by|file|field|message|box|editor)\b)"
    r"|\b(?:according to|in|from) the (?:passage|text|article|document|excerpt|above)\b"
    r"|\bthis (?:function|code|script|class|method)\b|\b(?:code|function|text|passage) above\b"
    r"|\b(?:dieser|diesem|der obige) (?:text|artikel|abschnitt)\b|\b(?:ce|cet|le) (?:texte|passage|extrait|article)\b"
    r"|\b(?:este|el) (?:texto|pasaje|fragmento|artículo)\b|\b(?:данн\w+|этот|этом) (?:текст\w*|отрыв\w+|стать\w+)"
    r"|(?:这|該|该|本|上述)(?:段|篇)?(?:文章|文本|文字|段落|短文)"
    r"|(?:この|上記の)(?:文章|本文|記事)|이 (?:글|지문|문서)",
    re.IGNORECASE,
)
_UNSPACED = frozenset({"Hani", "Kana", "Thai", "Laoo", "Khmr", "Mymr", "Tibt"})
_CHARACTERS_PER_WORD = 1.7
"""Of scripts without spaces between words; for Chinese between 1.5 and 1.8."""


def words(text: str) -> list[str]:
    """Words; in scripts without spaces between words, signs."""
    counts = script_counts(text)
    if sum(counts.get(script, 0) for script in _UNSPACED) * 2 > sum(counts.values()):
        return [sign for sign in normalise(text) if sign.isalnum()]
    return re.findall(r"\w+", normalise(text))


def word_count(text: str) -> float:
    """Number of words; signs count less than one each."""
    counts = script_counts(text)
    unspaced = sum(counts.get(script, 0) for script in _UNSPACED) * 2 > sum(counts.values())
    return len(words(text)) / (_CHARACTERS_PER_WORD if unspaced else 1)


def talks_about_the_task(pair: dict[str, Any], document: str) -> str | None:
    """The model speaks of itself, the prompt or "the passage" instead of asking."""
    record, kind = pair["record"], pair["provenance"]["kind"]
    written = [record["query"], *([] if kind in ("retrieval", "code", "classification") else record["positives"])]
    for text in written:
        leaked = _CONTROL.search(text)
        if leaked:
            return f"holds the control token {leaked[0]!r}"
        own = normalise(document)
        found = next((match[0] for match in _TALK.finditer(text) if normalise(match[0]) not in own), None)
        if found:
            return f"says {found!r}"
    if kind in ("retrieval", "code"):
        pointing = _POINTING.search(record["query"])
        if pointing and pair["provenance"]["choices"].get("type") != "translation":
            return f"points at the document: {pointing[0]!r}"
    return None


def wrong_length(pair: dict[str, Any], factor: float) -> str | None:
    """Far from the length that was asked for."""
    asked, got = pair["provenance"]["length"], word_count(pair["record"]["query"])
    if asked is not None and not asked / factor - 2 <= got <= asked * factor + 3:
        return f"about {got:.0f} words, {asked} were asked for"
    return None


def copied(pair: dict[str, Any], document: str, share: float) -> str | None:
    """A run of words that is most of the query stands in the document, or a translation translates nothing."""
    record, kind = pair["record"], pair["provenance"]["kind"]
    if kind in ("bitext", "sts", "clustering") and normalise(record["query"]) == normalise(record["positives"][0]):
        return None if kind == "sts" and record["score"] == 1.0 else "both sides are the same"
    if kind in ("bitext", "sts"):
        return None
    own = words(record["query"])
    run = longest_run(own, words(document))
    least = 12 if own and all(len(word) == 1 for word in own) else 6
    if run >= least and run >= share * len(own):
        return f"{run} of {len(own)} words in one run stand in the document"
    return None


def longest_run(query: list[str], document: list[str]) -> int:
    """Most words of the query that follow each other in the document in the same way."""
    haystack = "\0" + "\0".join(document) + "\0"
    longest = start = 0
    for end in range(1, len(query) + 1):
        while start < end and "\0" + "\0".join(query[start:end]) + "\0" not in haystack:
            start += 1
        longest = max(longest, end - start)
    return longest


def wrong_language(pair: dict[str, Any]) -> str | None:
    """Clearly not in the language that was asked for."""
    provenance, record = pair["provenance"], pair["record"]
    sides = [(record["query"], provenance["query_language"]), (record["positives"][0], provenance["positive_language"])]
    for text, code in sides:
        if code and agreement(text, code) == "no":
            return f"not in {code!r}"
    return None
