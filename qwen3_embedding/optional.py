"""The one place that words a missing-extra error."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from qwen3_embedding.errors import MissingExtraError


def require(module: str, extra: str) -> Any:
    """Import ``module``, or say which extra brings it.

    Raises:
        MissingExtraError: the module is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name.split(".")[0]):
            raise
        raise MissingExtraError(
            f"this needs the package {error.name!r}, which is not installed; "
            f"install it with: pip install 'qwen3-embedding[{extra}]'"
        ) from error
