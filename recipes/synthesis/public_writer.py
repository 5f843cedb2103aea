"""A public causal language model as the query writer, in place of our own small one.

Any that ``transformers`` loads without code of its own (SmolLM2, Qwen3 …).  It learns the lessons by low-rank adapters
(LoRA, ``peft``), in the trainer of this package, and they are merged into it.  It reads what our own writer reads, a
passage of whole sentences and a separator; what it writes ends with its own end token.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from qwen3_embedding.data.files import file_hash, read_records
from qwen3_embedding.errors import ConfigError, DataError
from qwen3_embedding.inference.generator import Sampling, Written
from qwen3_embedding.training.config import LoraSettings, RunSettings, TrainingSettings
from qwen3_embedding.training.distributed import Ranks
from qwen3_embedding.training.objective import StepReport

_NOT_LEARNT = -100


class PublicTokens:
    """A public model's tokenizer as the recipe's other parts ask for it."""

    def __init__(self, folder: Path) -> None:
        self.hf = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
        if self.hf.pad_token is None:
            self.hf.pad_token = self.hf.eos_token

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, no special ones."""
        found: list[list[int]] = self.hf(list(texts), add_special_tokens=False)["input_ids"] if texts else []
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special ones."""
        text: str = self.hf.decode(list(ids), skip_special_tokens=True)
        return text


class PublicObjective:
    """The adapters of a public model, trained on the query behind its passage.

    A batch is a function of (seed, step): its source is drawn by the sources' weights, its records without replacement.
    """

    def __init__(self, settings: TrainingSettings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        lora = settings.lora or LoraSettings()
        self.tokens = PublicTokens(settings.model)
        plain = transformers.AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32)
        adapters = peft.LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=list(lora.targets),
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng():
            torch.manual_seed(settings.run.seed)
            try:
                self.model = peft.get_peft_model(plain, adapters).to(device)
            except ValueError as error:  # another family may call its layers otherwise
                raise ConfigError(
                    f"{settings.model}: {error}; name its linear layers in public_writer.toml, [lora] targets"
                ) from None
        self.sources = [[(r.positives[0], r.query) for r in read_records(s.path)] for s in settings.data.sources]
        if empty := [str(s.path) for s, found in zip(settings.data.sources, self.sources, strict=True) if not found]:
            raise DataError(f"{', '.join(empty)}: no records; wanted pairs of passage and query")

    @cached_property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The adapters."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    @property
    def data_hashes(self) -> Mapping[str, str]:
        """Hash of each file."""
        return {str(source.path): file_hash(source.path) for source in self.settings.data.sources}

    @property
    def data_facts(self) -> Mapping[str, Mapping[str, int]]:
        """Records of each file."""
        paths = (str(source.path) for source in self.settings.data.sources)
        return {path: {"records": len(found)} for path, found in zip(paths, self.sources, strict=True)}

    def shard(self) -> None:
        """Each process holds the model.

        Raises:
            ValueError: always.
        """
        raise ValueError("run.shard is not there for a public writer; remove it, each process holds the model")

    def gather(self, keep: bool) -> None:
        """Nothing was split."""

    def batch(self, step: int) -> list[tuple[str, str]]:
        """Passages and queries of a step."""
        rng = np.random.default_rng([self.settings.run.seed, step])
        weights = np.array([source.weight for source in self.settings.data.sources], dtype=float)
        found = self.sources[rng.choice(len(self.sources), p=weights / weights.sum())]
        return [found[n] for n in rng.permutation(len(found))[: self.settings.data.batch_size]]

    def example(self, passage: str, query: str) -> tuple[list[int], list[int]]:
        """What is given and what is learnt, with the end token."""
        data = self.settings.data
        given, separator, learnt = self.tokens.token_ids(
            [passage, self.settings.language_model.separator, " " + query.strip()]
        )
        given = [*given[: data.max_document_tokens], *separator]
        return given, [*learnt[: data.max_query_tokens], self.tokens.hf.eos_token_id]

    def backward(self, step: int, run: RunSettings, ranks: Ranks) -> StepReport:
        """Cross-entropy of the learnt tokens; its mean is over those of the whole batch."""
        batch = [self.example(*pair) for pair in self.batch(step)]
        mine = [batch[row] for row in ranks.share(len(batch))]
        loss = torch.zeros(())
        if mine:
            ids_NT, mask_NT, targets_NT = (part.to(self.device) for part in _padded(mine, self.tokens.hf.pad_token_id))
            logits_NTV = self.model(input_ids=ids_NT, attention_mask=mask_NT).logits
            total = F.cross_entropy(
                logits_NTV[:, :-1].flatten(0, 1).float(), targets_NT[:, 1:].flatten(),
                ignore_index=_NOT_LEARNT, reduction="sum",
            )  # fmt: skip
            share = total / sum(len(learnt) for _, learnt in batch)
            share.backward()  # type: ignore[no-untyped-call]
            loss = share.detach()
        return StepReport(
            group="queries",
            loss=float(ranks.sum(loss.to(self.device))),
            tokens=sum(len(given) + len(learnt) for given, learnt in mine),
            texts=len(mine),
        )

    def describe_batch(self, step: int) -> dict[str, Any]:
        """What is given and what is learnt."""
        return {"step": step, "rows": [{"given": passage, "learnt": query} for passage, query in self.batch(step)]}

    def masked_samples(self, step: int, run: RunSettings, limit: int) -> list[dict[str, Any]]:
        """A language model's batch masks nothing."""
        return []

    def measure(self, run: RunSettings) -> dict[str, dict[str, float]]:
        """Nothing is held out."""
        return {}

    def export(self, folder: Path) -> None:
        """Write the model with its adapters merged, its tokenizer and its licence."""
        self.model.merge_and_unload().save_pretrained(folder)
        self.tokens.hf.save_pretrained(folder)
        for name in ("LICENSE", "NOTICE"):
            if (self.settings.model / name).is_file():
                shutil.copyfile(self.settings.model / name, folder / name)


def _padded(examples: Sequence[tuple[list[int], list[int]]], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """(N, T) ids, mask and targets, filled up on the right."""
    longest = max(len(given) + len(learnt) for given, learnt in examples)
    ids_NT = torch.full((len(examples), longest), pad_id)
    targets_NT = torch.full((len(examples), longest), _NOT_LEARNT)
    mask_NT = torch.zeros((len(examples), longest), dtype=torch.long)
    for row, (given, learnt) in enumerate(examples):
        end = len(given) + len(learnt)
        ids_NT[row, :end] = torch.tensor([*given, *learnt])
        targets_NT[row, len(given) : end] = torch.tensor(learnt)
        mask_NT[row, :end] = 1
    return ids_NT, mask_NT, targets_NT


class PublicGenerator:
    """Writes behind prompts as :class:`qwen3_embedding.inference.generator.Generator` does, with any causal model.

    The same prompt with the same seed gives the same text, whatever else is in the batch, as far as sums in another
    order do not tip a choice: every row draws from a generator of its own.
    """

    batch = 64
    """Prompts that are gone on with together."""

    def __init__(self, folder: Path, sampling: Sampling) -> None:
        self.name, self.sampling, self.tokenizer = folder.name, sampling, PublicTokens(folder)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def write(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int | None]) -> list[Written]:
        """Go on behind each prompt until the end token or ``sampling.max_tokens``."""
        hf = self.tokenizer.hf
        batch = hf.pad({"input_ids": [list(prompt) for prompt in prompts]}, return_tensors="pt")
        with torch.inference_mode():
            made = self._model.generate(
                **batch,
                max_new_tokens=self.sampling.max_tokens,
                do_sample=False,
                logits_processor=self._choosing(seeds),
                pad_token_id=hf.pad_token_id,
                eos_token_id=hf.eos_token_id,
            )
        rows = made[:, batch["input_ids"].shape[1] :].tolist()
        ends = [row.index(hf.eos_token_id) if hf.eos_token_id in row else len(row) for row in rows]
        return [Written(row[:end], end == len(row)) for row, end in zip(rows, ends, strict=True)]

    def _choosing(self, seeds: Sequence[int | None]) -> transformers.LogitsProcessorList:
        """Temperature, top-k and top-p, then the noise that makes the largest a draw."""
        s = self.sampling
        if not s.temperature:
            return transformers.LogitsProcessorList()
        wanted: list[Any] = [transformers.TemperatureLogitsWarper(s.temperature)]
        wanted += [transformers.TopKLogitsWarper(s.top_k)] if s.top_k else []
        wanted += [transformers.TopPLogitsWarper(s.top_p)] if s.top_p < 1 else []
        return transformers.LogitsProcessorList([*wanted, _Gumbel(seeds)])


class _Gumbel(transformers.LogitsProcessor):  # type: ignore[misc]
    """Gumbel noise, each row's from its own seed (Gumbel 1954): the largest sum is a draw from the softmax."""

    def __init__(self, seeds: Sequence[int | None]) -> None:
        self._draws = [torch.Generator() for _ in seeds]
        for draw, seed in zip(self._draws, seeds, strict=True):
            if seed is None:
                draw.seed()
            else:
                draw.manual_seed(seed)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = torch.stack([torch.empty(scores.shape[1]).exponential_(generator=draw) for draw in self._draws])
        return scores - noise.log().to(scores)
