"""The plan of the work: windows of rows, each with what is to compute and what is to copy.

A window is the unit of everything: it is packed as one, becomes one shard, is one transaction in the ledger, and is
what a kill can cost.  Where it begins and ends depends on the source alone, so a resumed run makes the same windows,
the same batches and so the same bits as one that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from qwen3_embedding.corpus.chunker import Chunk, ChunkSettings, TokenCounter, chunk
from qwen3_embedding.corpus.ledger import FileState, Ledger, Place, key_of
from qwen3_embedding.corpus.reader import Document, ReadOptions, Skip, read_file
from qwen3_embedding.corpus.source import SourceFile, check_unchanged
from qwen3_embedding.errors import DataError

_BLOCK = 512


class Encoded(Protocol):
    """Token ids of texts, and how many were cut from each."""

    @property
    def ids(self) -> list[list[int]]:
        """Ids, prompt and end token on them."""
        ...

    @property
    def cut_tokens(self) -> list[int]:
        """0 where a text is whole."""
        ...


class TextTokenizer(Protocol):
    """The tokenizer of an embedder."""

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of bare texts."""
        ...

    def encode_documents(self, texts: Sequence[str], max_tokens: int | None = None) -> Encoded:
        """Ids of documents."""
        ...

    def encode_queries(
        self, texts: Sequence[str], instruction: str | None = None, max_tokens: int | None = None
    ) -> Encoded:
        """Ids of queries."""
        ...


Encode = Callable[[Sequence[str]], Encoded]


@dataclass(frozen=True)
class WindowSettings:
    """How much a window holds. More packs better, less is lost by a kill."""

    rows: int = 8192
    characters: int = 4_000_000
    """A window closes when its texts reach so many characters, also before it has its rows."""

    def __post_init__(self) -> None:
        if self.rows < 1 or self.characters < 1:
            raise ValueError(f"window of {self.rows} rows and {self.characters} characters; wanted at least 1 of each")


@dataclass(frozen=True, slots=True)
class Row:
    """A row to write."""

    id: str
    chunk: Chunk
    key: bytes
    place: Place
    computed: int
    """Which of the window's sequences is its text; -1 where the vector is copied from ``source``."""
    source: tuple[int, int] | None
    """(shard, row) that the vector is copied from."""


@dataclass
class Window:
    """Rows, the different token sequences to compute for them, and what the ledger is to learn."""

    number: int
    shard: int
    rows: list[Row] = field(default_factory=list)
    sequences: list[list[int]] = field(default_factory=list)
    cut_tokens: list[int] = field(default_factory=list)
    unchanged: list[tuple[bytes, Place]] = field(default_factory=list)
    """Rows that the output has already, met again."""
    obsolete: list[tuple[int, int]] = field(default_factory=list)
    progress: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    """File to (row, chunk, offset) of its last item."""
    finished: list[int] = field(default_factory=list)
    skips: list[tuple[int, int, str]] = field(default_factory=list)
    fraction: float = 0.0
    """How much of the bytes to read is read when this window is."""
    characters: int = 0
    """Of the rows' texts."""

    @property
    def n_tokens(self) -> int:
        """Tokens to compute."""
        return sum(map(len, self.sequences))


@dataclass(slots=True)  # not frozen: that costs a call a field, and there is one for every text
class _Item:
    """A text on its way into a window."""

    file: FileState
    chunk: Chunk
    row: int
    offset: int
    fraction: float
    is_chunk: bool

    @property
    def id(self) -> str:
        return self.chunk.id if self.is_chunk else self.chunk.parent


@dataclass(frozen=True, slots=True)
class _Skipped:
    file: FileState
    row: int
    offset: int
    reason: str


@dataclass(frozen=True, slots=True)
class _FileEnd:
    file: FileState


_Event = _Item | _Skipped | _FileEnd


@dataclass(frozen=True)
class PlanSettings:
    """How documents become rows."""

    read: ReadOptions = field(default_factory=ReadOptions)
    chunk: ChunkSettings | None = None
    window: WindowSettings = field(default_factory=WindowSettings)


class Planner:
    """Reads the source from where the ledger says, and plans windows.

    Args:
        files: source files and their states, in the order of reading.
        ledger: open for reading in the thread that iterates.
        settings: columns, chunks, window.
        encode: texts to ids.
        count: token counter for the chunker.
    """

    def __init__(
        self,
        files: Sequence[tuple[SourceFile, FileState]],
        ledger: Ledger,
        settings: PlanSettings,
        encode: Encode,
        count: TokenCounter,
    ) -> None:
        self._files = [(file, state) for file, state in files if not state.finished]
        self._names = {state.number: state.name for _, state in files}
        self._ledger = ledger
        self._settings = settings
        self._encode = encode
        self._count = count
        self._number = ledger.next_window
        self._shard = ledger.next_shard
        self._pending: dict[int, _Pending] = {}
        """Windows that are planned and may not be in the ledger yet."""
        self._versions = {state.number: state.version for _, state in files}

    def __iter__(self) -> Iterator[Window]:
        """The windows; the last may have no rows (it says which files are finished)."""
        window = self._begin()
        for block in self._blocks():
            self._take(window, block)
            if self._is_full(window):
                yield self._close(window)
                window = self._begin()
        if window.progress or window.finished or window.skips:
            yield self._close(window)

    def _begin(self) -> Window:
        committed = self._ledger.next_window
        self._pending = {number: pending for number, pending in self._pending.items() if number >= committed}
        self._pending[self._number] = _Pending()
        return Window(self._number, self._shard)

    def _is_full(self, window: Window) -> bool:
        limit = self._settings.window
        met = len(window.unchanged) + len(window.skips)
        return len(window.rows) >= limit.rows or window.characters >= limit.characters or met >= 16 * limit.rows

    def _close(self, window: Window) -> Window:
        texts: dict[int, str] = {row.computed: row.chunk.text for row in window.rows if row.computed >= 0}
        encoded = self._encode([texts[number] for number in range(len(texts))])
        window.sequences, window.cut_tokens = encoded.ids, encoded.cut_tokens
        self._number += 1
        self._shard += bool(window.rows)
        return window

    def _blocks(self) -> Iterator[list[_Event]]:
        """Events in groups, so that the ledger is asked once a group; a group never goes over a window's end."""
        rows = min(_BLOCK, self._settings.window.rows)
        block: list[_Event] = []
        characters = 0
        for event in self._events():
            block.append(event)
            characters += len(event.chunk.text) if isinstance(event, _Item) else 0
            if len(block) >= rows or characters >= self._settings.window.characters // 8:
                yield block
                block, characters = [], 0
        if block:
            yield block

    def _events(self) -> Iterator[_Event]:
        total = sum(state.fingerprint.size for _, state in self._files) or 1
        before = 0
        for file, state in self._files:
            yield from self._file_events(file, state, before / total, state.fingerprint.size / total)
            check_unchanged(file, state.fingerprint)
            yield _FileEnd(state)
            before += state.fingerprint.size

    def _file_events(self, file: SourceFile, state: FileState, base: float, share: float) -> Iterator[_Event]:
        start = Document("", "", state.row, state.offset) if state.row else None
        for item in read_file(file, self._settings.read, start):
            if isinstance(item, Skip):
                if start is None or item.row > start.row:
                    yield _Skipped(state, item.row, item.offset, item.reason)
                continue
            again = start is not None and item.row == start.row
            for piece in self._chunks(item):
                if not again or piece.index > state.chunk:
                    fraction = base + share * item.fraction
                    is_chunk = self._settings.chunk is not None
                    yield _Item(state, piece, item.row, item.offset, fraction, is_chunk)

    def _chunks(self, document: Document) -> list[Chunk]:
        if self._settings.chunk is None:
            return [Chunk(document.id, 0, 0, len(document.text), document.text)]
        return chunk(document.id, document.text, self._settings.chunk, self._count)

    def _take(self, window: Window, block: list[_Event]) -> None:
        items = [event for event in block if isinstance(event, _Item)]
        keys = [key_of(item.id) for item in items]
        contents = [key_of(item.chunk.text) for item in items]
        known = self._ledger.places(keys)
        computed = self._ledger.contents(contents)
        hashes = iter(zip(keys, contents, strict=True))
        for event in block:
            if isinstance(event, _Skipped):
                window.skips.append((event.file.number, event.row, event.reason))
                window.progress[event.file.number] = (event.row, 0, event.offset)
            elif isinstance(event, _FileEnd):
                window.finished.append(event.file.number)
            else:
                key, content = next(hashes)
                self._take_item(window, event, key, content, known.get(key), computed.get(content))

    def _take_item(
        self,
        window: Window,
        item: _Item,
        key: bytes,
        content: bytes,
        known: Place | None,
        computed: tuple[int, int] | None,
    ) -> None:
        window.progress[item.file.number] = (item.row, item.chunk.index, item.offset)
        window.fraction = item.fraction
        known = self._pending_place(key) or known
        if known is not None and self._is_current(known):
            self._refuse_twice(window, item, known)
            return
        here = (content, item.file.number, item.file.version, item.row)
        if known is not None and known.content == content:
            place = _place(here, known.shard, known.row)
            window.unchanged.append((key, place))
            self._pending[window.number].places[key] = place
            return
        if known is not None:
            window.obsolete.append((known.shard, known.row))
        place = _place(here, window.shard, len(window.rows))
        number, source = self._find(window, content, computed)
        window.rows.append(Row(item.id, item.chunk, key, place, number, source))
        window.characters += len(item.chunk.text)
        self._pending[window.number].places[key] = place

    def _find(
        self, window: Window, content: bytes, computed: tuple[int, int] | None
    ) -> tuple[int, tuple[int, int] | None]:
        """Which sequence of the window is this text, or which earlier row has its vector."""
        own = self._pending[window.number]
        if content in own.sequences:
            return own.sequences[content], None
        for pending in self._pending.values():
            if content in pending.rows:
                return -1, pending.rows[content]
        if computed is not None:
            return -1, computed
        own.sequences[content] = len(own.sequences)
        own.rows[content] = (window.shard, len(window.rows))
        return own.sequences[content], None

    def _pending_place(self, key: bytes) -> Place | None:
        for pending in reversed(self._pending.values()):
            if key in pending.places:
                return pending.places[key]
        return None

    def _is_current(self, place: Place) -> bool:
        """Met already in the files as they are now, and not only in an earlier version of one."""
        return self._versions.get(place.file) == place.version

    def _refuse_twice(self, window: Window, item: _Item, first: Place) -> None:
        where = f"{self._names[first.file]}:{first.source_row}"
        reason = f"the id {item.id!r} is already at {where}; ids of a corpus must differ"
        if self._settings.read.on_error == "raise":
            raise DataError(
                f"{item.file.name}:{item.row}: {reason}; give another id column, or skip such records "
                "(on_error='skip', --on-error skip)"
            )
        window.skips.append((item.file.number, item.row, reason))


@dataclass
class _Pending:
    """What a planned window will add to the ledger, for the windows planned behind it."""

    places: dict[bytes, Place] = field(default_factory=dict)
    sequences: dict[bytes, int] = field(default_factory=dict)
    rows: dict[bytes, tuple[int, int]] = field(default_factory=dict)


def _place(here: tuple[bytes, int, int, int], shard: int, row: int) -> Place:
    content, file, version, source_row = here
    return Place(content, shard, row, file, version, source_row)
