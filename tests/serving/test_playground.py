"""The playground's page: nothing from outside, and every route it calls exists."""

from __future__ import annotations

import re

import httpx
import pytest


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_the_page_needs_nothing_from_outside(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    page = answer.text
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "connect-src 'self'" in answer.headers["content-security-policy"]
    assert "script-src 'sha256-" in answer.headers["content-security-policy"]
    assert "{{" not in page
    assert len(page) < 100_000
    for link in re.findall(r"""(?:src|href)=["']([^"']+)""", page):
        assert link.startswith(("data:", "/")), link
    assert not re.findall(r"innerHTML|outerHTML|document\.write|eval\(", page)  # texts are shown as text only


def test_every_route_that_the_page_calls_is_there(http: httpx.Client) -> None:
    page = http.get("/").text
    called = set(re.findall(r"""["'](/[a-z0-9/]+)["']""", page))
    assert {"/rerank", "/prompt", "/v1/embeddings", "/info"} <= called
    known = set(http.get("/openapi.json").json()["paths"])
    assert called <= known


def test_every_element_that_the_script_names_is_there(http: httpx.Client) -> None:
    page = http.get("/").text
    named = set(re.findall(r"""\$\("([a-z-]+)"\)""", page))
    ids = set(re.findall(r"""\sid="([a-z-]+)""", page))
    made = set(re.findall(r"""\bid: "([a-z-]+)\"""", page))
    assert named <= ids | made
    assert len(named) > 20
