"""Checkpoint folders merged: against the formula on whole tensors, loaded elsewhere, refused with a reason."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qwen3_embedding.config import load_toml
from qwen3_embedding.errors import CheckpointError, ConfigError, NumericalError
from qwen3_embedding.merging import merge as merge_module
from qwen3_embedding.merging import methods, tensors
from qwen3_embedding.merging.merge import REPORT, merge
from qwen3_embedding.merging.settings import Dtype, MergeSettings, Method, Source
from qwen3_embedding.model.weights import WEIGHTS, Layout, fingerprint, load_backbone, weight_files, write_json
from tests.support.checkpoints import make_embedder_folder, make_reranker_folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("sources")
    return [make_embedder_folder(root / f"run-{seed}", seed=seed) for seed in range(3)]


@pytest.fixture
def spoiled(folders: list[Path], tmp_path: Path) -> Callable[[Callable[[dict[str, Tensor]], None]], Path]:
    """A copy of the second source whose tensors were changed."""

    def spoil(change: Callable[[dict[str, Tensor]], None]) -> Path:
        folder = tmp_path / "spoiled"
        shutil.copytree(folders[1], folder)
        state = load_file(folder / WEIGHTS)
        change(state)
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        return folder

    return spoil


def state_of(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in set(weight_files(folder).values()) for name, tensor in load_file(file).items()}


def settings(folders: list[Path], output: Path, method: Method = "linear", **changes: Any) -> MergeSettings:
    sources = tuple(Source(path, weight) for path, weight in zip(folders, (1.0, 2.0, 0.5), strict=False))
    return MergeSettings(method=method, sources=sources, output=output, **changes)


EXPECTED: dict[Method, Callable[[list[Tensor]], Tensor]] = {
    "linear": lambda xs: methods.linear(xs, [1.0, 2.0, 0.5]),
    "spherical-mean": lambda xs: methods.spherical_mean(xs, [1.0, 2.0, 0.5]),
    "slerp": lambda xs: methods.slerp(xs[0], xs[1], 2 / 3),
    "task-vector": lambda xs: methods.task_vector(xs[2], xs[:2], [1.0, 2.0], 0.4),
}


@pytest.mark.parametrize("method", list(EXPECTED))
def test_merged_tensors_are_the_formula_rounded_once(
    method: Method, folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "PIECE", 1000)  # so that every tensor comes in several pieces
    options: dict[str, Any] = {"base": folders[2], "scale": 0.4} if method == "task-vector" else {}
    used = folders if method in ("linear", "spherical-mean") else folders[:2]
    merge(settings(used, tmp_path / "merged", method, **options))
    merged, states = state_of(tmp_path / "merged"), [state_of(folder) for folder in folders]
    assert list(merged) == list(states[0])
    for name, tensor in merged.items():
        xs = [state[name] for state in states]
        one_dimensional = tensor.ndim == 1 and method in ("slerp", "spherical-mean")
        expected = (
            methods.linear(xs[: len(used)], [1.0, 2.0, 0.5][: len(used)]) if one_dimensional else EXPECTED[method](xs)
        )
        # the coefficients agree to 1e-14, so a float32 differs by one unit in the last place at most
        torch.testing.assert_close(tensor, expected.float(), rtol=1.2e-7, atol=0)


def test_norm_gains_follow_the_method_when_asked(folders: list[Path], tmp_path: Path) -> None:
    merge(settings(folders[:2], tmp_path / "merged", "slerp", one_dimensional="same", magnitude="mean"))
    name = "layers.0.self_attn.q_norm.weight"
    a, b = (state_of(folder)[name] for folder in folders[:2])
    expected = methods.slerp(a, b, 2 / 3, "mean").float()
    torch.testing.assert_close(state_of(tmp_path / "merged")[name], expected, rtol=1.2e-7, atol=0)


def test_a_merge_with_itself_changes_no_bit(folders: list[Path], tmp_path: Path) -> None:
    sources = [folders[0], shutil.copytree(folders[0], tmp_path / "copy")]
    merge(settings(sources, tmp_path / "merged", "spherical-mean"))
    before, after = state_of(folders[0]), state_of(tmp_path / "merged")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_layouts_mix_and_the_first_ones_names_are_kept(folders: list[Path], tmp_path: Path) -> None:
    sharded = make_embedder_folder(tmp_path / "sharded", seed=1, layout=Layout(prefix="model.", shard_bytes=100_000))
    assert len(set(weight_files(sharded).values())) > 2
    merge(settings([folders[0], folders[1]], tmp_path / "plain"))
    merge(settings([folders[0], sharded], tmp_path / "mixed"))
    plain, mixed = state_of(tmp_path / "plain"), state_of(tmp_path / "mixed")
    assert all(torch.equal(plain[name], mixed[name]) for name in plain)
    merge(replace(settings([sharded, folders[0]], tmp_path / "prefixed"), shard_bytes=200_000))
    names = weight_files(tmp_path / "prefixed")
    assert all(name.startswith("model.") for name in names)
    assert len(set(names.values())) > 2


def test_the_result_loads_in_sentence_transformers_and_gives_the_same_vectors(
    folders: list[Path], tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    from qwen3_embedding import Embedder

    merge(settings(folders, tmp_path / "merged", "spherical-mean"))
    texts = ["a merged model", "gives vectors like any other"]
    theirs = SentenceTransformer(str(tmp_path / "merged"), device="cpu").encode(texts)
    ours = Embedder.from_pretrained(tmp_path / "merged").embed_documents(texts)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_files_of_the_checkpoint_go_along_and_those_of_its_making_do_not(tmp_path: Path) -> None:
    sources = [make_reranker_folder(tmp_path / f"run-{seed}", seed=seed) for seed in range(2)]
    for name in ("merge-search.json", "trainer_state.json", "README.md", "training.toml", "events.out"):
        (sources[0] / name).write_text("{}")
    merge(settings(sources, tmp_path / "merged"))
    assert sorted(path.name for path in (tmp_path / "merged").iterdir()) == [
        "chat_template.jinja",
        "config.json",
        REPORT,
        WEIGHTS,
        "tokenizer.json",
        "tokenizer_config.json",
        "training.toml",
    ]
    for name in ("chat_template.jinja", "config.json", "tokenizer.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (sources[0] / name).read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_another_type_can_be_asked_for(dtype: Dtype, folders: list[Path], tmp_path: Path) -> None:
    merge(settings(folders, tmp_path / "merged", dtype=dtype))
    wide = methods.linear([state_of(folder)["norm.weight"] for folder in folders], [1.0, 2.0, 0.5])
    assert torch.equal(state_of(tmp_path / "merged")["norm.weight"], wide.to(getattr(torch, dtype)))
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["torch_dtype"] == dtype


def test_bfloat16_sources_are_not_merged_in_bfloat16(tmp_path: Path) -> None:
    sources = [make_embedder_folder(tmp_path / f"run-{seed}", seed=seed, dtype=torch.bfloat16) for seed in range(3)]
    merge(settings(sources, tmp_path / "merged", dtype="float32"))
    states = [state_of(folder) for folder in sources]
    for name, tensor in state_of(tmp_path / "merged").items():
        expected = methods.linear([state[name] for state in states], [1.0, 2.0, 0.5]).float()
        assert torch.equal(tensor, expected)


def test_training_toml_names_sources_weights_and_hashes(folders: list[Path], tmp_path: Path) -> None:
    merge(settings(folders[:2], tmp_path / "merged", "slerp", lerp_above_cosine=0.9995))
    record = tomllib.loads((tmp_path / "merged" / "training.toml").read_text())["merge"]
    assert record["method"] == "slerp"
    assert record["lerp_above_cosine"] == 0.9995
    assert [(s["path"], s["weight"], s["sha256"]) for s in record["sources"]] == [
        (str(folders[0]), 1.0, fingerprint(folders[0])),
        (str(folders[1]), 2.0, fingerprint(folders[1])),
    ]


def test_the_report_gives_angles_lengths_and_the_distance_from_linear(folders: list[Path], tmp_path: Path) -> None:
    report = merge(settings(folders[:2], tmp_path / "merged", "slerp"))
    stored = json.loads((tmp_path / "merged" / REPORT).read_text())
    assert stored["summary"]["tensors"] == len(state_of(folders[0])) == len(stored["tensors"])
    name = "layers.1.mlp.up_proj.weight"
    entry = next(tensor for tensor in report.tensors if tensor.name == name)
    a, b, merged = (state_of(f)[name].double().flatten() for f in (*folders[:2], tmp_path / "merged"))

    def angle(x: Tensor, y: Tensor) -> float:
        return float(torch.rad2deg(torch.acos(torch.dot(x, y) / (x.norm() * y.norm()))))

    assert entry.largest_angle == pytest.approx(angle(a, b), rel=1e-9)
    assert entry.angles_to_merged == pytest.approx((angle(a, merged), angle(b, merged)), rel=1e-5)
    assert entry.norms == pytest.approx((float(a.norm()), float(b.norm())), rel=1e-12)
    assert entry.merged_norm == pytest.approx(float(merged.norm()), rel=1e-6)
    linear = methods.linear([a, b], [1, 2])
    assert entry.from_linear == pytest.approx(float((merged - linear).norm() / merged.norm()), rel=1e-5)
    assert any("angle between sources" in line for line in report.lines())


def test_task_vector_report_compares_the_task_vectors(folders: list[Path], tmp_path: Path) -> None:
    report = merge(settings(folders[:2], tmp_path / "merged", "task-vector", base=folders[2]))
    name = "embed_tokens.weight"
    a, b, base = (state_of(folder)[name].double().flatten() for folder in folders)
    cosine = torch.dot(a - base, b - base) / ((a - base).norm() * (b - base).norm())
    entry = next(tensor for tensor in report.tensors if tensor.name == name)
    assert entry.largest_angle == pytest.approx(float(torch.rad2deg(torch.acos(cosine))), rel=1e-9)
    assert entry.from_linear == 0.0


def test_a_reranker_with_a_redundant_tied_head_merges_without_it(tmp_path: Path) -> None:
    sources = [make_reranker_folder(tmp_path / f"run-{seed}", seed=seed) for seed in range(2)]
    state = state_of(sources[0])
    table = next(tensor for name, tensor in state.items() if name.endswith("embed_tokens.weight"))
    save_file({**state, "lm_head.weight": table.clone()}, sources[0] / WEIGHTS, metadata={"format": "pt"})
    report = merge(settings(sources, tmp_path / "merged"))
    assert "lm_head.weight" not in state_of(tmp_path / "merged")
    assert len(report.notes) == 1
    assert "ties it" in report.notes[0]
    from qwen3_embedding import Reranker

    assert Reranker.from_pretrained(tmp_path / "merged").score("q", ["a document"]).shape == (1,)


def untie(folder: Path, seed: int) -> None:
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "tie_word_embeddings": False})
    state = state_of(folder)
    shape = next(tensor for name, tensor in state.items() if name.endswith("embed_tokens.weight")).shape
    state["lm_head.weight"] = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def test_separate_heads_are_merged_like_any_tensor_or_dropped(tmp_path: Path) -> None:
    sources = [make_reranker_folder(tmp_path / f"run-{seed}", seed=seed) for seed in range(2)]
    for seed, folder in enumerate(sources):
        untie(folder, seed)
    merge(settings(sources, tmp_path / "kept"))
    expected = methods.linear([state_of(folder)["lm_head.weight"] for folder in sources], [1, 2]).float()
    assert torch.equal(state_of(tmp_path / "kept")["lm_head.weight"], expected)
    merge(settings(sources, tmp_path / "dropped", head="drop"))
    assert "lm_head.weight" not in state_of(tmp_path / "dropped")


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_token_tables_of_different_lengths_are_refused_or_cut_on_request(tmp_path: Path, folders: list[Path]) -> None:
    rows = len(state_of(folders[0])["embed_tokens.weight"])
    padded = tmp_path / "padded"
    shutil.copytree(folders[1], padded)
    state = state_of(padded)
    state["embed_tokens.weight"] = torch.cat(
        [state["embed_tokens.weight"], torch.zeros(64, state["norm.weight"].numel())]
    )
    save_file(state, padded / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((padded / "config.json").read_text())
    write_json(padded / "config.json", {**config, "vocab_size": rows + 64})
    with pytest.raises(CheckpointError, match=f"{rows + 64} rows, and {rows} in .*vocab_rows = {rows}"):
        merge(settings([folders[0], padded], tmp_path / "merged"))
    assert not (tmp_path / "merged").exists()
    merge(settings([padded, folders[0]], tmp_path / "merged", vocab_rows=rows))
    backbone, _ = load_backbone(tmp_path / "merged")
    assert backbone.config.vocab_size == rows
    expected = methods.linear([state_of(f)["embed_tokens.weight"][:rows] for f in (padded, folders[0])], [1, 2]).float()
    assert torch.equal(backbone.embed_tokens.weight, expected)
    with pytest.raises(CheckpointError, match=r"vocab_rows=10 cuts tokens that .* wanted at least"):
        merge(settings(folders, tmp_path / "cut", vocab_rows=10))
    with pytest.raises(CheckpointError, match=f"has {rows} rows, fewer than vocab_rows={rows + 1}"):
        merge(settings([padded, folders[0]], tmp_path / "cut", vocab_rows=rows + 1))


def test_nan_is_refused_with_file_and_tensor(spoiled: Any, folders: list[Path], tmp_path: Path) -> None:
    def change(state: dict[str, Tensor]) -> None:
        state["layers.2.mlp.down_proj.weight"][3, 5] = float("nan")

    folder = spoiled(change)
    with pytest.raises(CheckpointError, match=r"spoiled/model.safetensors: layers.2.mlp.down_proj.weight has NaN"):
        merge(settings([folders[0], folder], tmp_path / "merged"))
    assert [path.name for path in tmp_path.iterdir()] == ["spoiled"]


def test_missing_extra_and_misshapen_tensors_are_refused(spoiled: Any, folders: list[Path], tmp_path: Path) -> None:
    def change(state: dict[str, Tensor]) -> None:
        state["layers.9.odd"] = state.pop("norm.weight")

    folder = spoiled(change)
    with pytest.raises(CheckpointError, match=r"lacks norm.weight and has besides layers.9.odd"):
        merge(settings([folders[0], folder], tmp_path / "merged"))
    state = state_of(folder)
    state["norm.weight"] = state.pop("layers.9.odd")[:5].clone()
    save_file(state, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"norm.weight has shape \(5,\), and \(64,\)"):
        merge(settings([folders[0], folder], tmp_path / "merged"))
    state["norm.weight"] = torch.zeros(64, dtype=torch.int64)
    save_file(state, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match="has type I64"):
        merge(settings([folders[0], folder], tmp_path / "merged"))


def test_another_architecture_or_tokenizer_is_refused(folders: list[Path], tmp_path: Path) -> None:
    other = shutil.copytree(folders[1], tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    write_json(other / "config.json", {**config, "rope_theta": 10000.0})
    with pytest.raises(CheckpointError, match=r"rope_theta is 10000.0, and 1000000.0 in"):
        merge(settings([folders[0], other], tmp_path / "merged"))
    write_json(other / "config.json", config)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["added_tokens"][-1]["content"] = "<|renamed|>"
    write_json(other / "tokenizer.json", tokenizer)
    with pytest.raises(CheckpointError, match=r"differs from that of .* in 2 tokens"):
        merge(settings([folders[0], other], tmp_path / "merged"))


def test_a_head_on_one_side_only_is_refused_with_the_way_out(tmp_path: Path) -> None:
    sources = [make_reranker_folder(tmp_path / f"run-{seed}", seed=seed) for seed in range(2)]
    untie(sources[1], 3)
    with pytest.raises(CheckpointError, match=r"has besides lm_head.weight; head = 'drop'"):
        merge(settings(sources, tmp_path / "merged"))


def test_an_adapter_is_not_a_checkpoint(folders: list[Path], tmp_path: Path) -> None:
    write_json(tmp_path / "adapter_config.json", {})
    with pytest.raises(CheckpointError, match="this is an adapter"):
        merge(settings([folders[0], tmp_path], tmp_path / "merged"))


def test_opposite_tensors_name_the_tensor(spoiled: Any, folders: list[Path], tmp_path: Path) -> None:
    mirrored = state_of(folders[0])["layers.0.mlp.up_proj.weight"]

    def change(state: dict[str, Tensor]) -> None:
        state["layers.0.mlp.up_proj.weight"] = -mirrored

    with pytest.raises(CheckpointError, match=r"layers.0.mlp.up_proj.weight: two tensors point in opposite directions"):
        merge(settings([folders[0], spoiled(change)], tmp_path / "merged", "slerp"))


def test_a_value_too_large_for_the_type_is_refused(spoiled: Any, folders: list[Path], tmp_path: Path) -> None:
    def change(state: dict[str, Tensor]) -> None:
        state["norm.weight"][0] = 1e6

    with pytest.raises(NumericalError, match=r"norm.weight: a merged value does not fit in torch.float16"):
        merge(settings([folders[0], spoiled(change)], tmp_path / "merged", dtype="float16"))


def test_a_module_with_weights_is_refused(folders: list[Path], tmp_path: Path) -> None:
    dense = shutil.copytree(folders[0], tmp_path / "dense")
    (dense / "2_Dense").mkdir()
    save_file({"linear.weight": torch.zeros(2, 2)}, dense / "2_Dense" / WEIGHTS)
    with pytest.raises(CheckpointError, match="weights of its own"):
        merge(settings([dense, folders[0]], tmp_path / "merged"))


def test_too_little_disk_is_said_before_anything_is_written(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge_module, "DISK_RESERVE", 1 << 60)
    with pytest.raises(CheckpointError, match="GB free, and the merged weights take"):
        merge(settings(folders, tmp_path / "merged"))
    assert list(tmp_path.iterdir()) == []


def test_what_exists_is_kept_unless_overwriting_and_until_the_new_one_stands(
    spoiled: Any, folders: list[Path], tmp_path: Path
) -> None:
    output = tmp_path / "merged"
    merge(settings(folders, output))
    first = fingerprint(output)
    with pytest.raises(ValueError, match="overwrite = true"):
        merge(settings(folders, output))

    def change(state: dict[str, Tensor]) -> None:
        state["norm.weight"][0] = float("inf")  # the last tensor: everything before it is written when it comes

    with pytest.raises(CheckpointError, match="NaN or infinite"):
        merge(settings([folders[0], spoiled(change)], output, overwrite=True))
    assert fingerprint(output) == first
    merge(settings(folders[:2], output, overwrite=True))
    assert fingerprint(output) != first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "spoiled"]
    with pytest.raises(ValueError, match="is one of the sources"):
        merge(settings([folders[0], output], output, overwrite=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('method = "slerp"', "takes 2 sources, got 3"),
        ('method = "task-vector"', "needs 'base'"),
        ('method = "linear"\nbase = "b"', "belongs to task-vector"),
        ('method = "linear"\nscale = 0.5', "'scale' has no meaning for method 'linear'"),
        ('method = "linear"\nmagnitude = "mean"', "'magnitude' has no meaning"),
        ('method = "spherical-mean"\nmagnitude = "raw"', "belongs to slerp"),
        ('method = "karcher"', "wanted one of 'linear'"),
        ('method = "linear"\nmagnitud = "mean"', "did you mean 'magnitude'"),
    ],
)
def test_recipes_are_read_strictly(text: str, message: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    sources = "".join(f'[[sources]]\npath = "{name}"\nweight = 0.5\n' for name in "abc")
    recipe.write_text(f'output = "out"\n{text}\n{sources}')
    with pytest.raises(ConfigError, match=message):
        load_toml(recipe, MergeSettings)


@pytest.mark.parametrize("method", ["linear", "spherical-mean"])
def test_tensors_of_zeros_stay_zeros(method: Method, tmp_path: Path) -> None:
    """As layers have them that add nothing yet."""
    made = []
    for seed in (0, 1):
        folder = make_embedder_folder(tmp_path / f"run-{seed}", seed=seed)
        state = load_file(folder / WEIGHTS)
        state["layers.1.mlp.down_proj.weight"].zero_()
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        made.append(folder)
    report = merge(settings(made, tmp_path / "merged", method))
    assert not state_of(tmp_path / "merged")["layers.1.mlp.down_proj.weight"].any()
    (tensor,) = (item for item in report.tensors if item.name.endswith("layers.1.mlp.down_proj.weight"))
    assert (tensor.merged_norm, tensor.from_linear) == (0.0, 0.0)
