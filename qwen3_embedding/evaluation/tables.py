"""An evaluation as rows of text."""

from __future__ import annotations

from qwen3_embedding.evaluation.run import Evaluation
from qwen3_embedding.evaluation.tasks import COLUMNS, TaskScores

TITLES = {"bm25": "BM25", "embedder": "embedder", "hybrid": "hybrid", "reranker": "+ reranker"}


def score_rows(evaluation: Evaluation) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headers and rows: a task a row with its main metric in each column times 100, then the mean of each kind."""
    columns = [column for column in COLUMNS if any(column in task.scores for task in evaluation.tasks)]
    headers = ("task", "kind", "metric", *(TITLES[column] for column in columns))
    rows = [
        (
            task.name,
            task.kind,
            task.main_metric,
            *(_cell(task.scores.get(column, {}).get(task.main_metric)) + _sample(task, column) for column in columns),
        )
        for task in evaluation.tasks
    ]
    for kind, means in evaluation.means().items():
        if sum(task.kind == kind for task in evaluation.tasks) > 1:
            rows.append((f"mean of {kind}", kind, "main metric", *(_cell(means.get(column)) for column in columns)))
    ndcg = evaluation.mean("ndcg@10")
    metrics = [task.main_metric for task in evaluation.tasks if task.kind == "retrieval"]
    if ndcg and len(metrics) > 1 and set(metrics) != {"ndcg@10"}:
        rows.append(("mean of retrieval", "retrieval", "ndcg@10", *(_cell(ndcg.get(column)) for column in columns)))
    return headers, rows


def _sample(task: TaskScores, column: str) -> str:
    """What a reranker was given, where it ordered the documents of some queries only."""
    if not task.sampled(column):
        return ""
    before = task.scores[column][f"{task.main_metric}_before"]
    return f" ({task.counts['reranked_queries']} queries, before: {_cell(before)})"


def _cell(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"
