"""A retrieval task in BEIR's layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


def write_task(
    folder: Path, documents: Mapping[str, str], queries: Mapping[str, str], right: Mapping[str, str]
) -> Path:
    """Texts by id, and the right document of each query."""
    (folder / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", documents), ("queries", queries)):
        lines = (json.dumps({"_id": one, "text": text}) + "\n" for one, text in texts.items())
        (folder / f"{name}.jsonl").write_text("".join(lines))
    rows = "".join(f"{query}\t{document}\t1\n" for query, document in right.items())
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}")
    return folder
