"""Ray Data's LLM processor, on a cluster of this machine: all of batch mode but the vLLM engine, which needs a GPU.

In its place stands the same library's HTTP stage, in front of the scripted server.
"""

from __future__ import annotations

import gc
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen3_embedding.errors import RemoteError
from qwen3_embedding.synthesis.batch import Batched
from qwen3_embedding.synthesis.ray import Processor, RayEngine, RaySettings
from qwen3_embedding.synthesis.recipe import Synthesis, SynthesisRecipe
from tests.synthesis.support import served, serving
from tests.synthesis.test_batch import request

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # Ray starts many processes


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=300 * 1024 * 1024)
        yield
        with warnings.catch_warnings():  # Ray kills its processes and does not wait for them
            warnings.simplefilter("ignore", ResourceWarning)
            ray.shutdown()
            gc.collect()


def http_processor(url: str) -> Processor:
    from ray.data.llm import HttpRequestProcessorConfig, build_processor

    def ask(row: dict[str, Any]) -> dict[str, Any]:
        shape = {"type": "json_schema", "json_schema": {"schema": json.loads(row["schema"])}}
        messages = [{"role": "user", "content": row["prompt"]}]
        return {"number": row["number"], "payload": json.dumps({"messages": messages, "response_format": shape})}

    def read(row: dict[str, Any]) -> dict[str, Any]:
        answer = row["http_response"]
        usage = answer["usage"]
        return {
            "number": row["number"],
            "text": answer["choices"][0]["message"]["content"],
            "input_tokens": usage["prompt_tokens"],
            "output_tokens": usage["completion_tokens"],
            "truncated": False,
            "error": "",
        }

    config = HttpRequestProcessorConfig(url=f"{url}/chat/completions", concurrency=1, batch_size=64)
    processor: Processor = build_processor(config, preprocess=lambda row: decoded(ask(row)), postprocess=read)
    return processor


def decoded(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "payload": json.loads(row["payload"])}


def test_synthesis_through_the_processor(tmp_path: Path, cluster: None) -> None:
    texts = [(f"d{n}", f"Note {n} is about the tides of the northern reef and the lighthouse.") for n in range(6)]
    settings = RaySettings("scripted", requests=64)
    from qwen3_embedding.synthesis.filter import FilterSettings

    recipe = SynthesisRecipe(
        documents=tmp_path, out=tmp_path / "out", ray=settings, filter=FilterSettings(cosine=0, rank=0)
    )
    with serving("--log", str(tmp_path / "served")) as url:
        engine = RayEngine(settings, http_processor(url))
        model = Batched(settings.model, engine, settings.requests, settle=0.5)
        progress = Synthesis(recipe, lambda: texts).generate(model)
    assert (progress.done, progress.failed, progress.unavailable) == (6, 0, 0)
    assert progress.output_tokens > 0
    assert served(tmp_path / "served").total() == 12


def test_a_job_that_fails_is_the_worlds_fault(cluster: None) -> None:
    def failing(dataset: Any) -> Any:
        def broken(row: dict[str, Any]) -> dict[str, Any]:
            raise RuntimeError("no such model on this worker")

        return dataset.map(broken)

    with pytest.raises(RemoteError, match="the Ray job with m failed"):
        RayEngine(RaySettings("m"), failing)([request(1)])
