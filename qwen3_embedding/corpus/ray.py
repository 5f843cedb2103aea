"""The same pipeline over Ray Data: windows are planned here, computed by actors anywhere, and written here in order.

Planning and writing stay on the machine that was asked, because both look at the ledger; computing, which is all the
work, goes to a pool of actors.  A window's content does not depend on who computes it, so the output is that of a
single process.  A lost actor is replaced and its window computed again; a lost driver is resumed by repeating the call.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from qwen3_embedding.corpus.chunker import Chunk
from qwen3_embedding.corpus.encode import Computed, Job
from qwen3_embedding.corpus.ledger import Place
from qwen3_embedding.corpus.ray_lance import cluster
from qwen3_embedding.corpus.window import Row, TextTokenizer, Window
from qwen3_embedding.errors import CheckpointError, Qwen3EmbeddingError
from qwen3_embedding.inference.embedder import Embedder


@dataclass(frozen=True)
class RaySettings:
    """Where and with how much."""

    address: str = "auto"
    """``auto`` finds this machine's cluster, ``HOST:PORT`` or ``ray://HOST:PORT`` another, ``local`` starts one."""
    workers: int = 2
    """Actors that compute, each with a copy of the model."""
    gpus_per_worker: float = 0.0
    cpus_per_worker: float = 1.0
    model: str | None = None
    """What the workers load: a folder or hub id that each of them can reach; ``None`` is the caller's folder."""
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers={self.workers}; wanted at least 1")


class RayEngine:
    """Computes windows on a Ray cluster; give it to ``encode(engine=…)``."""

    def __init__(self, settings: RaySettings) -> None:
        self.settings = settings

    def __call__(self, job: Job, embedder: Embedder) -> Computed:
        """The windows of a job with their vectors, in order."""
        with cluster(self.settings.address) as ray:
            yield from self._stream(ray, job, embedder)

    def _stream(self, ray: Any, job: Job, embedder: Embedder) -> Computed:
        context = ray.data.DataContext.get_current()
        before = (context.execution_options.preserve_order, context.target_max_block_size, context.enable_progress_bars)
        context.execution_options.preserve_order = True
        context.target_max_block_size = 1  # a block a window: nothing waits for more to come
        context.enable_progress_bars = False
        try:
            for batch in self._dataset(ray, job, embedder).iter_batches(batch_size=1, batch_format="pyarrow"):
                (row,) = batch.to_pylist()
                vectors = np.frombuffer(row["vectors"], dtype=row["dtype"]).reshape(-1, row["width"])
                yield unpack_window(row["plan"]), vectors
        except ray.exceptions.RayError as error:
            raise _own_cause(error) or error from error
        finally:
            context.execution_options.preserve_order, context.target_max_block_size, context.enable_progress_bars = (
                before
            )

    def _dataset(self, ray: Any, job: Job, embedder: Embedder) -> Any:
        windows = ray.data.read_datasource(
            _datasource(job, embedder.tokenizer),
            override_num_blocks=1,
            num_cpus=0,
            label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},  # where the ledger is
        )
        return windows.map_batches(
            Worker,
            fn_constructor_args=(_model(job, embedder, self.settings),),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=self.settings.workers),
            num_gpus=self.settings.gpus_per_worker,
            num_cpus=self.settings.cpus_per_worker,
        )


@dataclass(frozen=True)
class Model:
    """What a worker loads, and what it must find there."""

    job: Job
    source: str
    device: str
    dtype: str
    fingerprint: str
    batch_tokens: int


class Worker:
    """An actor: holds the model, computes windows."""

    def __init__(self, model: Model) -> None:
        self._job = model.job
        self._embedder = Embedder.from_pretrained(
            model.source, model.device, model.dtype, max_tokens=model.job.max_tokens, batch_tokens=model.batch_tokens
        )
        if self._embedder.fingerprint != model.fingerprint:
            raise CheckpointError(
                f"{model.source} on this worker is another model than the caller's (SHA-256 "
                f"{self._embedder.fingerprint}, wanted {model.fingerprint}); give all machines the same files"
            )

    def __call__(self, batch: Any) -> Any:
        """A window in, its vectors out."""
        (row,) = batch.to_pylist()
        vectors = self._job.compute(self._embedder, _sequences(row))
        return pa.table(
            {
                "plan": pa.array([row["plan"]], pa.large_string()),
                "vectors": pa.array([vectors.tobytes()], pa.large_binary()),
                "dtype": [vectors.dtype.name],
                "width": [vectors.shape[1]],
            }
        )


def pack_window(window: Window) -> Any:
    """A window as an Arrow table of one row. Texts stay behind: their ids go."""
    plan = {
        "number": window.number,
        "shard": window.shard,
        "rows": [
            [
                r.id,
                [r.chunk.parent, r.chunk.index, r.chunk.start, r.chunk.end],
                r.key.hex(),
                _place(r.place),
                r.computed,
                r.source,
            ]
            for r in window.rows
        ],
        "cut_tokens": window.cut_tokens,
        "lengths": [len(sequence) for sequence in window.sequences],
        "unchanged": [[key.hex(), _place(place)] for key, place in window.unchanged],
        "obsolete": window.obsolete,
        "progress": [[file, *at] for file, at in window.progress.items()],
        "finished": window.finished,
        "skips": window.skips,
        "fraction": window.fraction,
    }
    tokens = (
        np.concatenate([np.asarray(s, dtype=np.int32) for s in window.sequences]) if window.sequences else _NO_TOKENS
    )
    return pa.table(
        {
            "plan": pa.array([json.dumps(plan)], pa.large_string()),
            "tokens": pa.array([tokens.tobytes()], pa.large_binary()),
            "lengths": pa.array([np.asarray(plan["lengths"], dtype=np.int64).tobytes()], pa.large_binary()),
        }
    )


_NO_TOKENS = np.empty(0, dtype=np.int32)


def unpack_window(plan: str) -> Window:
    """What :func:`pack_window` packed, without texts; the sequences have their lengths only."""
    raw = json.loads(plan)
    return Window(
        number=raw["number"],
        shard=raw["shard"],
        rows=[
            Row(
                id_,
                Chunk(parent, index, start, end, ""),
                bytes.fromhex(key),
                _unplace(place),
                computed,
                source and tuple(source),
            )
            for id_, (parent, index, start, end), key, place, computed, source in raw["rows"]
        ],
        sequences=[[0] * length for length in raw["lengths"]],
        cut_tokens=raw["cut_tokens"],
        unchanged=[(bytes.fromhex(key), _unplace(place)) for key, place in raw["unchanged"]],
        obsolete=[(shard, row) for shard, row in raw["obsolete"]],
        progress={file: (row, chunk, offset) for file, row, chunk, offset in raw["progress"]},
        finished=raw["finished"],
        skips=[(file, row, reason) for file, row, reason in raw["skips"]],
        fraction=raw["fraction"],
    )


def _own_cause(error: BaseException) -> BaseException | None:
    """What was raised on the other machine, where it is one of the errors that this package words."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (Qwen3EmbeddingError, ValueError)):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    return None


def _sequences(row: dict[str, Any]) -> list[list[int]]:
    lengths = np.frombuffer(row["lengths"], dtype=np.int64)
    tokens = np.frombuffer(row["tokens"], dtype=np.int32)
    return [part.tolist() for part in np.split(tokens, np.cumsum(lengths)[:-1])] if len(lengths) else []


def _place(place: Place) -> list[Any]:
    values = asdict(place)
    return [values.pop("content").hex(), *values.values()]


def _unplace(values: list[Any]) -> Place:
    content, *rest = values
    return Place(bytes.fromhex(content), *rest)


def _model(job: Job, embedder: Embedder, settings: RaySettings) -> Model:
    source = settings.model or str(embedder.folder and embedder.folder.absolute())
    batch_tokens = embedder.runner.settings.batch_tokens
    return Model(job, source, settings.device, settings.dtype, embedder.fingerprint, batch_tokens)


def _datasource(job: Job, tokenizer: TextTokenizer) -> Any:
    """One read task that plans the windows as they are asked for. Defined late: its base class is Ray's."""
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    class Windows(Datasource):  # type: ignore[misc]
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *args: Any, **options: Any) -> list[Any]:
            def plan() -> Iterable[Any]:
                return map(pack_window, job.windows(tokenizer))

            metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(plan, metadata)]

    return Windows()
