"""The part of JSON Schema that templates use, checked in one place.

Known keywords: ``type``, ``enum``, ``properties``, ``required``, ``additionalProperties`` (false), ``items``,
``minItems``, ``maxItems``, ``minLength``, ``maxLength``, ``minimum``, ``maximum``.  A schema with another keyword is
refused, so that no check is silently left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KEYWORDS: dict[str, frozenset[str]] = {
    "object": frozenset({"type", "properties", "required", "additionalProperties"}),
    "array": frozenset({"type", "items", "minItems", "maxItems"}),
    "string": frozenset({"type", "enum", "minLength", "maxLength"}),
    "integer": frozenset({"type", "minimum", "maximum"}),
    "number": frozenset({"type", "minimum", "maximum"}),
    "boolean": frozenset({"type"}),
}


def check_schema(schema: object, where: str) -> None:
    """Refuse a schema that uses what this module does not check.

    Raises:
        ValueError: with the place in the schema.
    """
    if not isinstance(schema, Mapping):
        raise ValueError(f"{where}: got {type(schema).__name__}, wanted a table")
    kind = schema.get("type")
    if kind not in _KEYWORDS:
        raise ValueError(f"{where}: type is {kind!r}; wanted one of {', '.join(_KEYWORDS)}")
    unknown = sorted(set(schema) - _KEYWORDS[kind])
    if unknown:
        raise ValueError(f"{where}: unknown keyword {unknown[0]!r} for a schema of type {kind!r}")
    if kind == "object":
        properties = schema.get("properties", {})
        if schema.get("additionalProperties") is not False or set(schema.get("required", ())) != set(properties):
            raise ValueError(f"{where}: wanted additionalProperties = false and every property required")
        for name, part in properties.items():
            check_schema(part, f"{where}.{name}")
    if kind == "array":
        check_schema(schema.get("items"), f"{where}[]")


def find_problem(value: Any, schema: Mapping[str, Any], where: str = "answer") -> str | None:
    """What of a value does not fit a (checked) schema, in words; ``None`` where it fits."""
    kind = schema["type"]
    if kind == "object":
        return _object_problem(value, schema, where)
    if kind == "array":
        return _array_problem(value, schema, where)
    if kind == "string":
        return _string_problem(value, schema, where)
    if kind == "boolean":
        return None if isinstance(value, bool) else f"{where} is {_kind(value)}, wanted true or false"
    return _number_problem(value, schema, where)


def _object_problem(value: Any, schema: Mapping[str, Any], where: str) -> str | None:
    if not isinstance(value, dict):
        return f"{where} is {_kind(value)}, wanted an object"
    properties = schema["properties"]
    missing = [name for name in properties if name not in value]
    if missing:
        return f"{where} lacks the key {missing[0]!r}"
    extra = [name for name in value if name not in properties]
    if extra:
        return f"{where} has the key {str(extra[0])[:40]!r}, wanted only {', '.join(properties)}"
    problems = (find_problem(value[name], part, f"{where}.{name}") for name, part in properties.items())
    return next((problem for problem in problems if problem), None)


def _array_problem(value: Any, schema: Mapping[str, Any], where: str) -> str | None:
    if not isinstance(value, list):
        return f"{where} is {_kind(value)}, wanted a list"
    low, high = schema.get("minItems", 0), schema.get("maxItems")
    if len(value) < low or (high is not None and len(value) > high):
        return f"{where} has {len(value)} items, wanted {low} to {high if high is not None else 'any number'}"
    problems = (find_problem(item, schema["items"], f"{where}[{number}]") for number, item in enumerate(value))
    return next((problem for problem in problems if problem), None)


def _string_problem(value: Any, schema: Mapping[str, Any], where: str) -> str | None:
    if not isinstance(value, str):
        return f"{where} is {_kind(value)}, wanted a string"
    if "enum" in schema and value not in schema["enum"]:
        return f"{where} is {value[:40]!r}, wanted one of {', '.join(schema['enum'])}"
    length = len(value.strip())
    low, high = schema.get("minLength", 0), schema.get("maxLength")
    if length < low or (high is not None and length > high):
        return f"{where} has {length} characters, wanted {low} to {high if high is not None else 'any number'}"
    return None


def _number_problem(value: Any, schema: Mapping[str, Any], where: str) -> str | None:
    wanted = "a whole number" if schema["type"] == "integer" else "a number"
    allowed = int if schema["type"] == "integer" else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed):
        return f"{where} is {_kind(value)}, wanted {wanted}"
    low, high = schema.get("minimum"), schema.get("maximum")
    if (low is not None and value < low) or (high is not None and value > high):
        return f"{where} is {value}, wanted {low} to {high}"
    return None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
