"""The tasks: which questions a unit asks the model, one after the other, and what records the answers make.

A task is a generator function: it yields an :class:`Ask`, is sent the checked answer, and at last returns its drafts.
So a task reads from top to bottom, and knows nothing of servers, retries or ledgers.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal, get_args

from qwen3_embedding.data import Record
from qwen3_embedding.data import Task as RecordTask
from qwen3_embedding.synthesis.document import Document
from qwen3_embedding.synthesis.draws import Draws
from qwen3_embedding.synthesis.languages import (
    LanguageSettings,
    draw_language,
    draw_other_language,
    language_name,
)
from qwen3_embedding.synthesis.parse import AnswerError
from qwen3_embedding.synthesis.personas import Persona
from qwen3_embedding.synthesis.template import Template

Kind = Literal["retrieval", "bitext", "sts", "classification", "clustering", "code"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Unit:
    """One document in one configuration: what is asked for, paid for and resumed as one."""

    id: str
    kind: Kind
    number: int
    document: Document
    draws: Draws
    personas: tuple[Persona, ...]
    """The five candidates."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One question of a task."""

    template: str
    values: Mapping[str, str]
    check: Callable[[dict[str, Any]], None] | None = None
    """Raises AnswerError for an answer that fits the schema and still is not what was asked for."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A pair as a task makes it, before its source and provenance are known."""

    query: str
    positive: str
    task: RecordTask
    instruction: str
    language: str | None
    negatives: tuple[str, ...] = ()
    score: float | None = None
    query_language: str | None = None
    """What the language check expects of the query, and of the positive where the model wrote it."""
    positive_language: str | None = None
    length: int | None = None
    """Words that were asked for."""
    choices: Mapping[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Craft:
    """What tasks need beside their unit."""

    languages: LanguageSettings = field(default_factory=LanguageSettings)
    templates: Mapping[str, Template] = field(default_factory=dict)
    instruction_variants: bool = False

    def instruction(self, unit: Unit, kind: str, key: str) -> str:
        """The task in words for the record."""
        variants = instructions()[kind][key]
        return unit.draws.choice("instruction", variants) if self.instruction_variants else variants[0]

    def meaning(self, template: str, option: str, key: str) -> str:
        """What a choice means, from the template that offers it."""
        return self.templates[template].options[option][key]


Script = Generator[Ask, dict[str, Any], list[Draft]]

_CONTROL = re.compile(
    r"<([|｜][^<>|｜\s]{1,40}[|｜]|/?(?:s|think|tool_call|start_of_turn|end_of_turn))>", re.IGNORECASE
)
_LENGTHS: dict[str, tuple[int, int]] = {
    "keywords": (2, 6),
    "acquire_knowledge": (6, 20),
    "summary": (8, 25),
    "yes_or_no": (6, 18),
    "background": (20, 60),
}
_CODE_TYPES: dict[str, tuple[str, tuple[int, int], float]] = {
    "how_to": ("a question after a way of doing something", (6, 20), 3),
    "task": ("a task given as an order", (6, 30), 2),
    "comment": ("the comment or docstring that belongs above it", (5, 25), 2),
    "problem": ("a fault, an error message or an unexpected result that it helps with", (12, 50), 2),
    "keywords": ("search terms without a sentence", (2, 6), 1),
    "translation": ("", (0, 0), 2),
}
_PROGRAMMING = (
    *("Python", "JavaScript", "TypeScript", "Java", "C", "C++", "C#", "Go", "Rust", "PHP", "Ruby", "Swift", "Kotlin"),
    *("Scala", "R", "Perl", "Lua", "Haskell", "Julia", "Bash", "PowerShell", "SQL"),
)
_REGISTERS = (
    *("a news report", "a conversation between friends", "a notice to the public", "a legal or official text"),
    *("a manual", "a message on a telephone", "a scientific article", "a story"),
)
_STYLES = (
    "a news report",
    "a caption of a picture",
    "a question in a forum",
    "a sentence of an encyclopaedia",
    "speech",
)
_ANGLES = (
    *("the topic", "the feeling of the writer", "what the writer wants to be done", "the kind of text it is"),
    *("how urgent it is", "the opinion about the matter", "who should deal with it", "what it reports as cause"),
)
_TEXT_KINDS = (
    "a title",
    "a headline and its first sentence",
    "a short message",
    "a paragraph",
    "a question in a forum",
)


@lru_cache(maxsize=1)
def instructions() -> dict[str, dict[str, list[str]]]:
    """The tasks in words, by kind and type."""
    return tomllib.loads((files("qwen3_embedding.synthesis") / "instructions.toml").read_text(encoding="utf-8"))


def retrieval(unit: Unit, craft: Craft) -> Script:
    """Configuration, then query (Qwen3 Embedding report, section 3.3 and appendix A.1, in words of our own)."""
    people = "\n".join(f"{number}. {persona.text}" for number, persona in enumerate(unit.personas, 1))
    configuration = yield Ask(
        "retrieval_configure", {"characters": people, **_passage(unit)}, lambda a: _check_character(a, unit)
    )
    kind, difficulty = configuration["Question_Type"], configuration["Difficulty"]
    persona = unit.personas[configuration["Character"] - 1]
    length = unit.draws.integer("length", *_LENGTHS[kind])
    language = draw_language(craft.languages, unit.draws, unit.document.language, "query")
    answer = yield Ask(
        "retrieval_query",
        {
            "character": persona.text,
            "type": kind,
            "type_meaning": craft.meaning("retrieval_configure", "Question_Type", kind),
            "difficulty": f"{difficulty} ({craft.meaning('retrieval_configure', 'Difficulty', difficulty)})",
            "length": str(length),
            "language": language_name(language),
            "passage_language": language_name(unit.document.language),
            **_passage(unit),
        },
    )
    draft = Draft(
        query=answer["query"].strip(),
        positive=unit.document.text,
        task="retrieval",
        instruction=craft.instruction(unit, "retrieval", kind),
        language=_pair_language(language, unit.document.language),
        query_language=language,
        length=length,
        choices={"type": kind, "difficulty": difficulty, "persona": persona.text, "persona_id": persona.id},
    )
    return [draft]


def bitext(unit: Unit, craft: Craft) -> Script:
    """A sentence and its translation; which of them is the query is drawn."""
    own = unit.document.language
    other = draw_other_language(craft.languages, unit.draws, own, "target")
    if other is None:
        raise AnswerError("content", "the language settings leave no second language")
    register = unit.draws.choice("register", _REGISTERS)
    answer = yield Ask(
        "bitext",
        {
            "source_language": language_name(own),
            "target_language": language_name(other),
            "register": register,
            **_passage(unit),
        },
    )
    sides = [(answer["source"].strip(), own), (answer["target"].strip(), other)]
    if unit.draws.uniform("direction") < 0.5:
        sides.reverse()
    (query, query_language), (positive, positive_language) = sides
    draft = Draft(
        query=query,
        positive=positive,
        task="bitext",
        instruction=craft.instruction(unit, "bitext", "pair"),
        language=_pair_language(query_language, positive_language),
        query_language=query_language,
        positive_language=positive_language,
        choices={"register": register},
    )
    return [draft]


def sts(unit: Unit, craft: Craft) -> Script:
    """One sentence and three more at drawn grades of likeness."""
    grades = sorted(unit.draws.sample("grades", (5, 4, 3, 2, 1, 0), 3), reverse=True)
    style = unit.draws.choice("style", _STYLES)
    language = draw_language(craft.languages, unit.draws, unit.document.language, "sentence")
    answer = yield Ask(
        "sts",
        {
            "language": language_name(language),
            "grades": ", ".join(map(str, grades)),
            "style": style,
            **_passage(unit),
        },
        lambda a: _check_grades(a, grades),
    )
    return [
        Draft(
            query=answer["sentence"].strip(),
            positive=other["sentence"].strip(),
            task="sts",
            instruction=craft.instruction(unit, "sts", "pair"),
            language=language,
            score=other["grade"] / 5,
            query_language=language,
            positive_language=language,
            choices={"grade": other["grade"], "style": style},
        )
        for other in answer["others"]
    ]


def classification(unit: Unit, craft: Craft) -> Script:
    """A sorting task that the document suggests, then a text for one of its labels; the other labels are negatives."""
    persona = unit.draws.choice("persona", unit.personas)
    angle = unit.draws.choice("angle", _ANGLES)
    count = unit.draws.integer("labels", 2, 8)
    task = yield Ask(
        "classification_define",
        {"character": persona.text, "angle": angle, "label_count": str(count), **_passage(unit)},
        lambda a: _check_labels(a, count),
    )
    labels = [label.strip() for label in task["labels"]]
    label = unit.draws.choice("label", labels)
    language = draw_language(craft.languages, unit.draws, unit.document.language, "text")
    length = unit.draws.integer("length", 8, 80)
    clarity = unit.draws.choice("clarity", ("obvious at once", "some thought is needed"))
    answer = yield Ask(
        "classification_text",
        {
            "instruction": task["instruction"].strip(),
            "labels": "; ".join(labels),
            "label": label,
            "text_kind": task["text_kind"].strip(),
            "language": language_name(language),
            "length": str(length),
            "clarity": clarity,
            **_passage(unit),
        },
    )
    draft = Draft(
        query=answer["text"].strip(),
        positive=label,
        task="classification",
        instruction=task["instruction"].strip(),
        language=language,
        negatives=tuple(other for other in labels if other != label),
        query_language=language,
        length=length,
        choices={"angle": angle, "clarity": clarity, "persona": persona.text, "persona_id": persona.id},
    )
    return [draft]


def clustering(unit: Unit, craft: Craft) -> Script:
    """Two texts of one theme; texts of neighbouring themes are negatives."""
    persona = unit.draws.choice("persona", unit.personas)
    count = unit.draws.integer("others", 2, 4)
    length = unit.draws.integer("length", 6, 60)
    granularity = unit.draws.choice("granularity", ("broad", "middling", "narrow"))
    text_kind = unit.draws.choice("kind", _TEXT_KINDS)
    language = draw_language(craft.languages, unit.draws, unit.document.language, "texts")
    answer = yield Ask(
        "clustering",
        {
            "character": persona.text,
            "granularity": granularity,
            "text_kind": text_kind,
            "other_count": str(count),
            "language": language_name(language),
            "length": str(length),
            **_passage(unit),
        },
        lambda a: _check_themes(a, count),
    )
    draft = Draft(
        query=answer["same"][0].strip(),
        positive=answer["same"][1].strip(),
        task="clustering",
        instruction=answer["instruction"].strip(),
        language=language,
        negatives=tuple(other["text"].strip() for other in answer["other"]),
        query_language=language,
        positive_language=language,
        length=length,
        choices={"theme": answer["theme"].strip(), "granularity": granularity, "persona_id": persona.id},
    )
    return [draft]


def code(unit: Unit, craft: Craft) -> Script:
    """A query in words for a document that is code or about code, or the same program in another language."""
    kind = unit.draws.choice("type", list(_CODE_TYPES), [weight for _, _, weight in _CODE_TYPES.values()])
    meaning, lengths, _ = _CODE_TYPES[kind]
    instruction = craft.instruction(unit, "code", kind)
    if kind == "translation":
        target = unit.draws.choice("target", _PROGRAMMING)
        answer = yield Ask("code_translate", {"target": target, **_passage(unit)})
        if not answer["feasible"]:
            raise AnswerError("content", "the model found nothing in the document to write in another language")
        query = answer["code"].strip("\n")
        return [
            Draft(query, unit.document.text, "retrieval", instruction, None, choices={"type": kind, "target": target})
        ]
    persona = unit.draws.choice("persona", unit.personas)
    own = unit.document.language or "en"
    language = draw_language(craft.languages, unit.draws, own, "query")
    length = unit.draws.integer("length", *lengths)
    answer = yield Ask(
        "code_query",
        {
            "character": persona.text,
            "type": kind,
            "type_meaning": meaning,
            "length": str(length),
            "language": language_name(language),
            **_passage(unit),
        },
    )
    draft = Draft(
        query=answer["query"].strip(),
        positive=unit.document.text,
        task="retrieval",
        instruction=instruction,
        language=language,
        query_language=language,
        length=length,
        choices={"type": kind, "persona": persona.text, "persona_id": persona.id},
    )
    return [draft]


TASKS: dict[Kind, Callable[[Unit, Craft], Script]] = {
    "retrieval": retrieval,
    "bitext": bitext,
    "sts": sts,
    "classification": classification,
    "clustering": clustering,
    "code": code,
}

USED_TEMPLATES: dict[Kind, tuple[str, ...]] = {
    "retrieval": ("retrieval_configure", "retrieval_query"),
    "bitext": ("bitext",),
    "sts": ("sts",),
    "classification": ("classification_define", "classification_text"),
    "clustering": ("clustering",),
    "code": ("code_query", "code_translate"),
}


def to_record(draft: Draft, source: str) -> Record:
    """The training record of a draft."""
    return Record(
        query=draft.query,
        positives=(draft.positive,),
        task=draft.task,
        source=source,
        instruction=draft.instruction,
        negatives=draft.negatives,
        language=draft.language,
        score=draft.score,
    )


def _passage(unit: Unit) -> dict[str, str]:
    """The document and the mark of the lines around it, which the document itself cannot hold.

    Strings that chat templates use as control tokens are loosened, because many servers read them in a message's text.
    """
    number = 0
    while (mark := f"{unit.draws.bits(f'mark/{number}') & 0xFFFFFFFF:08x}") in unit.document.text:
        number += 1
    return {"passage": _CONTROL.sub(r"< \1 >", unit.document.text), "mark": mark}


def _pair_language(query: str | None, positive: str | None) -> str | None:
    """As training records have it: one code, or two with a hyphen where query and positive differ."""
    if query is None or positive is None:
        return query or positive
    return query if query == positive else f"{query}-{positive}"


def _check_character(answer: dict[str, Any], unit: Unit) -> None:
    if answer["Character"] > len(unit.personas):
        raise AnswerError("content", f"Character is {answer['Character']}, wanted 1 to {len(unit.personas)}")


def _check_grades(answer: dict[str, Any], grades: list[int]) -> None:
    got = [other["grade"] for other in answer["others"]]
    if got != grades:
        raise AnswerError("content", f"grades are {got}, wanted {grades}")
    texts = [answer["sentence"], *(other["sentence"] for other in answer["others"])]
    if len({" ".join(text.casefold().split()) for text in texts}) < len(texts):
        raise AnswerError("content", "two of the sentences are the same")


def _check_labels(answer: dict[str, Any], count: int) -> None:
    labels = [label.strip().casefold() for label in answer["labels"]]
    if len(labels) != count or len(set(labels)) != count or "" in labels:
        raise AnswerError("content", f"labels are {labels}, wanted {count} different ones")


def _check_themes(answer: dict[str, Any], count: int) -> None:
    themes = [answer["theme"].strip().casefold(), *(other["theme"].strip().casefold() for other in answer["other"])]
    if len(themes) != count + 1 or len(set(themes)) != len(themes):
        raise AnswerError("content", f"themes are {themes}, wanted one and {count} others, all different")
    texts = [*answer["same"], *(other["text"] for other in answer["other"])]
    if len({" ".join(text.casefold().split()) for text in texts}) < len(texts):
        raise AnswerError("content", "two of the texts are the same")
