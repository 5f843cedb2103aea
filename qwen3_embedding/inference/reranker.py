"""The reranker: how well a document answers a query, as the probability of "yes"."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qwen3_embedding.errors import CheckpointError
from qwen3_embedding.inference.embedder import warn_if_cut
from qwen3_embedding.inference.kernel import describe
from qwen3_embedding.inference.runner import Runner, RunSettings, choose_device, choose_dtype, load
from qwen3_embedding.inference.source import Hub, resolve
from qwen3_embedding.inputs.prompts import check_text, check_texts
from qwen3_embedding.inputs.tokenizer import Tokenizer
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.scoring import YesNoHead
from qwen3_embedding.model.weights import fingerprint, yes_no_head
from qwen3_embedding.types import FloatArray, Hit

DEFAULT_MAX_TOKENS = 8192
"""The length of the official examples; the model's own limit may be higher."""


class Reranker:
    """A Qwen3 reranker: one tower over (instruction, query, document), scored by two rows of the head.

    The prompt, its single newlines and its closed thought are put on here; documents of one query share the tokens'
    work of everything before the document.
    """

    def __init__(
        self, backbone: Backbone, head: YesNoHead, tokenizer: Tokenizer, name: str, folder: Path | None = None
    ) -> None:
        self.backbone = backbone
        self.head = head.to(backbone.device)
        self.tokenizer = tokenizer
        self.name = name
        self.folder = folder
        self.max_tokens = min(backbone.config.max_position_embeddings, DEFAULT_MAX_TOKENS)
        self.runner = Runner(backbone, self._finish)

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
    ) -> Reranker:
        """Load a model; the arguments and errors are those of :meth:`Embedder.from_pretrained`."""
        where = choose_device(device)
        wanted = choose_dtype(dtype, where)
        folder = resolve(source, revision, offline, hub)
        tokenizer = Tokenizer.from_folder(folder, parse_special)
        backbone, extra = load(folder, wanted, where, kernel)
        last = max(*tokenizer.reranker_prefix_ids, *tokenizer.reranker_suffix_ids)
        if last >= backbone.config.vocab_size:
            raise CheckpointError(
                f"{folder}: the prompt has token id {last} and the model {backbone.config.vocab_size} rows; "
                "tokenizer and weights do not belong together"
            )
        head = yes_no_head(backbone, extra, tokenizer.no_id, tokenizer.yes_id, folder)
        reranker = cls(backbone, head, tokenizer, folder.name if Path(source).is_dir() else str(source), folder)
        context = backbone.config.max_position_embeddings
        if max_tokens is not None:
            if not 64 <= max_tokens <= context:
                raise ValueError(f"max_tokens={max_tokens}; this model takes 64 to {context}")
            reranker.max_tokens = max_tokens
        reranker.runner.settings = RunSettings.for_device(where, batch_tokens, reproducible)
        return reranker

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of weights, configuration and tokenizer: the model's identity for caches and manifests."""
        if self.folder is None:
            raise CheckpointError("this reranker was not loaded from a folder and has no fingerprint")
        return fingerprint(self.folder)

    def score(
        self, query: str, documents: Sequence[str], instruction: str | None = None, progress: bool = False
    ) -> FloatArray:
        """Relevance of each document to the query.

        Args:
            query: the query.
            documents: N documents.
            instruction: the task in one English sentence; ``None`` is the web-search task of the model card.
            progress: show a progress bar on stderr.

        Returns:
            (N,) float32 in [0, 1], in the caller's order.

        Raises:
            TypeError, ValueError: texts that are none; a query that leaves no room for a document.
            NumericalError: the model gives values that are not finite.
        """
        question, texts = check_text(query, "query"), check_texts(documents, "documents")
        return self.score_pairs([question] * len(texts), texts, instruction, progress)

    def score_pairs(
        self,
        queries: Sequence[str],
        documents: Sequence[str],
        instruction: str | None = None,
        progress: bool = False,
    ) -> FloatArray:
        """(N,) relevance of the pairs ``(queries[i], documents[i])``; otherwise as :meth:`score`."""
        encoded = self.tokenizer.encode_pairs(queries, documents, instruction, self.max_tokens)
        warn_if_cut(encoded, self.max_tokens)
        numbers: dict[str, int] = {}
        groups = [numbers.setdefault(query, len(numbers)) for query in queries]
        return self.score_tokens(encoded.ids, groups, "pairs" if progress else None)

    def score_tokens(
        self, sequences: Sequence[Sequence[int]], groups: Sequence[int] | None = None, progress: str | None = None
    ) -> FloatArray:
        """(N,) scores of whole reranker prompts as token ids; ``groups`` tells which share a query."""
        if len(sequences) == 0:
            return np.empty(0, dtype=np.float32)
        return self.runner.run(sequences, groups, progress)

    def compile(self, graphs: bool = True) -> None:
        """Compile the model's layers for this GPU; see :meth:`Embedder.compile`."""
        self.runner.compile(graphs)

    def rank(
        self, query: str, documents: Sequence[str], top_k: int | None = None, instruction: str | None = None
    ) -> list[Hit]:
        """The documents best first; a hit's id is its place in the list. Equal scores keep the caller's order."""
        texts = check_texts(documents, "documents")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k={top_k}; wanted at least 1")
        scores = self.score(query, texts, instruction)
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [Hit(str(i), float(scores[i]), texts[i], "rerank") for i in order.tolist()]

    def _finish(self, pooled_ND: Tensor) -> Tensor:
        return torch.sigmoid(self.head(pooled_ND))

    def __repr__(self) -> str:
        where = f"{self.backbone.type_name} on {self.backbone.device}, {describe(self.backbone)}"
        return f"Reranker({self.name!r}, {where})"
