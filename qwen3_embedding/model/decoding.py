"""One token after the other: the backbone with its language-model head and the keys and values of what came before.

The one place with padding: the sequences of a batch grow together, so their keys stand in one tensor, right-aligned.
Give prompts of like length together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from qwen3_embedding.errors import CheckpointError
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.layers import Layer, Rotation
from qwen3_embedding.model.rope import rotate, rotation


def language_model_head(backbone: Backbone, extra: Mapping[str, Tensor], folder: object) -> Tensor:
    """(V, D) rows that make logits: ``lm_head`` where there is one, else the tied embeddings.

    Raises:
        CheckpointError: the head is said to be separate and is missing, or is a sequence-classification head.
    """
    if "lm_head.weight" in extra:
        return extra["lm_head.weight"]
    if "score.weight" in extra or not backbone.config.tie_word_embeddings:
        raise CheckpointError(f"{folder}: has neither lm_head.weight nor tied embeddings; this is no language model")
    return backbone.embed_tokens.weight


class Decoder:
    """A batch of B sequences in generation.

    Args:
        backbone: without gradients.
        head_VD: of :func:`language_model_head`.
        prompts: B non-empty sequences of ids.
        room: so many tokens may follow.

    Attributes:
        logits_BV: fp32 logits of each sequence's next token.
    """

    def __init__(self, backbone: Backbone, head_VD: Tensor, prompts: Sequence[Sequence[int]], room: int) -> None:
        if not prompts or not all(prompts):
            raise ValueError("wanted at least one prompt and no empty one")
        self._backbone, self._head_VD = backbone, head_VD
        device, config = backbone.device, backbone.config
        longest = max(map(len, prompts))
        ids_BT = torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids_BT[row, longest - len(prompt) :] = torch.tensor(list(prompt))
        self._padding_B = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
        shape = (len(prompts), config.num_key_value_heads, longest + room, config.head_dim)
        self._keys = [torch.zeros(shape, dtype=backbone.dtype, device=device) for _ in backbone.layers]
        self._values = [torch.zeros(shape, dtype=backbone.dtype, device=device) for _ in backbone.layers]
        self._length = 0
        self.logits_BV = self._forward(ids_BT.to(device))

    def step(self, ids_B: Tensor) -> None:
        """Take each sequence's next token; ``logits_BV`` are then those of the one behind it."""
        self.logits_BV = self._forward(ids_B.to(self._backbone.device)[:, None])

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these sequences only."""
        index = torch.tensor(list(rows), dtype=torch.long, device=self._backbone.device)
        self._padding_B = self._padding_B[index]
        self._keys = [keys[index] for keys in self._keys]
        self._values = [values[index] for values in self._values]
        self.logits_BV = self.logits_BV[index]

    @torch.inference_mode()
    def _forward(self, ids_BT: Tensor) -> Tensor:
        backbone, config = self._backbone, self._backbone.config
        begin, end = self._length, self._length + ids_BT.shape[1]
        if end > self._keys[0].shape[2]:
            raise ValueError(f"the sequences have {end} tokens and room for {self._keys[0].shape[2]}")
        place_S = torch.arange(end, device=ids_BT.device)
        positions_BT = (place_S[None, begin:] - self._padding_B[:, None]).clamp_(min=0)
        angles = rotation(positions_BT.flatten(), config.head_dim, config.rope_theta, backbone.dtype)
        asking_T1 = place_S[begin:, None]
        # A padding row looks at itself, so that no softmax is over nothing; nobody looks at it.
        mask_BTS = (place_S <= asking_T1) & (place_S >= self._padding_B[:, None, None]) | (place_S == asking_T1)
        hidden_BTD = backbone.embed_tokens(ids_BT)
        for number, layer in enumerate(backbone.layers):
            assert isinstance(layer, Layer)
            hidden_BTD = self._layer(layer, number, hidden_BTD, angles, mask_BTS)
        self._length = end
        last_BD = backbone.norm(hidden_BTD[:, -1])
        return F.linear(last_BD, self._head_VD.to(last_BD.dtype)).float()

    def _layer(self, layer: Layer, number: int, hidden_BTD: Tensor, angles: Rotation, mask_BTS: Tensor) -> Tensor:
        attention, (size, length, _) = layer.self_attn, hidden_BTD.shape
        normed = layer.input_layernorm(hidden_BTD).flatten(0, 1)
        query, key, value = (
            rows.reshape(size * length, -1, attention.head_dim) for rows in attention.project(normed, None)
        )
        query = rotate(attention.q_norm(query), *angles)
        key = rotate(attention.k_norm(key), *angles)
        query, key, value = (
            rows.reshape(size, length, *rows.shape[1:]).transpose(1, 2) for rows in (query, key, value)
        )
        keys, values = self._keys[number], self._values[number]
        keys[:, :, self._length : self._length + length] = key
        values[:, :, self._length : self._length + length] = value
        seen = mask_BTS.shape[-1]
        out = F.scaled_dot_product_attention(
            query,
            keys[:, :, :seen],
            values[:, :, :seen],
            attn_mask=mask_BTS[:, None],
            enable_gqa=query.shape[1] != keys.shape[1],
        )
        hidden_BTD = hidden_BTD + attention.o_proj(out.transpose(1, 2).flatten(2))
        added: Tensor = layer.mlp(layer.post_attention_layernorm(hidden_BTD))
        return hidden_BTD + added
