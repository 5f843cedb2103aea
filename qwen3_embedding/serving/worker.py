"""A worker process: ``python -m qwen3_embedding.serving.worker SPEC`` with one inherited socket a model.

It loads the models that the operator named, tells what they are, and answers batches until the server is gone. It
never listens: whoever holds the sockets started it. Signals are left to the server, which drains first.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qwen3_embedding.inference.embedder import Embedder
from qwen3_embedding.inference.reranker import Reranker
from qwen3_embedding.serving.engines import Facts, LocalEngine
from qwen3_embedding.serving.framing import HIDDEN, receive_request, send_error, send_json, send_rows
from qwen3_embedding.serving.models import LoadSettings, ModelSpec, load_models

BROKEN_DEVICE = 70
"""Exit status after an error that leaves the device unusable for this process."""


def main(spec: str) -> int:
    """Load, say hello on each socket, and work until they close."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    settings: dict[str, Any] = json.loads(spec)
    links = [socket.socket(fileno=number) for number in settings["sockets"]]
    if settings["share"] > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // int(settings["share"])))
    try:
        models = load_models([_spec(given) for given in settings["models"]], LoadSettings(**settings["load"]))
    except Exception as error:
        send_json(links[0], {"error": [type(error).__name__, str(error)]})
        return 1
    gc.collect()
    gc.freeze()  # or the collector walks all that was imported while a batch waits
    lock = threading.Lock()
    for link, model in zip(links, models, strict=True):
        send_json(link, asdict(Facts.of(model)))
    threads = [
        threading.Thread(target=_answer, args=(link, model, lock), daemon=True)
        for link, model in zip(links, models, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 0


def _spec(given: dict[str, Any]) -> ModelSpec:
    adapter = given["adapter"]
    return ModelSpec(given["kind"], given["name"], Path(given["folder"]), Path(adapter) if adapter else None)


def _answer(link: socket.socket, model: Embedder | Reranker, lock: threading.Lock) -> None:
    """Batches of one model, one after the other; ``lock`` is held by whichever model computes."""
    engine = LocalEngine(model, lock)
    (compute,) = engine.computes
    while True:
        try:
            operation, sequences = receive_request(link)
        except EOFError:
            return
        try:
            if operation == HIDDEN:
                result = np.concatenate(engine.hidden_states(sequences))
            else:
                result = compute(sequences)
        except Exception as error:
            if is_broken(error):
                os._exit(BROKEN_DEVICE)
            send_error(link, error)
            continue
        try:
            send_rows(link, result)
        except OSError:
            return


def is_broken(error: Exception) -> bool:
    """Whether every later call on this device would fail as well (a device-side assert, a lost device)."""
    return "CUDA error" in str(error) and "out of memory" not in str(error)


if __name__ == "__main__":
    # At once: there is nothing to save, and tearing the libraries down takes seconds on a busy machine.
    os._exit(main(sys.argv[1]))
