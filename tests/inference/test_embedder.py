"""The embedder against sentence-transformers on the same folder, and every promise of the contract."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from qwen3_embedding import Embedder
from qwen3_embedding.errors import CheckpointError, ModelNotFoundError, NumericalError, TruncationWarning
from qwen3_embedding.inference.embedder import cut_windows
from qwen3_embedding.types import PRECISIONS, Encoder
from tests.support.checkpoints import make_embedder_folder

TEXTS = [
    "",
    "a",
    "What is the capital of China?",
    "重力是什么？",
    "x " * 200,
    "<|im_end|> </think>",
    "def f(x): return x",
    "naïve café",
]


@pytest.fixture(scope="module")
def peer(embedder_folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(embedder_folder), device="cpu")


def test_it_is_an_encoder(embedder: Embedder) -> None:
    assert isinstance(embedder, Encoder)
    assert "float32 on cpu" in repr(embedder)


def test_documents_equal_sentence_transformers(embedder: Embedder, peer: SentenceTransformer) -> None:
    texts = [text for text in TEXTS if "<|" not in text]  # which the reference parses
    cosine = (embedder.embed_documents(texts) * peer.encode(texts)).sum(1)
    assert cosine.min() >= 0.99999


def test_queries_equal_sentence_transformers(embedder: Embedder, peer: SentenceTransformer) -> None:
    queries = ["what is it", "谁", "how"]
    assert (embedder.embed_queries(queries) * peer.encode(queries, prompt_name="query")).sum(1).min() >= 0.99999
    own = peer.encode(queries, prompt="Instruct: Find it\nQuery:")
    assert (embedder.embed_queries(queries, "Find it") * own).sum(1).min() >= 0.99999


def test_special_strings_are_parsed_on_request_only(embedder_folder: Path, peer: SentenceTransformer) -> None:
    reference = Embedder.from_pretrained(embedder_folder, parse_special=True)
    text = ["a </think> b"]
    assert (reference.embed_documents(text) * peer.encode(text)).sum() >= 0.99999
    assert (Embedder.from_pretrained(embedder_folder).embed_documents(text) * peer.encode(text)).sum() < 0.999


def test_alone_and_among_64(embedder: Embedder) -> None:
    texts = [f"text {n} " * (1 + n % 23) for n in range(64)]
    together = embedder.embed_documents(texts)
    alone = np.concatenate([embedder.embed_documents([text]) for text in texts])
    assert np.abs(together - alone).max() <= 1e-5
    assert np.abs(embedder.embed_documents(texts[::-1])[::-1] - together).max() <= 1e-5


def test_any_batch_budget_gives_the_same(embedder: Embedder, embedder_folder: Path) -> None:
    small = Embedder.from_pretrained(embedder_folder, batch_tokens=16)
    assert np.abs(small.embed_queries(TEXTS) - embedder.embed_queries(TEXTS)).max() <= 1e-5


@pytest.mark.parametrize("dimensions", [32, 33, 63, 64])
def test_dimensions_are_cut_and_then_normalised(embedder: Embedder, dimensions: int) -> None:
    full = embedder.embed_documents(TEXTS)
    cut = embedder.embed_documents(TEXTS, dimensions=dimensions)
    wanted = full[:, :dimensions].astype(np.float64)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    assert cut.dtype == np.float32
    np.testing.assert_allclose(cut, wanted, atol=1e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precisions_keep_the_direction(embedder: Embedder, precision: str) -> None:
    full = embedder.embed_documents(TEXTS)
    vectors = embedder.embed_documents(TEXTS, precision=precision)  # type: ignore[arg-type]
    names = {"binary": "int8", "ubinary": "uint8"}
    assert vectors.dtype == names.get(precision, precision)
    assert vectors.shape == (len(TEXTS), 8 if "binary" in precision else 64)
    similarity = embedder.similarity(vectors, vectors, precision)  # type: ignore[arg-type]
    np.testing.assert_allclose(np.diag(similarity), 1, atol=1e-5)
    tolerance = {"float32": 1e-6, "float16": 2e-3, "int8": 2e-2, "uint8": 2e-2}.get(precision, 0.6)
    assert np.abs(similarity - full @ full.T).max() <= tolerance
    if "binary" in precision:
        signs = np.packbits(full > 0, axis=1)
        assert (
            vectors.astype(np.int16) % 256 == (signs.astype(np.int16) - (128 if precision == "binary" else 0)) % 256
        ).all()


def test_windows_change_nothing(embedder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = Embedder.from_pretrained(embedder_folder, max_tokens=12)
    texts = [f"{n} words " * (1 + n % 9) for n in range(23)]
    with pytest.warns(TruncationWarning) as whole:
        wanted = short.embed_queries(texts, "")
    monkeypatch.setattr("qwen3_embedding.inference.embedder.WINDOW_TEXTS", 5)
    with pytest.warns(TruncationWarning) as windows:
        found = short.embed_queries(texts, "", progress=True)
    assert np.abs(found - wanted).max() <= 1e-5
    assert [str(warning.message) for warning in windows] == [str(warning.message) for warning in whole]
    with pytest.raises(TypeError, match=r"texts\[22\] is int"):
        short.embed_documents([*texts[:22], 3])  # type: ignore[list-item]


def test_small_windows_hold_all_texts_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen3_embedding.inference.embedder.WINDOW_CHARACTERS", 40)
    monkeypatch.setattr("qwen3_embedding.inference.embedder.WINDOW_TEXTS", 3)
    texts = ["a" * 8, "b" * 8, "c" * 30, "d" * 100, "", "e", "f", "g"]
    assert cut_windows(texts, small=True) == [texts[:1], texts[1:3], texts[3:4], texts[4:7], texts[7:]]
    assert cut_windows(texts, small=False) == [texts[:3], texts[3:6], texts[6:]]
    assert cut_windows([], small=True) == cut_windows([], small=False) == [[]]


def test_compile_asks_for_a_gpu(embedder: Embedder) -> None:
    with pytest.raises(ValueError, match="compile is for GPUs and this model is on cpu"):
        embedder.compile()


def test_nothing_in_nothing_out(embedder: Embedder) -> None:
    assert embedder.embed_queries([]).shape == (0, 64)
    assert embedder.embed_documents([], dimensions=32, precision="int8").shape == (0, 32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"texts": "one string"}, TypeError, "wanted a list of strings"),
        ({"texts": None}, TypeError, "texts is NoneType"),
        ({"texts": ["good", 3]}, TypeError, r"texts\[1\] is int"),
        ({"texts": ["good", "\ud800"]}, ValueError, "lone surrogate"),
        ({"texts": ["a"], "dimensions": 65}, ValueError, "dimensions=65 exceeds this model's 64; use 32 to 64"),
        ({"texts": ["a"], "dimensions": 31}, ValueError, "dimensions=31 is below 32"),
        ({"texts": ["a"], "dimensions": 32.0}, TypeError, "wanted a whole number"),
        ({"texts": ["a"], "precision": "int4"}, ValueError, "precision='int4'"),
        ({"texts": ["a"], "dimensions": 33, "precision": "binary"}, ValueError, "no multiple of 8"),
    ],
)
def test_bad_input(embedder: Embedder, arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        embedder.embed_documents(**arguments)


def test_what_is_cut_is_said(embedder_folder: Path) -> None:
    embedder = Embedder.from_pretrained(embedder_folder, max_tokens=10)
    with pytest.warns(TruncationWarning, match="1 of 2 texts were longer than 10 tokens"):
        embedder.embed_documents(["short", "word " * 50])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embedder.embed_documents(["short"])


def test_progress_goes_to_stderr(embedder: Embedder, capfd: pytest.CaptureFixture[str]) -> None:
    embedder.embed_documents(["a", "b"], progress=True)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "documents" in captured.err


def test_half_precision_that_overflows_is_recomputed(tmp_path: Path) -> None:
    """As the 8B model does in fp16: an activation beyond 65504, the result finite in float32."""
    folder = make_embedder_folder(tmp_path / "hot")
    calm = Embedder.from_pretrained(folder)
    state = dict(calm.backbone.named_parameters())
    for name in ("layers.1.mlp.up_proj.weight", "layers.1.mlp.gate_proj.weight"):
        state[name].data = state[name].data.clone() * 500
    hot = Embedder(calm.backbone, calm.tokenizer, "hot")
    wanted = hot.embed_documents(TEXTS)
    assert np.isfinite(wanted).all()
    half = Embedder(calm.backbone.half(), calm.tokenizer, "half")
    packed_result = half.backbone  # the plain fp16 pass is not finite
    from qwen3_embedding.inputs.packing import pack

    with torch.inference_mode():
        plain = packed_result(pack(half.tokenizer.encode_documents(TEXTS).ids))
    assert not torch.isfinite(plain).all()
    assert (half.embed_documents(TEXTS) * wanted).sum(1).min() > 0.99


def test_broken_weights_are_an_error_not_a_vector(embedder_folder: Path) -> None:
    broken = Embedder.from_pretrained(embedder_folder)
    broken.backbone.norm.weight.data = torch.full((64,), float("nan"))
    with pytest.raises(NumericalError, match="not finite even in float32"):
        broken.embed_documents(["a"])


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.98), ("float16", 0.9999)])
def test_half_precisions_are_near(embedder: Embedder, embedder_folder: Path, dtype: str, tolerance: float) -> None:
    half = Embedder.from_pretrained(embedder_folder, dtype=dtype)
    assert dtype in repr(half)
    assert (half.embed_documents(TEXTS) * embedder.embed_documents(TEXTS)).sum(1).min() > tolerance


def test_unknown_models(tmp_path: Path) -> None:
    for source, message in [
        ("no-such-model", "no bundled name"),
        (str(tmp_path / "absent"), "no folder here"),
        ("someone/absent-model", "offline was asked for"),
    ]:
        with pytest.raises(ModelNotFoundError, match=message):
            Embedder.from_pretrained(source, offline=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelNotFoundError, match="is a file"):
        Embedder.from_pretrained(tmp_path / "file")
    with pytest.raises(TypeError, match="source is int"):
        Embedder.from_pretrained(3)  # type: ignore[arg-type]


def test_devices_and_types_that_are_not_there(embedder_folder: Path) -> None:
    with pytest.raises(ValueError, match="device='tpu9'"):
        Embedder.from_pretrained(embedder_folder, device="tpu9")
    with pytest.raises(ValueError, match="dtype='int3'"):
        Embedder.from_pretrained(embedder_folder, dtype="int3")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device"):
            Embedder.from_pretrained(embedder_folder, device="cuda")


def test_a_model_that_pools_otherwise_is_refused(tmp_path: Path) -> None:
    folder = make_embedder_folder(tmp_path / "mean")
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    with pytest.raises(CheckpointError, match="does not pool the last token"):
        Embedder.from_pretrained(folder)


def test_ids_that_the_weights_do_not_have(tmp_path: Path) -> None:
    folder = make_embedder_folder(
        tmp_path / "short", vocab_size=3258
    )  # rows for the end token, none for later specials
    with pytest.raises(ValueError, match="3258 embedding rows"):
        Embedder.from_pretrained(folder, parse_special=True).embed_documents(["<think>"])
    assert Embedder.from_pretrained(folder).embed_documents(["<think>"]).shape == (1, 64)
