"""What goes into an index: documents, from strings or mappings, checked whole before anything is written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

DocumentLike = str | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Document:
    """A text with its id and what else is known of it."""

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


def to_documents(documents: Iterable[DocumentLike], first_id: int = 0) -> list[Document]:
    """Check and unify documents.

    Args:
        documents: strings, or mappings with ``text``, optionally ``id``, and any further keys as metadata.
        first_id: documents without an id get the numbers from here on: the i-th document ``str(first_id + i)``.

    Raises:
        TypeError: not a list of strings or mappings; an id or text that is no string; metadata that JSON cannot hold.
        ValueError: a text that is not valid Unicode; an empty id; an id twice.
    """
    if isinstance(documents, (str, bytes, Mapping)) or not isinstance(documents, Iterable):
        raise TypeError(f"documents is {_kind(documents)}; wanted a list of strings or of mappings with 'text'")
    found = [_document(item, position, first_id) for position, item in enumerate(documents)]
    seen: dict[str, int] = {}
    for position, document in enumerate(found):
        if document.id in seen:
            raise ValueError(
                f"documents[{position}] has the id {document.id!r} of documents[{seen[document.id]}]; ids must differ"
            )
        seen[document.id] = position
    return found


def check_text(value: Any, where: str) -> str:
    """``value``, if it is a string of valid Unicode.

    Raises:
        TypeError: not a string.
        ValueError: it holds a lone surrogate.
    """
    if not isinstance(value, str):
        raise TypeError(f"{where} is {_kind(value)}; wanted a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where} is not valid Unicode: lone surrogate U+{ord(value[error.start]):04X} at character {error.start}; "
            "decode the source with errors='replace'"
        ) from None
    return value


def check_texts(values: Any, where: str) -> list[str]:
    """The strings of a list, each checked as by :func:`check_text`."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Sequence):
        raise TypeError(f"{where} is {_kind(values)}; wanted a list of strings")
    return [check_text(value, f"{where}[{i}]") for i, value in enumerate(values)]


def _document(item: Any, position: int, first_id: int) -> Document:
    where = f"documents[{position}]"
    if isinstance(item, Document):
        item = {**item.metadata, "id": item.id, "text": item.text}
    if isinstance(item, str):
        return Document(str(first_id + position), check_text(item, where))
    if not isinstance(item, Mapping):
        raise TypeError(f"{where} is {_kind(item)}; wanted a string or a mapping with 'text'")
    if "text" not in item:
        raise TypeError(f"{where} has no 'text'; its keys are {', '.join(map(repr, list(item)[:8])) or 'none'}")
    identity = item.get("id")
    if isinstance(identity, int) and not isinstance(identity, bool):
        identity = str(identity)
    identity = str(first_id + position) if identity is None else check_text(identity, f"{where}['id']")
    if not identity:
        raise ValueError(f"{where}['id'] is empty; leave it out to have it numbered")
    text = check_text(item["text"], f"{where}['text']")
    return Document(identity, text, _metadata(item, where))


def _metadata(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    metadata = {key: value for key, value in item.items() if key not in ("id", "text")}
    for key in metadata:
        check_text(key, f"a key of {where}")
    try:
        dump_metadata(metadata).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"{where} has metadata that JSON cannot hold: {error}") from None
    return metadata


def dump_metadata(metadata: Mapping[str, Any]) -> str:
    """Metadata as JSON text; not-a-number and infinity are refused."""
    return json.dumps(dict(metadata), ensure_ascii=False, allow_nan=False)


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__
