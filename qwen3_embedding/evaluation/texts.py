"""The texts of an evaluation task that training data must not hold: its queries and what answers them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qwen3_embedding.evaluation.collection import read_collection, read_info, read_labelled, read_pairs


def evaluation_texts(folder: Path, split: str = "test") -> Iterator[str]:
    """Queries and relevant documents, both sides of pairs, or labelled texts; a corpus's other documents are no secret.

    Raises:
        DataError: a folder that is no task.
    """
    kind = read_info(folder).kind
    if kind in ("retrieval", "reranking"):
        collection = read_collection(folder, split)
        yield from collection.queries.values()
        relevant = {d for grades in collection.qrels.values() for d, grade in grades.items() if grade > 0}
        yield from (collection.documents[document] for document in sorted(relevant))
    elif kind in ("sts", "pair_classification", "bitext"):
        pairs = read_pairs(folder, kind)
        yield from pairs.left
        yield from pairs.right
    else:
        yield from read_labelled(folder / f"{split}.jsonl").texts
