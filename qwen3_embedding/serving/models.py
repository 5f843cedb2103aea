"""Which models the operator named, and loading them: checkpoints, and adapters on top that share their weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qwen3_embedding.inference.adapters import with_adapter
from qwen3_embedding.inference.embedder import Embedder
from qwen3_embedding.inference.reranker import Reranker
from qwen3_embedding.inference.source import Hub, resolve

Kind = Literal["embedder", "reranker"]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One served model.

    Attributes:
        kind: what it is.
        name: under which clients ask for it.
        folder: its checkpoint; of the base, where there is an adapter.
        adapter: folder of a LoRA adapter in PEFT's format.
    """

    kind: Kind
    name: str
    folder: Path
    adapter: Path | None = None


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """How models are loaded; the same for all of a server. See :meth:`Embedder.from_pretrained`."""

    device: str = "auto"
    dtype: str = "auto"
    max_tokens: int | None = None
    batch_tokens: int | None = None
    kernel: str = "auto"
    reproducible: bool = False


def find_models(
    embedders: Sequence[str], rerankers: Sequence[str], adapters: Sequence[str], offline: bool = False,
    hub: Hub = "huggingface",
) -> list[ModelSpec]:  # fmt: skip
    """What the operator named, resolved to folders (hub ids are downloaded here, once for all workers).

    Args:
        embedders: ``[NAME=]SOURCE`` each; without a name a model is called as its source, a folder by its last part.
        rerankers: the same.
        adapters: ``NAME=FOLDER`` or ``NAME=BASE:FOLDER``, BASE being the name of a model above; without it the first
            embedder, or the first reranker for an adapter whose task type is ``CAUSAL_LM``.
        offline: take hub ids from the local cache only.
        hub: where hub ids live.

    Raises:
        ValueError: two of the same name, an adapter without a name, or without a base.
        ModelNotFoundError: no such model.
    """
    specs: list[ModelSpec] = []
    for kind, sources in (("embedder", embedders), ("reranker", rerankers)):
        for source in sources:
            name, equals, where = source.partition("=")
            place = where if equals else source
            folder = resolve(place, None, offline, hub)
            plain = folder.resolve().name if Path(place).is_dir() else place
            specs.append(ModelSpec(kind, name if equals else plain, folder))  # type: ignore[arg-type]
    specs += [_adapter(text, specs) for text in adapters]
    names = [spec.name for spec in specs]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise ValueError(f"two models are called {double!r}; name one of them: --embedder NAME=SOURCE")
    return specs


def _adapter(text: str, specs: Sequence[ModelSpec]) -> ModelSpec:
    name, equals, rest = text.partition("=")
    if not equals or not name:
        raise ValueError(f"adapter {text!r} has no name; wanted NAME=FOLDER or NAME=BASE:FOLDER")
    known = {spec.name: spec for spec in specs if spec.adapter is None}
    said, colon, where = rest.partition(":")
    folder = Path(where if colon and said in known else rest)
    if not (folder / "adapter_config.json").is_file():
        hint = f" (served models: {', '.join(known)})" if colon else ""
        raise ValueError(
            f"adapter {name!r}: {folder} has no adapter_config.json; wanted a folder as PEFT writes it{hint}"
        )
    if colon and said in known:
        base: ModelSpec | None = known[said]
    else:
        wanted = _kind_of(folder)
        base = next((spec for spec in known.values() if spec.kind == wanted), None)
    if base is None:
        raise ValueError(f"adapter {name!r} needs a {_kind_of(folder)} as its base, and none is served; name one")
    return ModelSpec(base.kind, name, base.folder, folder)


def _kind_of(folder: Path) -> Kind:
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return "reranker" if config.get("task_type") == "CAUSAL_LM" else "embedder"
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{folder / 'adapter_config.json'} is not valid: {error}") from None


def load_models(specs: Sequence[ModelSpec], settings: LoadSettings) -> list[Embedder | Reranker]:
    """The models in the order of the specs; an adapter shares the weights of its base.

    Raises:
        CheckpointError, ModelNotFoundError, ValueError: as loading says.
    """
    bases: dict[tuple[Kind, Path], Embedder | Reranker] = {}
    models: list[Embedder | Reranker] = []
    for spec in specs:
        base = bases.get((spec.kind, spec.folder))
        if base is None:
            load = Embedder.from_pretrained if spec.kind == "embedder" else Reranker.from_pretrained
            base = bases[spec.kind, spec.folder] = load(
                spec.folder,
                settings.device,
                settings.dtype,
                max_tokens=settings.max_tokens,
                batch_tokens=settings.batch_tokens,
                kernel=settings.kernel,
                reproducible=settings.reproducible,
            )
        models.append(base if spec.adapter is None else with_adapter(base, spec.adapter, spec.name))
    return models
