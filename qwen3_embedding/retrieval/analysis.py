"""Text to search tokens, for every script: what documents and queries go through before BM25.

Words of spaced scripts are lower-cased and lightly stemmed; scripts that write no spaces (Chinese, Japanese, Thai, Lao,
Khmer, Burmese) and Hangul become character bigrams; ``getUserName`` and ``user_name`` are split into their words.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

ANALYSIS_VERSION = 1
"""Raised with every change of the tokens a text gives: an index made with another version is not searched."""

_UNSPACED = (
    "\u0e00-\u0e7f"  # Thai
    "\u0e80-\u0eff"  # Lao
    "\u1000-\u109f"  # Myanmar
    "\u1780-\u17ff"  # Khmer
    "\u2e80-\u2fdf"  # CJK and Kangxi radicals
    "\u3005-\u3007"  # iteration mark, closing mark, zero
    "\u3040-\u30ff"  # Hiragana, Katakana
    "\u3100-\u312f"  # Bopomofo
    "\u31f0-\u31ff"  # Katakana extensions
    "\u3400-\u4dbf"  # CJK extension A
    "\u4e00-\u9fff"  # CJK
    "\ua960-\ua97f\uac00-\ud7ff\u1100-\u11ff"  # Hangul
    "\uf900-\ufaff"  # CJK compatibility
    "\U00020000-\U0003ffff"  # CJK extensions B and later
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_MAX_TOKEN = 255
"""Characters; longer tokens (base64, keys) are cut here, so that one text cannot blow up the vocabulary."""

_STOP_WORDS = frozenset(
    """
    a about an and are as at be been but by can could did do does for from had has have he how i if in into is it
    its may no not of on or our she should so such than that the their them then there these they this to was we
    were what when where which who why will with would you your
    """.split()  # noqa: SIM905
)


def analyze(text: str) -> list[str]:
    """The search tokens of ``text``, in order, repeats kept; no token holds white space.

    English stop words are left out, except from a text of nothing else (``The Who``).
    """
    words = _CAMEL.sub(" ", unicodedata.normalize("NFKC", text)).lower()
    tokens: list[str] = []
    stop_words: list[str] = []
    for match in _pattern().finditer(words):
        run = match.group()
        if match.lastgroup == "unspaced":
            tokens += _bigrams(run)
        elif run in _STOP_WORDS:
            stop_words.append(run)
        else:
            tokens.append(stem(run)[:_MAX_TOKEN])
    return tokens or stop_words


def word_starts(text: str) -> list[int]:
    """Where the words of ``text`` begin, stop words among them; two characters of an unspaced script are a word."""
    starts: list[int] = []
    for match in _pattern().finditer(text):
        starts += range(match.start(), match.end(), 2) if match.lastgroup == "unspaced" else [match.start()]
    return starts


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """A light English stem: plural, -ly, -ing, -ed and final -e. Short words and other letters come back unchanged."""
    if len(word) <= 3 or not word.isascii():
        return word
    if word.endswith("ly") and len(word) > 5:
        word = word[:-2]
    word = _without_past_or_ing(_singular(word))
    return word[:-1] if word.endswith("e") and len(word) > 3 else word


def _singular(word: str) -> str:
    if word.endswith("sses"):
        return word[:-2]
    if word.endswith("ies"):
        return word[:-3] + "y" if len(word) > 4 else word[:-1]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def _without_past_or_ing(word: str) -> str:
    for ending in ("ing", "ed"):
        root = word.removesuffix(ending)
        if root != word and len(root) >= 3 and any(letter in "aeiouy" for letter in root):
            doubled = root[-1] == root[-2] and root[-1] not in "lsz"
            return root[:-1] if doubled else root
    return word


def _bigrams(run: str) -> list[str]:
    return [run] if len(run) == 1 else [run[i : i + 2] for i in range(len(run) - 1)]


@lru_cache(maxsize=1)
def _pattern() -> re.Pattern[str]:
    """Runs of an unspaced script, or words: letters, digits and the marks on them (``re`` cuts Hindi at vowels)."""
    marks = "".join(chr(c) for c in range(0x300, 0x10000) if unicodedata.category(chr(c)) in ("Mn", "Mc"))
    spaced = re.sub(f"[{_UNSPACED}]", "", marks)
    return re.compile(rf"(?P<unspaced>[{_UNSPACED}]+)|(?:(?![_{_UNSPACED}])[\w{re.escape(spaced)}])+")
