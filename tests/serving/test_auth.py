"""Keys, quotas, and who may enter where."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from starlette.routing import Route

from qwen3_embedding.serving.app import create_app
from qwen3_embedding.serving.auth import Caller, Key, Keys, read_key_file
from qwen3_embedding.serving.errors import OverloadedError, UnauthorizedError
from qwen3_embedding.serving.server import Server
from qwen3_embedding.serving.settings import ServerSettings
from tests.serving.conftest import serving

if TYPE_CHECKING:
    from qwen3_embedding import Embedder

SECRET, POOR = "correct-horse", "battery-staple"
OPEN = {"/", "/docs", "/health", "/health/live", "/health/ready", "/ping"}
"""The static pages know nothing; what they show they ask for with the key."""


def test_a_key_is_parsed_and_never_shown() -> None:
    key = Key.parse("team-a=s3cret-value:6000")
    assert (key.name, key.tokens_per_minute) == ("team-a", 6000)
    assert "s3cret" not in repr(key)
    assert Key.parse("only-a-secret", 3).name == "key-3"


@pytest.mark.parametrize("text", ["", "short", "a=b=c d", "name=abcdefgh:x", "n@me=abcdefgh", "name=abcdefgh:0"])
def test_malformed_keys_are_refused_without_repeating_them(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        Key.parse(text)
    assert "abcdefgh" not in str(caught.value)


def test_a_key_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# team keys\na=first-secret\n\n  b=second-secret:100  \n")
    assert [Key.parse(line).name for line in read_key_file(path)] == ["a", "b"]


def test_callers_are_told_by_their_key() -> None:
    keys = Keys([Key.parse(f"rich={SECRET}"), Key.parse(f"poor={POOR}:60")])
    assert keys.admit({"authorization": f"Bearer {SECRET}"}).name == "rich"
    assert keys.admit({"authorization": f"bearer {POOR}"}).name == "poor"
    assert keys.admit({"x-api-key": SECRET}).name == "rich"
    assert keys.admit({"api-key": POOR}).name == "poor"
    for headers in ({}, {"authorization": SECRET}, {"authorization": "Bearer nope"}, {"x-api-key": SECRET[:-1]}):
        with pytest.raises(UnauthorizedError):
            keys.admit(headers)
    assert Keys([]).admit({}).name == "anonymous"


def test_two_keys_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two API keys"):
        Keys([Key.parse(f"a={SECRET}"), Key.parse(f"a={POOR}")])


def test_a_quota_is_exact_over_time() -> None:
    caller = Caller("poor", tokens_per_minute=6000)  # 100 a second
    caller.charge(5990)
    with pytest.raises(OverloadedError) as caught:
        caller.charge(30)
    assert 0.1 < (caught.value.retry_after_s or 0) <= 0.2
    time.sleep(0.25)
    caller.charge(30)
    Caller("rich").charge(10**12)


def test_a_request_larger_than_the_bucket_is_possible_once_it_is_full() -> None:
    caller = Caller("poor", tokens_per_minute=60)
    caller.charge(100)
    with pytest.raises(OverloadedError) as caught:
        caller.charge(1)
    assert (caught.value.retry_after_s or 0) > 40


@pytest.fixture(scope="module")
def locked(embedder: Embedder) -> Iterator[tuple[str, Server]]:
    keys = (Key.parse(f"rich={SECRET}"), Key.parse(f"poor={POOR}:60"))
    server = Server({"tiny": embedder}, None, ServerSettings(keys=keys))
    with serving(server) as url:
        yield url, server


def test_no_key_no_entry(locked: tuple[str, Server]) -> None:
    url, server = locked
    paths = [(route.path, method) for route in create_app(server).routes if isinstance(route, Route)
             for method in route.methods or () if method in ("GET", "POST")]  # fmt: skip
    assert len(paths) > 20
    with httpx.Client(base_url=url) as client:
        for path, method in paths:
            expected = {200} if path in OPEN else {401}
            for headers in ({}, {"authorization": "Bearer wrong-secret"}):
                answer = client.request(method, path.replace("{name:path}", "x"), headers=headers)
                assert answer.status_code in expected, (method, path)
                if answer.status_code == 401:
                    assert answer.headers["www-authenticate"] == "Bearer"
        assert "rich" not in client.get("/").text


def test_a_key_opens_and_a_spent_quota_closes(locked: tuple[str, Server]) -> None:
    url, _ = locked
    with httpx.Client(base_url=url) as client:
        rich, poor = {"authorization": f"Bearer {SECRET}"}, {"authorization": f"Bearer {POOR}"}
        assert client.get("/v1/models", headers=rich).status_code == 200
        body = {"input": "many words " * 60}
        assert client.post("/v1/embeddings", json=body, headers=poor).status_code == 200
        refused = client.post("/v1/embeddings", json=body, headers=poor)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert int(refused.headers["retry-after"]) >= 1
        assert client.post("/v1/embeddings", json=body, headers=rich).status_code == 200
        shown = client.get("/metrics", headers=rich).text
        assert 'caller="poor"' in shown
        assert SECRET not in shown
