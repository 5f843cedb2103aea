"""The languages that pairs are written in: a table with weights, low-resource languages included."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Literal, get_args

from qwen3_embedding.synthesis.draws import Draws

Tier = Literal["high", "medium", "low"]
"""How much text of the language a model has usually seen."""

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Language:
    """One line of the table."""

    code: str
    """ISO 639-1 where there is one, else 639-3; ``zh-Hant`` for Chinese in traditional characters."""
    name: str
    """In English, as prompts use it."""
    script: str
    """ISO 15924."""
    tier: Tier
    weight: float
    """Relative frequency among the languages of all tiers."""


@lru_cache(maxsize=1)
def languages() -> dict[str, Language]:
    """The table, by code."""
    text = (files("qwen3_embedding.synthesis") / "languages.tsv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines(), delimiter="\t")
    return {row["code"]: _language(row) for row in rows}


def language(code: str) -> Language:
    """The language of a code.

    Raises:
        ValueError: the table does not have it.
    """
    try:
        return languages()[code]
    except KeyError:
        raise ValueError(f"no language {code!r}; known: {' '.join(languages())}") from None


def language_name(code: str | None) -> str:
    """For a prompt: the name, the code itself where the table lacks it, or words for a language that is not known."""
    if code is None:
        return "the language of the passage"
    known = languages().get(code)
    return known.name if known else code


@dataclass(frozen=True, slots=True)
class LanguageSettings:
    """Which language a query is written in."""

    document: str = AUTO
    """Code of the documents' language; ``auto`` guesses it per document (and leaves it open where it is not clear)."""
    across: float = 0.2
    """Share of units whose query is in another language than the document."""
    low_resource: float = 0.3
    """Among those, the share drawn from the low-resource tier; the rest by the weights of the other tiers."""
    only: tuple[str, ...] = ()
    """Draw from these languages alone (their weights stay as in the table); empty: all."""
    weights: dict[str, float] | None = None
    """Weights by code, in place of the table's."""

    def __post_init__(self) -> None:
        if self.document != AUTO:
            language(self.document)
        for code in (*self.only, *(self.weights or {})):
            language(code)
        for name in ("across", "low_resource"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; wanted 0 to 1")
        if any(weight < 0 for weight in (self.weights or {}).values()):
            raise ValueError("a language weight is negative; wanted 0 or more")


def draw_language(settings: LanguageSettings, draws: Draws, own: str | None, purpose: str) -> str | None:
    """The language of a query: the document's own, or by the settings' share another one.

    Args:
        settings: shares and weights.
        draws: the unit's draws.
        own: the document's language; ``None`` where it is not known.
        purpose: what is drawn, for the draws.
    """
    if draws.uniform(f"{purpose}/across") >= settings.across:
        return own
    return draw_other_language(settings, draws, own, purpose) or own


def draw_other_language(settings: LanguageSettings, draws: Draws, own: str | None, purpose: str) -> str | None:
    """A language that is not ``own``, or ``None`` where the settings leave no other."""
    others = [item for item in languages().values() if item.code != own and _weight(item, settings) > 0]
    if settings.only:
        others = [item for item in others if item.code in settings.only]
    low = [item for item in others if item.tier == "low"]
    rest = [item for item in others if item.tier != "low"]
    wants_low = draws.uniform(f"{purpose}/tier") < settings.low_resource
    pool = (low or rest) if wants_low else (rest or low)
    if not pool:
        return None
    return draws.choice(f"{purpose}/language", pool, [_weight(item, settings) for item in pool]).code


def _weight(item: Language, settings: LanguageSettings) -> float:
    return (settings.weights or {}).get(item.code, item.weight)


def _language(row: dict[str, str]) -> Language:
    tier = row["tier"]
    if tier not in get_args(Tier):
        raise ValueError(f"languages.tsv: {row['code']}: tier is {tier!r}; wanted one of {', '.join(get_args(Tier))}")
    return Language(row["code"], row["name"], row["script"], tier, float(row["weight"]))  # type: ignore[arg-type]
