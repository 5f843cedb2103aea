"""The house keeps its rooms: imports point one way, and heavy libraries stay where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "qwen3_embedding"
SHARED = {"types", "errors", "config", "optional", "whole"}
MAY_IMPORT = {
    "inputs": set(),
    "model": {"inputs"},
    "inference": {"inputs", "model"},
    "retrieval": set(),
    "corpus": {"inference"},
    "serving": {"inputs", "inference", "retrieval"},
    "data": set(),
    "synthesis": {"data"},
    "mining": {"data", "retrieval"},
    "training": {"data", "inputs", "model"},
    "merging": {"model"},
    "evaluation": {"data", "retrieval"},
    "export": {"model"},
    "integrations": {"inference"},
}
ONLY_IN = {
    "fastapi": ("serving/",),
    "uvicorn": ("serving/", "cli/"),
    "lancedb": ("retrieval/index.py", "corpus/sinks"),
    "ray": ("corpus/ray", "serving/ray.py", "synthesis/ray"),
    "grpc": ("serving/rpc",),
    "mteb": ("evaluation/mteb.py",),
    "peft": ("training/lora.py",),
    "transformers": ("training/lora.py", "synthesis/"),
}
NO_TORCH = ("types.py", "errors.py", "config.py", "optional.py", "whole.py", "inputs/", "data/", "serving/queue.py")


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module)


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    parts = path.relative_to(PACKAGE).parts
    relative = "/".join(parts)
    room = parts[0] if len(parts) > 1 else ""
    for name in imported(path):
        top, _, rest = name.partition(".")
        if top == "qwen3_embedding":
            target = rest.partition(".")[0]
            allowed = not room or room == "cli" or target in SHARED | {room, ""} | MAY_IMPORT[room]
            assert allowed, f"{relative} imports {name}; {room} may import {sorted(MAY_IMPORT[room])}"
        if top in ONLY_IN:
            assert relative.startswith(ONLY_IN[top]), f"{relative} imports {top}; only {ONLY_IN[top]} may"
        if top == "torch":
            assert not relative.startswith(NO_TORCH), f"{relative} imports torch"
        if f"{name}.".startswith("torch.distributed."):
            assert relative.startswith("training/distributed/"), f"{relative} imports {name}"


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_runs_strangers_code(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec"), f"{path}: {node.func.id}"
        if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "trust_remote_code", "shell"):
            assert isinstance(node.value, ast.Constant), f"{path}: {node.arg}"
            assert node.value.value is False, f"{path}: {node.arg}"
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [str(node.module)]
            assert not {"pickle", "dill", "cloudpickle", "joblib"} & {n.split(".")[0] for n in names}, str(path)


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_environment_is_read_by_the_command_line_only(path: Path) -> None:
    if path.relative_to(PACKAGE).parts[0] == "cli":
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv") and isinstance(node.value, ast.Name):
            assert node.value.id != "os", f"{path}:{node.lineno} reads the environment"


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, qwen3_embedding; print([m for m in ('torch', 'lancedb', 'numpy', 'typer') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
