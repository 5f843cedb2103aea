"""Which language a text is in: a small check of scripts and of words that every text has.

It is made to answer one question, "is this clearly not the language that was asked for?", and to stay silent where it
cannot tell: short texts, related languages, languages whose common words it does not know.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.resources import files
from typing import Literal

from qwen3_embedding.synthesis.languages import languages

Agreement = Literal["yes", "no", "unknown"]

_RANGES: tuple[tuple[int, int, str], ...] = (
    (0x0041, 0x024F, "Latn"),
    (0x1E00, 0x1EFF, "Latn"),
    (0x0370, 0x03FF, "Grek"),
    (0x1F00, 0x1FFF, "Grek"),
    (0x0400, 0x052F, "Cyrl"),
    (0x0530, 0x058F, "Armn"),
    (0x0590, 0x05FF, "Hebr"),
    (0x0600, 0x06FF, "Arab"),
    (0x0750, 0x077F, "Arab"),
    (0xFB50, 0xFDFF, "Arab"),
    (0xFE70, 0xFEFE, "Arab"),
    (0x0780, 0x07BF, "Thaa"),
    (0x0900, 0x097F, "Deva"),
    (0x0980, 0x09FF, "Beng"),
    (0x0A00, 0x0A7F, "Guru"),
    (0x0A80, 0x0AFF, "Gujr"),
    (0x0B00, 0x0B7F, "Orya"),
    (0x0B80, 0x0BFF, "Taml"),
    (0x0C00, 0x0C7F, "Telu"),
    (0x0C80, 0x0CFF, "Knda"),
    (0x0D00, 0x0D7F, "Mlym"),
    (0x0D80, 0x0DFF, "Sinh"),
    (0x0E00, 0x0E7F, "Thai"),
    (0x0E80, 0x0EFF, "Laoo"),
    (0x0F00, 0x0FFF, "Tibt"),
    (0x1000, 0x109F, "Mymr"),
    (0x10A0, 0x10FF, "Geor"),
    (0x1100, 0x11FF, "Hang"),
    (0xAC00, 0xD7AF, "Hang"),
    (0x1200, 0x137F, "Ethi"),
    (0x1780, 0x17FF, "Khmr"),
    (0x3040, 0x30FF, "Kana"),
    (0x3400, 0x4DBF, "Hani"),
    (0x4E00, 0x9FFF, "Hani"),
    (0x20000, 0x2FFFF, "Hani"),
)
_HAN_WRITERS = frozenset({"zh", "zh-Hant", "yue", "ja"})
_ALONE = {
    "ja": "Kana",
    "ko": "Hang",
    "el": "Grek",
    "hy": "Armn",
    "ka": "Geor",
    "th": "Thai",
    "lo": "Laoo",
    "km": "Khmr",
}
_ALONE |= {
    "my": "Mymr",
    "ta": "Taml",
    "te": "Telu",
    "kn": "Knda",
    "ml": "Mlym",
    "gu": "Gujr",
    "pa": "Guru",
    "or": "Orya",
}
_ALONE |= {"si": "Sinh", "bo": "Tibt", "dv": "Thaa"}
_SIMPLIFIED = frozenset("们这个说来时会对学国过发还经后东车长书见开关门问间马鸟鱼电语话请让认识话应该样现点头实")
_TRADITIONAL = frozenset("們這個說來時會對學國過發還經後東車長書見開關門問間馬鳥魚電語話請讓認識應該樣現點頭實")
_SIGNS: dict[str, frozenset[str]] = {
    "Cyrl": frozenset(["ru", "uk", "bg", "mk", "be", "sr", "kk", "ky", "tg", "tt", "ba", "mn"]),
    "Arab": frozenset(["ar", "fa", "ur", "ps", "sd", "ckb", "ug"]),
    "Deva": frozenset(["hi", "mr", "ne", "mai", "bho", "sa"]),
    "Hebr": frozenset(["he", "yi"]),
    "Beng": frozenset(["bn", "as"]),
    "Ethi": frozenset(["am", "ti"]),
}
_CLOSE: tuple[frozenset[str], ...] = tuple(
    frozenset(group.split())
    for group in (
        "hr bs sr sl",
        "nb nn da",
        "id ms jv su",
        "cs sk",
        "es gl ast pt ca oc",
        "zu xh",
        "st tn",
        "rw rn",
        "hi mai bho sa ne mr",
        "ru be uk",
        "bg mk",
        "tt ba kk ky",
        "tr az tk uz",
        "nl af fy lb",
        "fil ceb ilo war",
        "is fo",
        "ga gd",
        "zh zh-Hant yue",
        "fr oc ca",
        "ar ckb",
    )
)
_BETWEEN = re.compile(r"[\s\d_.,;:!?…\"“”„«»()\[\]{}<>|/\\+=*&^%$#@~`।॥،؛؟、。！？·—–]+")
_SAMPLE = 2000
"""Characters of a text that are looked at."""
_HEAVY = {"Hani": 2.5, "Kana": 1.5, "Hang": 2.0}
"""One such sign stands for several letters."""
_MARKUP = re.compile(r"https?://\S+|<[^<>]{1,80}>|`[^`]*`")


def script_counts(text: str) -> dict[str, int]:
    """Letters of each script (ISO 15924; kana as ``Kana``, Han characters as ``Hani``)."""
    counts: dict[str, int] = {}
    for character in text:
        if character.isascii():
            if character.isalpha():
                counts["Latn"] = counts.get("Latn", 0) + 1
            continue
        script = _script(ord(character))
        if script and (character.isalpha() or script != "Latn"):
            counts[script] = counts.get(script, 0) + 1
    return counts


def detect_language(text: str) -> str | None:
    """The language of a text, or ``None`` where it is not clear."""
    sample = _MARKUP.sub(" ", text[:_SAMPLE])
    counts = _weighted(script_counts(sample))
    total = sum(counts.values())
    if total < 2:
        return None
    if counts.get("Kana", 0) + counts.get("Hani", 0) > 0.5 * total:
        return _east_asian(sample, counts)
    script = max(counts, key=lambda name: counts[name])
    if counts[script] < 0.6 * total:
        return None
    for code, alone in _ALONE.items():
        if script == alone:
            return code
    return _by_words(sample, script)


def agreement(text: str, code: str) -> Agreement:
    """Whether a text is in a language: ``no`` only where that is clear."""
    known = languages().get(code)
    counts = _weighted(script_counts(_MARKUP.sub(" ", text[:_SAMPLE])))
    total = sum(counts.values())
    if known is None or total < 2:
        return "unknown"
    fitting = sum(counts.get(script, 0) for script in _scripts(code, known.script))
    if fitting < 0.3 * total and total >= 4:
        return "no"
    if code == "ja" and not counts.get("Kana") and total >= 12:
        return "no"
    guess = detect_language(text)
    if guess is None:
        return "unknown"
    if guess == code:
        return "yes"
    if guess == "ja" and code in _HAN_WRITERS:
        return "no"
    if any(guess in group and code in group for group in _CLOSE) or code not in _stopwords():
        return "unknown"
    return "no" if _evidence(text, guess) >= 2 and _evidence(text, code) < 2 else "unknown"


@lru_cache(maxsize=4096)
def _script(point: int) -> str | None:
    return next((name for low, high, name in _RANGES if low <= point <= high), None)


def _scripts(code: str, script: str) -> tuple[str, ...]:
    if code == "ja":
        return ("Kana", "Hani")
    if code in _HAN_WRITERS:
        return ("Hani",)
    if code == "ko":
        return ("Hang",)
    return (script, "Cyrl", "Latn") if code in ("sr", "uz", "az") else (script,)


def _weighted(counts: dict[str, int]) -> dict[str, float]:
    return {script: count * _HEAVY.get(script, 1.0) for script, count in counts.items()}


def _east_asian(text: str, counts: dict[str, float]) -> str | None:
    if counts.get("Kana", 0) > 0.05 * (counts.get("Kana", 0) + counts.get("Hani", 0)):
        return "ja"
    simple = sum(character in _SIMPLIFIED and character not in _TRADITIONAL for character in text)
    traditional = sum(character in _TRADITIONAL and character not in _SIMPLIFIED for character in text)
    return "zh-Hant" if traditional > simple else "zh"


def _by_words(text: str, script: str) -> str | None:
    """The language that has the most of its common words in the text, where it is ahead of the next."""
    words = _words(text)
    if not words:
        return None
    scores: dict[str, float] = {}
    for word in words:
        for code, weight in _owners(script).get(word, ()):
            scores[code] = scores.get(code, 0.0) + weight
    ranked = sorted(scores, key=lambda code: (-scores[code], code))
    if not ranked or scores[ranked[0]] <= 0:
        return None
    best = scores[ranked[0]]
    second = scores[ranked[1]] if len(ranked) > 1 else 0.0
    share = sum(word in _stopwords()[ranked[0]] for word in words) / len(words)
    clear = best >= 1.3 * second and (share >= 0.12 or (script != "Latn" and share > 0.05))
    return ranked[0] if clear and (best >= 1.0 or script != "Latn") else None


def _evidence(text: str, code: str) -> int:
    """How many different common words of a language a text has (2 where its script alone tells the language)."""
    common = _stopwords().get(code)
    return 2 if common is None else len({word for word in _words(text) if word in common})


def _words(text: str) -> list[str]:
    parts = (part.strip("'’-") for part in _BETWEEN.split(text.casefold())[:400])
    return [part.replace("’", "'") for part in parts if part]


@lru_cache(maxsize=64)
def _owners(script: str) -> dict[str, list[tuple[str, float]]]:
    """Common words of the languages of a script: which languages have the word, and its weight."""
    pool = _SIGNS.get(script) or {code for code in _stopwords() if languages()[code].script == script}
    owners: dict[str, list[tuple[str, float]]] = {}
    for code in pool & _stopwords().keys():
        for word, weight in _stopwords()[code].items():
            owners.setdefault(word, []).append((code, weight))
    return owners


@lru_cache(maxsize=1)
def _stopwords() -> dict[str, dict[str, float]]:
    """Common words by language; a word that few languages share weighs more."""
    text = (files("qwen3_embedding.synthesis") / "stopwords.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines()]
    lists = {code: set(words.split()) for code, words in rows}
    shared: dict[str, int] = {}
    for words in lists.values():
        for word in words:
            shared[word] = shared.get(word, 0) + 1
    return {code: {word: shared[word] ** -0.5 for word in words} for code, words in lists.items()}
