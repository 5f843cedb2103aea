from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from qwen3_embedding.corpus.chunker import ChunkSettings
from qwen3_embedding.corpus.encode import EncodeSettings, Progress, VectorSettings, encode
from qwen3_embedding.corpus.manifest import read_manifest
from qwen3_embedding.corpus.output import locked
from qwen3_embedding.corpus.reader import ReadOptions
from qwen3_embedding.errors import DataError, IndexCorruptError
from qwen3_embedding.inference.embedder import Embedder
from qwen3_embedding.types import PRECISIONS, Precision
from tests.corpus.support import content, files_of, repeating, same, small, text_of, write_jsonl
from tests.support.checkpoints import make_embedder_folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "corpus.jsonl", repeating(150, 90))


@pytest.fixture(scope="session")
def other_embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return Embedder.from_pretrained(make_embedder_folder(tmp_path_factory.mktemp("other"), seed=5))


def test_shards_hold_ids_and_vectors_and_the_manifest_lists_them(
    corpus: Path, tmp_path: Path, embedder: Embedder
) -> None:
    seen: list[Progress] = []
    result = encode(corpus, tmp_path / "out", embedder, small(), report=seen.append)
    names = sorted(path.name for path in (tmp_path / "out").glob("*.parquet"))
    assert names == [f"shard-{n:06d}.parquet" for n in range(5)]
    tables = [pq.read_table(tmp_path / "out" / name) for name in names]
    assert all(table.column_names == ["id", "vector"] for table in tables)
    assert [id_ for table in tables for id_ in table["id"].to_pylist()] == [f"d{i}" for i in range(150)]

    raw = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert raw["complete"] is True
    assert raw["model"]["sha256"] == embedder.fingerprint
    assert raw["encoding"] == {
        "role": "document", "instruction": None, "dimensions": 64, "precision": "float32", "dtype": "float32",
        "width": 64, "compute_dtype": "float32", "max_tokens": 2048,
    }  # fmt: skip
    assert raw["totals"]["rows"] == 150
    assert raw["shards"][1]["source"] == {
        "from": {"file": "corpus.jsonl", "row": 33, "chunk": 0}, "to": {"file": "corpus.jsonl", "row": 64, "chunk": 0},
    }  # fmt: skip
    assert result.manifest.check(deep=True) == []

    wanted = embedder.embed_documents([text for _, text in repeating(150, 90)])
    got = content(tmp_path / "out")
    np.testing.assert_allclose(np.stack(list(got.values())), wanted, atol=1e-5)  # the engine's stated float32 tolerance
    assert seen[-1] == result.progress
    assert seen[-1].fraction == 1.0
    assert seen[-1].rows == 150
    assert seen[-1].tokens == raw["totals"]["tokens"]


def test_a_repeat_is_computed_once_and_written_for_each(corpus: Path, tmp_path: Path, embedder: Embedder) -> None:
    result = encode(corpus, tmp_path / "out", embedder, small())
    assert result.progress.computed == len({text for _, text in repeating(150, 90)}) == 90
    got = content(tmp_path / "out")
    by_text: dict[str, np.ndarray] = {}
    for id_, text in repeating(150, 90):
        assert np.array_equal(by_text.setdefault(text, got[id_]), got[id_])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dimensions", [None, 32])
def test_precisions_and_dimensions(
    precision: Precision, dimensions: int | None, corpus: Path, tmp_path: Path, embedder: Embedder
) -> None:
    settings = small(vectors=VectorSettings(None, dimensions, precision))
    encode(corpus, tmp_path / "out", embedder, settings)
    wanted = embedder.embed_documents([text for _, text in repeating(150, 90)], dimensions, precision)
    got = np.stack(list(content(tmp_path / "out").values()))
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.dtype, manifest.width) == (got.dtype.name, got.shape[1])
    if precision in ("binary", "ubinary"):
        differing = np.unpackbits((got ^ wanted).view(np.uint8)).mean()
        assert differing < 1e-3, "only components within rounding of zero may change their sign"
    else:
        whole = precision.endswith("int8")  # one step where rounding decides; float16 has 11 bits
        np.testing.assert_allclose(got.astype(np.float32), wanted.astype(np.float32), atol=1 if whole else 1e-3)


def test_queries_of_an_instruction(corpus: Path, tmp_path: Path, embedder: Embedder) -> None:
    encode(corpus, tmp_path / "out", embedder, small(vectors=VectorSettings(instruction="Find the twin")))
    wanted = embedder.embed_queries([text for _, text in repeating(150, 90)], "Find the twin")
    np.testing.assert_allclose(np.stack(list(content(tmp_path / "out").values())), wanted, atol=1e-5)
    assert read_manifest(tmp_path / "out").raw["encoding"]["role"] == "query"


def test_long_documents_become_chunks(tmp_path: Path, embedder: Embedder) -> None:
    texts = {"long": " ".join(f"Sentence number {i} says so." for i in range(90)), "short": "One. Two."}
    write_jsonl(tmp_path / "c.jsonl", texts.items())
    encode(tmp_path / "c.jsonl", tmp_path / "out", embedder, small(rows=4, chunk=ChunkSettings(60, overlap=12)))
    rows = pq.read_table(sorted((tmp_path / "out").glob("*.parquet"))).to_pylist()
    assert [row["id"] for row in rows] == [f"long#{i}" for i in range(len(rows) - 1)] + ["short#0"]
    assert {row["parent"] for row in rows} == {"long", "short"}
    pieces = [texts[row["parent"]][row["start"] : row["end"]] for row in rows]
    assert all(first[-20:] in second for first, second in itertools.pairwise(pieces[:-1]))
    np.testing.assert_allclose([row["vector"] for row in rows], embedder.embed_documents(pieces), atol=1e-5)


def test_a_finished_run_does_nothing_again(corpus: Path, tmp_path: Path, embedder: Embedder) -> None:
    encode(corpus, tmp_path / "out", embedder, small())
    before = files_of(tmp_path / "out")
    result = encode(corpus, tmp_path / "out", embedder, small())
    assert result.progress == Progress()
    assert files_of(tmp_path / "out") == before


def test_two_runs_are_equal_byte_for_byte(corpus: Path, tmp_path: Path, embedder: Embedder) -> None:
    encode(corpus, tmp_path / "a", embedder, small())
    encode(corpus, tmp_path / "b", embedder, small())
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_only_what_is_new_or_changed_is_encoded(tmp_path: Path, embedder: Embedder) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_jsonl(source / "a.jsonl", [(f"a{i}", text_of(i)) for i in range(70)])
    write_jsonl(source / "b.jsonl", [(f"b{i}", text_of(100 + i)) for i in range(70)])
    out = tmp_path / "out"
    encode(source, out, embedder, small())

    write_jsonl(source / "c.jsonl", [("c0", text_of(300)), ("c1", text_of(5))])
    result = encode(source, out, embedder, small())
    assert (result.progress.rows, result.progress.computed, result.changed) == (2, 1, [])

    changed = [(f"a{i}", text_of(i) if i != 40 else "another text") for i in range(70) if i != 3]
    write_jsonl(source / "a.jsonl", [("a-new", text_of(301)), *changed])
    (source / "b.jsonl").unlink()
    result = encode(source, out, embedder, small())
    assert sorted(result.changed) == ["a.jsonl", "b.jsonl"]
    assert (result.progress.rows, result.progress.computed, result.progress.unchanged) == (2, 2, 68)

    encode(source, tmp_path / "fresh", embedder, small())
    got, fresh = content(out), content(tmp_path / "fresh")
    assert got.keys() == fresh.keys()
    for id_ in fresh:
        np.testing.assert_allclose(got[id_], fresh[id_], atol=1e-5)
    manifest = read_manifest(out)
    assert manifest.complete
    assert manifest.check() == []
    assert {path.name for path in out.glob("*.parquet")} == {shard.file for shard in manifest.shards}


def test_rows_may_move_between_files(tmp_path: Path, embedder: Embedder) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_jsonl(source / "a.jsonl", [("x", "one"), ("y", "two")])
    write_jsonl(source / "b.jsonl", [("z", "three")])
    encode(source, tmp_path / "out", embedder, small())
    first = content(tmp_path / "out")
    write_jsonl(source / "a.jsonl", [("y", "two")])
    write_jsonl(source / "b.jsonl", [("z", "three"), ("x", "one")])
    result = encode(source, tmp_path / "out", embedder, small())
    assert result.progress.computed == 0
    assert same(content(tmp_path / "out"), first)


def test_a_document_that_shrinks_loses_its_chunks(tmp_path: Path, embedder: Embedder) -> None:
    settings = small(chunk=ChunkSettings(20))
    long = " ".join(f"Sentence {i} here." for i in range(40))
    write_jsonl(tmp_path / "c.jsonl", [("d", long), ("e", "Still here.")])
    encode(tmp_path / "c.jsonl", tmp_path / "out", embedder, settings)
    assert len(content(tmp_path / "out")) > 5
    write_jsonl(tmp_path / "c.jsonl", [("d", "Short now."), ("e", "Still here.")])
    encode(tmp_path / "c.jsonl", tmp_path / "out", embedder, settings)
    assert content(tmp_path / "out").keys() == {"d#0", "e#0"}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (small(vectors=VectorSettings(dimensions=32)), "encoding.dimensions there is 64, asked for is 32"),
        (small(vectors=VectorSettings(precision="int8")), "encoding.precision"),
        (small(vectors=VectorSettings(instruction="Other")), "encoding.instruction"),
        (small(chunk=ChunkSettings(10)), "rows.chunk"),
        (small(read=ReadOptions(text_columns=("id",))), "rows.text_columns"),
    ],
)
def test_other_settings_refuse_to_mix(
    changed: EncodeSettings, named: str, corpus: Path, tmp_path: Path, embedder: Embedder
) -> None:
    encode(corpus, tmp_path / "out", embedder, small())
    before = files_of(tmp_path / "out")
    with pytest.raises(ValueError, match=named):
        encode(corpus, tmp_path / "out", embedder, changed)
    assert files_of(tmp_path / "out") == before


def test_another_model_refuses_to_mix(
    corpus: Path, tmp_path: Path, embedder: Embedder, other_embedder: Embedder
) -> None:
    encode(corpus, tmp_path / "out", embedder, small())
    with pytest.raises(ValueError, match=r"must not be mixed.*model\.sha256"):
        encode(corpus, tmp_path / "out", other_embedder, small())


def test_a_corrupt_line_ends_the_run_or_is_recorded(tmp_path: Path, embedder: Embedder) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", repeating(100, 100))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:70], '{"id": broken\n', *lines[70:]]))
    with pytest.raises(DataError, match=r"c\.jsonl:71"):
        encode(path, tmp_path / "out", embedder, small())
    assert read_manifest(tmp_path / "out").rows == 64, "the whole windows before it are kept"
    assert not read_manifest(tmp_path / "out").complete

    skipping = small(read=ReadOptions(on_error="skip"))
    result = encode(path, tmp_path / "out", embedder, skipping)
    assert (result.manifest.rows, result.progress.skipped) == (100, 1)
    assert result.manifest.raw["totals"]["skipped"] == 1
    (skip,) = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    assert json.loads(skip)["row"] == 71
    encode(path, tmp_path / "whole", embedder, skipping)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")

    path.write_text("".join(lines))  # repaired
    result = encode(path, tmp_path / "out", embedder, small())
    assert (result.progress.computed, result.manifest.raw["totals"]["skipped"]) == (0, 0)
    assert not (tmp_path / "out" / "skipped.jsonl").exists()


def test_an_id_that_comes_twice_is_refused_or_recorded(tmp_path: Path, embedder: Embedder) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", [*repeating(40, 40), ("d3", "again"), ("last", "x")])
    with pytest.raises(DataError, match=r"c\.jsonl:41: the id 'd3' is already at c\.jsonl:4"):
        encode(path, tmp_path / "out", embedder, small())
    result = encode(path, tmp_path / "out", embedder, small(read=ReadOptions(on_error="skip")))
    assert (result.manifest.rows, result.progress.skipped) == (41, 1)


@pytest.mark.parametrize("how", ["cut", "flipped", "gone"])
def test_a_torn_shard_is_named_and_can_be_repaired(how: str, corpus: Path, tmp_path: Path, embedder: Embedder) -> None:
    out = tmp_path / "out"
    encode(corpus, out, embedder, small())
    before = content(out)
    last = out / "shard-000004.parquet"
    raw = bytearray(last.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    last.unlink()
    if how != "gone":
        last.write_bytes(bytes(raw) if how == "flipped" else bytes(raw[:-100]))
    assert len(read_manifest(out).check(deep=True)) == 1
    with pytest.raises(IndexCorruptError, match=r"shard-000004\.parquet: .*--repair"):
        encode(corpus, out, embedder, small())
    result = encode(corpus, out, embedder, small(repair=True))
    assert result.progress.rows == 150 - 4 * 32
    assert result.manifest.complete
    assert result.manifest.check() == []
    after = content(out)
    assert after.keys() == before.keys()
    for id_ in before:
        np.testing.assert_allclose(after[id_], before[id_], atol=1e-5)


def test_a_source_that_changes_while_it_is_read_is_noticed(corpus: Path, tmp_path: Path, embedder: Embedder) -> None:
    def touch(progress: Progress) -> None:
        if progress.rows == 32:
            with corpus.open("a") as file:
                file.write('{"id": "late", "text": "added"}\n')

    corpus_wide = write_jsonl(tmp_path / "wide.jsonl", repeating(600, 600))
    corpus = corpus_wide
    with pytest.raises(DataError, match="changed while it was read"):
        encode(corpus, tmp_path / "out", embedder, small(), report=touch)
    result = encode(corpus, tmp_path / "out", embedder, small())
    assert result.changed == ["wide.jsonl"]
    assert content(tmp_path / "out").keys() == {f"d{i}" for i in range(600)} | {"late"}


def test_a_lost_ledger_is_named(corpus: Path, tmp_path: Path, embedder: Embedder) -> None:
    encode(corpus, tmp_path / "out", embedder, small())
    (tmp_path / "out" / "ledger.sqlite").unlink()
    with pytest.raises(IndexCorruptError, match="new folder"):
        encode(corpus, tmp_path / "out", embedder, small())
    (tmp_path / "out" / "ledger.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(IndexCorruptError, match="not a readable ledger"):
        encode(corpus, tmp_path / "out", embedder, small())


def test_one_folder_has_one_writer(corpus: Path, tmp_path: Path, embedder: Embedder) -> None:
    with locked(tmp_path / "out"), pytest.raises(DataError, match="another encode is writing here"):
        encode(corpus, tmp_path / "out", embedder, small())


def test_texts_that_are_too_long_are_counted(tmp_path: Path, embedder: Embedder) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", [("long", "word " * 5000), ("short", "word")])
    result = encode(path, tmp_path / "out", embedder, small())
    assert result.progress.cut == 1
    assert result.manifest.raw["totals"]["cut"] == 1


def test_what_an_interrupted_run_left_is_removed(corpus: Path, tmp_path: Path, embedder: Embedder) -> None:
    out = tmp_path / "out"
    encode(corpus, out, embedder, small())
    before = files_of(out)
    shutil.copy(out / "shard-000000.parquet", out / "shard-000009.parquet")
    (out / "shard-000010.parquet.partial").write_bytes(b"torn")
    (out / "manifest.json").unlink()
    encode(corpus, out, embedder, small())
    assert files_of(out) == before
    assert not list(out.glob("*.partial"))


def test_a_file_that_may_not_grow_is_a_clear_error_and_loses_nothing(tmp_path: Path, embedder: Embedder) -> None:
    source = write_jsonl(tmp_path / "c.jsonl", repeating(700, 60))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, hard))  # less than a shard of 512 rows
    try:
        with pytest.raises(OSError, match=r"no room left .* free some space and repeat"):
            encode(source, tmp_path / "out", embedder, small(rows=512))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "out").glob("*.partial"))
    encode(source, tmp_path / "out", embedder, small(rows=512))
    encode(source, tmp_path / "whole", embedder, small(rows=512))
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


@pytest.mark.skipif(
    not Path("/dev/full").exists() or os.geteuid() != 0, reason="needs root to mount a small file system"
)
def test_a_full_disk_is_a_clear_error_and_loses_nothing(corpus: Path, tmp_path: Path, embedder: Embedder) -> None:
    import subprocess

    out = tmp_path / "out"
    out.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(out)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(OSError, match=r"no room left .* free some space and repeat") as caught:
            encode(corpus, out, embedder, small())
        assert caught.value.errno is not None
        subprocess.run(["mount", "-o", "remount,size=16m", str(out)], check=True)
        encode(corpus, out, embedder, small())
        encode(corpus, tmp_path / "whole", embedder, small())
        assert files_of(out) == files_of(tmp_path / "whole")
    finally:
        subprocess.run(["umount", "-l", str(out)], check=True)
