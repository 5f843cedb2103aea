"""``bench --url`` counts what a server does: times, tokens, errors, the knee, within its bounds."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from qwen3_embedding.cli.bench import command as bench
from qwen3_embedding.errors import RemoteError
from qwen3_embedding.serving.anyserver import AnyServer, EmbedRoute
from qwen3_embedding.serving.load import LoadSettings, Run, mark_knees, measure_load
from qwen3_embedding.serving.loadplot import page, write_plot
from tests.serving.test_client import Answer, scripted

QUICK = LoadSettings(concurrency=(1, 3), tokens=(8, 40), seconds=20, requests=9, seed=1)


def test_our_server(url: str, tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    with AnyServer(url) as server:
        load = measure_load(server, QUICK, progress=lambda now, all_of_them: done.append((now, all_of_them)))
    assert [(run.tokens, run.concurrency) for run in load.runs] == [(8, 1), (8, 3), (40, 1), (40, 3)]
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert (load.kind, load.model, load.tokens_counted, load.left_out) == ("embed", "tiny-embedding", True, [])
    for run in load.runs:
        assert (run.requests, run.errors) == (9, {})
        assert 0 < run.p50_ms <= run.p95_ms <= run.p99_ms
        assert run.requests_per_s == pytest.approx(9 / run.seconds)
        per_text = run.tokens_per_s / run.requests_per_s
        assert 0.7 * run.tokens <= per_text <= 1.4 * run.tokens  # by words, made to fit the tokenizer
    assert sum(run.knee for run in load.runs) == 2
    for name in ("load.html", "load.png"):
        pytest.importorskip("matplotlib")
        write_plot(load, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 2_000
    assert page(load).count("<polyline") == 4
    assert "<script" not in page(load)


def test_a_reranker(url: str) -> None:
    with AnyServer(url) as server:
        load = measure_load(server, LoadSettings((2,), (8,), per_request=5, requests=4, seconds=20), rerank=True)
    [run] = load.runs
    assert (load.kind, load.route, run.requests) == ("rerank", "/v1/rerank", 4)
    assert run.tokens_per_s / run.requests_per_s > 5 * 60  # the template is in every pair


def test_time_is_bounded(url: str) -> None:
    began = time.monotonic()
    with AnyServer(url) as server:
        load = measure_load(server, LoadSettings((1, 2, 3), (8,), seconds=0.4, total_s=0.6))
    assert time.monotonic() - began < 20
    assert 1 <= len(load.runs) < 3
    assert load.left_out[-1] == (8, 3)


VECTOR = b'{"data": [{"index": 0, "embedding": [0.6, 0.8]}], "model": "m"}'


def test_errors_are_counted_and_tokens_guessed_where_they_are_not_told() -> None:
    def answer(number: int) -> Answer | None:
        if number < 3 or number % 3 == 0:
            return 200, {}, VECTOR
        return (429, {"retry-after": "0"}, b"full") if number % 3 == 1 else None

    with scripted(answer) as (address, _), AnyServer(address, model="m") as server:
        load = measure_load(server, LoadSettings((1,), (8,), seconds=20, requests=9))
    [run] = load.runs
    assert (load.tokens_counted, run.requests) == (False, 3)
    assert run.errors == {"429": 3, "ServerDisconnectedError": 3}
    assert run.tokens_per_s == pytest.approx(8 * run.requests_per_s)


def test_a_busy_server_is_asked_again() -> None:
    busy: Answer = (429, {"retry-after": "0"}, b"full")

    def answer(number: int) -> Answer:
        return busy if number < 3 else (200, {}, VECTOR)

    with scripted(answer) as (address, times), AnyServer(address, model="m") as server:
        assert server.embed(EmbedRoute("/v1/embeddings", "openai", "m"), ["a"]).shape == (1, 2)
    assert len(times) == 4


def test_a_server_that_cannot() -> None:
    with scripted(lambda number: (404, {}, b"nothing")) as (address, _), AnyServer(address) as server:  # noqa: SIM117
        with pytest.raises(RemoteError, match="no route"):
            measure_load(server, QUICK)


def make(tokens: int, concurrency: int, rate: float) -> Run:
    return Run(tokens, concurrency, 1, {}, 1, 1, 1, 1, 1, rate)


def test_knees() -> None:
    runs = [make(8, 1, 10), make(8, 4, 38), make(8, 16, 40), make(8, 64, 39), make(99, 1, 7), make(99, 4, 5)]
    assert [(run.tokens, run.concurrency) for run in mark_knees(runs) if run.knee] == [(8, 4), (99, 1)]
    assert not any(run.knee for run in mark_knees([make(8, 1, 0)]))


@pytest.mark.parametrize("wrong", [{"concurrency": ()}, {"tokens": (0,)}, {"seconds": 0}, {"concurrency": (9999,)}])
def test_settings_are_checked(wrong: dict) -> None:
    with pytest.raises(ValueError, match="wanted"):
        LoadSettings(**wrong)


def test_command_line(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "sweep.html"
    quick: dict[str, Any] = {"url": url, "concurrency": "1,2", "lengths": "8", "max_requests": 4, "quiet": True}
    bench(**quick, as_json=True, plot=plot)
    told = json.loads(capsys.readouterr().out)
    assert [run["requests"] for run in told["runs"]] == [4, 4]
    assert plot.read_text().startswith("<!doctype html>")
    bench(**quick)
    shown = capsys.readouterr().out
    assert "p99 ms" in shown
    assert "knee" in shown
    with pytest.raises(ValueError, match="wanted whole numbers"):
        bench(url=url, concurrency="one")
    with pytest.raises(ValueError, match=r"ends with .html or .png"):
        bench(url=url, plot=Path("sweep.svg"))
