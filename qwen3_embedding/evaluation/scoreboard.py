"""One table of a whole evaluation in Markdown, made from its report and never typed: what ``docs/results.md`` shows."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3_embedding.errors import DataError
from qwen3_embedding.evaluation.results import Report
from qwen3_embedding.evaluation.run import FORMAT
from qwen3_embedding.evaluation.statistics import mean_interval
from qwen3_embedding.whole import write_text

BEGIN, END = "<!-- results: begin (made by `evaluate --table`, do not edit) -->", "<!-- results: end -->"
_RANKING = ("bm25", "embedder", "hybrid", "reranker")
_SEEN = ("in training",)
_NAMES = {
    "sts": "STS",
    "pair_classification": "pair classification",
    "instruction_following": "instruction following",
}


@dataclass(frozen=True, slots=True)
class Board:
    """An evaluation's folder, read: ``report.json`` and the report of each column."""

    report: Mapping[str, Any]
    columns: Mapping[str, Report]

    @classmethod
    def read(cls, folder: str | Path) -> Board:
        """Read what :func:`qwen3_embedding.evaluation.run.evaluate` left in ``folder``.

        Raises:
            DataError: no finished evaluation there.
        """
        path = Path(folder) / "report.json"
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read ({error}); wanted a finished evaluation") from None
        if not isinstance(report, dict) or report.get("format") != FORMAT:
            raise DataError(f"{path}: not an evaluation of format {FORMAT!r}; evaluate anew")
        files = {column: Path(folder) / f"{column}.json" for column in _RANKING}
        return cls(report, {column: Report.load(file) for column, file in files.items() if file.exists()})

    @property
    def tasks(self) -> list[Mapping[str, Any]]:
        """The tasks of ``report.json``."""
        return list(self.report["tasks"])

    @property
    def seen(self) -> Mapping[str, float]:
        """Task → share of its test texts in the training records, where somebody looked."""
        found: Mapping[str, float] = self.report.get("contamination", {})
        return found


def to_markdown(board: Board, others: Mapping[str, Board] | None = None) -> str:
    """Two tables (ranking tasks; the other kinds), and below them what the figures were measured with.

    Args:
        board: the evaluation.
        others: title → evaluations of further embedders on the same tasks or some of them: a column each.

    Raises:
        ValueError: another definition of a task in one of the others.
    """
    others = others or {}
    for title, other in others.items():
        _check_same(board, other, title)
    ranking = [task for task in board.tasks if "bm25" in task["scores"]]
    rest = [task for task in board.tasks if "bm25" not in task["scores"]]
    parts = []
    if ranking:
        parts.append(_ranking_table(board, ranking, others))
    if rest:
        parts.append(_other_table(board, rest, others))
    parts.append(_measured(board, others))
    return "\n\n".join(parts) + "\n"


def parse_beside(items: Sequence[str]) -> dict[str, Path]:
    """``TITLE=DIR`` items as title → folder.

    Raises:
        ValueError: an item without a title, or a title twice.
    """
    found: dict[str, Path] = {}
    for item in items:
        title, equals, folder = item.partition("=")
        if not (title and equals and folder) or title in found:
            raise ValueError(f"beside={item!r}; wanted TITLE=DIR, each title once")
        found[title] = Path(folder)
    return found


def write_into(path: str | Path, markdown: str) -> None:
    """Put the tables between their two marks in a page, or at its end where there are none yet; beside, then moved.

    Raises:
        DataError: only one of the marks.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    block = f"{BEGIN}\n\n{markdown}\n{END}"
    if (BEGIN in text) != (END in text) or text.find(BEGIN) > text.find(END):
        raise DataError(f"{path}: wanted the mark {BEGIN!r} and after it {END!r}, or neither")
    if BEGIN in text:
        text = re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: block, text, flags=re.DOTALL)
    else:
        text = f"{text.rstrip()}\n\n{block}\n"
    write_text(path, text, shared=True)


def _ranking_table(board: Board, tasks: Sequence[Mapping[str, Any]], others: Mapping[str, Board]) -> str:
    columns = [column for column in _RANKING if column in board.columns]
    titles = {"bm25": "BM25", "embedder": board.report["embedder"], "hybrid": "hybrid"}
    titles["reranker"] = f"+ {board.report['reranker']}"
    headers = [
        "set",
        "metric",
        "documents",
        "queries",
        *(titles[column] for column in columns),
        *others,
        *_SEEN[: bool(board.seen)],
    ]
    rows = []
    for task in tasks:
        values = {column: task["scores"][column][task["main_metric"]] for column in columns if column in task["scores"]}
        whole = {column: value for column, value in values.items() if not _sampled(task, column)}
        best = max(whole.values())
        cells = [_cell(task, column, whole.get(column) == best) for column in columns]
        cells += [_cell(_task(other, task["name"]), "embedder", False) for other in others.values()]
        rows.append([_title(task), task["main_metric"], *_counts(task), *cells, *_seen(board, task)])
    same = [task for task in tasks if task["kind"] == "retrieval" and task["main_metric"] == "ndcg@10"]
    if len(same) > 1:
        rows.append(_mean_row(board, same, columns, others))
    return _table(headers, rows)


def _mean_row(
    board: Board, tasks: Sequence[Mapping[str, Any]], columns: Sequence[str], others: Mapping[str, Board]
) -> list[str]:
    names = [task["name"] for task in tasks]
    cells = [_mean_cell(board.columns[column], names) for column in columns]
    if any(_sampled(task, column) for column in columns for task in tasks):
        before = [task["scores"]["reranker"]["ndcg@10_before"] for task in tasks]
        cells[-1] += f" <sub>from {_percent(sum(before) / len(before))}</sub>"
    cells += [_mean_cell(other.columns.get("embedder"), names) for other in others.values()]
    return [f"**mean of {len(names)} retrieval sets**", "ndcg@10", "", "", *cells, *[""] * bool(board.seen)]


def _mean_cell(report: Report | None, names: Sequence[str]) -> str:
    known = {task.name for task in report.tasks} if report else set()
    if report is None or not known >= set(names):
        return ""  # a mean over a part would be another figure
    samples = [[value for _, value in sorted(report.task(name).per_query.items())] for name in names]
    found = mean_interval(samples)
    return f"**{_percent(found.value)}** <sub>{_range([found.low, found.high])}</sub>"


def _other_table(board: Board, tasks: Sequence[Mapping[str, Any]], others: Mapping[str, Board]) -> str:
    headers = ["set", "kind", "metric", "pairs or texts", board.report["embedder"] or "embedder", *others]
    headers += _SEEN[: bool(board.seen)]
    rows = []
    for task in tasks:
        cells = [_cell(task, "embedder", False)]
        cells += [_cell(_task(other, task["name"]), "embedder", False) for other in others.values()]
        count = task["counts"].get("pairs", task["counts"].get("texts", 0))
        kind = _NAMES.get(task["kind"], task["kind"])
        rows.append([_title(task), kind, task["main_metric"], f"{count:,}", *cells, *_seen(board, task)])
    return _table(headers, rows)


def _cell(task: Mapping[str, Any] | None, column: str, best: bool) -> str:
    """``**38.3** [33.1, 43.5]``; of a sample of the queries also what the reranker was given there, and how many."""
    if task is None or column not in task["scores"]:
        return ""
    value = task["scores"][column][task["main_metric"]]
    cell = f"**{_percent(value)}**" if best else _percent(value)
    if ends := task.get("intervals", {}).get(column):
        cell += f" <sub>{_range(ends)}</sub>"
    if _sampled(task, column):
        before = task["scores"][column][f"{task['main_metric']}_before"]
        cell += f" <sub>from {_percent(before)}, {task['counts']['reranked_queries']} queries</sub>"
    return cell


def _sampled(task: Mapping[str, Any], column: str) -> bool:
    counts = task["counts"]
    return column == "reranker" and int(counts.get("reranked_queries", 0)) < int(counts["queries"])


def _seen(board: Board, task: Mapping[str, Any]) -> list[str]:
    return [f"{_percent(board.seen[task['name']])} %"] if board.seen else []


def _fused(fusion: Mapping[str, Any]) -> str:
    way = "cosine plus BM25 over the query's best BM25"
    if fusion.get("method", "rank") == "rank":
        way = f"reciprocal rank fusion, k = {fusion['k']}"
    return f"Hybrid: {way}, weights {fusion['text_weight']:g} (BM25) and {fusion['dense_weight']:g} (embedder)."


def _measured(board: Board, others: Mapping[str, Board]) -> str:
    report, settings = board.report, board.report["settings"]
    environment = report["environment"]
    lines = [
        "In percent; small: the 95 percent bootstrap interval over queries (pairs, texts), drawn anew within each "
        "language or set. Whole sets"
        + (f", but a sample of {settings['max_queries']} queries each" if settings.get("max_queries") else "")
        + "; instructions are the sets' own.",
        _fused(settings["fusion"]),
    ]
    if words := settings.get("passage_words"):
        lines.append(f"Embedder: mean of a document's cosine and that of its best passage of {words} words.")
    if report["reranker"]:
        part = settings.get("rerank_queries")
        share = settings.get("rerank_weight", 1.0)
        lines.append(
            f"Reranker: orders the first {settings['candidates']} documents of the {settings['first_stage']} column"
            + ("" if share == 1 else f", with a share of {share:g}, the column's own score having the rest")
            + (
                f", for at most {part} queries a set (a fixed random sample; beside it the first stage's score on the "
                "same queries)."
                if part
                else "."
            )
        )
    if board.seen:
        lines.append(
            "In training: the share of queries (first sentences, test texts) that stand, after normalisation, among "
            "the queries and positives that the models learnt from; paraphrases are not found."
        )
    for title, other in others.items():
        lines.append(f"{title}: {_model(other.report['embedder'])}, the same sets through the same protocols.")
    minutes = sum(task["seconds"] for task in board.tasks) / 60
    versions = environment["versions"]
    lines.append(
        f"Measured {environment['created'][:10]} on {environment['hardware']}; commit "
        f"`{environment['commit'] or '?'}`, torch {versions.get('torch', '?')}; {_minutes(minutes)} for all sets."
    )
    return "\n".join(f"- {line}" for line in lines)


def _minutes(minutes: float) -> str:
    return "1 minute" if round(minutes) == 1 else f"{minutes:.0f} minutes"


def _model(name: str) -> str:
    """A model's name; of a folder somewhere on a disk its last part, which is all that says something elsewhere."""
    return Path(name).name if Path(name).is_absolute() else name


def _check_same(board: Board, other: Board, title: str) -> None:
    for task in board.tasks:
        twin = _task(other, task["name"])
        if twin is not None and twin["definition"] != task["definition"]:
            raise ValueError(
                f"{title}: {task['name']} was evaluated on other data ({twin['definition'][:12]} and not "
                f"{task['definition'][:12]}); evaluate both on the same"
            )


def _task(board: Board, name: str) -> Mapping[str, Any] | None:
    return next((task for task in board.tasks if task["name"] == name), None)


def _title(task: Mapping[str, Any]) -> str:
    languages = task["languages"]
    if not languages or languages == ["en"]:
        return str(task["name"])
    return f"{task['name']} ({', '.join(languages) if len(languages) < 3 else f'{len(languages)} languages'})"


def _counts(task: Mapping[str, Any]) -> list[str]:
    return [f"{task['counts'][name]:,}" for name in ("documents", "queries")]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _range(ends: Sequence[float]) -> str:
    return f"{_percent(ends[0])} to {_percent(ends[1])}"


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
