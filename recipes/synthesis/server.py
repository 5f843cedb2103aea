"""A query writer behind the OpenAI chat protocol, in a process of its own.

    python recipes/synthesis/server.py --model runs/synthesis/writer          # prints its address

It answers the two retrieval questions of ``synthesize`` (docs/synthesis.md): a configuration by a draw from the seed,
since the tiny model knows no people, and a query by sampling behind a passage of the document that stands in the
prompt.  Anything else is refused with 400.  Requests that wait are written together, up to 32
(64 of a public model).
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import random
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web
from passages import ANY, READS, is_qwen3, passages_of, readable

from qwen3_embedding.inference.generator import BATCH, Generator, Sampling
from qwen3_embedding.training.config import TrainingSettings, load_settings

if TYPE_CHECKING:
    from public_writer import PublicGenerator

_PASSAGE = re.compile(r"<<< passage (\w+)\n(.*)\n>>> passage \1", re.DOTALL)


class Writer:
    """Documents to queries, in batches as they come."""

    def __init__(self, folder: Path, sampling: Sampling, reads: str = ANY) -> None:
        self.reads = reads
        learnt: TrainingSettings = load_settings(folder / "training.toml")
        self.generator = generator_of(folder, sampling, learnt.data.max_query_tokens)
        self.most = BATCH if isinstance(self.generator, Generator) else self.generator.batch
        self.longest = learnt.data.max_document_tokens
        (self.separator,) = self.generator.tokenizer.token_ids([learnt.language_model.separator])
        self.waiting: asyncio.Queue[tuple[list[int], int, asyncio.Future[Any]]] = asyncio.Queue()

    def prompt(self, document: str, seed: int) -> list[int]:
        """A passage of the document, drawn by the seed, as the model learnt it."""
        (found,) = passages_of([document], self.generator.tokenizer, self.longest)
        (ids,) = self.generator.tokenizer.token_ids([random.Random(seed).choice(readable(found, self.reads))])
        return [*ids[: self.longest], *self.separator]

    async def write(self, document: str, seed: int) -> tuple[str, int, int]:
        """The query, and the tokens read and written."""
        prompt = self.prompt(document, seed)
        done = asyncio.get_running_loop().create_future()
        await self.waiting.put((prompt, seed, done))
        written = await done
        return self.generator.tokenizer.decode(written.ids).strip(), len(prompt), len(written.ids)

    async def work(self) -> None:
        """Serve what waits, for ever."""
        while True:
            batch = [await self.waiting.get()]
            await asyncio.sleep(0.005)  # let those that came together be written together
            while len(batch) < self.most and not self.waiting.empty():
                batch.append(self.waiting.get_nowait())
            prompts, seeds = [prompt for prompt, _, _ in batch], [seed for _, seed, _ in batch]
            written = await asyncio.to_thread(self.generator.write, prompts, seeds)
            for (_, _, done), answer in zip(batch, written, strict=True):
                if not done.done():
                    done.set_result(answer)


def generator_of(folder: Path, sampling: Sampling, longest: int) -> Generator | PublicGenerator:
    """Qwen3's own layers in this package's engine, any other model through transformers.

    There a batch takes as long as its longest query, so none is longer than what was learnt.
    """
    if is_qwen3(folder):
        return Generator.from_folder(folder, sampling=sampling)
    from public_writer import PublicGenerator

    return PublicGenerator(folder, dataclasses.replace(sampling, max_tokens=min(sampling.max_tokens, longest)))


async def answer(writer: Writer, body: dict[str, Any]) -> tuple[dict[str, Any], int, int]:
    """The value that a request asks for, and the tokens read and written.

    Raises:
        ValueError: not one of the two questions.
    """
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema", {})
    asked, seed = set(schema.get("properties", {})), int(body.get("seed") or 0)
    passage = _PASSAGE.search(body["messages"][-1]["content"])
    if passage is None or asked not in ({"query"}, {"Character", "Question_Type", "Difficulty"}):
        raise ValueError("wanted response_format.json_schema of retrieval_configure or retrieval_query, and a passage")
    if asked == {"query"}:
        query, read, made = await writer.write(passage[2], seed)
        return {"query": query}, read, made
    draw = random.Random(seed)
    value = {
        "Character": draw.randint(1, 5),
        "Question_Type": "acquire_knowledge",
        "Difficulty": draw.choice(schema["properties"]["Difficulty"]["enum"]),
    }
    return value, 0, 0


def make_app(writer: Writer) -> web.Application:
    """Routes."""

    async def complete(request: web.Request) -> web.Response:
        try:
            value, read, made = await answer(writer, await request.json())
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            return web.json_response({"error": {"message": str(error), "type": "invalid_request_error"}}, status=400)
        message = {"role": "assistant", "content": json.dumps(value, ensure_ascii=False)}
        return web.json_response(
            {
                "object": "chat.completion",
                "model": writer.generator.name,
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made},
            }
        )

    async def begin(app: web.Application) -> None:
        app["work"] = asyncio.create_task(writer.work())

    app = web.Application(client_max_size=2**24)
    app.router.add_post("/v1/chat/completions", complete)
    app.on_startup.append(begin)
    return app


async def serve(options: argparse.Namespace) -> None:
    """Until it is stopped."""
    sampling = Sampling(options.max_tokens, options.temperature, options.top_p, options.top_k)
    runner = web.AppRunner(make_app(Writer(options.model, sampling, options.reads)), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", options.port)
    await site.start()
    port = runner.addresses[0][1]
    print(f"http://127.0.0.1:{port}/v1", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Read the options and serve."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a language model trained on queries")
    parser.add_argument("--reads", choices=READS, default=ANY, help="the passage of a document, as in training")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--top-k", type=int, default=50)
    parser.add_argument("--max-tokens", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    asyncio.run(serve(options))


if __name__ == "__main__":
    main()
