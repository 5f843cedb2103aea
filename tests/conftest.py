"""Fixtures that several rooms use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.checkpoints import make_embedder_folder, make_reranker_folder
from tests.support.command_line import CommandLine, command_line

if TYPE_CHECKING:
    from qwen3_embedding.inference.embedder import Embedder
    from qwen3_embedding.inference.reranker import Reranker


@pytest.fixture
def q3e(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return command_line(monkeypatch, capsys)


@pytest.fixture(scope="session")
def embedder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_embedder_folder(tmp_path_factory.mktemp("embedder"))


@pytest.fixture(scope="session")
def reranker_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_reranker_folder(tmp_path_factory.mktemp("reranker"))


@pytest.fixture(scope="session")
def embedder(embedder_folder: Path) -> Embedder:
    from qwen3_embedding.inference.embedder import Embedder

    return Embedder.from_pretrained(embedder_folder)


@pytest.fixture(scope="session")
def reranker(reranker_folder: Path) -> Reranker:
    from qwen3_embedding.inference.reranker import Reranker

    return Reranker.from_pretrained(reranker_folder)
