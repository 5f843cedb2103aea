"""Strict TOML into typed settings: a frozen dataclass says which keys there are, of which type.

Unknown keys are refused with the nearest known name; a value of the wrong type is refused with its place.  Nothing is
guessed: an int is accepted for a float, and that is the only conversion.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from qwen3_embedding.errors import ConfigError
from qwen3_embedding.whole import write_text

T = TypeVar("T")


def load_toml(path: str | Path, into: type[T]) -> T:
    """Read a TOML file into the dataclass ``into``.

    Raises:
        ConfigError: no such file, not TOML, an unknown key, a missing key, a value of the wrong type.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            raw = tomllib.load(file)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; wanted a TOML file of settings") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    return from_mapping(raw, into, where=str(path))


def from_mapping(raw: dict[str, Any], into: type[T], where: str = "settings") -> T:
    """Build the dataclass ``into`` from plain values, checking every key and type."""
    if not dataclasses.is_dataclass(into):
        raise TypeError(f"{into!r} is not a dataclass")
    hints = typing.get_type_hints(into)
    known = {f.name: f for f in dataclasses.fields(into) if f.init}
    for key in raw:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"
            raise ConfigError(f"{where}: unknown key {key!r}{hint}")
    values = {key: _convert(value, hints[key], f"{where}: {key}") for key, value in raw.items()}
    for name, field in known.items():
        no_default = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if name not in values and no_default:
            raise ConfigError(f"{where}: missing key {name!r} ({_show(hints[name])})")
    try:
        return into(**values)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: {error}") from error


def to_mapping(settings: Any) -> dict[str, Any]:
    """The plain values of a settings dataclass, ``None`` left out (TOML has none)."""
    out: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = _plain(getattr(settings, field.name))
        if value is not None:
            out[field.name] = value
    return out


def check_begun(path: Path, settings: Mapping[str, Any]) -> None:
    """See that a folder was begun with the same settings, which stand in ``path``; a new folder gets them.

    Raises:
        ConfigError: it was not; the message names the first difference.
    """
    plain = json.loads(json.dumps(settings, default=str))
    if not path.exists():
        write_text(path, json.dumps(plain, indent=1) + "\n")
        return
    begun = json.loads(path.read_text(encoding="utf-8"))
    for key in sorted({*begun, *plain}):
        if begun.get(key) != plain.get(key):
            raise ConfigError(
                f"{path.parent} was begun with {key} = {begun.get(key)!r} and now it is {plain.get(key)!r}; set it "
                "back, or choose another 'out'"
            )


def dump_toml(settings: Any) -> str:
    """The settings as TOML text that :func:`load_toml` reads back to an equal value."""
    lines: list[str] = []
    _dump_table(to_mapping(settings), "", lines)
    return "\n".join(lines).strip() + "\n"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_mapping(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    return value


def _dump_table(table: dict[str, Any], prefix: str, lines: list[str]) -> None:
    tables = {k: v for k, v in table.items() if isinstance(v, dict)}
    arrays = {k: v for k, v in table.items() if isinstance(v, list) and v and all(isinstance(i, dict) for i in v)}
    for key, value in table.items():
        if key not in tables and key not in arrays:
            lines.append(f"{_toml_key(key)} = {_toml_value(value)}")
    for key, value in tables.items():
        lines += ["", f"[{prefix}{_toml_key(key)}]"]
        _dump_table(value, f"{prefix}{_toml_key(key)}.", lines)
    for key, items in arrays.items():
        for item in items:
            lines += ["", f"[[{prefix}{_toml_key(key)}]]"]
            _dump_table(item, f"{prefix}{_toml_key(key)}.", lines)


def _toml_key(key: str) -> str:
    bare = key.replace("-", "").replace("_", "").isalnum() and key.isascii()
    return key if bare else _toml_string(key)


def _toml_string(text: str) -> str:
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(escapes.get(c) or (f"\\u{ord(c):04x}" if ord(c) < 32 else c) for c in text) + '"'


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_key(k)} = {_toml_value(v)}" for k, v in value.items()) + "}"
    return _toml_string(str(value))


def _show(hint: Any) -> str:
    return getattr(hint, "__name__", None) or str(hint).replace("typing.", "")


def _convert(value: Any, hint: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        tables = [option for option in args if dataclasses.is_dataclass(option)]
        if isinstance(value, dict) and len(tables) == 1:  # so that the message is about the key inside
            return _convert(value, tables[0], where)
        for option in args:
            try:
                return _convert(value, option, where)
            except ConfigError:
                continue
        raise ConfigError(f"{where}: got {value!r}, wanted {_show(hint)}")
    if origin is typing.Literal:
        if value not in args:
            raise ConfigError(f"{where}: got {value!r}, wanted one of {', '.join(map(repr, args))}")
        return value
    if origin is list and isinstance(value, list):
        return [_convert(item, args[0], f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is tuple and isinstance(value, list) and len(args) == 2 and args[1] is Ellipsis:
        return tuple(_convert(item, args[0], f"{where}[{i}]") for i, item in enumerate(value))
    if origin is tuple and isinstance(value, list) and len(args) == len(value):
        pairs = enumerate(zip(value, args, strict=True))
        return tuple(_convert(item, hint_i, f"{where}[{i}]") for i, (item, hint_i) in pairs)
    if origin is dict and isinstance(value, dict):
        return {key: _convert(item, args[1], f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        return from_mapping(value, hint, where)
    if hint is float and type(value) is int:
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    if hint is type(None) and value is None:
        return None
    raise ConfigError(f"{where}: got {value!r} ({type(value).__name__}), wanted {_show(hint)}")
