"""Long documents into chunks of bounded tokens, cut between sentences in any language.

A sentence ends behind a sentence terminal of Unicode (property ``Sentence_Terminal``: the Latin full stop, the Arabic
question mark, the Devanagari danda …) and closing quotes behind it, or at a blank line.  The Latin full stop ends one
only before white space, and not before a lower-case letter (UAX #29, rule SB8).  A sentence that is itself too long is
cut at line breaks, then at white space (Thai and Lao write it between phrases), then between characters.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

TokenCounter = Callable[[Sequence[str]], Sequence[int]]
"""Texts to the number of tokens of each, prompt and end token not counted."""

# Sentence_Terminal of Unicode 16.0, the ones that need white space behind them apart.
_SPACED = ".!?\u2024\ufe52\uff0e"
_FREE = (
    "\u0589\u061d-\u061f\u06d4\u0700-\u0702\u07f9\u0837\u0839\u083d\u083e\u0964\u0965\u104a\u104b\u1362\u1367\u1368"
    "\u166e\u1735\u1736\u17d4\u17d5\u1803\u1809\u1944\u1945\u1aa8-\u1aab\u1b5a\u1b5b\u1b5e\u1b5f\u1b7d-\u1b7f\u1c3b"
    "\u1c3c\u1c7e\u1c7f\u203c\u203d\u2047-\u2049\u2e2e\u2e3c\u2e53\u2e54\u3002\ua4ff\ua60e\ua60f\ua6f3\ua6f7\ua876"
    "\ua877\ua8ce\ua8cf\ua92f\ua9c8\ua9c9\uaa5d-\uaa5f\uaaf0\uaaf1\uabeb\ufe12\ufe15\ufe16\ufe56\ufe57\uff01\uff1f"
    "\uff61\u0f0d\u0f0e\u2026\U00011047\U00011048\U000110be-\U000110c1\U00011141-\U00011143\U000111c5\U000111c6"
    "\U000111de\U000111df\U00016a6e\U00016a6f\U00016af5\U00016b37\U00016b38\U0001bc9f\U0001da88"
)
_CLOSING = (
    "\"')\\]}\u00bb\u2018-\u201f\u203a\u300d\u300f\u3009"
    "\u300b\u3011\u3015\u3017\u3019\u301b\u301e\u301f\uff09\uff3d\uff5d\uff63"
)
_BORDER = re.compile(
    rf"[{_FREE}][{_FREE}{_SPACED}]*[{_CLOSING}]*\s*"  # 。」
    rf"|[{_SPACED}][{_FREE}{_SPACED}]*[{_CLOSING}]*(?:\s+|\Z)"  # ."␠
    r"|[^\S\n]*\n[^\S\n]*\n\s*"  # a blank line
)
_LINE = re.compile(r"\n+")
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class ChunkSettings:
    """How long chunks are, and how much of one comes again in the next."""

    max_tokens: int
    overlap: int = 0
    """At most so many tokens, in whole sentences, from the end of a chunk begin the next one too."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"chunk max_tokens={self.max_tokens}; wanted at least 1")
        if not 0 <= self.overlap < self.max_tokens:
            raise ValueError(f"chunk overlap={self.overlap}; wanted 0 to {self.max_tokens - 1}, less than max_tokens")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document: ``text == document[start:end]``."""

    parent: str
    index: int
    start: int
    end: int
    text: str

    @property
    def id(self) -> str:
        """``{parent}#{index}``, index from 0."""
        return f"{self.parent}#{self.index}"


@dataclass(frozen=True, slots=True)
class _Piece:
    """A run of characters that is never cut further, with its tokens."""

    start: int
    end: int
    tokens: int


def sentences(text: str) -> list[tuple[int, int]]:
    """Spans ``(start, end)`` of the sentences: they follow each other without a gap and cover the text."""
    ends = [match.end() for match in _BORDER.finditer(text) if _is_border(text, match)]
    borders = [0, *ends]
    if borders[-1] != len(text):
        borders.append(len(text))
    return list(itertools.pairwise(borders))


def chunk(document_id: str, text: str, settings: ChunkSettings, count: TokenCounter) -> list[Chunk]:
    """Cut a document.

    Every character that is not white space is in at least one chunk; no chunk has more than ``settings.max_tokens``
    tokens, unless one character alone has.  A document that fits is one chunk; an empty one is one empty chunk.
    White space around a chunk is left out.
    """
    if count([text])[0] <= settings.max_tokens:
        start, end = _strip(text, 0, len(text))
        return [Chunk(document_id, 0, start, end, text[start:end])]
    pieces = _pieces(text, settings.max_tokens, count)
    spans = [_strip(text, start, end) for start, end in _join(text, pieces, settings, count)]
    kept = [(start, end) for start, end in spans if start < end]
    return [Chunk(document_id, i, start, end, text[start:end]) for i, (start, end) in enumerate(kept)]


def _is_border(text: str, match: re.Match[str]) -> bool:
    mark = match.group()[0]
    behind = text[match.end() : match.end() + 1]
    return not (mark == "." and "\n" not in match.group() and behind.islower())


def _pieces(text: str, max_tokens: int, count: TokenCounter) -> list[_Piece]:
    spans = sentences(text)
    sizes = count([text[start:end] for start, end in spans])
    pieces: list[_Piece] = []
    for (start, end), size in zip(spans, sizes, strict=True):
        if size <= max_tokens:
            pieces.append(_Piece(start, end, size))
        else:
            pieces.extend(_cut(text, start, end, max_tokens, count))
    return pieces


def _cut(text: str, start: int, end: int, max_tokens: int, count: TokenCounter) -> Iterator[_Piece]:
    """A sentence that is too long: at line breaks, else at white space, else between characters."""
    for pattern in (_LINE, _SPACE):
        ends = [match.end() for match in pattern.finditer(text, start, end) if start < match.end() < end]
        if ends:
            parts = list(zip([start, *ends], [*ends, end], strict=True))
            break
    else:
        yield from _cut_characters(text, start, end, max_tokens, count)
        return
    sizes = count([text[a:b] for a, b in parts])
    for (a, b), size in zip(parts, sizes, strict=True):
        if size <= max_tokens:
            yield _Piece(a, b, size)
        else:
            yield from _cut(text, a, b, max_tokens, count)


def _cut_characters(text: str, start: int, end: int, max_tokens: int, count: TokenCounter) -> Iterator[_Piece]:
    while start < end:
        take = min(end - start, max_tokens)
        while take < end - start and count([text[start : start + take * 2]])[0] <= max_tokens:
            take = min(take * 2, end - start)
        size = count([text[start : start + take]])[0]
        while size > max_tokens and take > 1:
            take = max(1, min(take - 1, take * max_tokens // size))
            size = count([text[start : start + take]])[0]
        yield _Piece(start, start + take, size)
        start += take


def _join(text: str, pieces: list[_Piece], settings: ChunkSettings, count: TokenCounter) -> Iterator[tuple[int, int]]:
    """Spans of chunks: as many pieces as fit, the last ones of a chunk again at the beginning of the next."""
    sums = [0]
    for piece in pieces:
        sums.append(sums[-1] + piece.tokens)
    first = 0
    while first < len(pieces):
        last = max(first + 1, bisect.bisect_right(sums, sums[first] + settings.max_tokens) - 1)
        # Tokens of the whole can differ from the sum of the parts by a merge across a border.
        while (
            last > first + 1
            and _count_span(text, pieces[first].start, pieces[last - 1].end, count) > settings.max_tokens
        ):
            last -= 1
        yield pieces[first].start, pieces[last - 1].end
        if last == len(pieces):
            return
        again = bisect.bisect_left(sums, sums[last] - settings.overlap)
        room = settings.max_tokens - pieces[last].tokens  # the next new piece must fit behind what comes again
        while again < last and sums[last] - sums[again] > room:
            again += 1
        first = max(first + 1, again)


def _count_span(text: str, start: int, end: int, count: TokenCounter) -> int:
    start, end = _strip(text, start, end)
    return count([text[start:end]])[0]


def _strip(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end
