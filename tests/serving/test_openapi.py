"""The OpenAPI document against the server: whatever it allows is answered as it says, and nothing gives a 500."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from qwen3_embedding import Embedder, Reranker

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis: pip install 'qwen3-embedding[test]'")
checks = pytest.importorskip("schemathesis.checks")
specs = pytest.importorskip("schemathesis.specs.openapi.checks")
from hypothesis import HealthCheck, Phase, Verbosity, given, settings  # noqa: E402

CHECKS = [
    checks.not_a_server_error,
    specs.status_code_conformance,
    specs.content_type_conformance,
    specs.response_headers_conformance,
    specs.response_schema_conformance,
]
"""No 500, and nothing that the document does not say. Whether a request that fits the schema is taken is not asked, as
it may name a model that is not there, or say "query" and "document" at once."""
EXAMPLES = 8
"""Of each route; more by hand: python -m tests.serving.test_openapi."""
SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    verbosity=Verbosity.quiet,
    suppress_health_check=list(HealthCheck),
)


def operations(document: dict[str, Any]) -> list[str]:
    return [f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods]


def try_route(url: str, label: str, max_examples: int = EXAMPLES) -> int:
    """Send what the document allows, and things that it does not; gives how many were sent."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    method, path = label.split(" ")
    operation = schema[path][method]
    sent = 0
    for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(SETTINGS, max_examples=max_examples)
        def check(case: Any) -> None:
            nonlocal sent
            sent += 1
            case.call_and_validate(timeout=30, checks=CHECKS)

        if mode is schemathesis.GenerationMode.POSITIVE or method == "POST":
            check()
    return sent


@pytest.mark.timeout(900)  # about 400 requests; on a crowded machine they take their time
def test_every_route(url: str) -> None:
    document = httpx.get(f"{url}/openapi.json").json()
    labels = operations(document)
    assert len(labels) >= 25
    for label in labels:
        assert try_route(url, label) >= 1, label


def test_the_document_is_whole(url: str) -> None:
    document = httpx.get(f"{url}/openapi.json").json()
    for path, methods in document["paths"].items():
        for route in methods.values():
            assert route["summary"], path
            assert {"200", "401"} <= set(route["responses"]), path


def main(max_examples: int = 200) -> None:
    """More of it, by hand, against the bundled models."""
    from qwen3_embedding import Embedder, Reranker
    from qwen3_embedding.serving.server import Server
    from tests.serving.conftest import serving

    embedder: Embedder = Embedder.from_pretrained("nano-embedding")
    reranker: Reranker = Reranker.from_pretrained("nano-reranker")
    with serving(Server({"nano-embedding": embedder}, {"nano-reranker": reranker})) as url:
        for label in operations(httpx.get(f"{url}/openapi.json").json()):
            print(f"{label}: {try_route(url, label, max_examples)} requests")


if __name__ == "__main__":
    main()
