"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qwen3_embedding.whole import whole_file, whole_folder, write_bytes, write_text


def stop_halfway(file: Path) -> None:
    file.write_text("half")
    raise KeyboardInterrupt


def test_a_file_takes_its_place_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.json"
    with whole_file(path) as beside:
        beside.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    write_text(path, "é\n")
    assert path.read_bytes() == "é\n".encode()
    write_bytes(path, b"\r\n\0")
    assert path.read_bytes() == b"\r\n\0"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("shared", [False, True])
def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path, shared: bool) -> None:
    path = tmp_path / "a"
    write_text(path, "old", shared=shared)
    with pytest.raises(KeyboardInterrupt), whole_file(path, shared=shared) as beside:
        stop_halfway(beside)
    with pytest.raises(FileNotFoundError), whole_file(path, shared=shared):
        pass  # nothing was written
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "a.partial").write_text("torn, and longer than what comes")
    write_text(tmp_path / "a", "whole")
    (tmp_path / "b.partial").mkdir()
    (tmp_path / "b.partial" / "torn").write_text("")
    with whole_folder(tmp_path / "b") as beside:
        (beside / "file").write_text("whole")
    assert (tmp_path / "a").read_text() == "whole"
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["file"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_writers_of_the_same_file_do_not_meet_where_it_is_shared(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with whole_file(path, shared=True) as beside:
        beside.write_text("parent")
        if (child := os.fork()) == 0:
            try:
                write_text(path, "child", shared=True)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert path.read_text() == "child"
    assert path.read_text() == "parent"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_whole_or_not_there_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder"
    with pytest.raises(KeyboardInterrupt), whole_folder(path) as beside:
        stop_halfway(beside / "one")
    assert list(path.parent.iterdir()) == []
    with whole_folder(path) as beside:
        (beside / "one").write_text("1")
        assert not path.exists()
    with pytest.raises(OSError, match="not empty"), whole_folder(path) as beside:
        (beside / "two").write_text("2")
    assert [file.name for file in path.iterdir()] == ["one"]
    assert list(path.parent.iterdir()) == [path]
