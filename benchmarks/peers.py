"""The engines that speed is compared with: their own environment, exported models kept beside it, one process each.

    python -m benchmarks.peers --venv PATH        # make the environment; what cannot be installed is named

OpenVINO, ONNX Runtime and llama.cpp never enter the environment of this package: their tools can replace torch or
transformers. sentence-transformers runs in ours.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OURS = ("ours-float32", "ours-int8")
HERE_INSTALLED = (*OURS, "sentence-transformers")
"""Engines that run in this package's environment."""

ELSEWHERE = {
    "openvino-int8": ("openvino", "openvino-int8"),
    "openvino-float32": ("openvino", "openvino"),
    "onnxruntime-int8": ("onnxruntime", "onnx-int8"),
    "onnxruntime-float32": ("onnxruntime", "onnx"),
    "llama.cpp-q8": ("llama_cpp", "gguf"),
}
"""The module each other engine needs, and the format it reads."""
ENGINES = (*HERE_INSTALLED, *ELSEWHERE)

PACKAGES = (
    ("torch", "numpy", "tokenizers", "safetensors"),
    ("openvino", "nncf"),
    ("onnx", "onnxscript", "onnxruntime"),
    ("gguf",),
    ("llama-cpp-python",),
)
"""In the order of installing; each row stands or falls by itself (the last is built from source)."""


class EngineError(RuntimeError):
    """An engine that could not be made, or that failed while running; the message is its own last words."""


def install(venv: Path) -> dict[str, str]:
    """Make the other engines' environment; the outcome of each row of :data:`PACKAGES`."""
    if not python_of(venv).exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    found = {}
    for row in PACKAGES:
        command = [str(python_of(venv)), "-m", "pip", "--disable-pip-version-check", "-q", "install", *row]
        done = subprocess.run(command, capture_output=True, text=True)
        found[" ".join(row)] = "installed" if done.returncode == 0 else f"failed: {_last_words(done.stderr)}"
    return found


def python_of(venv: Path) -> Path:
    return venv / "bin" / "python"


def why_missing(engine: str, venv: Path | None) -> str | None:
    """Why an engine can't run here, or ``None``."""
    if engine in HERE_INSTALLED:
        return None
    if venv is None:
        return "no environment was given (--peers)"
    if not python_of(venv).exists():
        return f"{venv} has no bin/python; make it with: python -m benchmarks.peers --venv {venv}"
    module = ELSEWHERE[engine][0]
    done = subprocess.run([str(python_of(venv)), "-c", f"import {module}"], capture_output=True, text=True)
    return None if done.returncode == 0 else f"{module} does not load in {venv}: {_last_words(done.stderr)}"


def exported(engine: str, folder: Path, venv: Path, cache: Path) -> Path | None:
    """The model in the engine's format, made once for these weights and kept."""
    if engine in HERE_INSTALLED:
        return None
    form = ELSEWHERE[engine][1]
    source = folder
    if form == "onnx-int8":
        source = _export("onnx", folder, folder, venv, cache)
    return _export(form, source, folder, venv, cache)


def _export(form: str, source: Path, folder: Path, venv: Path, cache: Path) -> Path:
    output = cache / f"{_identity(folder)}-{form}"
    if output.exists():
        return output
    print(f"exporting {form} into {output}", file=sys.stderr)
    cache.mkdir(parents=True, exist_ok=True)
    command = [str(python_of(venv)), str(HERE / "export.py"), str(source), form, str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise EngineError(f"export to {form} failed: {_last_words(done.stderr)}")
    return output


def _identity(folder: Path) -> str:
    """A short name of a checkpoint's weights and of the exporter, for the cache."""
    from qwen3_embedding.model.weights import fingerprint

    exporter = hashlib.sha256((HERE / "export.py").read_bytes()).hexdigest()
    return f"{fingerprint(folder)[:16]}-{exporter[:8]}"


def _last_words(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"


class Process:
    """An engine in its own process; see :mod:`benchmarks.engines` for what it can be asked."""

    def __init__(self, engine: str, folder: Path, model: Path | None, venv: Path | None, threads: int) -> None:
        self.engine = engine
        python = sys.executable if engine in HERE_INSTALLED or venv is None else str(python_of(venv))
        script, where = str(HERE / "engines.py"), "" if model is None else str(model)
        limit = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        environment = {**os.environ, **limit, "TOKENIZERS_PARALLELISM": "true"}
        if engine in HERE_INSTALLED:
            environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        self.stderr = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  (closed in close)
        self.process = subprocess.Popen(
            [python, "-P", script, engine, str(folder), where, str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.stderr, text=True, env=environment,
        )  # fmt: skip
        try:
            self.load_seconds = float(self._answer()["load_seconds"])
        except EngineError:
            self.close()
            raise

    def ask(self, do: str, **details: Any) -> dict[str, Any]:
        """One request, one answer.

        Raises:
            EngineError: the engine failed at it, or ended.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **details}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise EngineError(f"{self.engine} ended: {self._stderr()}") from None
        return self._answer()

    def close(self) -> None:
        """End the process."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.stderr.close()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise EngineError(f"{self.engine} ended: {self._stderr()}")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise EngineError(f"{self.engine}: {found['error']}")
        return found

    def _stderr(self) -> str:
        self.process.wait()
        self.stderr.seek(0)
        return _last_words(self.stderr.read())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, required=True)
    options = parser.parse_args()
    for packages, outcome in install(options.venv).items():
        print(f"{packages}: {outcome}")


if __name__ == "__main__":
    main()
