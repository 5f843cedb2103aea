"""Where a number was measured: commit of the code, processor, accelerator."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path


def commit() -> str:
    """Commit of the checkout this package runs from, ``+`` behind it where files were changed; empty outside of one."""
    where = Path(__file__).resolve().parents[2]
    if not (where / ".git").exists():
        return ""
    head = _git(where, "rev-parse", "--short=12", "HEAD")
    return f"{head}+" if head and _git(where, "status", "--porcelain", "--untracked-files=no") else head


def hardware() -> str:
    """Processor and the cores this process may use."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def _git(where: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(where), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
