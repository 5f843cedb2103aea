"""A reranker in training: "yes" to a query's positive, "no" to its negatives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qwen3_embedding.data import TASKS, Record, text_hash
from qwen3_embedding.data.files import file_hash, record_files
from qwen3_embedding.data.mixture import Mixture
from qwen3_embedding.errors import CheckpointError, DataError
from qwen3_embedding.inputs.packing import PackedBatch
from qwen3_embedding.inputs.prompts import query_prefix
from qwen3_embedding.inputs.tokenizer import Tokenizer
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.training import grad_cache, lora
from qwen3_embedding.training.batches import Labels, split_groups
from qwen3_embedding.training.config import DataSettings, RunSettings, SourceSettings, TrainingSettings
from qwen3_embedding.training.contrastive import LossReport
from qwen3_embedding.training.distributed import Ranks
from qwen3_embedding.training.embedder import split_backbone, trainable_backbone, whole_backbone
from qwen3_embedding.training.export import DTYPES, export_reranker
from qwen3_embedding.training.held_out import candidate_ranks, ranking_metrics
from qwen3_embedding.training.losses import distillation_loss, listwise_loss, yes_no_loss
from qwen3_embedding.training.objective import StepReport
from qwen3_embedding.training.precision import Precision, checkpoint_layers, matmul_precision
from qwen3_embedding.training.token_store import chosen_records
from qwen3_embedding.types import IntArray

SATURATED = 17.0
"""Log odds from which float32 has 1 for the probability of yes: what scores so keeps no order."""
_CANDIDATES = 3  # stream of random numbers, beside the mixture's and the embedder's


@dataclass(frozen=True)
class Candidates:
    """A query and its documents, the positive first."""

    query: str
    instruction: str | None
    documents: tuple[str, ...]


@dataclass(frozen=True)
class RerankerBatch:
    """The queries of a global batch, all of one group."""

    step: int
    group: str
    epoch: int
    queries: list[Candidates]


class RerankerBatches:
    """Batches over records held in memory, tokenised when their turn comes. Batches are a function of (seed, step)."""

    def __init__(self, settings: DataSettings, random_negatives: int, seed: int) -> None:
        self.settings, self.random_negatives, self.seed = settings, random_negatives, seed
        groups = []
        self._records: list[tuple[list[Record], IntArray, SourceSettings]] = []
        for source in settings.sources:
            records = chosen_records(source, seed)
            if not records:
                raise DataError(f"{source.path}: no records" + (f" of task {source.task!r}" if source.task else ""))
            for group, rows in split_groups(_labels(records), source, settings):
                if group.task == "sts":
                    raise DataError(
                        f"{source.path}: sts records are graded, not yes or no; name the wanted task in the "
                        "source, such as task = 'retrieval'"
                    )
                groups.append(group)
                self._records.append((records, rows, source))
        self.mixture = Mixture(groups, seed)

    def facts(self) -> dict[str, dict[str, int]]:
        """Records used of each source."""
        return {str(source.path): {"records": len(records)} for records, _, source in self._records}

    def batch(self, step: int) -> RerankerBatch:
        """The batch of a step, counted from 0.

        Raises:
            DataError: no query of it has a negative, and no random ones are wanted.
        """
        draw = self.mixture.draw(step)
        records, rows, source = self._records[draw.group]
        chosen = [records[row] for row in rows[draw.rows]]
        queries = self.candidates(chosen, source, np.random.default_rng([self.seed, _CANDIDATES, step]))
        group = self.mixture.groups[draw.group].name
        if all(len(query.documents) == 1 for query in queries):
            raise DataError(
                f"{source.path}: no record of a batch of {group} has negatives; mine some first (qwen3-embedding "
                "mine), or set reranker.random_negatives"
            )
        return RerankerBatch(step, group, draw.epoch, queries)

    def candidates(self, records: list[Record], source: SourceSettings, rng: np.random.Generator) -> list[Candidates]:
        """Each record's query with one positive, its negatives, and random ones of the other records where wanted."""
        pool = [(text_hash(r.query), text_hash(r.positives[0]), r.positives[0]) for r in records]
        return [self._candidates(record, source, pool, rng) for record in records]

    def _candidates(
        self, record: Record, source: SourceSettings, pool: list[tuple[int, int, str]], rng: np.random.Generator
    ) -> Candidates:
        positive = record.positives[int(rng.integers(len(record.positives)))]
        known = {text_hash(text) for text in record.positives}
        negatives = [text for text in record.negatives if text_hash(text) not in known]
        if len(negatives) > self.settings.negatives:
            places = np.sort(rng.choice(len(negatives), self.settings.negatives, replace=False))
            negatives = [negatives[int(place)] for place in places]
        missing = min(self.random_negatives, self.settings.negatives - len(negatives))
        if missing > 0:
            own = text_hash(record.query)
            others = {document: text for query, document, text in pool if query != own and document not in known}
            texts = list(others.values())
            places = rng.choice(len(texts), min(missing, len(texts)), replace=False)
            negatives += [texts[int(place)] for place in places]
        instruction = record.instruction
        if source.instruction:
            instruction = None if source.instruction == "default" else source.instruction
        return Candidates(record.query, instruction, (positive, *negatives))


def _labels(records: list[Record]) -> Labels:
    names = list(dict.fromkeys(record.language or "" for record in records))
    code = {name: number for number, name in enumerate(names)}
    return Labels(
        np.array([TASKS.index(record.task) for record in records]),
        np.array([code[record.language or ""] for record in records]),
        names,
    )


class PairScorer(nn.Module):
    """Backbone and answer rows as one module, so that both are whole while it computes."""

    def __init__(self, backbone: Backbone, rows: nn.Parameter | None, answers: list[int]) -> None:
        super().__init__()
        self.backbone, self.rows, self.answers = backbone, rows, answers

    def forward(self, batch: PackedBatch, precision: Precision) -> Tensor:
        """(N,) logit of "yes" minus logit of "no", in fp32."""
        with matmul_precision(self.backbone.device, precision):
            pooled_ND = self.backbone(batch)
        rows = self.rows if self.rows is not None else self.backbone.embed_tokens.weight[self.answers]
        return pooled_ND.float() @ (rows[1] - rows[0])  # type: ignore[no-any-return]


class Judge:
    """A backbone with its yes and no rows: packed pairs to log-odds."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.tokenizer = Tokenizer.from_folder(folder)
        self.backbone, extra = trainable_backbone(folder, device)
        if "score.weight" in extra:
            raise CheckpointError(
                f"{folder}: a sequence-classification head; train from the causal-LM checkpoint (with lm_head or tied "
                "embeddings)"
            )
        tied = self.backbone.config.tie_word_embeddings
        if not tied and "lm_head.weight" not in extra:
            raise CheckpointError(f"{folder}: tie_word_embeddings is false and the weights have no lm_head.weight")
        self.answers = [self.tokenizer.no_id, self.tokenizer.yes_id]
        # With tied embeddings the rows are those of the table, and are trained with it.
        self._table = None if tied else extra["lm_head.weight"]
        rows = None if self._table is None else nn.Parameter(self._table[self.answers].clone())
        self.scorer = PairScorer(self.backbone, rows, self.answers)

    @property
    def rows(self) -> nn.Parameter | None:
        """The rows of "no" and "yes" of a separate head."""
        return self.scorer.rows

    def freeze_head(self) -> None:
        """Leave the two rows of a separate head as they are."""
        if self.rows is not None:
            self.rows.requires_grad_(False)

    def gather(self, keep: bool, settings: TrainingSettings) -> None:
        """Put a split model together, where ``keep`` is true."""
        from qwen3_embedding.training.distributed import sharding

        state = sharding.whole(self.scorer.state_dict(), keep)
        if not keep:
            return
        rows = state.pop("rows", None)
        named = {name.removeprefix("backbone."): tensor for name, tensor in state.items()}
        self.backbone = whole_backbone(self.backbone.config, settings, named)
        self.scorer = PairScorer(self.backbone, None if rows is None else nn.Parameter(rows), self.answers)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The backbone's, and the two rows of a separate head."""
        named = dict(self.backbone.named_parameters())
        return named if self.rows is None else {**named, "lm_head.answers": self.rows}

    def log_odds(self, batch: PackedBatch, precision: Precision) -> Tensor:
        """(N,) logit of "yes" minus logit of "no", in fp32; no other row of the vocabulary is multiplied."""
        return self.scorer(batch, precision)  # type: ignore[no-any-return]

    def head(self) -> dict[str, Tensor]:
        """The separate head with its trained rows, for export."""
        if self._table is None or self.rows is None:
            return {}
        table = self._table.detach().clone()
        table[self.answers] = self.rows.detach()
        return {"lm_head.weight": table}


class RerankerObjective:
    """A judge trained on batches of candidates."""

    def __init__(self, settings: TrainingSettings, device: torch.device) -> None:
        self.settings = settings
        self.judge = Judge(settings.model, device)
        checkpoint_layers(self.judge.backbone, settings.run)
        if settings.lora is not None:
            self.judge.freeze_head()
            lora.attach(self.judge.backbone, settings.lora, settings.run.seed)
        reranker = settings.reranker
        self.teacher: Judge | None = None
        if reranker.loss == "distillation":
            self.teacher = Judge(Path(reranker.teacher), device)
            self.teacher.backbone.requires_grad_(False)
        self.batches = RerankerBatches(settings.data, reranker.random_negatives, settings.run.seed)
        self.agree: grad_cache.Agree | None = None

    def shard(self) -> None:
        """Each layer's weights in parts, one a process; a teacher stays whole in each."""
        self.agree = split_backbone(self.judge.scorer, self.backbone, self.backbone.device)

    def gather(self, keep: bool) -> None:
        """The whole judge again, on CPU."""
        self.judge.gather(keep, self.settings)

    @property
    def backbone(self) -> Backbone:
        """The decoder."""
        return self.judge.backbone

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The backbone's and the separate head's."""
        return self.judge.parameters

    @property
    def data_hashes(self) -> Mapping[str, str]:
        """Hash of each source's files."""
        return {
            str(source.path): ",".join(file_hash(file) for file in record_files(source.path))
            for source in self.settings.data.sources
        }

    @property
    def data_facts(self) -> Mapping[str, Mapping[str, int]]:
        """Records of each source; pairs are cut when their turn comes."""
        return self.batches.facts()

    def backward(self, step: int, run: RunSettings, ranks: Ranks) -> StepReport:
        """The loss of this rank's queries, in chunks; see :class:`qwen3_embedding.training.objective.Objective`."""
        batch = self.batches.batch(step)
        mine = [batch.queries[row] for row in ranks.share(len(batch.queries))]
        everyone = sum(self._weight(query) for query in batch.queries)
        sequences = self._encode(self.judge, mine)
        present = _present(mine)
        plan = list(_plan_queries(mine, sequences, run.chunk_tokens))

        def encode(packed: PackedBatch) -> Tensor:
            return self.judge.log_odds(packed, run.precision)

        chunks = grad_cache.forward_chunks(
            encode, sequences, grad_cache.Budget(run.chunk_tokens, run.kept_tokens), plan, self.agree
        )
        teacher = self._teacher_scores(mine, plan, run)

        def loss_of(log_odds: Tensor) -> LossReport:
            share = sum(self._weight(query) for query in mine) / everyone
            return LossReport(self._loss(_matrix(log_odds, present), present.to(log_odds.device), teacher) * share)

        report, gradient = grad_cache.vector_gradients(chunks, loss_of)
        saturated = (grad_cache.gather(chunks) > SATURATED).sum()
        loss, certain, pairs = ranks.sum(
            torch.stack([report.loss.detach(), saturated, saturated.new_tensor(len(sequences))])
        ).tolist()
        grad_cache.backward_chunks(encode, chunks, gradient)
        return StepReport(
            group=batch.group,
            loss=loss,
            tokens=sum(chunk.packed.n_tokens for chunk in chunks),
            texts=len(sequences),
            epoch=batch.epoch,
            candidates={"own_negatives": len(sequences) - len(mine)},
            saturated_fraction=certain / max(1, pairs),
        )

    def _weight(self, query: Candidates) -> int:
        """How much of the mean a query is: 1, or its pairs where every pair weighs alike."""
        pairs = self.settings.reranker.loss == "yes_no" and not self.settings.reranker.balanced
        return len(query.documents) if pairs else 1

    def _loss(self, log_odds_QC: Tensor, present_QC: Tensor, teacher_QC: Tensor | None) -> Tensor:
        settings = self.settings.reranker
        if teacher_QC is not None:
            return distillation_loss(log_odds_QC, teacher_QC.to(log_odds_QC.device), present_QC, settings.temperature)
        if settings.loss == "listwise":
            return listwise_loss(log_odds_QC, present_QC)
        return yes_no_loss(log_odds_QC, present_QC, settings.balanced)

    def _teacher_scores(self, queries: list[Candidates], plan: list[list[int]], run: RunSettings) -> Tensor | None:
        if self.teacher is None:
            return None
        teacher = self.teacher
        with torch.no_grad():
            chunks = grad_cache.forward_chunks(
                lambda packed: teacher.log_odds(packed, run.precision),
                self._encode(teacher, queries),
                grad_cache.Budget(run.chunk_tokens, 0),
                plan,
            )
        return _matrix(grad_cache.gather(chunks), _present(queries))

    def _encode(self, judge: Judge, queries: Sequence[Candidates]) -> list[list[int]]:
        """Token ids of all pairs, query by query."""
        limits, tokenizer = self.settings.data, judge.tokenizer
        frame = len(tokenizer.reranker_prefix_ids) + len(tokenizer.reranker_suffix_ids) + 16
        out: list[list[int]] = []
        by_instruction: dict[str | None, list[int]] = {}
        for number, query in enumerate(queries):
            by_instruction.setdefault(query.instruction, []).append(number)
        encoded: dict[int, list[list[int]]] = {}
        for instruction, numbers in by_instruction.items():
            task = len(tokenizer.token_ids([query_prefix(instruction)])[0])
            limit = frame + task + limits.max_query_tokens + limits.max_document_tokens
            questions = _cut(tokenizer, [queries[number].query for number in numbers], limits.max_query_tokens)
            pairs = [
                (question, document)
                for number, question in zip(numbers, questions, strict=True)
                for document in queries[number].documents
            ]
            ids = iter(tokenizer.encode_pairs([q for q, _ in pairs], [d for _, d in pairs], instruction, limit).ids)
            for number in numbers:
                encoded[number] = [next(ids) for _ in queries[number].documents]
        for number in range(len(queries)):
            out += encoded[number]
        return out

    def describe_batch(self, step: int) -> dict[str, Any]:
        """The queries of a batch and their documents."""
        batch = self.batches.batch(step)
        rows = [{"query": q.query, "positive": q.documents[0], "negatives": q.documents[1:]} for q in batch.queries]
        return {"step": step, "group": batch.group, "rows": rows}

    def masked_samples(self, step: int, run: RunSettings, limit: int) -> list[dict[str, Any]]:
        """A reranker's batch masks nothing."""
        return []

    def measure(self, run: RunSettings) -> dict[str, dict[str, float]]:
        """Place of the positive among the candidates of each held-out query."""
        held_out = self.settings.held_out
        self.backbone.eval()
        measured = {}
        for source in held_out.sources if held_out else ():
            records = chosen_records(source, self.settings.run.seed)
            queries = self.batches.candidates(records, source, np.random.default_rng(self.settings.run.seed))
            sequences = self._encode(self.judge, queries)
            chunks = grad_cache.forward_chunks(
                lambda packed: self.judge.log_odds(packed, run.precision),
                sequences,
                grad_cache.Budget(run.chunk_tokens, 0),
                _plan_queries(queries, sequences, run.chunk_tokens),
            )
            present = _present(queries)
            ranks = candidate_ranks(_matrix(grad_cache.gather(chunks), present), present)
            measured[source.path.name.split(".")[0]] = ranking_metrics(ranks)
        self.backbone.train()
        return measured

    def export(self, folder: Path) -> None:
        """Write the trained reranker."""
        s = self.settings
        plain = self.backbone if s.lora is None else lora.merged(self.backbone)
        export_reranker(folder, plain, self.judge.head(), s.model, s.export_dtype, self.judge.tokenizer.end_id)
        if s.lora is not None:
            lora.check_export(folder, self.backbone.eval(), s.model, DTYPES[s.export_dtype])
            lora.write_adapter(folder / "adapter", self.backbone, s.lora, s.model, prefix="model.")


def _cut(tokenizer: Tokenizer, texts: list[str], limit: int) -> list[str]:
    """Texts shortened, by their share of characters, to about ``limit`` tokens where they are longer."""
    sizes = [len(ids) for ids in tokenizer.token_ids(texts)]
    return [
        text if size <= limit else text[: max(1, len(text) * limit // size)]
        for text, size in zip(texts, sizes, strict=True)
    ]


def _present(queries: Sequence[Candidates]) -> Tensor:
    """(Q, C) which candidates there are."""
    counts = torch.tensor([len(query.documents) for query in queries])
    return torch.arange(int(counts.max()))[None, :] < counts[:, None]


def _matrix(log_odds: Tensor, present_QC: Tensor) -> Tensor:
    """The pairs' scores, query by query, as a matrix; 0 where there is no candidate."""
    present = present_QC.to(log_odds.device)
    return log_odds.new_zeros(present.shape).masked_scatter(present, log_odds)


def _plan_queries(
    queries: Sequence[Candidates], sequences: Sequence[Sequence[int]], max_tokens: int
) -> Iterator[list[int]]:
    """Chunks that keep a query's pairs together, so that what they share is computed once."""
    chunk: list[int] = []
    used = first = 0
    for query in queries:
        pairs = range(first, first + len(query.documents))
        first = pairs.stop
        size = _tokens_together([sequences[pair] for pair in pairs])
        if chunk and used + size > max_tokens:
            yield chunk
            chunk, used = [], 0
        chunk += pairs
        used += size
    if chunk:
        yield chunk


def _tokens_together(sequences: Sequence[Sequence[int]]) -> int:
    """Tokens of sequences whose common beginning is there once."""
    shortest = min(len(ids) for ids in sequences)
    first = np.asarray(sequences[0][:shortest])
    common = shortest
    for ids in sequences[1:]:
        different = np.flatnonzero(np.asarray(ids[:common]) != first[:common])
        common = int(different[0]) if different.size else common
    return sum(len(ids) for ids in sequences) - common * (len(sequences) - 1)
