"""A model that was loaded before a fork, as servers with preloaded workers do, computes in the child."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys, warnings
import numpy as np, torch
from qwen3_embedding import Embedder, Reranker

torch.set_num_threads(2)
folder, reranker_folder, kernel = sys.argv[1:]
embedder = Embedder.from_pretrained(folder, kernel=kernel)
reranker = Reranker.from_pretrained(reranker_folder, kernel=kernel)
texts = [f"text number {n} " * (n % 40 + 1) for n in range(200)]
vectors, scores = embedder.embed_documents(texts), reranker.score("text", texts[:50])
torch.randn(1500, 1500) @ torch.randn(1500, 1500)  # PyTorch's threads are there
child = os.fork()
if child == 0:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        again = embedder.embed_documents(texts), reranker.score("text", texts[:50])
    same = np.allclose(again[0], vectors, atol=1e-6) and np.allclose(again[1], scores, atol=1e-6)
    told = sum("do not outlive a fork" in str(warning.message) for warning in seen)
    native = embedder.runner.backbone.native
    threads = native.threads if native else None
    os._exit(0 if same and (told == 0 and threads == 2 if native else told == 2) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("kernel", ["auto", "library"])
def test_a_forked_child_embeds_and_reranks(embedder_folder: Path, reranker_folder: Path, kernel: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(embedder_folder), str(reranker_folder), kernel],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
