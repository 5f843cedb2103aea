"""Evaluation data on disk: BEIR-layout collections, pairs and labelled texts, checked whole when they are read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen3_embedding.errors import DataError

KINDS = (
    "retrieval", "reranking", "instruction_following", "sts", "pair_classification", "bitext", "classification",
    "clustering",
)  # fmt: skip
RANKING_KINDS = ("retrieval", "reranking", "instruction_following")
_MAIN_METRIC = {
    "retrieval": "ndcg@10",
    "reranking": "ndcg@10",
    "instruction_following": "p_mrr",
    "sts": "spearman",
    "pair_classification": "average_precision",
    "bitext": "accuracy",
    "classification": "accuracy",
    "clustering": "v_measure",
}


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """What ``dataset.json`` says; a folder without one is a retrieval collection under its own name."""

    name: str
    kind: str
    languages: tuple[str, ...]
    instruction: str | None
    main_metric: str
    licence: str
    bm25: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Collection:
    """Documents, queries and judgements."""

    documents: Mapping[str, str]
    """Id → title, a space, text."""
    queries: Mapping[str, str]
    """The judged queries: id → text."""
    qrels: Mapping[str, Mapping[str, int]]
    candidates: Mapping[str, list[str]] | None = None
    """Reranking: query id → ids of the documents to order."""
    violations: Mapping[str, list[str]] | None = None
    """Query id → ids of documents that say the opposite of what is asked."""
    changed: Mapping[str, list[str]] | None = None
    """Instruction following: query → ids of documents that its changed instruction makes irrelevant.

    The queries themselves are ``QUERY-og`` and ``QUERY-changed``.
    """


@dataclass(frozen=True, slots=True)
class Pairs:
    """Two columns of sentences; ``values`` is a score, a label or nothing; ``languages`` the language of each row."""

    left: list[str]
    right: list[str]
    values: list[float]
    languages: list[str]


@dataclass(frozen=True, slots=True)
class Labelled:
    """Texts and their labels."""

    texts: list[str]
    labels: list[str]


def metric_name(name: str) -> str:
    """A metric as this package spells it: ``average_precision``, ``ndcg@10``, ``p_mrr``."""
    return name.lower().replace(" ", "_").replace("-", "_")


def read_info(folder: Path) -> TaskInfo:
    """What the folder says of itself.

    Raises:
        DataError: no such folder, or a ``dataset.json`` that is not what it should be.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; wanted one with corpus.jsonl, pairs.tsv or test.jsonl")
    path = folder / "dataset.json"
    raw: Any = {}
    if path.exists():
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise DataError(f"{path}: cannot be read: {error}") from None
        if not isinstance(raw, dict):
            raise DataError(f"{path}: is {type(raw).__name__}; wanted an object")
    kind = str(raw.get("kind", "retrieval")).replace(" ", "_")
    if kind not in KINDS:
        raise DataError(f"{path}: kind {kind!r}; wanted one of {', '.join(KINDS)}")
    return TaskInfo(
        name=str(raw.get("name", folder.resolve().name)),
        kind=kind,
        languages=tuple(raw.get("languages", ())),
        instruction=raw.get("task_instruction"),
        main_metric=str(raw.get("main_metric", _MAIN_METRIC[kind])),
        licence=str(raw.get("licence", "")),
        bm25=raw.get("bm25", {}),
    )


def read_collection(folder: Path, split: str = "test") -> Collection:
    """Read a collection in BEIR's layout, with ``candidates``, ``violations`` and ``changed.jsonl`` where there are.

    Where there are other splits, queries that this one does not judge are left out, as in BEIR. A query with an
    ``instruction`` of its own is its text, a space, the instruction, as in mteb.

    Raises:
        DataError: a missing file; a line that is not what it should be (file, line and reason); no judgement; a query
            without judgement or relevant document; judgements of unknown queries or documents.
    """
    documents = {identity: _document_text(line) for identity, line in _records(folder / "corpus.jsonl")}
    queries = {identity: _query_text(line) for identity, line in _records(folder / "queries.jsonl")}
    path = folder / "qrels" / f"{split}.tsv"
    qrels = _read_qrels(path)
    _refuse_unknown(path, "queries", qrels, queries)
    for query, grades in qrels.items():
        _refuse_unknown(path, "documents", grades, documents)
        if not any(grade > 0 for grade in grades.values()):
            raise DataError(f"{path}: query {query!r} has judgements and no relevant document; leave it out")
    judged = {query: queries[query] for query in queries if query in qrels}
    _refuse_unjudged(path, queries, judged)
    candidates = _read_lists(folder / "candidates.jsonl", "candidates", judged, documents)
    violations = _read_lists(folder / "violations.jsonl", "violating", judged, documents)
    if candidates is not None:
        lacking = [query for query in judged if not candidates.get(query)]
        if lacking:
            raise DataError(f"{folder / 'candidates.jsonl'}: query {lacking[0]!r} has no candidates")
    changed = _read_changed(folder / "changed.jsonl", judged, documents)
    return Collection(documents, judged, {query: qrels[query] for query in judged}, candidates, violations, changed)


def read_pairs(folder: Path, kind: str) -> Pairs:
    """Read ``pairs.tsv`` of an sts, pair classification or bitext set; the header names the columns.

    Raises:
        DataError: a missing file or column, or a line that is not what it should be.
    """
    path = folder / "pairs.tsv"
    value, left, right = {
        "sts": ("score", "sentence1", "sentence2"),
        "pair_classification": ("label", "sentence1", "sentence2"),
        "bitext": (None, "source", "target"),
    }[kind]
    lines = _lines(path)
    header = next(lines, (0, ""))[1].split("\t")
    missing = [name for name in (value, left, right) if name is not None and name not in header]
    if missing:
        raise DataError(f"{path}: line 1: no column {missing[0]!r} in the header {header}")
    rows = [(number, dict(zip(header, _cells(path, number, line, len(header)), strict=True))) for number, line in lines]
    if not rows:
        raise DataError(f"{path}: holds no pair")
    values = [_number(path, number, row[value]) if value else 1.0 for number, row in rows]
    if kind == "pair_classification" and set(values) != {0.0, 1.0}:
        raise DataError(f"{path}: labels {sorted(set(values))[:5]}; wanted 0 and 1, and both to occur")
    languages = [row.get("language", "") for _, row in rows]
    return Pairs([row[left] for _, row in rows], [row[right] for _, row in rows], values, languages)


def read_labelled(path: Path) -> Labelled:
    """Read ``{"text", "label"}`` lines.

    Raises:
        DataError: a missing file, a line without text or label, no line at all.
    """
    texts, labels = [], []
    for number, line in _lines(path):
        record = _object(path, number, line)
        for key in ("text", "label"):
            if not isinstance(record.get(key), (str, int)):
                raise DataError(f"{path}: line {number}: {key!r} is missing or no text")
        texts.append(str(record["text"]))
        labels.append(str(record["label"]))
    if not texts:
        raise DataError(f"{path}: holds no text")
    return Labelled(texts, labels)


def _document_text(record: Mapping[str, Any]) -> str:
    title = record.get("title") or ""
    return f"{title} {record['text']}" if title else str(record["text"])


def _query_text(record: Mapping[str, Any]) -> str:
    own = record.get("instruction") or ""
    return f"{record['text']} {own}" if own else str(record["text"])


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    seen: set[str] = set()
    for number, line in _lines(path):
        record = _object(path, number, line)
        identity = record.get("_id", record.get("id"))
        if not isinstance(identity, (str, int)) or not isinstance(record.get("text"), str):
            raise DataError(
                f"{path}: line {number}: wanted an object with '_id' and 'text'; got the keys {list(record)}"
            )
        if str(identity) in seen:
            raise DataError(f"{path}: line {number}: the id {identity!r} a second time")
        seen.add(str(identity))
        yield str(identity), record
    if not seen:
        raise DataError(f"{path}: is empty")


def _read_qrels(path: Path) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for number, line in _lines(path):
        if number == 1 and re.match(r"query-id\tcorpus-id\tscore", line):
            continue
        query, document, grade = _cells(path, number, line, 3)
        if not re.fullmatch(r"-?\d+", grade):
            raise DataError(f"{path}: line {number}: grade {grade!r}; wanted a whole number")
        qrels.setdefault(query, {})[document] = int(grade)
    if not qrels:
        raise DataError(f"{path}: holds no judgement")
    return qrels


def _read_lists(
    path: Path, key: str, queries: Mapping[str, str], documents: Mapping[str, str]
) -> dict[str, list[str]] | None:
    if not path.exists():
        return None
    lists: dict[str, list[str]] = {}
    for number, line in _lines(path):
        record = _object(path, number, line)
        found = record.get(key)
        if not isinstance(record.get("_id"), str) or not isinstance(found, list):
            raise DataError(f"{path}: line {number}: wanted an object with '_id' and a list {key!r}")
        if record["_id"] in queries:
            _refuse_unknown(path, "documents", dict.fromkeys(found), documents)
            lists[record["_id"]] = list(found)
    return lists


def _read_changed(path: Path, queries: Mapping[str, str], documents: Mapping[str, str]) -> dict[str, list[str]] | None:
    if not path.exists():
        return None
    known = {query.removesuffix("-changed"): "" for query in queries if query.endswith("-changed")}
    lists = _read_lists(path, "changed", known, documents) or {}
    for query in known:
        if f"{query}-og" not in queries:
            raise DataError(f"{path}: query '{query}-changed' has no judged twin '{query}-og'")
        if not lists.get(query):
            raise DataError(f"{path}: query {query!r} has no changed documents; leave its two queries out")
    lonely = [query for query in queries if query.removesuffix("-og").removesuffix("-changed") not in known]
    if lonely:
        raise DataError(f"{path}: query {lonely[0]!r} is none of a pair 'QUERY-og' and 'QUERY-changed'")
    return lists


def _refuse_unjudged(path: Path, queries: Mapping[str, str], judged: Mapping[str, str]) -> None:
    """A query without judgement is another split's, where there is one; else it is a mistake."""
    lacking = [query for query in queries if query not in judged]
    if lacking and not any(found != path for found in path.parent.glob("*.tsv")):
        raise DataError(f"{path}: {len(lacking)} queries have no judgement, such as {lacking[0]!r}; leave them out")


def _refuse_unknown(path: Path, what: str, found: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    unknown = [identity for identity in found if identity not in known]
    if unknown:
        raise DataError(f"{path}: names {len(unknown)} unknown {what}, such as {unknown[0]!r}")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their number from 1; split at line feeds alone, for texts may hold other line separators."""
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.removesuffix("\r")
        if stripped:
            yield number, stripped


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path}: line {number}: not JSON: {error}") from None
    if not isinstance(record, dict):
        raise DataError(f"{path}: line {number}: is {type(record).__name__}; wanted an object")
    return record


def _cells(path: Path, number: int, line: str, count: int) -> list[str]:
    cells = line.split("\t")
    if len(cells) != count:
        raise DataError(f"{path}: line {number}: {len(cells)} tab-separated cells; wanted {count}")
    return cells


def _number(path: Path, number: int, cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise DataError(f"{path}: line {number}: {cell!r} is no number") from None
