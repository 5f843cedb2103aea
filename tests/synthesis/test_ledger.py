"""The ledger survives what kills a process in the middle of a line."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path

import pytest

from qwen3_embedding.errors import ConfigError, DataError
from qwen3_embedding.synthesis.ledger import Answer, Ledger, decode_line, encode_line, read_pairs

PRINT = {"seed": 0, "model": "m"}
ANSWER = Answer("u1", "step", 0, "ff", 'lone \ud800 and "quotes"\n', 7, 100, 20, False, False, 1, 0.5)


def test_what_was_noted_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with Ledger(path, PRINT) as ledger:
        ledger.add_answer(ANSWER)
        ledger.add_answer(replace(ANSWER, unit="u2"))
        ledger.end("u2", [{"record": {"query": "q"}}])
        ledger.fail("u3", "truncated", "…")
    with Ledger(path, PRINT) as ledger:
        assert ledger.ended == {"u2": True, "u3": False}
        assert ledger.failures == {"truncated": 1}
        assert ledger.answers("u1") == [ANSWER]
        assert ledger.answers("u2") == []
        assert (ledger.totals.answers, ledger.totals.input_tokens, ledger.pairs) == (2, 200, 1)
    assert list(read_pairs(path)) == [{"record": {"query": "q"}}]


@pytest.mark.parametrize("sync_seconds", [0.0, 0.01])
def test_a_torn_end_is_cut_off_at_every_length(tmp_path: Path, sync_seconds: float) -> None:
    path = tmp_path / "ledger"
    with Ledger(path, PRINT, sync_seconds) as ledger:
        ledger.add_answer(ANSWER)
        before = path.stat().st_size
        ledger.end("u1", [])
    whole = path.read_bytes()
    for length in range(before, len(whole)):
        path.write_bytes(whole[:length])
        with Ledger(path, PRINT) as ledger:
            assert ledger.torn_bytes == length - before
            assert ledger.answers("u1") == [ANSWER]
            assert ledger.ended == {}
            ledger.end("u1", [])
        assert path.read_bytes() == whole


def test_a_head_that_was_torn_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    path.write_bytes(b'0000 {"event')
    with Ledger(path, PRINT) as ledger:
        assert ledger.torn_bytes == 12
    with Ledger(path, PRINT) as ledger:
        assert ledger.torn_bytes == 0


def test_zeros_at_the_end_are_torn_and_a_flipped_bit_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with Ledger(path, PRINT) as ledger:
        for number in range(3):
            ledger.add_answer(replace(ANSWER, unit=f"u{number}"))
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 500)
    with Ledger(path, PRINT) as ledger:
        assert ledger.torn_bytes == 500
    lines = whole.splitlines(keepends=True)
    lines[2] = lines[2].replace(b"u1", b"u9")
    path.write_bytes(b"".join(lines))
    with pytest.raises(DataError, match=r"ledger:3: damaged line in the middle"):
        Ledger(path, PRINT)
    with pytest.raises(DataError, match=r"ledger:3"):
        list(read_pairs(path))


def test_other_settings_another_process_and_a_second_end_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with Ledger(path, PRINT) as ledger:
        with pytest.raises(DataError, match="another process writes this ledger"):
            Ledger(path, PRINT)
        ledger.end("u1", [])
        with pytest.raises(ValueError, match="a unit ends once"):
            ledger.fail("u1", "x", "y")
    with pytest.raises(ConfigError, match="begun with model = 'm', the recipe now says 'n'"):
        Ledger(path, {**PRINT, "model": "n"})
    with pytest.raises(ConfigError, match="seed"):
        Ledger(path, {"model": "m"})


def test_a_line_knows_when_it_is_damaged() -> None:
    line = encode_line({"event": "end", "text": "ü"})
    assert decode_line(line) == {"event": "end", "text": "ü"}
    for at in range(len(line)):
        assert decode_line(line[:at] + bytes([line[at] ^ 1]) + line[at + 1 :]) is None
        assert decode_line(line[:at]) is None


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with Ledger(path, PRINT) as ledger:
        ledger.add_answer(ANSWER)
        before = path.stat().st_size
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (before + 50, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                ledger.add_answer(replace(ANSWER, unit="u2"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.stat().st_size == before
        ledger.end("u1", [])
    with Ledger(path, PRINT) as ledger:
        assert (ledger.ended, ledger.torn_bytes) == ({"u1": False}, 0)
