"""Worker processes from the server's side: started, watched, asked, started again.

Each process holds all models and one socket for each, so a crash of one (a segmentation fault, the kernel's
out-of-memory killer, ``kill -9``) costs the batches it was at and nothing else. Their queues answer those with 503 and
go on with the other workers until this one is back.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import numpy as np

from qwen3_embedding import errors
from qwen3_embedding.errors import Qwen3EmbeddingError
from qwen3_embedding.inputs.tokenizer import Tokenizer
from qwen3_embedding.serving.engines import Facts
from qwen3_embedding.serving.errors import ComputeError
from qwen3_embedding.serving.framing import (
    HIDDEN,
    ROWS,
    FailedThereError,
    connected,
    receive_json,
    receive_rows,
    send_request,
)
from qwen3_embedding.serving.models import LoadSettings, ModelSpec
from qwen3_embedding.serving.queue import Compute, Restartable, WorkerDiedError
from qwen3_embedding.types import FloatArray

log = logging.getLogger("qwen3_embedding.serving")


class WorkerProcess:
    """One process with copies of all models.

    Args:
        specs: what it loads.
        load: how; ``device`` is its own.
        share: by how many its CPU threads are divided.
        environment: variables of the process; ``None`` inherits the server's.
    """

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        load: LoadSettings,
        share: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.facts: list[Facts] = []
        self.restarts = -1
        self.on_death: list[Callable[[], None]] = []
        self._specs, self._load, self._share = list(specs), load, share
        self._environment = environment
        self._starting = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._links: list[socket.socket] = []
        self._alive = False
        self._closed = False

    @property
    def alive(self) -> bool:
        """Whether it has loaded and not ended."""
        return self._alive

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        return self._process.pid if self._process and self._alive else None

    def start(self) -> None:
        """Start it unless it runs; blocks until the models are loaded.

        Raises:
            Qwen3EmbeddingError, ValueError: it could not load them.
        """
        with self._starting:
            if self._alive:
                return
            if self._closed:
                raise WorkerDiedError("the server is shutting down")
            process, links = self._spawn()
            self._process = process
            try:
                self.facts = [_hello(link, process) for link in links]
            except BaseException:
                process.kill()
                process.wait()
                for link in links:
                    link.close()
                raise
            old, self._links = self._links, links
            for link in old:  # shut down long ago; nobody waits on them any more
                link.close()
            self._alive = True
            self.restarts += 1
            _log("worker_started", process.pid)
            threading.Thread(target=self._watch, args=(process, links), daemon=True).start()

    def link(self, model: int) -> socket.socket:
        """The socket of a model.

        Raises:
            WorkerDiedError: the process is not there.
        """
        if not self._alive:
            raise WorkerDiedError("the worker is not running; try again, it is started", retry_after_s=1.0)
        return self._links[model]

    def close(self) -> None:
        """End it."""
        self._closed = True
        process = self._process
        if process is None:
            return
        if not self._alive:  # at the most it is loading
            process.kill()
        for link in self._links:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for link in self._links:
            link.close()

    def _spawn(self) -> tuple[subprocess.Popen[bytes], list[socket.socket]]:
        pairs = [connected() for _ in self._specs]
        theirs = [pair[1] for pair in pairs]
        spec = {
            "models": [
                {**asdict(spec), "folder": str(spec.folder), "adapter": _text(spec.adapter)} for spec in self._specs
            ],
            "load": asdict(self._load),
            "share": self._share,
            "sockets": [link.fileno() for link in theirs],
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "qwen3_embedding.serving.worker", json.dumps(spec)],
            pass_fds=[link.fileno() for link in theirs],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=self._environment,
        )
        for link in theirs:
            link.close()
        return process, [pair[0] for pair in pairs]

    def _watch(self, process: subprocess.Popen[bytes], links: list[socket.socket]) -> None:
        status = process.wait()
        self._alive = False
        if not self._closed:
            _log("worker_lost", process.pid, status)
        for link in links:
            # Whoever waits for an answer here gets none any more.
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        for tell in self.on_death:
            tell()


class WorkerModel:
    """One model of one worker process: what that model's queue runs."""

    def __init__(self, process: WorkerProcess, number: int) -> None:
        self._process = process
        self._number = number
        self._lock = threading.Lock()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.alive

    @property
    def restarts(self) -> int:
        """How often it was started again."""
        return self._process.restarts

    def prepare(self) -> None:
        """Start the process if it does not run."""
        self._process.start()

    def __call__(self, sequences: list[list[int]]) -> FloatArray:
        """One row a sequence.

        Raises:
            WorkerDiedError: the process was lost.
            ComputeError: the model failed.
        """
        return self._ask(ROWS, sequences)

    def hidden_states(self, sequences: Sequence[list[int]]) -> list[FloatArray]:
        """(T, D) hidden states of every token of each sequence."""
        states = self._ask(HIDDEN, sequences)
        return np.split(states, np.cumsum([len(ids) for ids in sequences])[:-1])

    def _ask(self, operation: int, sequences: Sequence[list[int]]) -> FloatArray:
        with self._lock:
            try:
                link = self._process.link(self._number)
                send_request(link, operation, sequences)
                return receive_rows(link)
            except FailedThereError as error:
                raise ComputeError(f"the model failed on this input: {error}") from error
            except (EOFError, OSError) as error:
                raise WorkerDiedError(
                    "the worker was lost while it computed this; try again, it is replaced", retry_after_s=1.0
                ) from error


class WorkerEngine:
    """A model that lives in every process of a pool."""

    def __init__(self, tokenizer: Tokenizer, facts: Facts, workers: list[WorkerModel]) -> None:
        self.tokenizer = tokenizer
        self.facts = facts
        self._workers = workers
        self.computes: Sequence[Compute | Restartable] = workers

    def hidden_states(self, sequences: Sequence[list[int]]) -> list[FloatArray]:
        """(T, D) hidden states of every token of each sequence, from the first worker that runs."""
        worker = next((worker for worker in self._workers if worker.alive), self._workers[0])
        return worker.hidden_states(sequences)


class WorkerPool:
    """Some processes with copies of all models.

    Args:
        specs: the models.
        load: how they are loaded.
        devices: one process each, as torch names them; several on one CPU share its threads.
        environment: variables of the processes; ``None`` inherits the server's.

    Raises:
        Qwen3EmbeddingError, ValueError: a model cannot be loaded.
    """

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        load: LoadSettings,
        devices: Sequence[str],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        tokenizers = {spec.folder: Tokenizer.from_folder(spec.folder) for spec in specs}
        self.processes = [
            WorkerProcess(specs, replace(load, device=device), _sharers(devices, device), environment)
            for device in devices
        ]
        try:
            with ThreadPoolExecutor(len(devices)) as threads:
                list(threads.map(WorkerProcess.start, self.processes))
        except BaseException:
            self.close()
            raise
        self.engines = {
            spec.name: WorkerEngine(
                tokenizers[spec.folder],
                self._facts(number),
                [WorkerModel(process, number) for process in self.processes],
            )
            for number, spec in enumerate(specs)
        }

    def _facts(self, number: int) -> Facts:
        facts = [process.facts[number] for process in self.processes]
        return replace(facts[0], device=", ".join(dict.fromkeys(fact.device for fact in facts)))

    def on_death(self, tell: Callable[[], None]) -> None:
        """Call ``tell`` whenever a process ends."""
        for process in self.processes:
            process.on_death.append(tell)

    def close(self) -> None:
        """End all processes."""
        for process in self.processes:
            process.close()


def worker_devices(device: str, workers: int | None, cuda: int) -> list[str]:
    """One device a worker process: GPUs in turn, or the CPU; by default one worker a GPU, or one on the CPU.

    Args:
        device: what the operator said: ``auto``, ``cpu``, ``cuda``, ``cuda:N``.
        workers: how many, or ``None`` for the default.
        cuda: how many GPUs there are.
    """
    if device in ("auto", "cuda") and cuda:
        return [f"cuda:{number % cuda}" for number in range(workers or cuda)]
    return [device] * (workers or 1)


def _sharers(devices: Sequence[str], device: str) -> int:
    return list(devices).count(device)


def _log(event: str, pid: int, status: int | None = None) -> None:
    line: dict[str, object] = {"event": event, "pid": pid}
    if status is not None:
        line["exit_status"] = status
    log.log(logging.INFO if status is None else logging.ERROR, json.dumps(line))


def _hello(link: socket.socket, process: subprocess.Popen[bytes]) -> Facts:
    try:
        said = receive_json(link)
    except EOFError:
        status = process.wait()
        raise WorkerDiedError(f"the worker ended while it loaded the models (status {status}); see its log") from None
    if "error" in said:
        kind, message = said["error"]
        known = {"ValueError": ValueError, "TypeError": TypeError}.get(kind) or getattr(errors, kind, None)
        raise (known or Qwen3EmbeddingError)(message if known else f"{kind}: {message}")
    return Facts(**said)


def _text(path: os.PathLike[str] | None) -> str | None:
    return None if path is None else str(path)
