"""Prompt templates: TOML files, checked when they are loaded, filled in one pass.

A placeholder is ``{{name}}``.  Values are put in as they are and not looked at again, so braces inside a document are
text.  A document stands between two lines that carry a mark, a code that is derived from the document: it cannot hold
its own closing line.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from qwen3_embedding.config import from_mapping
from qwen3_embedding.errors import ConfigError
from qwen3_embedding.synthesis.schema import check_schema, find_problem

TEMPLATES = (
    "retrieval_configure",
    "retrieval_query",
    "bitext",
    "sts",
    "classification_define",
    "classification_text",
    "clustering",
    "code_query",
    "code_translate",
)

_PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")


@dataclass(frozen=True, slots=True)
class Example:
    """One few-shot example: what would be given, and the answer as the model should write it."""

    given: str
    answer: str


@dataclass(frozen=True, slots=True)
class Template:
    """One prompt: its text, what goes into it, and what must come out."""

    name: str
    inputs: tuple[str, ...]
    system: str
    prompt: str
    schema: dict[str, Any]
    options: dict[str, dict[str, str]] = field(default_factory=dict)
    """Choices and what each means; ``{{name}}`` in the prompt lists them."""
    examples: tuple[Example, ...] = ()
    hash: str = field(init=False, compare=False)
    """16 hex digits over everything that shapes the answer."""
    _own: dict[str, str] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_schema(self.schema, "schema")
        self._check_placeholders()
        for number, example in enumerate(self.examples, 1):
            _check_example(example, self.schema, number)
        for name, choices in self.options.items():
            enum = self.schema["properties"].get(name, {}).get("enum")
            if enum is not None and list(choices) != list(enum):
                raise ValueError(f"options.{name} has {list(choices)}, but the schema's enum has {list(enum)}")
        object.__setattr__(self, "hash", self._hash())
        object.__setattr__(self, "_own", self._own_values())

    def render(self, values: Mapping[str, str]) -> str:
        """The prompt with its placeholders filled.

        Raises:
            ValueError: a value is missing, or one is given that the template does not know.
        """
        if set(values) != set(self.inputs):
            raise ValueError(f"template {self.name!r}: got {sorted(values)}, wanted {sorted(self.inputs)}")
        known = {**self._own, **values}
        return _PLACEHOLDER.sub(lambda match: known[match[1]], self.prompt).strip()

    def _hash(self) -> str:
        content: list[Any] = [self.name, self.system, self.prompt, self.schema, self.options]
        content.append([[example.given, example.answer] for example in self.examples])
        text = json.dumps(content, sort_keys=True, ensure_ascii=False)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def _own_values(self) -> dict[str, str]:
        lists = {
            name: "\n".join(f"   - {option}: {meaning}" for option, meaning in choices.items())
            for name, choices in self.options.items()
        }
        shown = [f"Example {n}\n{e.given.strip()}\nJSON: {e.answer}" for n, e in enumerate(self.examples, 1)]
        return {**lists, "examples": "\n\n".join(shown)}

    def _check_placeholders(self) -> None:
        used = set(_PLACEHOLDER.findall(self.prompt))
        known = {*self.inputs, *self.options, *(["examples"] if self.examples else [])}
        for name in sorted(used - known):
            raise ValueError(f"prompt uses {{{{{name}}}}}, which is no input, option or example of this template")
        for name in sorted(known - used):
            raise ValueError(f"{name!r} is declared but the prompt does not use {{{{{name}}}}}")
        if "{{" in _PLACEHOLDER.sub("", self.prompt) or "{{" in self.system:
            raise ValueError("a '{{' is no placeholder; wanted {{name}}")


def load_template(path: str | Path) -> Template:
    """A template from a TOML file.

    Raises:
        ConfigError: no such file, not TOML, an unknown key, a placeholder that is not known or not used, a schema that
            this project cannot check, or an example whose answer does not fit the schema.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; wanted a template") from None
    return _parse(text, str(path))


@lru_cache(maxsize=1)
def _bundled() -> dict[str, Template]:
    folder = files("qwen3_embedding.synthesis") / "templates"
    return {name: _parse((folder / f"{name}.toml").read_text(encoding="utf-8"), f"{name}.toml") for name in TEMPLATES}


def load_templates(folder: Path | None = None) -> dict[str, Template]:
    """The templates by name: the bundled ones, with those of ``folder`` in their place where it has them.

    Raises:
        ConfigError: a file of the folder is no template, or has a name or inputs that no task knows.
    """
    templates = dict(_bundled())
    for path in sorted(folder.glob("*.toml")) if folder else []:
        own = load_template(path)
        bundled = _bundled().get(own.name)
        if bundled is None:
            raise ConfigError(
                f"{path}: no task uses a template named {own.name!r}; wanted one of {', '.join(TEMPLATES)}"
            )
        if set(own.inputs) != set(bundled.inputs):
            raise ConfigError(f"{path}: inputs are {sorted(own.inputs)}, wanted {sorted(bundled.inputs)}")
        templates[own.name] = own
    return templates


def _parse(text: str, where: str) -> Template:
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not valid TOML: {error}") from None
    return from_mapping(raw, Template, where)


def _check_example(example: Example, schema: Mapping[str, Any], number: int) -> None:
    try:
        value = json.loads(example.answer)
    except json.JSONDecodeError as error:
        raise ValueError(f"example {number}: the answer is not valid JSON: {error}") from None
    problem = find_problem(value, schema)
    if problem:
        raise ValueError(f"example {number}: {problem}")
