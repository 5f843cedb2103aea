"""Requests in batches: gathered, answered, refused; the whole generation through them; Ray's rows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from qwen3_embedding.config import load_toml
from qwen3_embedding.errors import ConfigError, RemoteError
from qwen3_embedding.synthesis.batch import Batched
from qwen3_embedding.synthesis.completion import Completion, Request, UnavailableError
from qwen3_embedding.synthesis.generate import Progress
from qwen3_embedding.synthesis.ray import RaySettings, from_vllm, to_completion, to_row, to_vllm
from qwen3_embedding.synthesis.recipe import Synthesis, SynthesisRecipe
from tests.synthesis.server import write
from tests.synthesis.support import write_documents

RECIPE = """
documents = "{documents}"
out = "{out}"

[ray]
model = "m"
requests = {requests}

[filter]
cosine = 0.0
rank = 0
"""


class Scripted:
    """An engine that answers as the scripted server does."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.keys: list[str] = []

    def __call__(self, requests: Sequence[Request]) -> list[Completion | None]:
        self.sizes.append(len(requests))
        self.keys += [request.key for request in requests]
        return [self.answer(request) for request in requests]

    def answer(self, request: Request) -> Completion:
        shape = {"type": "json_schema", "json_schema": {"schema": request.schema}}
        body = {"messages": [{"content": request.prompt}], "response_format": shape}
        return Completion(write(body, request.key, None)[0], 10, 5)


def request(number: int) -> Request:
    return Request("prompt", "system", number, {"type": "object", "properties": {}}, "name", f"k{number}")


def generate(folder: Path, engine: Scripted, requests: int = 16, documents: int = 20) -> Progress:
    values = {"documents": write_documents(folder / "d.jsonl", documents), "out": folder / "out", "requests": requests}
    (folder / "recipe.toml").write_text(RECIPE.format(**values))
    recipe = load_toml(folder / "recipe.toml", SynthesisRecipe)
    lines = (folder / "d.jsonl").read_text().splitlines()
    synthesis = Synthesis(recipe, lambda: [(row["id"], row["text"]) for row in map(json.loads, lines)])
    return synthesis.generate(Batched("m", engine, requests, settle=0.05))


def test_a_run_goes_through_batches(tmp_path: Path) -> None:
    engine = Scripted()
    progress = generate(tmp_path, engine)
    assert (progress.done, progress.pairs, progress.failed) == (20, 20, 0)
    assert sum(engine.sizes) == 40
    assert max(engine.sizes) == 16
    assert len(engine.sizes) <= 6  # not one by one
    assert len(set(engine.keys)) == 40
    assert generate(tmp_path, engine).skipped == 20
    assert len(engine.keys) == 40


def test_an_engine_that_fails_stops_the_run_and_loses_nothing(tmp_path: Path) -> None:
    class Breaking(Scripted):
        def __call__(self, requests: Sequence[Request]) -> list[Completion | None]:
            if len(self.sizes) == 2:
                raise RemoteError("the job failed")
            return super().__call__(requests)

    broken = Breaking()
    with pytest.raises(RemoteError, match="the job failed"):
        generate(tmp_path, broken)
    whole = Scripted()
    assert generate(tmp_path, whole).pairs > 0
    assert set(whole.keys).isdisjoint(broken.keys)
    assert len(whole.keys) + len(broken.keys) == 40


def test_a_row_without_an_answer_leaves_its_unit_open(tmp_path: Path) -> None:
    class Losing(Scripted):
        def __call__(self, requests: Sequence[Request]) -> list[Completion | None]:
            return [None if number == 3 else answer for number, answer in enumerate(super().__call__(requests))]

    progress = generate(tmp_path, Losing(), requests=64)
    assert progress.unavailable >= 1
    assert generate(tmp_path, Scripted()).done == progress.unavailable


def test_wrong_engines_are_found_out() -> None:
    async def ask(engine: Batched) -> list[Completion | BaseException]:
        return await asyncio.gather(*(engine.complete(request(n)) for n in range(3)), return_exceptions=True)

    answers = asyncio.run(ask(Batched("m", lambda _: [Completion("a", 1, 1)], 8, 0.01)))
    assert all(isinstance(answer, RemoteError) for answer in answers)
    answers = asyncio.run(ask(Batched("m", lambda batch: [None] * len(batch), 8, 0.01)))
    assert all(isinstance(answer, UnavailableError) for answer in answers)
    with pytest.raises(ValueError, match="size=0"):
        Batched("m", lambda _: [], 0)


def test_a_request_becomes_what_vllm_reads() -> None:
    row = to_row(7, request(3))
    settings = RaySettings("m", max_tokens=50)
    asked = to_vllm(row, settings)
    assert asked["messages"][1] == {"role": "user", "content": "prompt"}
    assert asked["sampling_params"]["seed"] == 3
    assert json.loads(asked["sampling_params"]["structured_outputs"]["json"]) == {"type": "object", "properties": {}}
    assert "structured_outputs" not in to_vllm(row, RaySettings("m", structured=False))["sampling_params"]
    made = {"number": 7, "generated_text": "{}", "num_input_tokens": 9, "num_generated_tokens": 50}
    assert to_completion(from_vllm(made, settings)) == Completion("{}", 9, 50, truncated=True)
    failed = {"number": 7, "messages": asked["messages"], "__inference_error__": "ValueError: too long"}
    assert to_completion(failed) is None  # Ray does not send such rows through from_vllm
    assert to_completion({**from_vllm(made, settings), "__inference_error__": ""}) is not None


def test_a_recipe_has_one_source_of_answers(tmp_path: Path) -> None:
    text = RECIPE.format(documents="d", out="o", requests=4)
    (tmp_path / "r.toml").write_text(text + '\n[local]\nmodel = "x"\n')
    with pytest.raises(ConfigError, match=r"one of \[endpoint\], \[local\] and \[ray\]"):
        load_toml(tmp_path / "r.toml", SynthesisRecipe)
    (tmp_path / "r.toml").write_text(RECIPE.format(documents="d", out="o", requests=0))
    with pytest.raises(ConfigError, match="requests=0"):
        load_toml(tmp_path / "r.toml", SynthesisRecipe)
