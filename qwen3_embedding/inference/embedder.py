"""The embedder: texts to unit vectors."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from torch import Tensor

from qwen3_embedding.errors import CheckpointError, TruncationWarning
from qwen3_embedding.inference.kernel import describe
from qwen3_embedding.inference.precision import check_precision, from_precision, infer_precision, to_precision
from qwen3_embedding.inference.runner import Runner, RunSettings, choose_device, choose_dtype, load, show_progress
from qwen3_embedding.inference.source import Hub, resolve
from qwen3_embedding.inputs.prompts import check_texts
from qwen3_embedding.inputs.tokenizer import Encoded, Tokenizer
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.pooling import check_dimensions, normalize
from qwen3_embedding.model.weights import fingerprint
from qwen3_embedding.types import FloatArray, Precision, Vectors

WINDOW_TEXTS = 16384
"""Texts that are sorted by length and computed together; the next as many are tokenised meanwhile."""
WINDOW_CHARACTERS = 1 << 20
"""On a GPU, where a window of many long texts would keep the chip waiting for its tokens."""


class Embedder:
    """A Qwen3 embedding model: last-token vectors of the end token, any dimension from 32 up, custom instructions.

    A text gives the same vector alone and in any batch, to the last bit on our own CPU kernel or where ``reproducible``
    is asked for, else within the rounding of the type it runs at (1e-5 in float32, 1e-2 in int8).
    """

    def __init__(self, backbone: Backbone, tokenizer: Tokenizer, name: str, folder: Path | None = None) -> None:
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.name = name
        self.folder = folder
        self.max_tokens = backbone.config.max_position_embeddings
        self.runner = Runner(backbone, _unit)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        device: str = "auto",
        dtype: str = "auto",
        revision: str | None = None,
        *,
        offline: bool = False,
        hub: Hub = "huggingface",
        parse_special: bool = False,
        max_tokens: int | None = None,
        batch_tokens: int | None = None,
        kernel: str = "auto",
        reproducible: bool = False,
    ) -> Embedder:
        """Load a model.

        Args:
            source: a folder, a hub id (``Qwen/Qwen3-Embedding-0.6B``) or a bundled name (``nano-embedding``).
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``.
            dtype: ``auto`` (bfloat16 on GPU, float32 on CPU), ``float32``, ``bfloat16``, ``float16``, ``int8``
                (weights and activations, on CPU).
            revision: branch, tag or commit of a hub id.
            offline: use the local cache only and fail at once where the model is not in it.
            hub: ``huggingface`` or ``modelscope``.
            parse_special: read special-token strings inside texts as control tokens, as the reference code does.
            max_tokens: a lower length limit than the model's own.
            batch_tokens: tokens of a batch.
            kernel: ``auto``, ``native`` (our own for CPUs, float32 and int8, compiled on first use) or ``library``
                (PyTorch's); see :func:`qwen3_embedding.inference.kernel.choose_kernel`.
            reproducible: a text's result is equal to the last bit alone and in any batch.

        Raises:
            ModelNotFoundError: no such model.
            CheckpointError: a folder that is not a whole Qwen3 embedder.
            ValueError: a device or dtype that does not exist here.
        """
        where = choose_device(device)
        wanted = choose_dtype(dtype, where)
        folder = resolve(source, revision, offline, hub)
        _check_pooling(folder)
        tokenizer = Tokenizer.from_folder(folder, parse_special)
        backbone, _ = load(folder, wanted, where, kernel)
        if tokenizer.end_id >= backbone.config.vocab_size:
            raise CheckpointError(
                f"{folder}: the end token has id {tokenizer.end_id} and the model {backbone.config.vocab_size} rows; "
                "tokenizer and weights do not belong together"
            )
        embedder = cls(backbone, tokenizer, folder.name if Path(source).is_dir() else str(source), folder)
        if max_tokens is not None:
            embedder.max_tokens = _check_max_tokens(max_tokens, embedder.max_tokens)
        embedder.runner.settings = RunSettings.for_device(where, batch_tokens, reproducible)
        return embedder

    @property
    def dimensions(self) -> int:
        """Full vector size D."""
        return self.backbone.config.hidden_size

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of weights, configuration and tokenizer: the model's identity for caches and manifests."""
        if self.folder is None:
            raise CheckpointError("this embedder was not loaded from a folder and has no fingerprint")
        return fingerprint(self.folder)

    def embed_queries(
        self,
        texts: Sequence[str],
        instruction: str | None = None,
        dimensions: int | None = None,
        precision: Precision = "float32",
        progress: bool = False,
    ) -> Vectors:
        """Vectors of queries: ``Instruct: {instruction}\\nQuery:{text}`` and the end token.

        Args:
            texts: N queries.
            instruction: the task in one English sentence; ``None`` is the web-search task of the model card, ``""``
            no prompt. dimensions: 32 to the full size; cut first, normalised after.
            precision: see :func:`qwen3_embedding.inference.precision.to_precision`.
            progress: show a progress bar on stderr.

        Returns:
            (N, dimensions) unit vectors, in the caller's order.

        Raises:
            TypeError: not a list of strings.
            ValueError: text that is not valid Unicode, or a dimension or precision that does not exist.
            NumericalError: the model gives values that are not finite.
        """
        tokenize = partial(self.tokenizer.encode_queries, instruction=instruction, max_tokens=self.max_tokens)
        return self._embed(texts, tokenize, dimensions, precision, "queries" if progress else None)

    def embed_documents(
        self,
        texts: Sequence[str],
        dimensions: int | None = None,
        precision: Precision = "float32",
        progress: bool = False,
    ) -> Vectors:
        """Vectors of documents: the bare text and the end token. Otherwise as :meth:`embed_queries`."""
        tokenize = partial(self.tokenizer.encode_documents, max_tokens=self.max_tokens)
        return self._embed(texts, tokenize, dimensions, precision, "documents" if progress else None)

    def embed_tokens(self, sequences: Sequence[Sequence[int]], progress: str | None = None) -> FloatArray:
        """(N, D) unit vectors of token sequences that end in the end token: what queues and bulk encoders call.

        Raises:
            ValueError: an empty sequence or an id outside the vocabulary.
        """
        if len(sequences) == 0:
            return np.empty((0, self.dimensions), dtype=np.float32)
        return self.runner.run(sequences, progress=progress)

    def compile(self, graphs: bool = True) -> None:
        """Prepare the model for this GPU: layers without kernels of our own are compiled (the first batches take up to
        a minute, the others less time), and short texts are recorded.

        Args:
            graphs: also record the pass of a single short text as a CUDA graph, for latency.

        Raises:
            ValueError: the model is not on a GPU.
        """
        self.runner.compile(graphs)

    def similarity(
        self, query_vectors: Vectors, document_vectors: Vectors, precision: Precision | None = None
    ) -> FloatArray:
        """(N, M) cosine similarities, for vectors of any precision (``None``: told from type and width)."""
        kind = precision or infer_precision(query_vectors, self.dimensions)
        queries, documents = from_precision(query_vectors, kind), from_precision(document_vectors, kind)
        return (queries @ documents.T).astype(np.float32)

    def _embed(
        self,
        texts: Sequence[str],
        tokenize: Callable[[Sequence[str]], Encoded],
        dimensions: int | None,
        precision: Precision,
        progress: str | None,
    ) -> Vectors:
        wanted = check_dimensions(dimensions, self.dimensions)
        check_precision(precision, wanted)
        encoded, vectors = self._overlapped(check_texts(texts), tokenize, progress)
        warn_if_cut(encoded, self.max_tokens)
        return to_precision(cut_dimensions(vectors, wanted), precision)

    def _overlapped(
        self, texts: list[str], tokenize: Callable[[Sequence[str]], Encoded], progress: str | None
    ) -> tuple[Encoded, FloatArray]:
        """Vectors window by window: the next window is tokenised by another thread while this one is computed.

        All tokens are counted for the warning; only two windows of them are held.
        """
        windows = cut_windows(texts, self.backbone.device.type == "cuda")
        if len(windows) == 1:
            encoded = tokenize(windows[0])
            return encoded, self.embed_tokens(encoded.ids, progress)
        vectors, cut, done = np.empty((len(texts), self.dimensions), dtype=np.float32), list[int](), 0

        def encoded_windows(thread: ThreadPoolExecutor) -> Iterator[tuple[list[list[int]], None]]:
            coming = thread.submit(tokenize, windows[0])
            for number in range(len(windows)):
                encoded = coming.result()
                if number + 1 < len(windows):
                    coming = thread.submit(tokenize, windows[number + 1])
                cut.extend(encoded.cut_tokens)
                yield encoded.ids, None

        def keep(rows: FloatArray) -> None:
            nonlocal done
            vectors[done : done + len(rows)] = rows
            done += len(rows)

        with ThreadPoolExecutor(1) as thread, show_progress(progress, len(texts)) as advance:
            self.runner.run_windows(encoded_windows(thread), keep, advance)
        return Encoded([[]] * len(texts), cut), vectors

    def __repr__(self) -> str:
        where = f"{self.backbone.type_name} on {self.backbone.device}, {describe(self.backbone)}"
        return f"Embedder({self.name!r}, {self.dimensions} dimensions, {where})"


def cut_windows(texts: list[str], small: bool) -> list[list[str]]:
    """At most :data:`WINDOW_TEXTS` a window; ``small``: at most about :data:`WINDOW_CHARACTERS` too, the first one a
    quarter of that, so that a fast device soon has something to do."""
    limit = WINDOW_CHARACTERS if small else sys.maxsize
    windows: list[list[str]] = [[]]
    room = limit // 4
    for text in texts:
        if windows[-1] and (len(text) > room or len(windows[-1]) == WINDOW_TEXTS):
            windows.append([])
            room = limit
        windows[-1].append(text)
        room -= len(text)
    return windows


def cut_dimensions(vectors_ND: FloatArray, dimensions: int) -> FloatArray:
    """Cut to the first ``dimensions`` components, then normalise (Matryoshka)."""
    if dimensions == vectors_ND.shape[1]:
        return vectors_ND
    short = vectors_ND[:, :dimensions]
    norms = np.linalg.norm(short, axis=1, keepdims=True)
    return np.asarray(short / np.maximum(norms, np.finfo(np.float32).tiny), dtype=np.float32)


def warn_if_cut(encoded: Encoded, max_tokens: int) -> None:
    """Say how many texts were cut, and by how much at most."""
    if encoded.n_cut:
        warnings.warn(
            f"{encoded.n_cut} of {len(encoded.ids)} texts were longer than {max_tokens} tokens and were cut at the end "
            f"(up to {max(encoded.cut_tokens)} tokens lost); split long texts, or raise max_tokens where the model "
            "allows it",
            TruncationWarning,
            stacklevel=4,
        )


def _unit(pooled_ND: Tensor) -> Tensor:
    return normalize(pooled_ND)


def _check_max_tokens(max_tokens: int, context: int) -> int:
    if not 2 <= max_tokens <= context:
        raise ValueError(f"max_tokens={max_tokens}; this model takes 2 to {context}")
    return max_tokens


def _check_pooling(folder: Path) -> None:
    """Refuse a folder that says it pools otherwise than by the last token."""
    path = folder / "1_Pooling" / "config.json"
    if not path.exists():
        return
    try:
        pooling = json.loads(path.read_text(encoding="utf-8"))
        last = pooling.get("pooling_mode_lasttoken") or pooling.get("pooling_mode") == "lasttoken"
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not valid: {error}") from None
    if not last:
        raise CheckpointError(f"{path}: this model does not pool the last token; it is no Qwen3 embedder")
