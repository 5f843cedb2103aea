"""What the command line does for a fast first answer."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qwen3_embedding.cli.common import importing
from qwen3_embedding.inference.embedder import Embedder


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_afterwards_as_it_was(enabled: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with importing():
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
        assert gc.get_freeze_count() > 0
        with pytest.raises(ImportError), importing():
            raise ImportError
        assert gc.isenabled() == enabled
    finally:
        gc.unfreeze()
        (gc.enable if before else gc.disable)()


def test_one_line_needs_nothing_heavy_but_torch_and_is_the_same_vector(tmp_path: Path) -> None:
    (tmp_path / "line.txt").write_text("one line of text\n")
    code = (
        "import gc, sys; sys.argv[0] = 'q3e'; from qwen3_embedding.cli import app; app(standalone_mode=False); "
        "heavy = {'torch._dynamo', 'sympy', 'lancedb', 'pyarrow', 'rich', 'transformers'} & set(sys.modules); "
        "assert not heavy, heavy; assert gc.isenabled() and gc.get_freeze_count() > 100_000, gc.get_freeze_count()"
    )
    command = [sys.executable, "-c", code, "embed", str(tmp_path / "line.txt"), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    wanted = Embedder.from_pretrained("nano-embedding", device="cpu").embed_documents(["one line of text"])
    assert np.allclose(json.loads(done.stdout), wanted[0], atol=1e-6)
