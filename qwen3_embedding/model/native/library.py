"""The compiled kernel: built once for this machine, checked, and called through ctypes.

The source lies in the package.  On first use the system's C++ compiler makes it for the CPU at hand, in the user's
cache (``~/.cache/qwen3-embedding/native``), under a name of the source, the flags, the compiler and the CPU.  It is
written beside and renamed; of processes that start at the same time one builds and the others wait.  Where that cannot
be, :func:`native` says why and the caller takes PyTorch's kernels.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("kernel.cpp")
COMPILERS = ("c++", "g++", "clang++")
OPTIMIZE = ("-O3", "-std=c++20", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-pthread")
BUILD_SECONDS = 300
PARTS = ("matrix products", "attention", "rotation", "norms", "quantise")

logger = logging.getLogger(__name__)


class NativeUnavailableError(RuntimeError):
    """This machine cannot build or run the native kernel; the message says why."""


class Matrix(ctypes.Structure):
    """A linear layer's weights."""

    _fields_ = [
        ("weight", ctypes.c_void_p), ("scale", ctypes.c_void_p), ("start", ctypes.c_void_p),
        ("columns", ctypes.c_int32), ("inner", ctypes.c_int32), ("refined", ctypes.c_int32),
    ]  # fmt: skip


class Layer(ctypes.Structure):
    """The weights of a decoder layer."""

    _fields_ = [
        *[(name, Matrix) for name in ("q", "k", "v", "o", "gate", "up", "down")],
        *[(name, ctypes.c_void_p) for name in ("input_norm", "post_norm", "q_norm", "k_norm")],
    ]


class Model(ctypes.Structure):
    """All layers and their shape."""

    _fields_ = [
        ("layers", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
        *[(name, ctypes.c_int32) for name in ("n_layers", "int8", "hidden", "inner", "heads", "key_heads", "head_dim")],
        ("eps", ctypes.c_float),
    ]


class Batch(ctypes.Structure):
    """A packed batch."""

    _fields_ = [
        *[
            (name, ctypes.c_void_p)
            for name in (
                "cos", "sin", "segment_starts", "context_lengths", "context_begins", "context_rows", "asked",
            )
        ],
        *[(name, ctypes.c_int32) for name in ("n_rows", "n_segments", "n_asked")],
    ]  # fmt: skip


def pointer(tensor: Tensor) -> int:
    """Where a tensor's numbers lie.

    Raises:
        ValueError: a tensor that is not contiguous on the CPU.
    """
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ValueError(f"the native kernel reads contiguous tensors on the CPU; got one on {tensor.device}")
    return tensor.data_ptr()


class Library:
    """The loaded kernel."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._calls = ctypes.CDLL(str(path))
        self._calls.q3_isa.restype = ctypes.c_char_p
        self.isa: str = self._calls.q3_isa().decode()
        self.panel: int = self._calls.q3_panel()
        self.zero_point: int = self._calls.q3_zero_point()

    def pack(self, codes_NK: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of weights in the kernel's order, and what their sums begin with."""
        columns, inner = codes_NK.shape
        padded, wide = -(-columns // self.panel) * self.panel, -(-inner // 4) * 4
        packed, start = torch.empty(padded * wide, dtype=torch.int8), torch.empty(padded, dtype=torch.int32)
        codes_NK = codes_NK.contiguous()
        self._calls.q3_pack(*_pointers(codes_NK), columns, inner, *_pointers(packed, start))
        return packed, start

    def quantize(self, x_RK: Tensor) -> tuple[Tensor, Tensor]:
        """(R, K) codes with the zero point on top, rows padded to a multiple of 4, and (R,) scales."""
        rows, inner = x_RK.shape
        codes, scale = torch.empty(rows, -(-inner // 4) * 4, dtype=torch.uint8), torch.empty(rows)
        self._calls.q3_quantize(*_pointers(x_RK.contiguous()), rows, inner, *_pointers(codes, scale))
        return codes, scale

    def seconds(self) -> dict[str, float]:
        """CPU seconds of the calling thread by part, over all calls since this was asked last."""
        values = (ctypes.c_double * len(PARTS))()
        self._calls.q3_seconds(values)
        return dict(zip(PARTS, values, strict=True))

    def multiply(self, matrix: Matrix, codes_RK: Tensor, row_scale_R: Tensor) -> Tensor:
        """(R, N) fp32 of (R, K) codes, K padded to a multiple of 4."""
        out = torch.empty(len(codes_RK), matrix.columns)
        self._calls.q3_multiply(ctypes.byref(matrix), *_pointers(codes_RK), len(codes_RK), *_pointers(row_scale_R, out))
        return out

    def forward(self, model: Model, batch: Batch, hidden: Tensor, out: Tensor, threads: int, chunk: int) -> None:
        """All layers.

        Raises:
            MemoryError: there is none left for the activations.
        """
        arguments = (ctypes.byref(model), ctypes.byref(batch), *_pointers(hidden, out), threads, chunk)
        if self._calls.q3_forward(*arguments):
            raise MemoryError(f"no memory for the activations of {batch.n_rows} tokens; use smaller batches")


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(pointer(tensor)) for tensor in tensors]


@lru_cache(maxsize=1)
def _outcome() -> Library | str:
    try:
        library = Library(build(cache_folder()))
        _check(library)
    except (OSError, NativeUnavailableError) as error:
        return str(error)
    return library


def native() -> Library:
    """This machine's kernel, built on first use.

    Raises:
        NativeUnavailableError: why there is none.
    """
    outcome = _outcome()
    if isinstance(outcome, str):
        raise NativeUnavailableError(outcome)
    return outcome


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "qwen3-embedding" / "native"
    return Path.home() / ".cache" / "qwen3-embedding" / "native"


def build(folder: Path, machine: Sequence[str] | None = None) -> Path:
    """The kernel for this CPU, compiled where the folder does not hold it yet.

    Args:
        folder: the cache.
        machine: compiler options that name the instruction set, instead of this CPU's own.

    Raises:
        NativeUnavailableError: another system, no compiler, or a compiler that failed.
        OSError: a folder that cannot be written.
    """
    if sys.platform == "win32":
        raise NativeUnavailableError("the native kernel is for Linux and macOS")
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise NativeUnavailableError(f"no C++ compiler is installed (looked for {', '.join(COMPILERS)})")
    options = [*OPTIMIZE, *(machine or _machine_options())]
    target = folder / f"kernel-{_key(compiler, options)}.so"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if not target.exists():
            _compile([compiler, *options, str(SOURCE)], target)
    return target


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process compiles, the others wait for what it makes; where files cannot be locked, each makes its own."""
    import fcntl  # not on Windows

    with (folder / "lock").open("w") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(command: list[str], target: Path) -> None:
    logger.warning("compiling the native kernel for this CPU, once (about ten seconds): %s", target)
    with tempfile.TemporaryDirectory(dir=target.parent) as beside:
        made = Path(beside) / target.name
        try:
            done = subprocess.run(
                [*command, "-o", str(made)], capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise NativeUnavailableError(f"{command[0]} did not finish in {BUILD_SECONDS} s") from None
        if done.returncode:
            said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:300])
            raise NativeUnavailableError(f"{command[0]} failed: {said}")
        made.rename(target)


def _machine_options() -> list[str]:
    return ["-mcpu=native"] if platform.machine().lower() in ("arm64", "aarch64") else ["-march=native"]


def _key(compiler: str, options: Sequence[str]) -> str:
    """Source, flags, compiler and CPU: a home folder may serve many machines."""
    path = Path(compiler).resolve()
    parts = [SOURCE.read_text(encoding="utf-8"), *options, str(path), str(path.stat().st_mtime_ns), _cpu()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            first = file.read(8192).partition("\n\n")[0]
    except FileNotFoundError:
        return f"{platform.machine()} {platform.processor()} {platform.version()}"
    wanted = ("model name", "flags", "Features", "CPU part", "cpu family", "model\t")
    return "\n".join(line for line in first.splitlines() if line.startswith(wanted))


def _check(library: Library) -> None:
    """Sums at the largest codes have to come out exact before any model runs."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (13, 260), generator=generator) * 2 - 1
    signs[0] = 1
    codes_NK = (signs * 127).to(torch.int8)
    packed, start = library.pack(codes_NK)
    scale = torch.ones(len(start))
    matrix = Matrix(pointer(packed), pointer(scale), pointer(start), *codes_NK.shape)
    stored = (signs * 127 + library.zero_point).to(torch.uint8)
    got = library.multiply(matrix, stored, torch.ones(len(signs)))
    wanted = codes_NK.double() @ codes_NK.double().t()
    if not torch.equal(got.double(), wanted):
        raise NativeUnavailableError(f"the kernel compiled for {library.isa} does not multiply exactly on this CPU")
