"""One engine in a process of its own, driven over a pipe by JSON lines, so that rounds of several can take turns.

Each process has its engine's own environment (``benchmarks.peers``), threads and peak memory. Requests on stdin:

* ``{"do": "case", "kind": "documents" | "queries" | "pairs", "texts": […], …}``: what to work on. Our engines take the
  texts of people (with ``query`` or ``instruction``), the others whole prompts;
* ``{"do": "warm_up"}``: a little work, and for engines that pad, the batch size that is fastest here;
* ``{"do": "run", "repeats": n}``: wall and CPU seconds of each repeat;
* ``{"do": "rates"}``: the library's matrix-product rates (our engines only);
* ``{"do": "save", "file": …}``: the last run's vectors or scores as ``.npy``.

One answer a request on the stream that was stdout; whatever an engine prints goes to stderr.

    python benchmarks/engines.py NAME FOLDER EXPORTED THREADS
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

PADDED_BATCHES = (0, 512, 2048)
"""Padded tokens of a batch that engines with padding try in the warm-up; 0 is one text at a time."""
WARM_UP_TOKENS = 2048
ST_BATCH_SIZE = 32


class Engine(Protocol):
    """What the loop below needs of an engine."""

    def run(self, texts: list[str]) -> np.ndarray:
        """(N, D) unit vectors or (N,) scores, in the order of the texts."""

    def warm_up(self, texts: list[str]) -> str:
        """A little work; what was chosen by it, in words."""


class Ours:
    """This package, called as a user calls it."""

    def __init__(self, folder: Path, dtype: str) -> None:
        from qwen3_embedding.inference.embedder import Embedder
        from qwen3_embedding.inference.reranker import Reranker
        from qwen3_embedding.model.weights import yes_no_head

        self.embedder = Embedder.from_pretrained(folder, device="cpu", dtype=dtype)
        backbone, words = self.embedder.backbone, self.embedder.tokenizer
        head = yes_no_head(backbone, {}, words.no_id, words.yes_id, folder)
        self.reranker = Reranker(backbone, head, words, folder.name)
        self.case: dict[str, Any] = {"kind": "documents"}

    def run(self, texts: list[str]) -> np.ndarray:
        kind = self.case["kind"]
        if kind == "pairs":
            return np.asarray(self.reranker.score(self.case["query"], texts))
        if kind == "queries":
            return np.asarray(self.embedder.embed_queries(texts, self.case["instruction"]))
        return np.asarray(self.embedder.embed_documents(texts))

    def warm_up(self, texts: list[str]) -> str:
        self.run(texts)
        return "packed"

    def rates(self) -> dict[str, float]:
        from qwen3_embedding.inference.speed import gemm_rate

        return {"float32": gemm_rate(int8=False), "int8": gemm_rate(int8=True)}


class SentenceTransformers:
    """float32, its default batch of 32 texts, sorted by length as it does itself."""

    def __init__(self, folder: Path, dtype: str) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
        self.model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": kinds[dtype]})

    def run(self, texts: list[str]) -> np.ndarray:
        return np.asarray(self.model.encode(texts, batch_size=ST_BATCH_SIZE, show_progress_bar=False))

    def warm_up(self, texts: list[str]) -> str:
        self.run(texts)
        return f"{ST_BATCH_SIZE} texts"


class Padded:
    """Engines that take a rectangle of ids: texts sorted by length, padded on the right, whole batches of tokens."""

    def __init__(self, folder: Path) -> None:
        import tokenizers

        self.words = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.end = self.words.token_to_id("<|endoftext|>")
        self.batch_tokens = 0

    def infer(self, ids: np.ndarray, last: np.ndarray) -> np.ndarray:
        """(B, L) int64 and (B,) int64 to (B, D)."""
        raise NotImplementedError

    def run(self, texts: list[str]) -> np.ndarray:
        ids = [[*one.ids, self.end] for one in self.words.encode_batch(texts, add_special_tokens=False)]
        rows: list[np.ndarray] = [np.empty(0)] * len(ids)
        for batch in padded_batches([len(one) for one in ids], self.batch_tokens):
            lengths = np.array([len(ids[i]) for i in batch])
            # A length of one was folded into the graph when it was made, so short texts are padded to two.
            rectangle = np.full((len(batch), max(2, lengths.max())), self.end, dtype=np.int64)
            for row, i in enumerate(batch):
                rectangle[row, : lengths[row]] = ids[i]
            for i, vector in zip(batch, self.infer(rectangle, lengths - 1), strict=True):
                rows[i] = vector
        vectors = np.stack(rows)
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    def warm_up(self, texts: list[str]) -> str:
        """Choose the fastest size of batches."""
        seconds = {}
        for self.batch_tokens in PADDED_BATCHES:
            self.run(texts)
            begin = time.perf_counter()
            self.run(texts)
            seconds[self.batch_tokens] = time.perf_counter() - begin
        self.batch_tokens = min(seconds, key=lambda size: seconds[size])
        return f"{self.batch_tokens} padded tokens" if self.batch_tokens else "one by one"


def padded_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Longest first; as many texts as fit into ``max_tokens`` when all are padded to the longest (at least one)."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


class OnnxRuntime(Padded):
    """ONNX Runtime on all threads, all graph optimisations."""

    def __init__(self, folder: Path, exported: Path, threads: int) -> None:
        import onnxruntime

        super().__init__(folder)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_session_config_entry("session.force_spinning_stop", "1")  # idle between its rounds
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            str(exported / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def infer(self, ids: np.ndarray, last: np.ndarray) -> np.ndarray:
        return np.asarray(self.session.run(None, {"ids": ids, "last": last})[0])


class OpenVino(Padded):
    """OpenVINO; float32 between the products, int8 activations in groups of 128 where the weights are int8."""

    def __init__(self, folder: Path, exported: Path, threads: int) -> None:
        import openvino

        super().__init__(folder)
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": str(threads),
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "128",
        }
        self.model = openvino.Core().compile_model(str(exported / "model.xml"), "CPU", settings)

    def infer(self, ids: np.ndarray, last: np.ndarray) -> np.ndarray:
        return np.array(self.model([ids, last])[0])


class LlamaCpp:
    """llama.cpp with Q8_0 weights through llama-cpp-python; it batches texts itself."""

    def __init__(self, exported: Path, threads: int) -> None:
        import llama_cpp

        self.model = llama_cpp.Llama(
            str(exported / "model.gguf"),
            embedding=True,
            n_ctx=8192,
            n_batch=2048,
            n_ubatch=2048,
            n_threads=threads,
            n_threads_batch=threads,
            pooling_type=llama_cpp.LLAMA_POOLING_TYPE_LAST,
            verbose=False,
        )

    def run(self, texts: list[str]) -> np.ndarray:
        return np.asarray(self.model.embed(texts, normalize=True, truncate=False), dtype=np.float32)

    def warm_up(self, texts: list[str]) -> str:
        self.run(texts)
        return "2048 tokens"


def make(name: str, folder: Path, exported: Path | None, threads: int) -> Engine:
    """The engine of a name, loaded."""
    makers: dict[str, Callable[[], Engine]] = {
        "ours-float32": lambda: Ours(folder, "float32"),
        "ours-int8": lambda: Ours(folder, "int8"),
        "sentence-transformers": lambda: SentenceTransformers(folder, "float32"),
        "onnxruntime-float32": lambda: OnnxRuntime(folder, needed(exported), threads),
        "onnxruntime-int8": lambda: OnnxRuntime(folder, needed(exported), threads),
        "openvino-float32": lambda: OpenVino(folder, needed(exported), threads),
        "openvino-int8": lambda: OpenVino(folder, needed(exported), threads),
        "llama.cpp-q8": lambda: LlamaCpp(needed(exported), threads),
    }
    return makers[name]()


def needed(exported: Path | None) -> Path:
    if exported is None:
        raise ValueError("this engine needs the folder of an exported model")
    return exported


def few(texts: list[str], tokens: int = WARM_UP_TOKENS) -> list[str]:
    """Texts of all lengths, evenly drawn, of about so many tokens in all (a word each)."""
    words = np.array([text.count(" ") + 1 for text in texts])
    order = np.argsort(words)
    count = max(1, min(len(texts), round(tokens / words.mean())))
    return [texts[i] for i in order[np.linspace(0, len(texts) - 1, count).astype(int)]]


def timed(work: Callable[[], np.ndarray]) -> tuple[np.ndarray, float, float]:
    """What it gave, wall seconds, CPU seconds of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    out = work()
    return out, time.perf_counter() - wall, time.process_time() - cpu


def answer(engine: Engine, state: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Do one request."""
    do = request["do"]
    if do == "case":
        state.update(request)
        if isinstance(engine, Ours):
            engine.case = request
        return {}
    if do == "warm_up":
        return {"batches": engine.warm_up(few(state["texts"]))}
    if do == "run":
        wall, cpu = [], []
        for _ in range(request["repeats"]):
            state["rows"], seconds, used = timed(lambda: engine.run(state["texts"]))
            wall.append(seconds)
            cpu.append(used)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"seconds": wall, "cpu_seconds": cpu, "peak_mib": peak // 1024}
    if do == "rates":
        return engine.rates() if isinstance(engine, Ours) else {}
    if do == "save":
        np.save(request["file"], state["rows"], allow_pickle=False)
        return {}
    raise ValueError(f"do={do!r}")


def main() -> None:
    name, folder, exported, threads = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to stdout as they like; the answers have their own stream
    begin = time.perf_counter()
    engine = make(name, folder, Path(exported) if exported else None, threads)
    print(json.dumps({"load_seconds": time.perf_counter() - begin}), file=out, flush=True)
    state: dict[str, Any] = {}
    for line in sys.stdin:
        try:
            found = answer(engine, state, json.loads(line))
        except Exception as error:  # any engine's fault is a row in the table, not the end of the run
            found = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(found), file=out, flush=True)


if __name__ == "__main__":
    main()
