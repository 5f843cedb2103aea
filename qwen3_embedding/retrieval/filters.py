"""Conditions on metadata: ``{"language": "de", "year": {"gte": 2020}, "tags": {"contains": "open"}}``, all to hold.

A plain value means equality, a list one of its values.  Text, numbers, booleans and lists of text can be asked for;
what a document lacks never matches, whatever the condition.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Filter = Mapping[str, Any]

_COMPARE: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "eq": ("=", operator.eq),
    "ne": ("<>", operator.ne),
    "gt": (">", operator.gt),
    "gte": (">=", operator.ge),
    "lt": ("<", operator.lt),
    "lte": ("<=", operator.le),
}
_OPERATORS = (*_COMPARE, "in", "contains")


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition: the metadata key, the operator, the value, and the kind of value it looks at."""

    key: str
    operator: str
    value: Any
    kind: str
    """``text``, ``number``, ``boolean`` or ``list``."""

    def holds(self, metadata: Mapping[str, Any]) -> bool:
        """Does the metadata of a document meet it?"""
        value = metadata.get(self.key)
        if value is None or kind_of(value) != self.kind:
            return False
        if self.operator == "contains":
            return self.value in value
        if self.operator == "in":
            return value in self.value
        return _COMPARE[self.operator][1](value, self.value)


def parse_filter(where: Filter | None) -> list[Condition]:
    """The conditions of a filter.

    Raises:
        TypeError: not a mapping of strings; a value of a type that cannot be asked for.
        ValueError: an unknown operator.
    """
    if where is None:
        return []
    if not isinstance(where, Mapping):
        raise TypeError(f"where is {type(where).__name__}; wanted a mapping such as {{'language': 'de'}}")
    return [condition for key, wanted in where.items() for condition in _parse(key, wanted)]


def matches(metadata: Mapping[str, Any], conditions: list[Condition]) -> bool:
    """Do all the conditions hold?"""
    return all(condition.holds(metadata) for condition in conditions)


def kind_of(value: Any) -> str | None:
    """The kind under which a metadata value can be asked for, or ``None``."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str):
        return "text"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, str) for item in value):
        return "list"
    return None


def column_name(key: str, kind: str) -> str:
    """The column that holds a metadata key's values of one kind; odd keys are spelt in hexadecimal."""
    plain = key.isascii() and key.islower() and key.replace("_", "").isalnum()
    return f"{kind}_{key}" if plain else f"{kind}x_{key.encode().hex()}"


def to_sql(conditions: list[Condition]) -> str:
    """The conditions as an SQL expression over the columns of :func:`column_name`, values quoted."""
    return " AND ".join(f"({_sql(condition)})" for condition in conditions)


def quote(value: Any) -> str:
    """A value as an SQL literal."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return f"CAST({float(value)!r} AS DOUBLE)"
    return "'" + str(value).replace("'", "''") + "'"


def _sql(condition: Condition) -> str:
    column = f"`{column_name(condition.key, condition.kind)}`"
    if condition.operator == "contains":
        return f"array_has({column}, {quote(condition.value)})"
    if condition.operator == "in":
        return f"{column} IN ({', '.join(quote(value) for value in condition.value)})"
    return f"{column} {_COMPARE[condition.operator][0]} {quote(condition.value)}"


def _parse(key: Any, wanted: Any) -> list[Condition]:
    if not isinstance(key, str) or not key:
        raise TypeError(f"where has the key {key!r}; wanted the name of a metadata field")
    if isinstance(wanted, Mapping):
        if not wanted:
            raise ValueError(f"where[{key!r}] is empty; wanted one of {', '.join(_OPERATORS)}")
        return [_condition(key, name, value) for name, value in wanted.items()]
    return [_condition(key, "in" if isinstance(wanted, (list, tuple)) else "eq", wanted)]


def _condition(key: str, name: str, value: Any) -> Condition:
    where = f"where[{key!r}]"
    if name not in _OPERATORS:
        raise ValueError(f"{where} asks for {name!r}; wanted one of {', '.join(_OPERATORS)}")
    if name == "in":
        if not isinstance(value, (list, tuple)) or not value:
            raise ValueError(f"{where}: 'in' got {value!r}; wanted a list with at least one value")
        kinds = {_scalar_kind(item, where) for item in value}
        if len(kinds) > 1:
            raise TypeError(f"{where}: 'in' got values of several kinds ({', '.join(sorted(kinds))}); wanted one kind")
        return Condition(key, name, list(value), kinds.pop())
    kind = _scalar_kind(value, where)
    if name == "contains":
        if kind != "text":
            raise TypeError(f"{where}: 'contains' got {value!r}; wanted text, an element of a list of texts")
        return Condition(key, name, value, "list")
    if kind == "boolean" and name not in ("eq", "ne"):
        raise TypeError(f"{where}: {name!r} got {value!r}; booleans can be asked for with 'eq' and 'ne'")
    return Condition(key, name, value, kind)


def _scalar_kind(value: Any, where: str) -> str:
    kind = kind_of(value)
    if kind in (None, "list"):
        raise TypeError(f"{where} asks for {value!r} ({type(value).__name__}); wanted text, a number or a boolean")
    if kind == "number" and not math.isfinite(value):
        raise ValueError(f"{where} asks for {value!r}; wanted a finite number")
    if kind == "text" and not _encodes(value):
        raise ValueError(f"{where} asks for text that is not valid Unicode: {value!r}")
    return kind


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
