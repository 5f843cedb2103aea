"""A causal language model in this process, through transformers: slow, and needs no server."""

from __future__ import annotations

from typing import Any

from qwen3_embedding.optional import require


class LocalGenerator:
    """A :class:`~qwen3_embedding.types.TextGenerator`; the same seed gives the same text on the same machine.

    Args:
        source: a checkpoint folder or hub id with a tokenizer.
        device: ``cpu``, ``cuda``, ``cuda:1`` …
        max_tokens: of one answer.
        temperature: 0 takes the likeliest token every time.
        top_p: nucleus sampling.

    Raises:
        MissingExtraError: transformers is not installed.
    """

    def __init__(
        self, source: str, device: str = "cpu", max_tokens: int = 1024, temperature: float = 0.8, top_p: float = 0.95
    ) -> None:
        transformers = require("transformers", extra="train")
        self._torch = require("torch", extra="train")
        self._set_seed = transformers.set_seed
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(source).to(device).eval()
        self._source = source
        sampling: dict[str, Any] = {"temperature": temperature, "top_p": top_p} if temperature else {}
        self._options = {"max_new_tokens": max_tokens, "do_sample": temperature > 0, **sampling}

    @property
    def name(self) -> str:
        """The source."""
        return self._source

    def generate(self, prompt: str, *, system: str | None = None, seed: int | None = None) -> str:
        """One completion, through the tokenizer's chat template where it has one."""
        if seed is not None:
            self._set_seed(seed)
        batch = self._tokenizer(self._rendered(prompt, system), return_tensors="pt").to(self._model.device)
        with self._torch.inference_mode():
            made = self._model.generate(**batch, **self._options, pad_token_id=self._tokenizer.pad_token_id)
        text: str = self._tokenizer.decode(made[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        return text

    def _rendered(self, prompt: str, system: str | None) -> str:
        if self._tokenizer.chat_template is None:
            return f"{system}\n\n{prompt}" if system else prompt
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        text: str = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return text
