"""Strict TOML settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from qwen3_embedding.config import dump_toml, from_mapping, load_toml
from qwen3_embedding.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    depth: int = 1

    def __post_init__(self) -> None:
        if self.depth < 0:
            raise ValueError(f"depth={self.depth}; wanted at least 0")


@dataclass(frozen=True)
class Outer:
    name: str
    rate: float = 0.5
    mode: Literal["a", "b"] = "a"
    inner: Inner = field(default_factory=Inner)
    optional: Inner | None = None
    items: tuple[Inner, ...] = ()
    folder: Path | None = None
    pair: tuple[float, float] = (0.0, 1.0)


def test_values_and_back(tmp_path: Path) -> None:
    settings = Outer('quo"ted\n', 1e-7, "b", Inner(2), Inner(3), (Inner(4), Inner(5)), Path("x/y"), (0.25, 2.0))
    path = tmp_path / "settings.toml"
    path.write_text(dump_toml(settings), encoding="utf-8")
    assert load_toml(path, Outer) == settings


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"name": "x", "rat": 1.0}, "unknown key 'rat'; did you mean 'rate'"),
        ({}, "missing key 'name'"),
        ({"name": 3}, "name: got 3"),
        ({"name": "x", "rate": "fast"}, "rate: got 'fast'"),
        ({"name": "x", "rate": True}, "rate: got True"),
        ({"name": "x", "mode": "c"}, "wanted one of 'a', 'b'"),
        ({"name": "x", "inner": {"dept": 1}}, "inner: unknown key 'dept'"),
        ({"name": "x", "optional": {"depth": "deep"}}, "optional: depth: got 'deep'"),
        ({"name": "x", "inner": {"depth": -1}}, "depth=-1; wanted at least 0"),
        ({"name": "x", "items": [{"depth": 1}, {"deep": 1}]}, r"items\[1\]: unknown key 'deep'"),
    ],
)
def test_what_is_wrong_is_named(raw: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(raw, Outer)


def test_no_file_and_no_toml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_toml(tmp_path / "none.toml", Outer)
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_toml(tmp_path / "bad.toml", Outer)
