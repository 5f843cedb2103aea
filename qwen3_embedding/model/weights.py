"""Checkpoints on disk: every official layout in, the published layout out.

Read: one file or shards with an index; keys with and without ``model.`` (also doubled, as some exports have it); tied
and separate heads; the two rows of a sequence-classification conversion.  Only safetensors: nothing here can run code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from qwen3_embedding.errors import CheckpointError
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.config import BackboneConfig, config_json, read_config
from qwen3_embedding.model.scoring import YesNoHead
from qwen3_embedding.whole import whole_file, write_text

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 4 * 1024**3
HEAD_KEYS = ("lm_head.weight", "score.weight")


def weight_files(folder: str | Path) -> dict[str, Path]:
    """Each tensor's name, as it is written, and the file it is in.

    Raises:
        CheckpointError: no weights, an index that names a missing file, a torn file.
    """
    folder = Path(folder)
    single, index = folder / WEIGHTS, folder / INDEX
    if index.exists():
        files = sorted({folder / name for name in _read_index(index).values()})
    elif single.exists():
        files = [single]
    else:
        other = next((name for name in ("pytorch_model.bin", "model.bin") if (folder / name).exists()), None)
        found = f"; found {other}, which is a pickle and is not read: convert it to safetensors" if other else ""
        raise CheckpointError(f"{folder}: no weights; wanted {WEIGHTS} or {INDEX}{found}")
    names: dict[str, Path] = {}
    for file in files:
        with _open(file) as tensors:
            names.update(dict.fromkeys(tensors.keys(), file))
    return names


def read_tensor(folder: str | Path, name: str) -> Tensor:
    """One tensor of a checkpoint, by its plain name (:func:`plain_name`); the others are not read.

    Raises:
        CheckpointError: as :func:`weight_files`, or no such tensor.
    """
    for written, file in weight_files(folder).items():
        if plain_name(written) == name:
            with _open(file) as tensors:
                tensor: Tensor = tensors.get_tensor(written)
                return tensor
    raise CheckpointError(f"{folder}: no tensor {name}; wanted a checkpoint of the Qwen3 family")


def _read_index(path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if not all(isinstance(name, str) and Path(name).name == name for name in weight_map.values()):
            raise ValueError("weight_map names a file outside the folder")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path}: not an index of shards: {error}") from None
    return dict(weight_map)


@contextmanager
def _open(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except FileNotFoundError:
        raise CheckpointError(
            f"{file}: the index names this file and it is missing; download the folder again"
        ) from None
    except SafetensorError as error:
        raise CheckpointError(f"{file}: not a whole safetensors file ({error}); download it again") from None


def plain_name(name: str) -> str:
    """A tensor's name in the published embedders' style: without ``model.``."""
    while name.startswith("model."):
        name = name.removeprefix("model.")
    return name


class _Uninitialized(TorchFunctionMode):
    """Leaves out the modules' own initialisation, whose meta kernels import torch's compiler: over a second."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def load_backbone(
    folder: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> tuple[Backbone, dict[str, Tensor]]:
    """The backbone of a checkpoint folder, and what else the file holds (``lm_head.weight`` or ``score.weight``).

    Args:
        folder: a checkpoint folder.
        dtype: type to run at; ``None`` keeps the type of the file. Where it is the file's type, weights on CPU stay
            memory-mapped, so loading costs no copy.
        device: where the weights go.

    Raises:
        CheckpointError: missing, foreign or misshapen tensors, or a file that is torn.
    """
    config = read_config(folder)
    with torch.device("meta"), _Uninitialized():
        backbone = Backbone(config)
    wanted = {name: tuple(parameter.shape) for name, parameter in backbone.named_parameters()}
    state: dict[str, Tensor] = {}
    extra: dict[str, Tensor] = {}
    files = weight_files(folder)
    for file in sorted(set(files.values())):
        with _open(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
                plain = plain_name(name)
                if plain not in wanted and plain not in HEAD_KEYS:
                    if plain.endswith("rotary_emb.inv_freq"):
                        continue
                    raise CheckpointError(f"{file}: tensor {name!r} belongs to no Qwen3 backbone or head")
                tensor = tensors.get_tensor(name).to(device=device, dtype=dtype)
                (state if plain in wanted else extra)[plain] = tensor
    _check_shapes(Path(folder), wanted, state)
    backbone.load_state_dict(state, assign=True)
    backbone.requires_grad_(False)
    return backbone.eval(), extra


def _check_shapes(folder: Path, wanted: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor]) -> None:
    missing = sorted(set(wanted) - set(state))
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CheckpointError(f"{folder}: the weights lack {', '.join(missing[:3])}{more}; config.json asks for them")
    for name, shape in wanted.items():
        if tuple(state[name].shape) != shape:
            raise CheckpointError(
                f"{folder}: {name} has shape {tuple(state[name].shape)}; config.json asks for {shape}"
            )
        if not state[name].dtype.is_floating_point:
            raise CheckpointError(f"{folder}: {name} is {state[name].dtype}; wanted float32, bfloat16 or float16")


def yes_no_head(
    backbone: Backbone, extra: Mapping[str, Tensor], no_id: int, yes_id: int, folder: str | Path
) -> YesNoHead:
    """The two rows that score, from a separate head, a converted one, or the tied embeddings.

    Raises:
        CheckpointError: the configuration says the head is separate and the file has none.
    """
    if "score.weight" in extra:
        return _converted_head(extra["score.weight"], folder)
    if "lm_head.weight" in extra:
        table = extra["lm_head.weight"]
    elif backbone.config.tie_word_embeddings:
        table = backbone.embed_tokens.weight
    else:
        raise CheckpointError(
            f"{folder}: tie_word_embeddings is false and the weights have no lm_head.weight; this is not a reranker"
        )
    if max(no_id, yes_id) >= len(table):
        raise CheckpointError(
            f"{folder}: the head has {len(table)} rows and the tokenizer's yes/no ids are {yes_id}/{no_id}"
        )
    return YesNoHead(table[no_id].clone(), table[yes_id].clone())


def _converted_head(score: Tensor, folder: str | Path) -> YesNoHead:
    """A sequence-classification head: one row (yes - no), or two (no, yes)."""
    if len(score) == 1:
        return YesNoHead(torch.zeros_like(score[0]), score[0].clone())
    if len(score) == 2:
        return YesNoHead(score[0].clone(), score[1].clone())
    raise CheckpointError(f"{folder}: score.weight has {len(score)} rows; wanted 1 (yes - no) or 2 (no, yes)")


@dataclass(frozen=True)
class Layout:
    """How :func:`save_weights` names what it writes."""

    prefix: str = ""
    """``""`` as the published embedders, ``"model."`` as the published rerankers."""
    shard_bytes: int = SHARD_BYTES


def save_weights(folder: str | Path, tensors: Mapping[str, Tensor], layout: Layout | None = None) -> None:
    """Write tensors (plain names) as safetensors, in shards where they are large; whole files or none."""
    layout = layout or Layout()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    named = {
        (name if name in HEAD_KEYS else layout.prefix + name): tensor.detach().cpu().contiguous()
        for name, tensor in tensors.items()
    }
    shards = _shards(named, layout.shard_bytes)
    if len(shards) == 1:
        _write(folder / WEIGHTS, shards[0])
        (folder / INDEX).unlink(missing_ok=True)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write(folder / file, shard)
        weight_map.update(dict.fromkeys(shard, file))
    size = sum(tensor.numel() * tensor.element_size() for tensor in named.values())
    write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})
    (folder / WEIGHTS).unlink(missing_ok=True)


def _shards(tensors: dict[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if shards[-1] and used + size > limit:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += size
    return shards


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    with whole_file(path) as beside:
        save_file(tensors, beside, metadata={"format": "pt"})


def write_json(path: Path, value: Any) -> None:
    """A file of JSON, whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def save_backbone(
    folder: str | Path, backbone: Backbone, dtype: torch.dtype, end_token_id: int, layout: Layout | None = None
) -> None:
    """Write ``config.json`` and the weights of a backbone with a tied head, converted to ``dtype``."""
    names = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
    config = BackboneConfig(**{**backbone.config.__dict__, "dtype": names[dtype]})
    save_weights(folder, {name: tensor.to(dtype) for name, tensor in backbone.state_dict().items()}, layout)
    write_json(Path(folder) / "config.json", config_json(config, end_token_id))


def fingerprint(folder: str | Path) -> str:
    """SHA-256 over the weight files, the configuration and the tokenizer: the identity of a model."""
    folder = Path(folder)
    digest = hashlib.sha256()
    for file in [*sorted(set(weight_files(folder).values())), folder / "config.json", folder / "tokenizer.json"]:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
