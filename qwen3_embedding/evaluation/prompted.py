"""Encoders that write the prompt themselves, and sentence-transformers models: any model in the same evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from qwen3_embedding.evaluation.cache import identity
from qwen3_embedding.optional import require
from qwen3_embedding.types import DEFAULT_INSTRUCTION, Encoder, FloatArray, Precision, Vectors


class PromptedEncoder:
    """Puts its own prompts before the texts and gives them to the encoder as they then are.

    For models with prompts of their own (``query: ``), and for servers that know nothing of instructions.

    Args:
        encoder: embeds what it gets as documents.
        query_prompt: goes before every query; ``{instruction}`` in it becomes the task's.
        document_prompt: goes before every document.

    Raises:
        ValueError: a query prompt with other braces than ``{instruction}``.
    """

    def __init__(self, encoder: Encoder, query_prompt: str = "", document_prompt: str = "") -> None:
        rest = query_prompt.replace("{instruction}", "")
        if "{" in rest or "}" in rest:
            raise ValueError(f"query_prompt={query_prompt!r}; the only place to fill is {{instruction}}")
        self.encoder, self.query_prompt, self.document_prompt = encoder, query_prompt, document_prompt

    @property
    def name(self) -> str:
        """The encoder's name."""
        return self.encoder.name

    @property
    def fingerprint(self) -> str:
        """The encoder's, and the prompts: with others it is another model."""
        prompts = hashlib.sha256(f"{self.query_prompt}\0{self.document_prompt}".encode()).hexdigest()[:16]
        return f"{identity(self.encoder)}+prompts:{prompts}"

    @property
    def dimensions(self) -> int:
        """The encoder's size."""
        return self.encoder.dimensions

    def embed_queries(
        self,
        texts: Sequence[str],
        instruction: str | None = None,
        dimensions: int | None = None,
        precision: Precision = "float32",
        progress: bool = False,
    ) -> Vectors:
        """(N, dimensions) vectors of prompt and text."""
        task = DEFAULT_INSTRUCTION if instruction is None else instruction
        prompt = self.query_prompt.replace("{instruction}", task)
        return self.encoder.embed_documents([prompt + text for text in texts], dimensions, precision, progress)

    def embed_documents(
        self,
        texts: Sequence[str],
        dimensions: int | None = None,
        precision: Precision = "float32",
        progress: bool = False,
    ) -> Vectors:
        """(N, dimensions) vectors of prompt and text."""
        return self.encoder.embed_documents(
            [self.document_prompt + text for text in texts], dimensions, precision, progress
        )


class SentenceTransformerEncoder:
    """A sentence-transformers model as an ``Encoder``, to compare with; instructions are not its own and go unused.

    Its ``query`` and ``document`` prompts, where its configuration names them, are used; for others put
    :class:`PromptedEncoder` around it. Only safetensors weights and the library's own code are loaded.

    Args:
        source: folder or hub id.
        device: ``cpu``, ``cuda``, ``cuda:N``; ``auto`` leaves it to the library.
        revision: of a hub id.
        offline: use what is on this machine alone.
    """

    def __init__(self, source: str, device: str = "auto", revision: str | None = None, offline: bool = False) -> None:
        library = require("sentence_transformers", extra="mteb")
        self.model: Any = library.SentenceTransformer(
            source,
            device=None if device == "auto" else device,
            revision=revision,
            local_files_only=offline,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
        self.name = source
        self._fingerprint: str | None = None

    @property
    def dimensions(self) -> int:
        """Full vector size D."""
        return int(self.model.get_embedding_dimension())

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the weights and the length that texts are cut to."""
        if self._fingerprint is None:
            digest = hashlib.sha256(repr((self.model.max_seq_length, self.model.prompts)).encode())
            for name, tensor in sorted(self.model.state_dict().items()):
                digest.update(f"{name}\0{tuple(tensor.shape)}\0".encode())
                digest.update(np.ascontiguousarray(tensor.detach().cpu().float().numpy()).tobytes())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def embed_queries(
        self,
        texts: Sequence[str],
        instruction: str | None = None,
        dimensions: int | None = None,
        precision: Precision = "float32",
        progress: bool = False,
    ) -> Vectors:
        """(N, dimensions) unit vectors; the instruction is not used."""
        return self._encode(self.model.encode_query, texts, dimensions, precision, progress)

    def embed_documents(
        self,
        texts: Sequence[str],
        dimensions: int | None = None,
        precision: Precision = "float32",
        progress: bool = False,
    ) -> Vectors:
        """(N, dimensions) unit vectors."""
        return self._encode(self.model.encode_document, texts, dimensions, precision, progress)

    def _encode(
        self, encode: Any, texts: Sequence[str], dimensions: int | None, precision: Precision, progress: bool
    ) -> FloatArray:
        if precision != "float32":
            raise ValueError(f"precision={precision!r}; wanted float32")
        found = encode(
            list(texts),
            batch_size=32,
            show_progress_bar=progress,
            convert_to_numpy=True,
            normalize_embeddings=True,
            truncate_dim=dimensions,
        )
        return np.asarray(found, dtype=np.float32).reshape(len(texts), dimensions or self.dimensions)
