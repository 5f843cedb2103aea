"""Exceptions for the world's faults.

A caller's own mistake (a wrong type, a value out of range) is a plain ``TypeError`` or ``ValueError``.  What the
world did wrong (a file that is missing, torn or foreign; a network that is not there) is one of these.  Every message
says what came, what was wanted and what to do.
"""

from __future__ import annotations


class Qwen3EmbeddingError(Exception):
    """Root of every exception of this package that is the world's fault."""


class ModelNotFoundError(Qwen3EmbeddingError):
    """No model of that name or folder could be found."""


class CheckpointError(Qwen3EmbeddingError):
    """A checkpoint folder lacks a file, or a file of it is torn or does not fit its configuration."""


class DataError(Qwen3EmbeddingError):
    """A data file is missing or a line of it is not what its format says (the message names file and line)."""


class IndexCorruptError(Qwen3EmbeddingError):
    """A search index or a corpus manifest cannot be read or contradicts itself."""


class MissingExtraError(Qwen3EmbeddingError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


class NumericalError(Qwen3EmbeddingError):
    """A result is not finite, also after it was recomputed at a wider precision."""


class RemoteError(Qwen3EmbeddingError):
    """A server that was asked did not answer, or answered with an error."""


class ConfigError(Qwen3EmbeddingError, ValueError):
    """A settings file has an unknown key or a value of the wrong type."""


class TruncationWarning(UserWarning):
    """Texts were longer than the model's context and were cut; the message says how many and by how much."""
