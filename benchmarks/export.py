"""A checkpoint folder in the formats of other engines: ONNX, OpenVINO IR, GGUF. Runs in their environment.

The graph is the plainest there is, which favours the other engines: ids and the place of the last token in, one
hidden state a text out; no attention mask (texts are padded on the right and attention is causal), no key/value cache,
only the wanted rows through the final norm.

    python benchmarks/export.py FOLDER FORMAT OUTPUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

EXAMPLE_TEXTS, EXAMPLE_TOKENS = 2, 8


def plain_decoder(folder: Path) -> Any:
    """The backbone as a small torch module: (ids (B, L), last (B,)) to (B, D)."""
    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file
    from torch import nn

    config = json.loads((folder / "config.json").read_text())
    files = sorted(folder.glob("*.safetensors"))
    state = {name.removeprefix("model."): tensor.float() for file in files for name, tensor in load_file(file).items()}
    heads, shared, size = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    eps = config["rms_norm_eps"]

    def norm(x: Any, weight: Any) -> Any:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight

    def rotate(x: Any, cos: Any, sin: Any) -> Any:
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin

    class Layer(nn.Module):
        def __init__(self, number: int) -> None:
            super().__init__()
            prefix = f"layers.{number}."
            for name in [name for name in state if name.startswith(prefix)]:
                weight = state.pop(name)
                # Matrices as (in, out), so that every product is a plain MatMul with a constant on the right.
                weight = weight.t().contiguous() if weight.ndim == 2 else weight
                self.register_buffer(name.removeprefix(prefix).replace(".", "_").removesuffix("_weight"), weight)

        def forward(self, x: Any, cos: Any, sin: Any) -> Any:
            weights: Any = self
            batch, length, _ = x.shape
            normed = norm(x, weights.input_layernorm)
            query = norm((normed @ weights.self_attn_q_proj).view(batch, length, heads, size), weights.self_attn_q_norm)
            key = norm((normed @ weights.self_attn_k_proj).view(batch, length, shared, size), weights.self_attn_k_norm)
            value = (normed @ weights.self_attn_v_proj).view(batch, length, shared, size).transpose(1, 2)
            query, key = rotate(query.transpose(1, 2), cos, sin), rotate(key.transpose(1, 2), cos, sin)
            key, value = (
                rows[:, :, None]
                .expand(batch, shared, heads // shared, length, size)
                .reshape(batch, heads, length, size)
                for rows in (key, value)
            )
            out = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + out.transpose(1, 2).reshape(batch, length, heads * size) @ weights.self_attn_o_proj
            normed = norm(x, weights.post_attention_layernorm)
            inner = F.silu(normed @ weights.mlp_gate_proj) * (normed @ weights.mlp_up_proj)
            return x + inner @ weights.mlp_down_proj

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", state["embed_tokens.weight"])
            self.register_buffer("norm", state["norm.weight"])
            theta = float(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])
            frequencies = 1.0 / theta ** (torch.arange(0, size, 2).float() / size)
            self.register_buffer("frequencies", torch.cat([frequencies, frequencies]))
            self.layers = nn.ModuleList(Layer(number) for number in range(config["num_hidden_layers"]))

        def forward(self, ids: Any, last: Any) -> Any:
            weights: Any = self
            x = F.embedding(ids, weights.table)
            angles = torch.arange(ids.shape[1]).float()[:, None] * weights.frequencies
            cos, sin = angles.cos(), angles.sin()
            for layer in weights.layers:
                x = layer(x, cos, sin)
            return norm(x[torch.arange(ids.shape[0]), last], weights.norm)

    return Decoder().eval()


def example() -> tuple[Any, Any]:
    import torch

    return torch.ones(EXAMPLE_TEXTS, EXAMPLE_TOKENS, dtype=torch.int64), torch.full((EXAMPLE_TEXTS,), 3)


def to_onnx(folder: Path, output: Path) -> None:
    """``model.onnx`` in float32."""
    import torch
    from torch.export import Dim

    batch, length = Dim("batch", min=1, max=4096), Dim("length", min=2, max=32768)
    with torch.no_grad():
        torch.onnx.export(
            plain_decoder(folder),
            example(),
            str(output / "model.onnx"),
            input_names=["ids", "last"],
            output_names=["hidden"],
            dynamic_shapes={"ids": {0: batch, 1: length}, "last": {0: batch}},
            external_data=True,
            dynamo=True,
            verbose=False,
        )


def to_onnx_int8(folder: Path, output: Path) -> None:
    """``model.onnx`` with dynamically quantised products, weights by output channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    source = folder / "model.onnx"
    quantize_dynamic(
        source,
        output / "model.onnx",
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
        extra_options={"MatMulConstBOnly": True},
    )


def to_openvino(folder: Path, output: Path, int8: bool) -> None:
    """``model.xml`` in float32, or with int8 weights that the CPU plugin multiplies by int8 activations."""
    import openvino
    import torch

    with torch.no_grad():
        model = openvino.convert_model(plain_decoder(folder), example_input=example())
    model.reshape({model.inputs[0]: [-1, -1], model.inputs[1]: [-1]})
    if int8:
        import nncf

        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    openvino.save_model(model, output / "model.xml", compress_to_fp16=False)


GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def to_gguf(folder: Path, output: Path) -> None:
    """``model.gguf`` with Q8_0 matrices."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(output / "model.gguf", "qwen3")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(float(config["rope_theta"]))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_pooling_type(gguf.PoolingType.LAST)
    _gguf_words(writer, json.loads((folder / "tokenizer.json").read_text()), config)
    eight = gguf.GGMLQuantizationType.Q8_0
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            values = tensor.astype("float32")
            plain = _gguf_name(name.removeprefix("model."))
            if values.ndim == 2:
                writer.add_tensor(plain, gguf.quants.quantize(values, eight), raw_dtype=eight)
            else:
                writer.add_tensor(plain, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_name(name: str) -> str:
    if name == "embed_tokens.weight":
        return "token_embd.weight"
    if name == "norm.weight":
        return "output_norm.weight"
    _, number, part = name.removesuffix(".weight").split(".", 2)
    return f"blk.{number}.{GGUF_NAMES[part]}.weight"


def _gguf_words(writer: Any, spec: dict[str, Any], config: dict[str, Any]) -> None:
    import gguf

    names = {number: token for token, number in spec["model"]["vocab"].items()}
    added = {entry["id"]: entry["content"] for entry in spec["added_tokens"]}
    tokens, kinds = [], []
    for number in range(config["vocab_size"]):
        tokens.append(added.get(number) or names.get(number) or f"[PAD{number}]")
        known = gguf.TokenType.CONTROL if number in added else gguf.TokenType.NORMAL
        kinds.append(known if number in added or number in names else gguf.TokenType.UNUSED)
    end = next(number for number, token in added.items() if token == "<|endoftext|>")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = spec["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_eos_token_id(end)
    writer.add_pad_token_id(end)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(True)


FORMATS = {
    "onnx": to_onnx,
    "onnx-int8": to_onnx_int8,
    "openvino": lambda folder, output: to_openvino(folder, output, int8=False),
    "openvino-int8": lambda folder, output: to_openvino(folder, output, int8=True),
    "gguf": to_gguf,
}
FILES = {"onnx": "model.onnx", "onnx-int8": "model.onnx", "openvino": "model.xml", "openvino-int8": "model.xml"}
"""What each format's folder holds once it is whole; ``gguf`` has ``model.gguf``."""


def main() -> None:
    folder, form, output = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    beside = output.with_name(output.name + ".partial")
    beside.mkdir(parents=True, exist_ok=True)
    FORMATS[form](folder, beside)
    beside.rename(output)


if __name__ == "__main__":
    main()
