"""Write a GGUF file of GPT-2's graph with any sizes, random weights and a vocabulary of made-up words.

    python gguf_file.py OUT.gguf '{"kind": "Q8_0", "num_layers": 48, "hidden_size": 1536, "num_heads": 24, …}'

Runs in llama.cpp's environment (packages gguf, numpy). Every matrix, the embeddings' included, is of that kind; norms
and biases are float32, as in the files that llama.cpp's own tools make.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np

KEYS = ("kind", "num_layers", "hidden_size", "num_heads", "inner", "positions", "vocab_size")


def shapes(
    num_layers: int, hidden_size: int, inner: int, positions: int, vocab_size: int
) -> dict[str, tuple[int, ...]]:
    """Give every tensor's shape, [out, in] for a matrix; the output is the embeddings', as GPT2_ML's."""
    found: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocab_size, hidden_size),
        "position_embd.weight": (positions, hidden_size),
    }
    for layer in range(num_layers):
        for name, out, into in (
            ("attn_qkv", 3 * hidden_size, hidden_size),
            ("attn_output", hidden_size, hidden_size),
            ("ffn_up", inner, hidden_size),
            ("ffn_down", hidden_size, inner),
        ):
            found[f"blk.{layer}.{name}.weight"] = (out, into)
            found[f"blk.{layer}.{name}.bias"] = (out,)
        for name in ("attn_norm", "ffn_norm"):
            found[f"blk.{layer}.{name}.weight"] = found[f"blk.{layer}.{name}.bias"] = (hidden_size,)
    found["output_norm.weight"] = found["output_norm.bias"] = (hidden_size,)
    return found


def write(
    path: Path,
    *,
    kind: str,
    num_layers: int,
    hidden_size: int,
    num_heads: int,
    inner: int,
    positions: int,
    vocab_size: int,
) -> None:
    """Write the file beside and rename it."""
    quantised = gguf.GGMLQuantizationType[kind]
    partial = path.with_suffix(".partial")
    out = gguf.GGUFWriter(partial, "gpt2")
    out.add_name(f"random GPT-2 of {num_layers} layers of {hidden_size}")
    out.add_context_length(positions)
    out.add_embedding_length(hidden_size)
    out.add_feed_forward_length(inner)
    out.add_block_count(num_layers)
    out.add_head_count(num_heads)
    out.add_layer_norm_eps(1e-5)
    out.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = letters + [f"{first}{second}" for first in letters for second in letters]
    words += [f"word{number}" for number in range(vocab_size - len(words) - 1)]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list([*words[: vocab_size - 1], "<|endoftext|>"])
    out.add_token_types([gguf.TokenType.NORMAL] * (vocab_size - 1) + [gguf.TokenType.CONTROL])
    out.add_token_merges([f"{first} {second}" for first in letters for second in letters])
    out.add_bos_token_id(vocab_size - 1)
    out.add_eos_token_id(vocab_size - 1)
    random = np.random.default_rng(0)
    kinds = {
        name: gguf.GGMLQuantizationType.F32 for name in shapes(num_layers, hidden_size, inner, positions, vocab_size)
    }
    every = shapes(num_layers, hidden_size, inner, positions, vocab_size)
    for name, shape in every.items():
        if len(shape) == 2 and name != "position_embd.weight":
            kinds[name] = quantised
        stored = gguf.quants.quant_shape_to_byte_shape(shape, kinds[name]) if kinds[name] == quantised else shape
        dtype = np.dtype(np.uint8 if kinds[name] == quantised else np.float32)
        out.add_tensor_info(name, stored, dtype, dtype.itemsize * int(np.prod(stored)), kinds[name])
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_ti_data_to_file()
    for name, shape in every.items():
        value = random.standard_normal(shape, np.float32) * 0.02 + (1.0 if name.endswith("norm.weight") else 0.0)
        out.write_tensor_data(gguf.quants.quantize(value.astype(np.float32), kinds[name]))
    out.close()
    partial.replace(path)


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    write(Path(sys.argv[1]), **{key: given[key] for key in KEYS})
