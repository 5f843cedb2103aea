"""Tokens a second of ``encode`` beside the bare engine on the same texts, dedupe, and peak memory by corpus size.

    python benchmarks/corpus_throughput.py SOURCE --model FOLDER --rows 20000 --repeats 0.37 --work DIR
    python benchmarks/corpus_throughput.py --memory 10000 100000 --model FOLDER --work DIR

The first takes turns: engine, encode, engine, encode …, on texts that are tokenised alike, and prints the medians. The
second encodes short synthetic documents in a fresh process for every size.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

from qwen3_embedding.corpus.encode import EncodeSettings, encode
from qwen3_embedding.corpus.reader import Document, ReadOptions, read_file
from qwen3_embedding.corpus.source import open_source
from qwen3_embedding.corpus.window import PlanSettings, WindowSettings
from qwen3_embedding.inference.embedder import Embedder

ROUNDS = 3


def _texts(source: str, column: str, rows: int) -> list[str]:
    files = open_source(source).files
    items = (item for file in files for item in read_file(file, ReadOptions((column,))))
    return list(dict.fromkeys(item.text for item in islice(items, rows * 3) if isinstance(item, Document)))[:rows]


def _write(path: Path, texts: list[str], repeats: float) -> int:
    """The texts, and behind them repeats of them, so that ``repeats`` of all documents are repeats."""
    again = round(len(texts) * repeats / (1 - repeats))
    with path.open("w", encoding="utf-8") as file:
        for number in range(len(texts) + again):
            text = texts[number] if number < len(texts) else texts[number * 7919 % len(texts)]
            file.write(json.dumps({"id": str(number), "text": text}, ensure_ascii=False) + "\n")
    return len(texts) + again


def throughput(arguments: argparse.Namespace) -> dict[str, object]:
    embedder = Embedder.from_pretrained(arguments.model)
    texts = _texts(arguments.source, arguments.text_column, arguments.rows)
    documents = _write(arguments.work / "corpus.jsonl", texts, arguments.repeats)
    settings = EncodeSettings(plan=PlanSettings(window=WindowSettings(rows=arguments.window_rows)))
    window = arguments.window_rows
    bare, whole = [], []
    for _ in range(ROUNDS):
        ids = embedder.tokenizer.encode_documents(texts, embedder.max_tokens).ids
        began = time.monotonic()
        for at in range(0, len(ids), window):
            embedder.embed_tokens(ids[at : at + window])
        bare.append(sum(map(len, ids)) / (time.monotonic() - began))
        shutil.rmtree(arguments.work / "out", ignore_errors=True)
        began = time.monotonic()
        result = encode(arguments.work / "corpus.jsonl", arguments.work / "out", embedder, settings)
        whole.append(result.progress.tokens / (time.monotonic() - began))
    return {
        "documents": documents,
        "computed": result.progress.computed,
        "tokens": result.progress.tokens,
        "engine_tokens_per_s": round(statistics.median(bare)),
        "encode_tokens_per_s": round(statistics.median(whole)),
        "ratio": round(statistics.median(w / b for w, b in zip(whole, bare, strict=True)), 3),
    }


def memory(arguments: argparse.Namespace) -> dict[str, object]:
    """Peak resident megabytes of an encode, by documents."""
    out = {}
    for size in arguments.memory:
        source = arguments.work / f"{size}.jsonl"
        with source.open("w") as file:
            file.writelines(f'{{"id": "{i}", "text": "document {i} of many, and no two alike"}}\n' for i in range(size))
        command = [
            sys.executable,
            __file__,
            "--one",
            str(source),
            "--model",
            arguments.model,
            "--work",
            str(arguments.work),
        ]
        out[str(size)] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return out


def one(arguments: argparse.Namespace) -> dict[str, object]:
    target = arguments.work / "memory"
    shutil.rmtree(target, ignore_errors=True)
    progress = encode(arguments.one, target, Embedder.from_pretrained(arguments.model)).progress
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"peak_mb": round(peak), "rows_per_s": round(progress.rows_per_s)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?")
    parser.add_argument("--model", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--rows", type=int, default=20000)
    parser.add_argument("--repeats", type=float, default=0.0)
    parser.add_argument("--window-rows", type=int, default=8192)
    parser.add_argument("--memory", type=int, nargs="+")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.one:
        print(json.dumps(one(arguments)))
        return
    result = memory(arguments) if arguments.memory else throughput(arguments)
    about = {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}
    print(json.dumps({**about, "command": " ".join(sys.argv), **result}, indent=1))


if __name__ == "__main__":
    main()
