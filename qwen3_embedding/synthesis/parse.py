"""A model's answer into a checked value: strict JSON first, then one mechanical repair whose steps are recorded.

Nothing is evaluated and nothing is guessed: a truncated answer, two different answers in one text, a key twice or a key
too many are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qwen3_embedding.synthesis.schema import find_problem

Kind = Literal["empty", "too_long", "no_json", "truncated", "ambiguous", "schema", "characters", "content"]

MAX_CHARACTERS = 200_000
"""A longer answer is refused unread; the largest that any template asks for is a tenth of it."""

_MAX_STARTS = 64
_THINKING = re.compile(r"^.*?</think(?:ing)?>", re.DOTALL)
_FENCE = re.compile(r"^\s*```[A-Za-z0-9_-]*[ \t]*\n(.*?)\n?\s*```\s*$", re.DOTALL)
_OPENING, _CLOSING = "“„‟«＂", "”“‟»＂"
_WORDS = {"True": "true", "False": "false", "None": "null"}
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd\u202a-\u202e\u2066-\u2069]|[\ud800-\udfff]")


class AnswerError(ValueError):
    """An answer that cannot be used; ``kind`` for counting, the message for the model and for people."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind: Kind = kind


@dataclass(frozen=True, slots=True)
class Parsed:
    """A checked value, and what had to be mended to get it (empty: it was strict JSON that fits)."""

    value: dict[str, Any]
    repairs: tuple[str, ...] = ()


def parse_answer(text: str, schema: Mapping[str, Any], truncated: bool = False) -> Parsed:
    """The value of an answer.

    Args:
        text: what the model wrote.
        schema: what it had to write (a template's).
        truncated: the server said that it stopped at the token limit.

    Raises:
        AnswerError: it is not what the schema asks for, also after one repair.
    """
    if not text.strip():
        raise AnswerError("truncated" if truncated else "empty", "the answer is empty")
    if len(text) > MAX_CHARACTERS:
        raise AnswerError("too_long", f"the answer has {len(text):,} characters, wanted at most {MAX_CHARACTERS:,}")
    try:
        value = _loads(text.strip())
        problem = find_problem(value, schema)
        if problem is None:
            _check_characters(value)
            return Parsed(value)
    except AnswerError:
        raise
    except (ValueError, RecursionError):
        pass
    return _repaired(text, schema, truncated)


def _repaired(text: str, schema: Mapping[str, Any], truncated: bool) -> Parsed:
    repairs: list[str] = []
    body = _without_wrapping(text, repairs)
    found: dict[str, Parsed] = {}
    problems: list[str] = []
    torn = truncated
    for segment, whole in _segments(body):
        if not whole:
            torn = True
            break
        steps = list(repairs)
        if segment != body.strip():
            steps.append("surrounding_text")
        try:
            value = _coerced(_loads(_mended(segment, steps)), schema, steps)
        except (ValueError, RecursionError) as error:
            problems.append(f"not valid JSON: {error}")
            continue
        problem = find_problem(value, schema)
        if problem:
            problems.append(problem)
        else:
            found.setdefault(json.dumps(value, sort_keys=True), Parsed(value, tuple(dict.fromkeys(steps))))
    if len(found) > 1:
        raise AnswerError("ambiguous", f"the text holds {len(found)} different answers, wanted one JSON object")
    if found:
        parsed = next(iter(found.values()))
        _check_characters(parsed.value)
        return parsed
    if torn:
        raise AnswerError("truncated", "the answer breaks off before its JSON object is closed")
    if problems:
        raise AnswerError("schema", problems[0])
    raise AnswerError("no_json", "the answer holds no JSON object")


def _without_wrapping(text: str, repairs: list[str]) -> str:
    """The text without a model's thinking and without a code fence around all of it.

    Where the end of thinking stands inside a whole ``{…}``, it is part of what the answer says.
    """
    body = text.lstrip("\ufeff").strip()
    if "</think" in body and not any(whole and "</think" in segment for segment, whole in _segments(body)):
        body = _THINKING.sub("", body).strip()
        repairs.append("thinking")
    fenced = _FENCE.match(body)
    if fenced:
        body = fenced[1].strip()
        repairs.append("code_fence")
    return body


def _segments(text: str) -> Iterator[tuple[str, bool]]:
    """The outermost ``{…}`` of a text; the last may be torn (then False, and nothing follows)."""
    at = text.find("{")
    starts = 0
    torn = False
    while at >= 0 and starts < _MAX_STARTS:
        starts += 1
        end = _object_end(text, at)
        if end is not None:
            yield text[at:end], True
        torn = torn or end is None
        at = text.find("{", end if end is not None else at + 1)
    if torn:
        yield "", False


def _object_end(text: str, start: int) -> int | None:
    """Behind the brace that closes the one at ``start``; braces within strings do not count."""
    depth, at = 0, start
    while at < len(text):
        character = text[at]
        if character == '"' or character in _OPENING:
            closed = _string_end(text, at)
            if closed is None:
                return None
            at = closed
            continue
        depth += (character == "{") - (character == "}")
        at += 1
        if depth == 0:
            return at
    return None


def _string_end(text: str, start: int) -> int | None:
    """Behind the quotation mark that closes the one at ``start``."""
    closing = '"' if text[start] == '"' else _CLOSING
    at = start + 1
    while at < len(text):
        if text[at] == "\\":
            at += 2
            continue
        if text[at] in closing:
            return at + 1
        at += 1
    return None


def _mended(segment: str, repairs: list[str]) -> str:
    """The segment with the slips mended that models make: each is named in ``repairs``."""
    out: list[str] = []
    at = 0
    while at < len(segment):
        character = segment[at]
        if character == '"' or character in _OPENING:
            end = _string_end(segment, at) or len(segment)
            out.append(_mended_string(segment[at:end], repairs))
            at = end
        elif character == "," and re.match(r",\s*[}\]]", segment[at:]):
            repairs.append("trailing_comma")
            at += 1
        else:
            word = re.match(r"(?:True|False|None)\b", segment[at:]) if character in "TFN" else None
            out.append(_WORDS[word[0]] if word else character)
            if word:
                repairs.append("python_literal")
            at += len(word[0]) if word else 1
    return "".join(out)


def _mended_string(quoted: str, repairs: list[str]) -> str:
    inner = quoted[1:-1]
    if quoted[0] != '"':
        repairs.append("quotation_marks")
        inner = re.sub(r'(?<!\\)"', lambda _: '\\"', inner)
    for raw, escaped in (("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        if raw in inner:
            repairs.append("line_break_in_string")
            inner = inner.replace(raw, escaped)
    return f'"{inner}"'


def _coerced(value: Any, schema: Mapping[str, Any], repairs: list[str]) -> Any:
    """Spelling of keys and choices, and numbers in quotation marks, as the schema has them."""
    kind = schema["type"]
    if kind == "object" and isinstance(value, dict):
        names = {_spelling(name): name for name in schema["properties"]}
        renamed = {names.get(_spelling(key), key): item for key, item in value.items()}
        if len(renamed) == len(value) and list(renamed) != list(value):
            repairs.append("key_spelling")
            value = renamed
        parts = schema["properties"]
        return {key: _coerced(item, parts[key], repairs) if key in parts else item for key, item in value.items()}
    if kind == "array" and isinstance(value, list):
        return [_coerced(item, schema["items"], repairs) for item in value]
    if kind == "integer" and isinstance(value, str) and re.fullmatch(r"\s*-?\d{1,9}\s*", value, re.ASCII):
        repairs.append("number_in_quotes")
        return int(value)
    if kind == "string" and isinstance(value, str) and "enum" in schema and value not in schema["enum"]:
        names = {_spelling(name): name for name in schema["enum"]}
        if _spelling(value) in names:
            repairs.append("choice_spelling")
            return names[_spelling(value)]
    return value


def _spelling(text: str) -> str:
    return re.sub(r"[\s_-]+", "_", text.strip()).casefold()


def _check_characters(value: Any) -> None:
    """Refuse control characters, direction overrides, lone surrogates and the mark of a decoding fault."""
    if isinstance(value, str):
        bad = _FORBIDDEN.search(value)
        if bad:
            raise AnswerError("characters", f"the answer holds the character U+{ord(bad[0]):04X}, which no text should")
    elif isinstance(value, dict):
        for item in value.values():
            _check_characters(item)
    elif isinstance(value, list):
        for item in value:
            _check_characters(item)


def _loads(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return out


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")
