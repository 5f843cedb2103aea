"""Is this server, of whatever make, the model it should be? Each check names what came, what was wanted, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_embedding.inference.embedder import Embedder
from qwen3_embedding.inference.reranker import Reranker
from qwen3_embedding.inference.source import Hub, resolve
from qwen3_embedding.inference.verify import (
    CARD_DOCUMENTS,
    CARD_QUERIES,
    CARD_SIMILARITIES,
    PLANET_DOCUMENTS,
    PLANET_LOG_ODDS,
    PLANET_QUERY,
    Outcome,
    kind_of,
)
from qwen3_embedding.inputs.prompts import query_prompt
from qwen3_embedding.serving.anyserver import AnyServer, EmbedRoute, Refused, RerankRoute
from qwen3_embedding.serving.mistakes import (
    FAR,
    RIGHT,
    Variants,
    cut_variants,
    document_variants,
    query_variants,
    resemble,
    score_variants,
)
from qwen3_embedding.types import DEFAULT_INSTRUCTION, FloatArray

UNKNOWN = "no classic mistake looks like this: other weights, or several mistakes at once"
TEXTS = [
    *CARD_DOCUMENTS,
    "重力是什么？",
    "a",
    "A rather long sentence about nothing in particular, which goes on and on so that a batch holds texts of very "
    "different lengths, as batches of real traffic do, and padding, if a server pads, has something to fill.",
]
TASK = "Given a question, find the sentence that contradicts it"
BUNDLED = ("nano-embedding", "nano-reranker")
LONG_WORDS = 700
"""Words of the text that no server of these models should cut."""
CUT_TO = 16
TOLERANCE = {"norm": 5e-3, "alone": 1e-2, "same": 1e-3, "card": 3e-2, "log-odds": 0.6, "score": 2e-2}
"""Wide enough for half precision: norms; cosine distance alone and in a batch; the same thing asked in two ways; the
card's similarities; log-odds; probabilities alone and in a batch."""


@dataclass(frozen=True)
class Finding:
    """One question asked of a server."""

    name: str
    outcome: Outcome
    got: str
    wanted: str = ""
    cause: str = ""
    """The likely cause of a failure, and what to do."""


@dataclass(frozen=True)
class Reference:
    """Local models to compare with; either may be missing."""

    embedder: Embedder | None = None
    reranker: Reranker | None = None


def load_reference(sources: Sequence[str | Path], offline: bool = False, hub: Hub = "huggingface") -> Reference:
    """Load the models named, each by its kind, in float32.

    Raises:
        ValueError: two of a kind.
        ModelNotFoundError, CheckpointError: a model that is not there, or not whole.
    """
    models: dict[str, Any] = {}
    for source in sources:
        kind = kind_of(resolve(source, offline=offline, hub=hub))
        if kind in models:
            raise ValueError(f"two models to compare with are {kind}s; give one")
        load = Embedder.from_pretrained if kind == "embedder" else Reranker.from_pretrained
        models[kind] = load(source, dtype="float32", offline=offline, hub=hub)
    return Reference(models.get("embedder"), models.get("reranker"))


def verify_server(server: AnyServer, reference: Reference) -> list[Finding]:
    """Ask the server everything that can be asked through the dialects it speaks.

    Without a reference the bundled models are compared with themselves and Qwen3's 0.6B models with their published
    values; for others only what needs no other model is checked.

    Raises:
        RemoteError: the server cannot be reached, or wants a key.
    """
    embeddings, reranking = server.find_embeddings(), server.find_reranking()
    if embeddings is None and reranking is None:
        tried = "/v1/embeddings, /embed, /v1/rerank, /v2/rerank, /rerank, /score"
        cause = "another address or --model, or a server that speaks neither OpenAI, TEI, Cohere, Jina nor vLLM"
        return [Finding("speaks a known dialect", "fail", f"none of {tried} answers", "one of them", cause)]
    names = server.models()
    findings: list[Finding] = []
    if embeddings is not None:
        findings += _Embeddings(server, embeddings, _embedder(reference, embeddings, names)).all()
    if reranking is not None:
        findings += _Reranking(server, reranking, _reranker(reference, reranking, names)).all()
    return findings


def _embedder(reference: Reference, route: EmbedRoute, names: list[str]) -> Embedder | None:
    if reference.embedder is None and _is_called("nano-embedding", route.model, names):
        return Embedder.from_pretrained("nano-embedding", dtype="float32")
    return reference.embedder


def _reranker(reference: Reference, route: RerankRoute, names: list[str]) -> Reranker | None:
    if reference.reranker is None and _is_called("nano-reranker", route.model, names):
        return Reranker.from_pretrained("nano-reranker", dtype="float32")
    return reference.reranker


def _is_called(name: str, model: str | None, names: list[str]) -> bool:
    asked = [model] if model else names[:1]
    return any(each.rstrip("/").rpartition("/")[2] == name for each in asked if each)


class _Checks:
    """Runs checks one by one; what the server refuses is a finding, not an end."""

    def __init__(self, server: AnyServer) -> None:
        self.server = server

    def checks(self) -> Iterator[tuple[str, Callable[[], Finding]]]:
        raise NotImplementedError

    def all(self) -> list[Finding]:
        findings = []
        for name, check in self.checks():
            try:
                findings.append(check())
            except Refused as error:
                findings.append(Finding(name, "fail", str(error), "an answer", "the server refuses a plain request"))
        return findings


class _Embeddings(_Checks):
    def __init__(self, server: AnyServer, route: EmbedRoute, embedder: Embedder | None) -> None:
        super().__init__(server)
        self.route = route
        self.embedder = embedder
        self.plain = server.embed(route, TEXTS)

    def checks(self) -> Iterator[tuple[str, Callable[[], Finding]]]:
        yield "embeddings", self.spoken
        yield "vectors are finite and of unit length", self.unit
        yield "a vector alone and in a batch", self.alone
        yield "vectors come in the order asked", self.order
        yield "documents", self.documents
        yield "queries", self.queries
        yield "instruction for queries", self.instruction
        yield "long texts", self.long
        yield "cut to a limit", self.cut
        yield "dimensions", self.dimensions
        if self.route.dialect == "openai":
            yield "base64", self.base64

    def spoken(self) -> Finding:
        model = f", model {self.route.model}" if self.route.model else ""
        got = f"{self.route.path} ({self.route.dialect}{model}), {self.plain.shape[1]} dimensions"
        if self.embedder is not None and self.plain.shape[1] != self.embedder.dimensions:
            wanted = f"{self.embedder.dimensions} dimensions, those of {self.embedder.name}"
            return Finding(
                "embeddings", "fail", got, wanted, "another model, or vectors that the server cuts by itself"
            )
        return Finding("embeddings", "pass", got)

    def unit(self) -> Finding:
        name, norms = "vectors are finite and of unit length", np.linalg.norm(self.plain, axis=1)
        got = f"lengths {norms.min():.4f} to {norms.max():.4f}"
        if not np.isfinite(self.plain).all():
            return Finding(name, "fail", "values that are not finite", "finite", "overflow in float16: use bfloat16")
        good = bool(np.abs(norms - 1).max() <= TOLERANCE["norm"])
        return _judge(name, good, got, "1", "the server does not normalise: dot products are not cosines")

    def alone(self) -> Finding:
        name = "a vector alone and in a batch"
        single = np.concatenate([self.server.embed(self.route, [text]) for text in TEXTS])
        worst = _worst(single, self.plain)
        cause = "padding leaks into the vectors: a wrong attention mask, or pooling that counts padding"
        return _judge(
            name, worst <= TOLERANCE["alone"], f"largest cosine distance {worst:.1e}", f"{TOLERANCE['alone']}", cause
        )

    def order(self) -> Finding:
        turned = self.server.embed(self.route, TEXTS[::-1])[::-1]
        worst = _worst(turned, self.plain)
        name, cause = "vectors come in the order asked", "the server sorts by length and does not sort back"
        return _judge(name, worst <= TOLERANCE["alone"], f"largest cosine distance {worst:.1e}", "the same", cause)

    def documents(self) -> Finding:
        name = "documents"
        if self.embedder is None:
            return Finding(name, "skip", "no local model to compare with; give --against FOLDER")
        variants = document_variants(self.embedder, TEXTS)
        return _like(f"{name} are as {self.embedder.name} gives them", self.plain, variants, "vectors")

    def queries(self) -> Finding:
        """The published similarities, with the prompt written here."""
        asked = [query_prompt(text) for text in CARD_QUERIES]
        found = self.server.embed(self.route, asked)
        if self.embedder is not None:
            variants = document_variants(self.embedder, asked)
            return _like("queries with their prompt are as the model gives them", found, variants, "vectors")
        name = "similarities of the model card"
        if not _is_called("Qwen3-Embedding-0.6B", self.route.model, self.server.models()):
            return Finding(name, "skip", "none are published for this model; give --against FOLDER")
        near = _unit(found) @ _unit(self.server.embed(self.route, CARD_DOCUMENTS)).T
        worst = float(np.abs(near - np.asarray(CARD_SIMILARITIES)).max())
        return _judge(
            name,
            worst <= TOLERANCE["card"],
            f"{np.round(near, 4).tolist()}",
            f"{CARD_SIMILARITIES}",
            "end token, pooling or weights; --against Qwen/Qwen3-Embedding-0.6B tells which",
        )

    def instruction(self) -> Finding:
        """Whether the server puts the instruction in itself, where it is asked to."""
        texts, task, name = CARD_QUERIES, TASK, "instruction for queries"
        fields: dict[str, Any] = {"instruction": TASK}
        if self.route.dialect == "tei":
            fields, task = {"prompt_name": "query"}, DEFAULT_INSTRUCTION
        try:
            asked = self.server.embed(self.route, texts, **fields)
        except Refused as error:
            return Finding(name, "skip", f"{_names(fields)} is refused ({error}); write the prompt into the text")
        bare = self.server.embed(self.route, texts)
        if _worst(asked, bare) <= 1e-6:
            advice = f"{_names(fields)} changes nothing here; write 'Instruct: …\\nQuery:…' into the text"
            if self.route.dialect != "tei":
                return Finding(name, "skip", advice)
            cause = "prompt_name=query is taken but not applied: config_sentence_transformers.json was not read"
            return Finding(name, "fail", "the vectors without it", "those of queries", cause)
        if self.embedder is None:
            return Finding(name, "pass", f"{_names(fields)} changes the vectors")
        return _like(
            f"{name}: {_names(fields)} is put in as it should",
            asked,
            query_variants(self.embedder, texts, task),
            "vectors",
        )

    def long(self) -> Finding:
        """Texts that differ only at one end must differ, or be refused."""
        name = f"texts of {LONG_WORDS} words are read whole"
        try:
            ends, begins = self._ends(LONG_WORDS)
        except Refused as error:
            if error.status in (400, 413, 422):
                return Finding(name, "skip", f"the server refuses them: {error}")
            raise
        if ends and begins:
            return Finding(name, "pass", "a word at either end counts")
        side = "end" if not ends else "beginning"
        cause = f"a low length limit, and the {side} cut in silence: raise the limit (these models read 32,768 tokens)"
        if side == "beginning":
            cause = "the beginning is cut, where the instruction stands: truncate on the right, and raise the limit"
        return Finding(name, "fail", f"a word at the {side} changes nothing", "it counts", cause)

    def cut(self) -> Finding:
        """An explicit limit, as vLLM's and this package's servers take it."""
        name = "a text cut on request keeps its beginning and the end token"
        fields: dict[str, Any] = {"truncate_prompt_tokens": CUT_TO}
        if self.route.dialect != "openai":
            return Finding(name, "skip", "TEI takes no limit in a request")
        words = " ".join(f"word{i}" for i in range(40))
        try:
            found = self.server.embed(self.route, [words], **fields)
        except Refused as error:
            return Finding(name, "skip", f"truncate_prompt_tokens is refused: {error}")
        if _worst(found, self.server.embed(self.route, [words])) <= 1e-6:
            return Finding(name, "skip", "truncate_prompt_tokens is not heeded")
        if self.embedder is not None:
            return _like(name, found, cut_variants(self.embedder, [words], CUT_TO), "vectors")
        ends, begins = self._ends(40, **fields)
        cause = "the beginning is cut, where the instruction stands: set truncation_side to right"
        got = f"a word at the {'end' if ends else 'beginning'} counts"
        return _judge(name, begins and not ends, got, "one at the beginning, not one at the end", cause)

    def _ends(self, words: int, **fields: Any) -> tuple[bool, bool]:
        """Whether the last and whether the first of so many words counts."""
        middle = " ".join(("river", "stone", "winter", "garden", "market")[i % 5] for i in range(words))
        asked = [f"{middle} bread", f"{middle} moon", f"bread {middle}", f"moon {middle}"]
        found = self.server.embed(self.route, asked, **fields)
        return tuple(bool(np.abs(found[i] - found[i + 1]).max() > 1e-6) for i in (0, 2))  # type: ignore[return-value]

    def dimensions(self) -> Finding:
        full = self.plain.shape[1]
        size, name = full // 2, "dimensions"
        try:
            found = self.server.embed(self.route, TEXTS, dimensions=size)
        except Refused as error:
            advice = "vLLM and SGLang: --hf-overrides '{\"is_matryoshka\": true}'"
            return Finding(name, "skip", f"dimensions={size} is refused ({error}); {advice}")
        if found.shape[1] != size:
            cause = "dimensions is ignored: the caller must cut and normalise"
            return Finding(name, "fail", f"{found.shape[1]} dimensions", f"{size}", cause)
        norms, wanted = np.linalg.norm(found, axis=1), _unit(self.plain[:, :size])
        if np.abs(norms - 1).max() > TOLERANCE["norm"]:
            cause = "cut after normalising, and not normalised again: dot products shrink with the dimensions"
            return Finding(name, "fail", f"lengths {norms.min():.3f} to {norms.max():.3f}", "1", cause)
        worst = _worst(found, wanted)
        got = f"{size} of {full}, largest cosine distance {worst:.1e}"
        cause = "the components are not the first ones: a projection, or another part of the vector"
        return _judge(name, worst <= TOLERANCE["same"], got, "the first components, normalised", cause)

    def base64(self) -> Finding:
        name = "base64 holds the same numbers as float"
        try:
            packed = self.server.embed(self.route, TEXTS, encoding="base64")
        except Refused as error:
            cause = "OpenAI's Python client asks for base64 unless told otherwise, and cannot read this"
            return Finding(name, "fail", str(error), "little-endian float32", cause)
        plain = self.server.embed(self.route, TEXTS, encoding="float")
        if packed.shape != plain.shape:
            got, cause = f"{packed.shape[1]} numbers of {plain.shape[1]}", "not float32 (float64, or float16)"
            return Finding(name, "fail", got, "as many", cause)
        with np.errstate(invalid="ignore", over="ignore"):  # bytes in the wrong order can be any number
            apart = np.abs(packed - plain)
        worst = float(np.where(np.isfinite(apart), apart, np.inf).max())
        good = bool(np.isfinite(packed).all()) and worst <= TOLERANCE["same"]
        return _judge(
            name, good, f"largest difference {worst:.1e}", "the same", "bytes in the wrong order, or not float32"
        )


class _Reranking(_Checks):
    def __init__(self, server: AnyServer, route: RerankRoute, reranker: Reranker | None) -> None:
        super().__init__(server)
        self.route = route
        self.reranker = reranker
        self.raw = server.score(route, PLANET_QUERY, PLANET_DOCUMENTS)
        self.scores = self.raw.in_order(len(PLANET_DOCUMENTS))

    def checks(self) -> Iterator[tuple[str, Callable[[], Finding]]]:
        yield "reranking", self.spoken
        yield "results", self.results
        yield "scores are probabilities", self.scale
        yield "a score alone and in a list", self.alone
        yield "scores", self.values
        yield "instruction for reranking", self.instruction
        if self.route.dialect == "rerank":
            yield "top_n", self.top

    def spoken(self) -> Finding:
        model = f", model {self.route.model}" if self.route.model else ""
        return Finding("reranking", "pass", f"{self.route.path} ({self.route.dialect}{model})")

    def results(self) -> Finding:
        indices, count = self.raw.indices, len(PLANET_DOCUMENTS)
        if sorted(indices) != list(range(count)) or not np.isfinite(self.scores).all():
            got = f"indices {indices}, scores {[round(score, 4) for score in self.raw.scores]}"
            return Finding("results", "fail", got, f"each of {count} documents once", "indices or scores are missing")
        if self.route.dialect == "score":
            cause = "sorted by score: callers of this route take results by their place"
            return _judge("results in the order asked", indices == list(range(count)), f"{indices}", "0, 1, …", cause)
        falling = bool((np.diff(self.raw.scores) <= 0).all())
        cause = "not sorted: callers of this route take the first results as the best"
        scores = [round(score, 4) for score in self.raw.scores]
        return _judge("results best first", falling, f"scores {scores}", "falling", cause)

    def scale(self) -> Finding:
        got = f"{self.scores.min():.4f} to {self.scores.max():.4f}"
        good = bool((self.scores >= 0).all() and (self.scores <= 1).all())
        cause = "log-odds or raw logits: apply the sigmoid, as callers compare with thresholds between 0 and 1"
        return _judge("scores are probabilities", good, got, "between 0 and 1", cause)

    def alone(self) -> Finding:
        name = "a score alone and in a list"
        single = np.concatenate([self.server.scores(self.route, PLANET_QUERY, [text]) for text in PLANET_DOCUMENTS])
        worst = float(np.abs(single - self.scores).max())
        cause = "padding leaks into the scores: a wrong attention mask or padding side"
        if abs(float(self.scores.sum()) - 1) < 1e-3 and np.abs(single - 1).max() < 1e-3:
            cause = "a softmax over the documents: each score depends on the others"
        got = f"largest difference {worst:.1e}"
        return _judge(name, worst <= TOLERANCE["score"] * max(1, np.abs(single).max()), got, "the same", cause)

    def _probabilities(self, scores: FloatArray) -> FloatArray:
        """Log-odds were found out above; here they are turned, so that the template is judged by itself."""
        if (scores < 0).any() or (scores > 1).any():
            return np.asarray(1 / (1 + np.exp(-scores.astype(np.float64))), dtype=np.float32)
        return scores

    def values(self) -> Finding:
        found = self._probabilities(self.scores)
        if self.reranker is not None:
            name = f"scores are as {self.reranker.name} gives them"
            return _like(name, found, score_variants(self.reranker, PLANET_QUERY, PLANET_DOCUMENTS), "scores")
        name = "log-odds of the reference"
        if not _is_called("Qwen3-Reranker-0.6B", self.route.model, self.server.models()):
            return Finding(name, "skip", "none are published for this model; give --against FOLDER")
        safe = np.clip(found.astype(np.float64), 1e-7, 1 - 1e-7)
        odds = np.log(safe / (1 - safe))
        worst = float(np.abs(odds - np.asarray(PLANET_LOG_ODDS)).max())
        cause = "template, head or weights; --against Qwen/Qwen3-Reranker-0.6B tells which"
        return _judge(
            name, worst <= TOLERANCE["log-odds"], f"{np.round(odds, 3).tolist()}", f"{PLANET_LOG_ODDS}", cause
        )

    def instruction(self) -> Finding:
        name = "instruction for reranking"
        try:
            asked = self.server.scores(self.route, PLANET_QUERY, PLANET_DOCUMENTS, instruction=TASK)
        except Refused as error:
            return Finding(name, "skip", f"instruction is refused ({error})")
        if np.abs(asked - self.scores).max() <= 1e-6:
            return Finding(name, "skip", "instruction changes nothing here; the default task is used for all")
        if self.reranker is None:
            return Finding(name, "pass", "it changes the scores")
        variants = score_variants(self.reranker, PLANET_QUERY, PLANET_DOCUMENTS, TASK)
        return _like("instruction for reranking is put in as it should", self._probabilities(asked), variants, "scores")

    def top(self) -> Finding:
        found = self.server.score(self.route, PLANET_QUERY, PLANET_DOCUMENTS, top_n=2)
        good = len(found.indices) == 2 and set(found.indices) == set(
            np.argsort(-self.scores, kind="stable")[:2].tolist()
        )
        return _judge("top_n gives the best", good, f"indices {found.indices}", "the two best", "top_n is ignored")


def _like(name: str, got: FloatArray, variants: Variants, kind: str) -> Finding:
    likeness = resemble(got, variants, kind)
    measure = "cosine distance" if kind == "vectors" else "difference"
    said = f"mean {measure} {likeness.distance:.1e}"
    if likeness.mistake == RIGHT:
        return Finding(name, "pass", said)
    wanted = f"at most {FAR[kind]}"
    if likeness.mistake == "unknown":
        return Finding(
            name, "fail", said, wanted, "no classic mistake looks like this: other weights, or several at once"
        )
    return Finding(name, "fail", f"{said}; {likeness.nearest:.1e} from the mistake named", wanted, likeness.mistake)


def _judge(name: str, good: bool, got: str, wanted: str, cause: str) -> Finding:
    return Finding(name, "pass", got) if good else Finding(name, "fail", got, wanted, cause)


def _worst(a_ND: FloatArray, b_ND: FloatArray) -> float:
    """Largest cosine distance of two rows; 2 where the shapes differ."""
    if a_ND.shape != b_ND.shape:
        return 2.0
    return float(np.max(1 - np.sum(_unit(a_ND) * _unit(b_ND), axis=1)))


def _unit(rows_ND: FloatArray) -> np.ndarray:
    wide = rows_ND.astype(np.float64)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12))


def _names(fields: dict[str, Any]) -> str:
    return ", ".join(f"{name}" if name == "instruction" else f"{name}={value}" for name, value in fields.items())
