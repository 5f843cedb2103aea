"""What a training example is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from qwen3_embedding.errors import DataError

Task = Literal["retrieval", "bitext", "sts", "classification", "clustering"]
TASKS: tuple[Task, ...] = get_args(Task)

KEYS = ("instruction", "query", "positives", "negatives", "task", "language", "source", "score")


@dataclass(frozen=True, slots=True)
class Record:
    """One training example: a query, what answers it, and what does not.

    ``sts`` records are graded: ``score`` in [0, 1] says how similar the query and each positive are, so a low score is
    no positive pair.  All others are pairs, and their ``score``, if any, is the grade or filter score of the pair.
    """

    query: str
    positives: tuple[str, ...]
    task: Task
    source: str
    instruction: str | None = None
    """The task in words; ``None`` is the default web-search task, ``""`` is no prompt at all."""
    negatives: tuple[str, ...] = ()
    language: str | None = None
    score: float | None = None

    def __post_init__(self) -> None:
        problem = _problem(self)
        if problem:
            raise ValueError(problem)


def from_mapping(raw: object, where: str) -> Record:
    """A record from a line's plain values.

    Args:
        raw: what the line held.
        where: file and line, for the message.

    Raises:
        DataError: it is not a record; the message says where and why.
    """
    if not isinstance(raw, Mapping):
        raise DataError(f"{where}: got {type(raw).__name__}, wanted an object with the keys {', '.join(KEYS)}")
    unknown = [key for key in raw if key not in KEYS]
    if unknown:
        raise DataError(f"{where}: unknown key {unknown[0]!r}; a record has {', '.join(KEYS)}")
    missing = [key for key in ("query", "positives", "task", "source") if raw.get(key) is None]
    if missing:
        raise DataError(f"{where}: the key {missing[0]!r} is missing or null")
    try:
        return Record(
            query=raw["query"],
            positives=_texts(raw["positives"], "positives"),
            task=raw["task"],
            source=raw["source"],
            instruction=raw.get("instruction"),
            negatives=_texts(raw["negatives"], "negatives") if raw.get("negatives") is not None else (),
            language=raw.get("language"),
            score=_score(raw.get("score")),
        )
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {error}") from None


def to_mapping(record: Record) -> dict[str, Any]:
    """The plain values of a record, keys in the order of the format's description."""
    return {
        "instruction": record.instruction,
        "query": record.query,
        "positives": list(record.positives),
        "negatives": list(record.negatives),
        "task": record.task,
        "language": record.language,
        "source": record.source,
        "score": record.score,
    }


def _texts(value: object, name: str) -> tuple[str, ...]:
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        raise TypeError(f"{name} is {type(value).__name__}; wanted a list of strings")
    return tuple(value)


def _score(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"score is {value!r}; wanted a number or null")
    return float(value)


def _problem(record: Record) -> str | None:
    """What is wrong with a record, or nothing."""
    if record.task not in TASKS:
        return f"task is {record.task!r}; wanted one of {', '.join(TASKS)}"
    for name in ("query", "source"):
        problem = _text_problem(getattr(record, name), name)
        if problem:
            return problem
    for name in ("instruction", "language"):
        value = getattr(record, name)
        if value is not None and not isinstance(value, str):
            return f"{name} is {type(value).__name__}; wanted a string or null"
    if not record.positives:
        return "positives is empty; wanted at least one text"
    for name in ("positives", "negatives"):
        for number, text in enumerate(getattr(record, name)):
            # An empty document is a document, and a fair negative; nothing is a positive answer by being empty.
            if name == "negatives" and text == "":
                continue
            problem = _text_problem(text, f"{name}[{number}]")
            if problem:
                return problem
    if record.score is not None and not math.isfinite(record.score):
        return f"score is {record.score}; wanted a finite number"
    if record.task == "sts" and record.score is None:
        return "an sts record has no score; wanted the similarity of query and positive, 0 to 1"
    return None


def _text_problem(text: object, name: str) -> str | None:
    if not isinstance(text, str):
        return f"{name} is {type(text).__name__}; wanted a string"
    if not text.strip():
        return f"{name} is empty"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"{name} has a lone surrogate at character {error.start} and is not valid Unicode"
    return None
