"""Encode a corpus: read, plan, compute and write, all at once, and none of it twice."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from qwen3_embedding.corpus.ledger import FileState, Ledger
from qwen3_embedding.corpus.manifest import Manifest
from qwen3_embedding.corpus.output import Output, locked
from qwen3_embedding.corpus.pipeline import Background, prefetch
from qwen3_embedding.corpus.source import Fingerprint, SourceFile, fingerprint, open_source
from qwen3_embedding.corpus.window import Encoded, Planner, PlanSettings, TextTokenizer, Window
from qwen3_embedding.errors import DataError
from qwen3_embedding.inference.embedder import Embedder, cut_dimensions
from qwen3_embedding.inference.precision import to_precision
from qwen3_embedding.types import Precision, Vectors


@dataclass(frozen=True)
class VectorSettings:
    """What the vectors are."""

    instruction: str | None = None
    """``None`` encodes documents, which have no prompt; a task encodes the texts as queries of it."""
    dimensions: int | None = None
    """``None`` is the model's full size."""
    precision: Precision = "float32"


@dataclass(frozen=True)
class EncodeSettings:
    """Everything about a run that is not the model, the source or the place."""

    vectors: VectorSettings = field(default_factory=VectorSettings)
    plan: PlanSettings = field(default_factory=PlanSettings)
    repair: bool = False
    """Compute missing and torn shards again instead of refusing to go on."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is. Counts are of this run, not of earlier ones."""

    rows: int = 0
    """Rows written."""
    computed: int = 0
    """Of them, texts that went through the model; the others are repeats."""
    unchanged: int = 0
    """Rows that an earlier run had written."""
    skipped: int = 0
    tokens: int = 0
    """Tokens that went through the model."""
    cut: int = 0
    """Texts that were longer than the model's limit and were cut."""
    fraction: float = 0.0
    """Of the bytes that this run has to read, how much is done."""
    seconds: float = 0.0

    @property
    def rows_per_s(self) -> float:
        """Rows written or met again a second."""
        return (self.rows + self.unchanged) / max(self.seconds, 1e-9)

    @property
    def tokens_per_s(self) -> float:
        """Tokens computed a second."""
        return self.tokens / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """Estimate from the bytes; ``None`` before anything is known."""
        return self.seconds * (1 / self.fraction - 1) if self.fraction > 0 else None

    def after(self, window: Window, seconds: float) -> Progress:
        """With a window more."""
        return Progress(
            rows=self.rows + len(window.rows),
            computed=self.computed + len(window.sequences),
            unchanged=self.unchanged + len(window.unchanged),
            skipped=self.skipped + len(window.skips),
            tokens=self.tokens + window.n_tokens,
            cut=self.cut + sum(tokens > 0 for tokens in window.cut_tokens),
            fraction=max(self.fraction, window.fraction),
            seconds=seconds,
        )


@dataclass(frozen=True)
class Job:
    """What is to do, in values that can travel to another process."""

    folder: Path
    files: tuple[tuple[SourceFile, FileState], ...]
    settings: EncodeSettings
    max_tokens: int
    dimensions: int
    first_window: int
    """Windows that were committed when the job was made."""

    def windows(self, tokenizer: TextTokenizer) -> Iterator[Window]:
        """Plan: read, cut into chunks, look for repeats, tokenise."""
        ledger = Ledger.open(self.folder, read_only=True)
        try:
            if ledger.next_window != self.first_window:
                raise DataError("the planner was started a second time in one run; repeat the command to resume")
            encode = partial(self._encode, tokenizer)
            yield from Planner(self.files, ledger, self.settings.plan, encode, partial(_count, tokenizer))
        finally:
            ledger.close()

    def compute(self, embedder: Embedder, sequences: Sequence[Sequence[int]]) -> Vectors:
        """(U, width) vectors of token sequences, at the precision asked for."""
        vectors = cut_dimensions(embedder.embed_tokens(sequences), self.dimensions)
        return to_precision(vectors, self.settings.vectors.precision)

    def _encode(self, tokenizer: TextTokenizer, texts: Sequence[str]) -> Encoded:
        instruction = self.settings.vectors.instruction
        if instruction is None:
            return tokenizer.encode_documents(texts, self.max_tokens)
        return tokenizer.encode_queries(texts, instruction, self.max_tokens)


Computed = Generator[tuple[Window, Vectors], None, None]
Engine = Callable[[Job, Embedder], Computed]
"""Plans a job and computes its windows, in order."""

Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Result:
    """What a run has done."""

    manifest: Manifest
    progress: Progress
    changed: list[str]
    """Source files that had changed or gone since they were read."""
    ignored: list[str]
    """Files of the source folder that are not read."""


def encode(
    source: str | Path,
    folder: str | Path,
    embedder: Embedder,
    settings: EncodeSettings | None = None,
    report: Report | None = None,
    engine: Engine | None = None,
) -> Result:
    """Encode a corpus into shards of vectors; repeat the call to resume it or to take in what is new.

    Args:
        source: a file or folder (see :func:`~qwen3_embedding.corpus.source.open_source`).
        folder: where the shards and ``manifest.json`` are written.
        embedder: the model.
        settings: columns, chunks, dimensions, precision.
        report: called after every window, from another thread.
        engine: who computes; ``None`` is this process.

    Raises:
        DataError: a source that is missing, torn, or has a record that cannot be read.
        ValueError: the folder holds vectors of another model or other settings.
        IndexCorruptError: a shard of an earlier run is missing or torn.
        OSError: the disk is full, among others; what is written is kept, and repeating the call goes on there.
    """
    settings = settings or EncodeSettings()
    target = Path(folder).absolute()  # engines may work in another directory
    files = open_source(Path(source).absolute())
    identity = describe(embedder, settings)
    with _room(target), locked(target):
        output = Output.open(target, identity, settings.repair)
        try:
            known = {state.name: state.fingerprint for state in output.ledger.files() if not state.gone}
            changed = output.take_sources(_fingerprints(files.files, known))
            states = {state.name: state for state in output.ledger.files()}
            pairs = tuple((file, states[file.name]) for file in files.files)
            dimensions, begin = identity["encoding"]["dimensions"], output.ledger.next_window
            job = Job(target, pairs, settings, embedder.max_tokens, dimensions, begin)
            progress = _run(job, embedder, output, engine or compute_here, report)
            return Result(output.finish(), progress, changed, list(files.ignored))
        finally:
            output.close()


def compute_here(job: Job, embedder: Embedder) -> Computed:
    """The engine of one process: a thread reads and tokenises ahead."""
    with prefetch(lambda: job.windows(embedder.tokenizer), depth=1) as windows:
        for window in windows:
            yield window, job.compute(embedder, window.sequences)


def describe(embedder: Embedder, settings: EncodeSettings) -> dict[str, Any]:
    """Model and settings, as the manifest states them; vectors are mixed only where all of it is the same."""
    vectors, plan = settings.vectors, settings.plan
    nothing = embedder.embed_documents([], vectors.dimensions, vectors.precision)  # checks both, and has the shape
    return {
        "model": {"name": embedder.name, "sha256": embedder.fingerprint, "dimensions": embedder.dimensions},
        "encoding": {
            "role": "document" if vectors.instruction is None else "query",
            "instruction": vectors.instruction,
            "dimensions": vectors.dimensions or embedder.dimensions,
            "precision": vectors.precision,
            "dtype": nothing.dtype.name,
            "width": nothing.shape[1],
            "compute_dtype": embedder.backbone.type_name,
            "max_tokens": embedder.max_tokens,
        },
        "rows": {
            "text_columns": list(plan.read.text_columns),
            "id_column": plan.read.id_column,
            "chunk": None if plan.chunk is None else asdict(plan.chunk),
        },
    }


def _run(job: Job, embedder: Embedder, output: Output, engine: Engine, report: Report | None) -> Progress:
    began = time.monotonic()
    progress = Progress()

    def write(item: tuple[Window, Vectors]) -> None:
        nonlocal progress
        output.write(*item)
        progress = progress.after(item[0], time.monotonic() - began)
        if report is not None:
            report(progress)

    with closing(engine(job, embedder)) as items, Background(write, depth=1) as writer:
        for item in items:
            writer.put(item)
    return progress


def _fingerprints(files: Sequence[SourceFile], known: dict[str, Fingerprint]) -> dict[str, Fingerprint]:
    return {file.name: fingerprint(file.path, known.get(file.name)) for file in files}


def _count(tokenizer: TextTokenizer, texts: Sequence[str]) -> list[int]:
    return [len(ids) for ids in tokenizer.token_ids(texts)]


@contextmanager
def _room(folder: Path) -> Iterator[None]:
    """Say what a full disk means here."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(
            error.errno,
            f"no room left for {folder} ({error.strerror}); every window that is listed in manifest.json is whole and "
            "kept: free some space and repeat the command",
        ) from error
