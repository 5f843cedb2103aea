"""A Qwen3 language model that writes: the packed backbone's own weights, sampled token by token."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qwen3_embedding.inputs.tokenizer import Tokenizer
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.decoding import Decoder, language_model_head
from qwen3_embedding.model.weights import load_backbone

BATCH = 32
"""Prompts that are gone on with together."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    max_tokens: int = 1024
    """Of one answer."""
    temperature: float = 0.8
    """0 takes the likeliest token every time."""
    top_p: float = 0.95
    """Choose among the likeliest tokens that together have this probability (Holtzman et al. 2020)."""
    top_k: int = 0
    """… and among at most so many; 0: no limit."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.temperature < 0 or self.top_k < 0:
            raise ValueError(
                f"max_tokens={self.max_tokens}, temperature={self.temperature}, top_k={self.top_k}; wanted at least "
                "1, 0 and 0"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}; wanted more than 0, at most 1")


@dataclass(frozen=True)
class Written:
    """What was written behind one prompt."""

    ids: list[int]
    """Without the end token."""
    truncated: bool
    """It stopped at ``max_tokens``, not at an end token."""


class Generator:
    """A causal language model of the Qwen3 family; a :class:`~qwen3_embedding.types.TextGenerator`.

    The same prompt with the same seed gives the same text, whatever else is in the batch, as far as fp32 sums in
    another order do not tip a choice.
    """

    def __init__(self, name: str, backbone: Backbone, head_VD: Tensor, tokenizer: Tokenizer, chat: bool) -> None:
        self._name, self._backbone, self._head_VD = name, backbone, head_VD
        self.tokenizer, self.chat = tokenizer, chat
        self.end_ids = {tokenizer.end_id, *(tokenizer.control_ids("<|im_end|>") if chat else ())}
        self.sampling = Sampling()

    @classmethod
    def from_folder(
        cls, folder: str | Path, device: str = "cpu", dtype: torch.dtype | None = None, sampling: Sampling | None = None
    ) -> Generator:
        """Load a checkpoint folder. It is asked in Qwen3's chat form if it has a chat template.

        Args:
            folder: with ``config.json``, weights and ``tokenizer.json``.
            device: ``cpu``, ``cuda`` …
            dtype: of the weights; ``None`` is fp32 on CPU and the file's own elsewhere.
            sampling: how tokens are chosen.

        Raises:
            CheckpointError: not a Qwen3 language model.
        """
        folder = Path(folder)
        wanted = dtype or (torch.float32 if device == "cpu" else None)
        backbone, extra = load_backbone(folder, dtype=wanted, device=device)
        head = language_model_head(backbone, extra, folder)
        made = cls(folder.name, backbone, head, Tokenizer.from_folder(folder), _has_chat_template(folder))
        made.sampling = sampling or Sampling()
        return made

    @property
    def name(self) -> str:
        """The folder's name."""
        return self._name

    def generate(self, prompt: str, *, system: str | None = None, seed: int | None = None) -> str:
        """One completion."""
        (written,) = self.write([self.prompt_ids(prompt, system)], [seed])
        return self.tokenizer.decode(written.ids).strip()

    def prompt_ids(self, prompt: str, system: str | None = None) -> list[int]:
        """The ids that are gone on with: Qwen3's chat form with an empty thought, or the bare text."""
        if not self.chat:
            return self.tokenizer.token_ids([f"{system}\n\n{prompt}" if system else prompt])[0]
        control, (asked, told) = self.tokenizer.control_ids, self.tokenizer.token_ids([prompt, system or ""])
        head = [*control("<|im_start|>system\n"), *told, *control("<|im_end|>\n")] if system else []
        return [
            *head,
            *control("<|im_start|>user\n"),
            *asked,
            *control("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        ]

    def write(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int | None], sampling: Sampling | None = None
    ) -> list[Written]:
        """Go on behind each prompt until an end token or ``max_tokens``.

        Args:
            prompts: ids.
            seeds: one a prompt; ``None`` draws anew.
            sampling: in place of the generator's own.

        Returns:
            In the caller's order.
        """
        sampling = sampling or self.sampling
        out: list[Written | None] = [None] * len(prompts)
        by_length = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        for begin in range(0, len(prompts), BATCH):
            numbers = by_length[begin : begin + BATCH]
            batch = self._batch([prompts[n] for n in numbers], [seeds[n] for n in numbers], sampling)
            for number, written in zip(numbers, batch, strict=True):
                out[number] = written
        return [written for written in out if written is not None]

    def _batch(self, prompts: list[Sequence[int]], seeds: list[int | None], sampling: Sampling) -> list[Written]:
        draws = [np.random.default_rng(seed) for seed in seeds]
        made: list[list[int]] = [[] for _ in prompts]
        ended = [False] * len(prompts)
        open_rows = list(range(len(prompts)))
        decoder = Decoder(self._backbone, self._head_VD, prompts, sampling.max_tokens)
        for number in range(sampling.max_tokens):
            ids = choose(decoder.logits_BV, [draws[row] for row in open_rows], sampling)
            going_on = []
            for place, (row, token) in enumerate(zip(open_rows, ids, strict=True)):
                if token in self.end_ids:
                    ended[row] = True
                else:
                    made[row].append(token)
                    going_on.append(place)
            if not going_on or number + 1 == sampling.max_tokens:
                break
            if len(going_on) < len(open_rows):
                decoder.keep(going_on)
                open_rows = [open_rows[place] for place in going_on]
            decoder.step(torch.tensor([ids[place] for place in going_on]))
        return [Written(ids, not end) for ids, end in zip(made, ended, strict=True)]


def choose(logits_BV: Tensor, draws: Sequence[np.random.Generator], sampling: Sampling) -> list[int]:
    """A token for each row: one number is drawn a row, so a row's choice does not depend on its neighbours."""
    if sampling.temperature == 0:
        likeliest: list[int] = logits_BV.argmax(dim=-1).tolist()
        return likeliest
    kept = min(sampling.top_k or logits_BV.shape[1], logits_BV.shape[1])
    top_BK, ids_BK = torch.topk(logits_BV / sampling.temperature, kept, dim=-1)
    summed_BK = top_BK.softmax(-1).double().cumsum(-1).cpu().numpy()
    chosen = []
    for summed_K, ids_K, draw in zip(summed_BK, ids_BK.cpu().numpy(), draws, strict=True):
        nucleus = int(np.searchsorted(summed_K, sampling.top_p)) + 1
        reach = float(summed_K[min(nucleus, kept) - 1])
        chosen.append(int(ids_K[min(int(np.searchsorted(summed_K, draw.random() * reach, side="right")), kept - 1)]))
    return chosen


def _has_chat_template(folder: Path) -> bool:
    config = folder / "tokenizer_config.json"
    if (folder / "chat_template.jinja").is_file():
        return True
    return config.is_file() and bool(json.loads(config.read_text(encoding="utf-8")).get("chat_template"))
