"""A causal language model in this process."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

from qwen3_embedding.synthesis.completion import Request
from qwen3_embedding.synthesis.local import LocalGenerator

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_one_seed_gives_one_text_and_another_prompt_another(reranker_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(reranker_folder, folder)
    for name in folder.glob("chat_template*"):
        name.unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": CHATML}))
    generator = LocalGenerator(str(folder), max_tokens=12, temperature=1.0)
    assert generator.name == str(folder)
    first = generator.generate("Name a reef.", system="Be short.", seed=1)
    assert first == generator.generate("Name a reef.", system="Be short.", seed=1)
    assert first != generator.generate("Name a reef.", system="Be short.", seed=2)
    assert first != generator.generate("Name a tree.", system="Be short.", seed=1)


def test_the_recipe_chooses_the_engine(tmp_path: Path, embedder_folder: Path) -> None:
    from qwen3_embedding.cli.synthesize import local_model
    from qwen3_embedding.synthesis.batch import Batched
    from qwen3_embedding.synthesis.filter import FilterSettings
    from qwen3_embedding.synthesis.ray import RaySettings
    from qwen3_embedding.synthesis.recipe import LocalSettings, SynthesisRecipe

    off = FilterSettings(cosine=0, rank=0)
    wanted = LocalSettings(str(embedder_folder), engine="own", max_tokens=5)
    own = local_model(SynthesisRecipe(tmp_path, tmp_path / "out", local=wanted, filter=off))
    assert own is not None
    assert own.name == embedder_folder.name
    question = Request("a river", "be brief", 1, {}, "name", "key")
    first, second = (asyncio.run(own.complete(question)) for _ in range(2))
    assert first.text == second.text
    cluster = local_model(SynthesisRecipe(tmp_path, tmp_path / "out", ray=RaySettings("m"), filter=off))
    assert isinstance(cluster, Batched)
