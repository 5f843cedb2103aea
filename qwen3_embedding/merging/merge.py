"""Checkpoint folders in, one checkpoint folder out, a piece of one tensor at a time."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qwen3_embedding import __version__
from qwen3_embedding.config import dump_toml
from qwen3_embedding.errors import CheckpointError, NumericalError
from qwen3_embedding.merging import methods
from qwen3_embedding.merging.methods import Array, Geometry, GeometrySums
from qwen3_embedding.merging.report import MergeReport, TensorReport, describe
from qwen3_embedding.merging.settings import MergedFrom, MergeRecord, MergeSettings, TrainingFile
from qwen3_embedding.merging.tensors import Planned, TensorFolder, TensorInfo, write_folder
from qwen3_embedding.model.config import BackboneConfig, read_config
from qwen3_embedding.model.weights import HEAD_KEYS, fingerprint, write_json

REPORT = "merge-report.json"
VOCAB_TENSORS = ("embed_tokens.weight", "lm_head.weight")
FREE_CONFIG = ("dtype", "vocab_size", "max_position_embeddings", "initializer_range", "tie_word_embeddings")
"""Fields of ``config.json`` that may differ between sources: they do not change what a tensor means."""
COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.*",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_*_config.json",
)
"""What belongs to a checkpoint beside its weights; reports and training states of a source do not go along."""
DISK_RESERVE = 64 * 1024**2

Progress = Callable[[int, int, str], None]
"""Called with the number of tensors done, their total and the name of the next one."""


def merge(settings: MergeSettings, progress: Progress | None = None) -> MergeReport:
    """Merge checkpoints into ``settings.output``: weights, configuration, tokenizer, ``training.toml``, a report.

    The configuration and the tokenizer come from the base, or from the first source. Everything is written beside the
    output and renamed, so a merge that fails leaves what was there.

    Raises:
        CheckpointError: sources that do not fit together (named), a tensor with NaN or infinity, too little disk.
        NumericalError: a result that the output's type cannot hold.
        ValueError: the output is one of the sources, or exists and ``overwrite`` is false.
    """
    _check_output(settings)
    with ExitStack() as stack:
        folders = [stack.enter_context(TensorFolder(path)) for path in settings.models]
        _check_configs(settings.models)
        _check_tokenizers(settings)
        names, notes = _tensor_names(folders, settings)
        job = _Job(settings, folders, names, progress)
        settings.output.parent.mkdir(parents=True, exist_ok=True)
        _check_disk(settings.output.parent, sum(planned.bytes for planned in job.plan))
        beside = Path(
            tempfile.mkdtemp(prefix=f".{settings.output.name}.", suffix=".partial", dir=settings.output.parent)
        )
        try:
            write_folder(beside, job.plan, job.pieces, settings.shard_bytes)
            report = job.report(notes)
            _write_other_files(beside, settings, report, job.dtype_name)
            _replace(beside, settings.output)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return report


@dataclass
class _Job:
    """One merge under way: what is planned, and what was found out about each tensor written so far."""

    settings: MergeSettings
    folders: Sequence[TensorFolder]
    names: Sequence[str]
    progress: Progress | None

    def __post_init__(self) -> None:
        self.tensors: list[TensorReport] = []
        self.plan = [self._planned(name) for name in self.names]
        self._plain = dict(zip((planned.name for planned in self.plan), self.names, strict=True))

    @property
    def dtype_name(self) -> str | None:
        """Name of the output's type where the recipe asks for another."""
        return None if self.settings.dtype == "same" else self.settings.dtype

    def _planned(self, plain: str) -> Planned:
        info = self.folders[0].tensors[plain]
        dtype = getattr(torch, self.dtype_name) if self.dtype_name else info.dtype
        return Planned(info.name, dtype, _merged_shape(plain, info, self.settings.vocab_rows))

    def pieces(self, planned: Planned) -> Iterator[Tensor]:
        """The merged tensor, in pieces."""
        plain = self._plain[planned.name]
        if self.progress:
            self.progress(len(self.tensors), len(self.plan), plain)
        elements = int(np.prod(planned.shape))
        geometry = self._geometry(plain, elements)
        rule, coefficients_N = self._coefficients(plain, planned, geometry)
        linear_N = _linear_reference(self.settings)
        base = self.settings.base is not None
        self.tensors.append(describe(plain, planned.shape, rule, geometry, coefficients_N, linear_N, base))
        for parts in self._parts(plain, elements):
            merged = methods.combine(parts, coefficients_N).to(planned.dtype)
            if not torch.isfinite(merged).all():
                raise NumericalError(f"{plain}: a merged value does not fit in {planned.dtype}; use dtype = 'float32'")
            yield merged

    def _parts(self, plain: str, elements: int) -> Iterator[tuple[Tensor, ...]]:
        return zip(*(folder.pieces(plain, elements) for folder in self.folders), strict=True)

    def _geometry(self, plain: str, elements: int) -> Geometry:
        sums = GeometrySums(len(self.folders))
        for parts in self._parts(plain, elements):
            sums.add(parts)
        geometry = sums.geometry()
        for folder, norm in zip(self.folders, geometry.norms_N, strict=True):
            if not np.isfinite(norm):
                raise CheckpointError(
                    f"{folder.tensors[plain].file}: {plain} has NaN or infinite values; it cannot be merged"
                )
        return geometry

    def _coefficients(self, plain: str, planned: Planned, geometry: Geometry) -> tuple[str, Array]:
        settings = self.settings
        spherical = settings.method in ("slerp", "spherical-mean")
        if spherical and len(planned.shape) == 1 and settings.one_dimensional == "linear":
            return "linear", methods.linear_coefficients(settings.weights)
        try:
            return settings.method, coefficients(settings, geometry)
        except ValueError as error:
            raise CheckpointError(f"{plain}: {error}") from error

    def report(self, notes: Sequence[str]) -> MergeReport:
        """What was done."""
        sources = tuple(str(path) for path in self.settings.models)
        return MergeReport(self.settings.method, sources, tuple(self.tensors), tuple(notes))


def coefficients(settings: MergeSettings, geometry: Geometry) -> Array:
    """The method of the recipe on a tensor of this geometry; one coefficient for each of ``settings.models``."""
    weights = settings.weights
    if settings.method == "linear":
        return methods.linear_coefficients(weights)
    if settings.method == "slerp":
        t = weights[1] / sum(weights)
        return methods.slerp_coefficients(geometry, t, settings.magnitude or "raw", settings.lerp_above_cosine)
    if settings.method == "spherical-mean":
        return methods.spherical_mean_coefficients(geometry, weights, settings.magnitude or "mean")
    return methods.task_vector_coefficients(weights, settings.scale)


def _linear_reference(settings: MergeSettings) -> Array:
    """What the report compares with: the linear merge, which a task-vector merge is already."""
    if settings.method == "task-vector":
        return methods.task_vector_coefficients(settings.weights, settings.scale)
    return methods.linear_coefficients(settings.weights)


# --- do the sources fit together? -------------------------------------------------------------------------------------


def _check_configs(models: Sequence[Path]) -> None:
    first = read_config(models[0])
    for path in models[1:]:
        other = read_config(path)
        for name in (field.name for field in fields(BackboneConfig)):
            if name not in FREE_CONFIG and getattr(first, name) != getattr(other, name):
                raise CheckpointError(
                    f"{path}: {name} is {getattr(other, name)}, and {getattr(first, name)} in {models[0]}; "
                    "only checkpoints of one architecture can be merged"
                )


def _check_tokenizers(settings: MergeSettings) -> None:
    """Row i of the token table must mean the same token everywhere, and a cut must not reach a token in use."""
    models = settings.models
    first = _token_ids(models[0])
    for path in models[1:]:
        other = _token_ids(path)
        different = sorted(token for token in first.keys() | other.keys() if first.get(token) != other.get(token))
        if different:
            token = different[0]
            raise CheckpointError(
                f"{path}: its tokenizer differs from that of {models[0]} in {len(different)} tokens; token {token!r} "
                f"has id {other.get(token)} and {first.get(token)}, so equal rows do not mean the same"
            )
    if settings.vocab_rows is not None and settings.vocab_rows <= max(first.values()):
        raise CheckpointError(
            f"vocab_rows={settings.vocab_rows} cuts tokens that {models[0]} uses; "
            f"wanted at least {max(first.values()) + 1}"
        )


def _token_ids(folder: Path) -> dict[str, int]:
    path = folder / "tokenizer.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        ids = dict(raw["model"]["vocab"])
        ids.update({token["content"]: int(token["id"]) for token in raw.get("added_tokens", [])})
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no such file; a merge needs the tokenizer to compare the token tables"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a tokenizer file: {error}") from None
    if not ids:
        raise CheckpointError(f"{path}: has no tokens")
    return ids


def _tensor_names(folders: Sequence[TensorFolder], settings: MergeSettings) -> tuple[list[str], list[str]]:
    """Plain names to merge, in the first folder's order, and notes on what is left out."""
    notes: list[str] = []
    kept = [_kept_names(folder, settings, notes) for folder in folders]
    first = kept[0]
    for folder, names in zip(folders[1:], kept[1:], strict=True):
        missing, extra = sorted(set(first) - set(names)), sorted(set(names) - set(first))
        if missing or extra:
            raise CheckpointError(_mismatch(folder.folder, folders[0].folder, missing, extra))
    for name in first:
        _check_shape(name, folders, settings.vocab_rows)
    return first, notes


def _kept_names(folder: TensorFolder, settings: MergeSettings, notes: list[str]) -> list[str]:
    tied = read_config(folder.folder).tie_word_embeddings
    names = []
    for name in folder.tensors:
        if name in HEAD_KEYS and settings.head == "drop":
            notes.append(f"{folder.folder}: {name} left out, as the recipe says")
        elif name == "lm_head.weight" and tied:
            notes.append(f"{folder.folder}: lm_head.weight left out: config.json ties it to embed_tokens.weight")
        else:
            names.append(name)
    return names


def _mismatch(folder: Path, first: Path, missing: Sequence[str], extra: Sequence[str]) -> str:
    sides = [("lacks", missing), ("has besides", extra)]
    parts = [
        f"{verb} {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        for verb, names in sides
        if names
    ]
    heads = {*missing, *extra} & set(HEAD_KEYS)
    hint = "; head = 'drop' merges without the head, which embedders do not use" if heads else ""
    return f"{folder}: compared with {first} it {' and '.join(parts)}{hint}"


def _check_shape(name: str, folders: Sequence[TensorFolder], vocab_rows: int | None) -> None:
    first = folders[0].tensors[name]
    for folder in folders:
        other = folder.tensors[name]
        if name in VOCAB_TENSORS and other.shape[1:] == first.shape[1:]:
            if vocab_rows is not None and other.shape[0] < vocab_rows:
                raise CheckpointError(
                    f"{other.file}: {name} has {other.shape[0]} rows, fewer than vocab_rows={vocab_rows}"
                )
            if vocab_rows is None and other.shape[0] != first.shape[0]:
                raise CheckpointError(
                    f"{other.file}: {name} has {other.shape[0]} rows, and {first.shape[0]} in {first.file}; rows past "
                    f"the tokenizer's last id can be cut: vocab_rows = {min(other.shape[0], first.shape[0])}"
                )
        elif other.shape != first.shape:
            raise CheckpointError(f"{other.file}: {name} has shape {other.shape}, and {first.shape} in {first.file}")


def _merged_shape(plain: str, info: TensorInfo, vocab_rows: int | None) -> tuple[int, ...]:
    if plain in VOCAB_TENSORS and vocab_rows is not None:
        return (vocab_rows, *info.shape[1:])
    return info.shape


# --- the folder -------------------------------------------------------------------------------------------------------


def _check_output(settings: MergeSettings) -> None:
    output = settings.output.resolve()
    for path in settings.models:
        if path.resolve() == output:
            raise ValueError(f"output={settings.output} is one of the sources; wanted another folder")
    if settings.output.exists() and not settings.overwrite:
        raise ValueError(f"output={settings.output} exists; set overwrite = true to replace it, or name another folder")


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + DISK_RESERVE:
        raise CheckpointError(f"{folder}: {free / 1e9:.1f} GB free, and the merged weights take {needed / 1e9:.1f} GB")


def _write_other_files(folder: Path, settings: MergeSettings, report: MergeReport, dtype: str | None) -> None:
    origin = settings.models[0]
    for path in sorted(origin.iterdir()):
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in COPIED):
            shutil.copyfile(path, folder / path.name)
        elif path.is_dir() and re.fullmatch(r"\d+_\w+", path.name):  # sentence-transformers modules
            _copy_module(path, folder / path.name)
    _edit_config(folder / "config.json", settings.vocab_rows, dtype)
    (folder / "training.toml").write_text(dump_toml(TrainingFile(merge_record(settings))), encoding="utf-8")
    write_json(folder / REPORT, report.to_json())


def _copy_module(module: Path, target: Path) -> None:
    weights = sorted(path.name for path in module.rglob("*") if path.suffix in (".safetensors", ".bin", ".pt"))
    if weights:
        raise CheckpointError(
            f"{module}: this module has weights of its own ({weights[0]}), which are not merged; remove it"
        )
    shutil.copytree(module, target)


def _edit_config(path: Path, vocab_rows: int | None, dtype: str | None) -> None:
    raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if vocab_rows is not None:
        raw["vocab_size"] = vocab_rows
    if dtype is not None:
        raw["dtype" if "dtype" in raw else "torch_dtype"] = dtype
    if vocab_rows is not None or dtype is not None:
        write_json(path, raw)


def merge_record(settings: MergeSettings) -> MergeRecord:
    """The settings with the fingerprints of the sources, as ``training.toml`` keeps them."""
    base = settings.base
    return MergeRecord(
        version=__version__,
        method=settings.method,
        one_dimensional=settings.one_dimensional,
        dtype=settings.dtype,
        head=settings.head,
        scale=settings.scale,
        sources=tuple(MergedFrom(str(s.path), s.weight, fingerprint(s.path)) for s in settings.sources),
        base=None if base is None else MergedFrom(str(base), 1.0, fingerprint(base)),
        magnitude=settings.magnitude,
        lerp_above_cosine=settings.lerp_above_cosine,
        vocab_rows=settings.vocab_rows,
    )


def _replace(beside: Path, output: Path) -> None:
    """Put the finished folder in its place; what was there is removed only after it stands."""
    if not output.exists():
        os.replace(beside, output)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".old", dir=output.parent)) / output.name
    os.replace(output, old)
    os.replace(beside, output)
    shutil.rmtree(old.parent)
