"""From what a user names to a checkpoint folder: a folder, a bundled model, or a hub's repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from qwen3_embedding.errors import ModelNotFoundError, Qwen3EmbeddingError
from qwen3_embedding.optional import require

Hub = Literal["huggingface", "modelscope"]

ASSETS = Path(__file__).resolve().parents[1] / "assets"
BUNDLED = ("nano-embedding", "nano-reranker")
_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.toml", "*/config.json"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def resolve(source: str | Path, revision: str | None = None, offline: bool = False, hub: Hub = "huggingface") -> Path:
    """The local folder of a model, downloaded if need be.

    Args:
        source: a folder, a bundled name (``nano-embedding``, ``nano-reranker``), or a hub id
        (``Qwen/Qwen3-Embedding-0.6B``). revision: branch, tag or commit of a hub id.
        offline: take hub ids from the local cache only, and fail at once where they are not in it.
        hub: where hub ids live.

    Raises:
        ModelNotFoundError: none of these; the message says which names exist.
    """
    if not isinstance(source, (str, Path)):
        raise TypeError(f"source is {type(source).__name__}; wanted a folder, a hub id or a bundled name")
    folder = Path(source)
    if folder.is_dir():
        return folder
    name = str(source)
    if name in BUNDLED:
        return _bundled(name)
    if folder.exists():
        raise ModelNotFoundError(f"{name} is a file; wanted the folder of a checkpoint")
    if not _HUB_ID.fullmatch(name):
        raise ModelNotFoundError(
            f"no model {name!r}: it is no folder here, no bundled name ({', '.join(BUNDLED)}) and no hub id such as "
            "'Qwen/Qwen3-Embedding-0.6B'"
        )
    return _download(name, revision, offline, hub)


def _bundled(name: str) -> Path:
    folder = ASSETS / name
    if not (folder / "config.json").exists():
        raise ModelNotFoundError(f"{name} is not in this installation ({folder}); install the package again")
    return folder


def _download(name: str, revision: str | None, offline: bool, hub: Hub) -> Path:
    where = f"{name}{'@' + revision if revision else ''}"
    try:
        if hub == "modelscope":
            snapshot = require("modelscope", extra="hub").snapshot_download
            return Path(snapshot(name, revision=revision, local_files_only=offline, allow_patterns=_FILES))
        snapshot = require("huggingface_hub", extra="hub").snapshot_download
        return Path(snapshot(name, revision=revision, local_files_only=offline, allow_patterns=_FILES))
    except Qwen3EmbeddingError:
        raise
    except Exception as error:  # the hubs raise a wide family: HTTP errors, value errors, OS errors
        if offline:
            raise ModelNotFoundError(
                f"{where} is not in the local cache and offline was asked for; run once without it, or give a folder"
            ) from error
        raise ModelNotFoundError(
            f"{where} could not be had from {hub}: {(str(error).splitlines() or [type(error).__name__])[0]}; "
            f"check the name and the network, or give a folder or one of {', '.join(BUNDLED)}"
        ) from error
