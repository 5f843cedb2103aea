"""A server of its own process that speaks the OpenAI chat protocol and answers from the schema, with faults on demand.

    python -m tests.synthesis.server --log served.jsonl --faults 0.2 --delay 0.01

prints its address. ``--log`` gets a line for every answer that was written whole: its request key, and the fault if one
was built into the content.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import sys
from typing import Any

TRANSPORT = ("429", "500", "503", "disconnect", "half_body", "slow", "not_json", "no_choices")
CONTENT = ("fence", "trailing_comma", "prose", "truncated", "refusal", "wrong_keys")
WORDS = [
    "reef",
    "tide",
    "ember",
    "orchard",
    "lathe",
    "quarry",
    "sonata",
    "glacier",
    "ledger",
    "turbine",
    "kiln",
    "meadow",
    "harbour",
    "lichen",
    "prism",
    "yeast",
]


class Script:
    """What is answered; a function of the request's key and of how often that key came."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.seen: dict[str, int] = {}
        self.log = os.open(options.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if options.log else None

    def fault(self, key: str) -> str | None:
        number = self.seen[key] = self.seen.get(key, 0) + 1
        draw = random.Random(hashlib.blake2b(f"{key}/{number}".encode()).digest())
        kinds = self.options.kinds or [*TRANSPORT, *CONTENT]
        return draw.choice(kinds) if draw.random() < self.options.faults else None

    def note(self, key: str, fault: str | None) -> None:
        if self.log is not None:
            os.write(self.log, json.dumps({"key": key, "fault": fault}).encode() + b"\n")


class Connection(asyncio.Protocol):
    def __init__(self, script: Script) -> None:
        self.script = script
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, end, body = self.received.partition(b"\r\n\r\n")
        if not end:
            return
        headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if len(body) < int(headers.get(b"content-length", b"0")):
            return
        self.received = b""
        self.answer(head.split(b" ", 2)[1].decode(), headers, body)

    def answer(self, path: str, headers: dict[bytes, bytes], raw: bytes) -> None:
        options = self.script.options
        if path != "/v1/chat/completions":
            return self.send(404, {"error": "no such route"})
        if options.api_key and headers.get(b"authorization") != f"bearer {options.api_key}".lower().encode():
            return self.send(401, {"error": "wrong key"})
        body = json.loads(raw)
        form = body.get("response_format", {}).get("type", "none")
        if form not in options.forms:
            return self.send(400, {"error": f"response_format {form} is not supported"})
        if options.longest and len(body["messages"][-1]["content"]) > options.longest:
            return self.send(400, {"error": "this model's maximum context length is exceeded"})
        key = headers.get(b"x-request-id", b"").decode() or hashlib.blake2b(raw, digest_size=8).hexdigest()
        fault = self.script.fault(key)
        delay = options.slow if fault == "slow" else options.delay
        asyncio.get_running_loop().call_later(delay, self.finish, key, fault, body)
        return None

    def finish(self, key: str, fault: str | None, body: dict[str, Any]) -> None:
        if self.transport.is_closing():
            return
        if fault == "429":
            return self.send(429, {"error": "slow down"}, retry_after=self.script.options.retry_after)
        if fault in ("500", "503"):
            return self.send(int(fault), {"error": "broken"})
        if fault == "disconnect":
            return self.transport.close()
        content, reason = write(body, key, fault)
        usage = {"prompt_tokens": len(body["messages"][-1]["content"]) // 4, "completion_tokens": len(content) // 4}
        answer = {"choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": reason}]}
        if fault == "half_body":
            encoded = json.dumps(answer).encode()
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(encoded) + encoded[:-20])
            return self.transport.close()
        if fault == "not_json":
            return self.send(200, "<html>bad gateway</html>")
        if fault == "no_choices":
            return self.send(200, {"choices": []})
        self.script.note(key, fault)
        return self.send(200, answer | {"usage": usage})

    def send(self, status: int, body: object, retry_after: str | None = None) -> None:
        content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        more = f"Retry-After: {retry_after}\r\n" if retry_after else ""
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n{more}\r\n"
        self.transport.write(head.encode() + content)


def write(body: dict[str, Any], key: str, fault: str | None) -> tuple[str, str]:
    """Content and finish reason of an answer."""
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
    prompt = body["messages"][-1]["content"]
    draw = random.Random(hashlib.blake2b(key.encode()).digest())
    value = sample(schema, draw) if schema else {"query": " ".join(draw.sample(WORDS, 5))}
    if isinstance(value, dict) and "labels" in value:
        count = int(prompt.split("Number of labels: ")[-1].split()[0])
        value["labels"] = [f"{word} {number}" for number, word in enumerate(draw.sample(WORDS, count))]
    if isinstance(value, dict) and "others" in value:
        grades = [int(grade) for grade in prompt.split("Grades: ")[-1].split("\n")[0].split(",")]
        value["others"] = [{"grade": g, "sentence": f"{' '.join(draw.sample(WORDS, 6))} {g}"} for g in grades]
    if isinstance(value, dict) and "other" in value:
        count = int(prompt.split("Number of texts in other: ")[-1].split()[0])
        value["other"] = [{"theme": f"theme {n}", "text": " ".join(draw.sample(WORDS, 6))} for n in range(count)]
    if isinstance(value, dict) and "feasible" in value:
        value["feasible"] = True
    content = json.dumps(value, ensure_ascii=False)
    shapes = {
        "fence": f"```json\n{content}\n```",
        "trailing_comma": content[:-1] + ",}",
        "prose": f"Here you are:\n{content}\nAnything else?",
        "truncated": content[: len(content) // 2],
        "refusal": "I am sorry, but I cannot help with that.",
        "wrong_keys": '{"reply": "yes"}',
    }
    return shapes.get(fault or "", content), "length" if fault == "truncated" else "stop"


def sample(schema: dict[str, Any], draw: random.Random) -> Any:
    """Any value that fits a schema."""
    kind = schema["type"]
    if kind == "object":
        return {name: sample(part, draw) for name, part in schema["properties"].items()}
    if kind == "array":
        return [sample(schema["items"], draw) for _ in range(max(1, schema.get("minItems", 1)))]
    if kind == "integer":
        return draw.randint(schema.get("minimum", 0), schema.get("maximum", 9))
    if kind == "boolean":
        return draw.random() < 0.5
    if "enum" in schema:
        return draw.choice(schema["enum"])
    return " ".join(draw.sample(WORDS, 7)) + f" {draw.randrange(10**6)}"


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--log")
    parser.add_argument("--faults", type=float, default=0.0)
    parser.add_argument("--kinds", nargs="*")
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--slow", type=float, default=5.0)
    parser.add_argument("--retry-after", default="1")
    parser.add_argument("--forms", nargs="*", default=["json_schema", "json_object", "none"])
    parser.add_argument("--longest", type=int)
    parser.add_argument("--api-key")
    return parser.parse_args(arguments)


async def main(options: argparse.Namespace) -> None:
    script = Script(options)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(script), "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(parse(sys.argv[1:])))
