"""What a Qwen3 backbone is: the numbers of ``config.json``, read strictly."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3_embedding.errors import CheckpointError


@dataclass(frozen=True)
class BackboneConfig:
    """Shape of a dense Qwen3 model. Field names are those of ``config.json``."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int = 128
    max_position_embeddings: int = 32768
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    dtype: str = "float32"
    """The type the weights are stored in: ``float32``, ``bfloat16`` or ``float16``."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; wanted at least 1")
        if self.num_key_value_heads < 1 or self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is no multiple of num_key_value_heads="
                f"{self.num_key_value_heads}"
            )
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim}; wanted an even number")

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer (the formula of the published totals: 595,776,512 for the 0.6B embedder)."""
        attention = self.hidden_size * self.head_dim * (2 * self.num_attention_heads + 2 * self.num_key_value_heads)
        return attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size + 2 * self.head_dim

    @property
    def parameters(self) -> int:
        """Parameters of the backbone: embeddings, layers, final norm; no separate head."""
        table = self.vocab_size * self.hidden_size
        return self.num_hidden_layers * self.layer_parameters + table + self.hidden_size


def read_config(folder: str | Path) -> BackboneConfig:
    """Read ``config.json`` of a checkpoint folder.

    Raises:
        CheckpointError: no such file, not JSON, another architecture, or a feature this backbone does not have.
    """
    path = Path(folder) / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no such file; wanted a checkpoint folder with config.json, tokenizer.json and model.safetensors"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: got {type(raw).__name__}, wanted an object")
    return _parse_config(raw, path)


def _parse_config(raw: dict[str, Any], path: Path) -> BackboneConfig:
    if raw.get("model_type") != "qwen3":
        raise CheckpointError(f"{path}: model_type is {raw.get('model_type')!r}; this project runs 'qwen3' models")
    rope = raw.get("rope_parameters") or {}  # transformers 5 writes the rope settings here
    scaling = raw.get("rope_scaling") or ({} if rope.get("rope_type", "default") == "default" else rope)
    refused = {
        "attention_bias": raw.get("attention_bias"),
        "rope_scaling": scaling or None,
        "use_sliding_window": raw.get("use_sliding_window"),
    }
    for name, value in refused.items():
        if value:
            raise CheckpointError(f"{path}: {name}={value!r} is not supported; the Qwen3 embedding family has none")
    if raw.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"{path}: hidden_act={raw['hidden_act']!r}; wanted 'silu'")
    try:
        return BackboneConfig(
            vocab_size=int(raw["vocab_size"]),
            hidden_size=int(raw["hidden_size"]),
            intermediate_size=int(raw["intermediate_size"]),
            num_hidden_layers=int(raw["num_hidden_layers"]),
            num_attention_heads=int(raw["num_attention_heads"]),
            num_key_value_heads=int(raw["num_key_value_heads"]),
            head_dim=int(raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"]),
            max_position_embeddings=int(raw.get("max_position_embeddings", 32768)),
            rope_theta=float(raw.get("rope_theta") or rope.get("rope_theta") or 1_000_000.0),
            rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", True)),
            initializer_range=float(raw.get("initializer_range", 0.02)),
            dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch."),
        )
    except KeyError as error:
        raise CheckpointError(f"{path}: the key {error} is missing") from None
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def config_json(config: BackboneConfig, end_token_id: int) -> dict[str, Any]:
    """``config.json`` of a folder that transformers, sentence-transformers, TEI and vLLM load."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": end_token_id,
        "eos_token_id": end_token_id,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": config.initializer_range,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "max_window_layers": config.num_hidden_layers,
        "model_type": "qwen3",
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": config.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": config.dtype,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": config.vocab_size,
    }
