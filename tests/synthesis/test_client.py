"""The client against a server in another process that does everything wrong that a server can do."""

from __future__ import annotations

import asyncio
import time
from email.utils import formatdate

import pytest

from qwen3_embedding.errors import RemoteError
from qwen3_embedding.synthesis.client import ChatClient, EndpointSettings, _retry_after
from qwen3_embedding.synthesis.completion import Completion, RefusedError, Request, UnavailableError
from qwen3_embedding.synthesis.parse import parse_answer
from qwen3_embedding.synthesis.template import load_templates
from tests.synthesis.support import serving

SCHEMA = load_templates()["retrieval_query"].schema


def settings(url: str, **changes: object) -> EndpointSettings:
    values = {"model": "m", "url": url, "backoff": 0.02, "timeout": 1.0, "retries": 6, **changes}
    return EndpointSettings(**values)  # type: ignore[arg-type]


def ask(options: EndpointSettings, count: int = 1, api_key: str | None = None) -> tuple[list[Completion], ChatClient]:
    async def main() -> tuple[list[Completion], ChatClient]:
        async with ChatClient(options, api_key) as client:
            requests = [Request(f"prompt {n}", "system", n, SCHEMA, "retrieval_query", f"key{n}") for n in range(count)]
            return list(await asyncio.gather(*map(client.complete, requests))), client

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("500", "status 500"),
        ("503", "status 503"),
        ("disconnect", "connection: ServerDisconnectedError"),
        ("half_body", "connection: ClientPayloadError"),
        ("not_json", "malformed body"),
        ("no_choices", "malformed body"),
    ],
)
def test_every_fault_is_retried_and_counted(fault: str, reason: str) -> None:
    with serving("--faults", "0.4", "--kinds", fault) as url:
        completions, client = ask(settings(url, retries=20, timeout=30.0), 40)
    assert len(completions) == 40
    assert all(parse_answer(completion.text, SCHEMA) for completion in completions)
    assert set(client.retried) == {reason}
    assert sum(completion.tries - 1 for completion in completions) == client.retried[reason] > 5


def test_a_slow_answer_times_out_and_is_asked_again() -> None:
    with serving("--faults", "0.5", "--kinds", "slow", "--slow", "30") as url:
        completions, client = ask(settings(url, timeout=0.25, retries=20), 10)
    assert len(completions) == 10
    assert client.retried.keys() == {"timeout"}


def test_retry_after_holds_back_every_request() -> None:
    with serving("--faults", "1.0", "--kinds", "429", "--retry-after", "0.3") as url:
        start = time.monotonic()
        with pytest.raises(UnavailableError, match=r"status 429 \(4 requests\)"):
            ask(settings(url, retries=3, backoff=60.0))
        assert 0.9 <= time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("forms", "structured"),
    [
        (["json_schema", "json_object", "none"], "json_schema"),
        (["json_object", "none"], "json_object"),
        (["none"], "none"),
    ],
)
def test_structured_output_is_detected(forms: list[str], structured: str) -> None:
    with serving("--forms", *forms) as url:
        completions, client = ask(settings(url), 20)
    assert client.structured == structured
    assert len(completions) == 20
    assert not any("status" in reason for reason in client.retried)


def test_a_form_that_was_asked_for_is_not_weakened() -> None:
    with serving("--forms", "none") as url, pytest.raises(RefusedError, match="response_format json_schema"):
        ask(settings(url, structured="json_schema"))


def test_a_request_that_is_too_long_is_refused_without_retries() -> None:
    with serving("--longest", "5") as url, pytest.raises(RefusedError, match="maximum context length"):
        ask(settings(url))


def test_a_wrong_key_stops_everything() -> None:
    with serving("--api-key", "right") as url:
        assert len(ask(settings(url), api_key="right")[0]) == 1
        with pytest.raises(RemoteError, match=r"status 401.*check url, model and API key") as caught:
            ask(settings(url), api_key="wrong")
        assert not isinstance(caught.value, (UnavailableError, RefusedError))
        assert "wrong" not in str(caught.value).replace("wrong key", "")


def test_nobody_there() -> None:
    with pytest.raises(UnavailableError, match="connection: ClientConnectorError"):
        ask(settings("http://127.0.0.1:9/v1", retries=1))


def test_the_rate_limit_is_kept() -> None:
    with serving() as url:
        start = time.monotonic()
        ask(settings(url, requests_per_minute=1200.0), 21)
        assert time.monotonic() - start >= 1.0


def test_tokens_are_the_servers_count() -> None:
    with serving() as url:
        completion = ask(settings(url))[0][0]
    assert not completion.estimated
    assert completion.input_tokens == len("prompt 0") // 4
    assert completion.output_tokens == len(completion.text) // 4


def test_retry_after_may_be_a_number_or_a_date_and_is_never_too_long() -> None:
    assert _retry_after("3", 60) == 3
    assert _retry_after("1e9", 60) == 60
    assert _retry_after("-4", 60) == 0
    assert _retry_after(formatdate(time.time() + 30, usegmt=True), 60) == pytest.approx(29.5, abs=1.5)
    assert _retry_after("Wed, 21 Oct 2015 07:28:00 GMT", 60) == 0
    for nothing in (None, "soon", "nan", ""):
        assert _retry_after(nothing, 60) is None


def test_settings_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="concurrency is 0; wanted 1 or more"):
        EndpointSettings("m", concurrency=0)
    with pytest.raises(ValueError, match="wanted http://"):
        EndpointSettings("m", url="localhost:8000")
    assert EndpointSettings("m", input_price=2.0, output_price=6.0).cost(500_000, 100_000) == pytest.approx(1.6)
