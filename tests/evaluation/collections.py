"""Task folders that tests write."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SUBJECTS = {"de": "alpha alphabet", "en": "kilometre kilogram", "zh": "zoology zoologist"}
WORDS = {
    "de": ["fluss", "brücke", "wasser", "motor", "suche", "musik", "wetter", "garten"],
    "en": ["river", "bridge", "water", "engine", "search", "music", "weather", "garden"],
    "zh": ["河流", "桥梁", "清水", "引擎", "搜索", "音乐", "天气", "花园"],
}


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_tsv(path: Path, rows: Iterable[Iterable[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")


def write_info(folder: Path, kind: str, metric: str, **more: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    info = {"name": folder.name, "kind": kind, "main_metric": metric, "languages": list(WORDS), **more}
    (folder / "dataset.json").write_text(json.dumps(info), encoding="utf-8")


def write_retrieval(folder: Path, kind: str = "retrieval") -> Path:
    """Eight subjects in three languages; a question in each, right is the paragraph of its subject in any language."""
    write_info(folder, kind, "ndcg@10", task_instruction="Find the paragraph", licence="CC0")
    paragraphs = {
        f"{language}-p{number}": f"{words[number]} {words[(number + 1) % 8]} {words[number]} {number}"
        for language, words in WORDS.items()
        for number in range(8)
    }
    questions = {
        f"{language}-q{number}": f"{words[number]}?" for language, words in WORDS.items() for number in range(8)
    }
    write_jsonl(folder / "corpus.jsonl", ({"_id": one, "title": "", "text": text} for one, text in paragraphs.items()))
    write_jsonl(folder / "queries.jsonl", ({"_id": one, "text": text} for one, text in questions.items()))
    rows = [(f"{asked}-q{n}", f"{found}-p{n}", "1") for asked in WORDS for n in range(8) for found in WORDS]
    write_tsv(folder / "qrels" / "test.tsv", [("query-id", "corpus-id", "score"), *rows])
    if kind == "reranking":
        candidates = [{"_id": one, "candidates": list(paragraphs)[::3]} for one in questions]
        write_jsonl(folder / "candidates.jsonl", candidates)
    return folder


def write_every_kind(root: Path) -> Path:
    """One folder of each kind under ``root``."""
    write_retrieval(root / "retrieval")
    write_retrieval(root / "reranking", "reranking")
    words = [(word, language) for language, several in WORDS.items() for word in several]
    write_info(root / "sts", "sts", "spearman", task_instruction="Retrieve semantically similar text")
    pairs = [
        (str(n % 6), f"{word} {n}", f"{word} {'x' * (n % 6)}", language) for n, (word, language) in enumerate(words)
    ]
    write_tsv(root / "sts" / "pairs.tsv", [("score", "sentence1", "sentence2", "language"), *pairs])
    write_info(root / "pair", "pair_classification", "average_precision")
    labelled = [(str(n % 2), word, word if n % 2 else "other") for n, (word, _) in enumerate(words)]
    write_tsv(root / "pair" / "pairs.tsv", [("label", "sentence1", "sentence2"), *labelled])
    write_info(root / "bitext", "bitext", "accuracy", task_instruction="Find the translation")
    write_tsv(
        root / "bitext" / "pairs.tsv",
        [("language", "source", "target"), *((language, f"{word} a", f"{word} b") for word, language in words)],
    )
    write_info(root / "classification", "classification", "accuracy")
    texts = [
        {"text": f"{SUBJECTS[language]} {word} {n}", "label": language} for n in range(3) for word, language in words
    ]
    write_jsonl(root / "classification" / "train.jsonl", texts[:48])
    write_jsonl(root / "classification" / "test.jsonl", texts[48:])
    write_info(root / "clustering", "clustering", "v_measure")
    write_jsonl(root / "clustering" / "test.jsonl", texts)
    return root


def write_following(folder: Path, candidates: bool = True) -> Path:
    """Three queries, each under an original and a changed instruction, in FollowIR's manner."""
    write_info(folder, "instruction_following", "p-MRR", languages=["en"])
    words = WORDS["en"]
    documents = {f"d{n}": f"{words[n % 8]} {words[(n + 1) % 8]} {words[(n * 3) % 8]}" for n in range(16)}
    write_jsonl(folder / "corpus.jsonl", ({"_id": one, "text": text} for one, text in documents.items()))
    queries, rows, pools = [], [("query-id", "corpus-id", "score")], []
    changed = {"q1": ["d0", "d1"], "q2": ["d3"], "q3": ["d5", "d6", "d2"]}
    for number, (query, dropped) in enumerate(changed.items()):
        text, avoided = f"{words[number * 2]} {words[number * 2 + 1]}", words[number * 2 + 2]
        for ending, instruction in (
            ("og", "find documents about both"),
            ("changed", f"leave out documents about {avoided}"),
        ):
            queries.append({"_id": f"{query}-{ending}", "text": text, "instruction": instruction})
            kept = [*dropped, f"d{number + 8}"] if ending == "og" else [f"d{number + 8}"]
            rows += [(f"{query}-{ending}", document, "1") for document in kept]
            rows += [(f"{query}-{ending}", document, "0") for document in dropped if document not in kept]
            pools.append({"_id": f"{query}-{ending}", "candidates": list(documents)[: 12 + number]})
    write_jsonl(folder / "queries.jsonl", queries)
    write_tsv(folder / "qrels" / "test.tsv", rows)
    write_jsonl(folder / "changed.jsonl", ({"_id": query, "changed": dropped} for query, dropped in changed.items()))
    if candidates:
        write_jsonl(folder / "candidates.jsonl", pools)
    return folder
