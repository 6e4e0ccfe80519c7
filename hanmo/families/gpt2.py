"""GPT-2: pre-norm and a norm at the end; gelu by tanh, eps 1e-5 (openai/gpt-2, TsinghuaAI/CPM-Generate).

Two layouts in TensorFlow: "gpt2" as CPM was converted, BERT-like; "gpt2_openai" as OpenAI published, with kernels
[1, in, out].
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from hanmo.config import ModelConfig, StackConfig
from hanmo.errors import ConfigError
from hanmo.families.family import (
    PRE_NORM,
    Config,
    Family,
    Names,
    Row,
    Sizes,
    activation,
    blocks,
    dense,
    norm,
    query_key_value,
    read,
    row,
    torch_pair,
    transformer,
    write_transformer,
)

__all__ = ["CAUSAL_MASK", "GPT2", "GPT2_OPENAI", "conv1d_layer", "gpt_sizes", "hparams", "original_hparams"]

_FIXED: dict[str, Any] = {
    "mask": "causal",
    "order": PRE_NORM,
    "segments": 0,
    "embedding_norm": False,
    "final_norm": True,
    "norm_eps": 1e-5,
}

CAUSAL_MASK = {r"^(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)$": "the causal mask"}

# What Hugging Face's GPT-2 can be told beyond OpenAI's.
_PLAIN = {"scale_attn_by_inverse_layer_idx": False, "scale_attn_weights": True, "add_cross_attention": False}


def _config(data: Config) -> ModelConfig:
    stack = transformer(data, gelu="gelu_tanh", **_FIXED)
    return ModelConfig(family="gpt2", vocab_size=read(data, "vocab_size", int), decoder=stack, output="lm")


def _rows(config: ModelConfig) -> list[Row]:
    rows = [
        row("token.weight", "gpt/embeddings/word_embeddings"),
        row("decoder.embedding.position.weight", "gpt/embeddings/position_embeddings"),
        *norm("decoder.norm", "gpt/output/LayerNorm"),
    ]
    for i in range(config.main.num_layers):
        ours, theirs = f"decoder.blocks.{i}", f"gpt/transformer/layer_{i}"
        rows += [
            *norm(f"{ours}.attention_pre", f"{theirs}/attention/input/LayerNorm"),
            *query_key_value(dense, f"{ours}.attention", f"{theirs}/attention/self/{{}}"),
            *dense(f"{ours}.attention.output", f"{theirs}/attention/output/dense"),
            *norm(f"{ours}.feed_forward_pre", f"{theirs}/input/LayerNorm"),
            *dense(f"{ours}.feed_forward.input", f"{theirs}/intermediate/dense"),
            *dense(f"{ours}.feed_forward.output", f"{theirs}/output/dense"),
        ]
    return rows


def gpt_sizes(segment: str = "") -> Sizes:
    """Tell sizes by the names that bert4keras's conversions of GPT and CPM have."""
    return Sizes(
        token="gpt/embeddings/word_embeddings",
        position="gpt/embeddings/position_embeddings",
        segment=segment,
        layer="gpt/transformer/layer_{}/",
        query="gpt/transformer/layer_0/attention/self/query/kernel",
        feed_forward="gpt/transformer/layer_0/intermediate/dense/kernel",
    )


def hparams(data: Config, *, family: str, **fixed: Any) -> ModelConfig:
    """Read hparams.json (n_embd …), which Hugging Face's config.json of a GPT or GPT-2 holds too.

    fixed: fields of StackConfig that the family fixes.
    """
    hidden_size, heads = read(data, "n_embd", int), read(data, "n_head", int)
    if heads < 1 or hidden_size % heads:
        raise ConfigError(
            f"n_embd is {hidden_size}, n_head is {heads} in config.json; expected heads that divide the hidden_size"
        )
    for key, value in _PLAIN.items():
        if data.get(key, value) != value:
            raise ConfigError(f"{key} is {data[key]!r} in config.json; Hanmo reads GPT-2 with {value}")
    eps = float(data.get("layer_norm_epsilon", 1e-5))
    stack = StackConfig(
        num_layers=read(data, "n_layer", int),
        hidden_size=hidden_size,
        num_heads=heads,
        head_dim=hidden_size // heads,
        key_dim=hidden_size // heads,
        feed_forward=data.get("n_inner") or 4 * hidden_size,
        positions=data.get("n_positions") or read(data, "n_ctx", int),
        embedding_size=hidden_size,
        dropout=float(data.get("resid_pdrop", 0.0)),
        attention_dropout=float(data.get("attn_pdrop", 0.0)),
        **fixed | {"norm_eps": eps},
    )
    vocab = data.get("vocab_size") or read(data, "n_vocab", int)
    return ModelConfig(
        family=family,
        vocab_size=vocab,
        decoder=stack,
        output="lm",
        tied=data.get("tie_word_embeddings", True),
        initializer=float(data.get("initializer_range", 0.02)),
    )


def _openai_config(data: Config, *, family: str) -> ModelConfig:
    act = activation({"activation_function": "gelu_new"} | dict(data), "gelu_erf", "activation_function")
    return hparams(data, family=family, activation=act, **_FIXED)


def _openai_original(config: ModelConfig) -> dict[str, Any]:
    stack = config.main
    return {
        "n_vocab": config.vocab_size,
        "n_ctx": stack.positions,
        "n_embd": stack.hidden_size,
        "n_head": stack.num_heads,
        "n_layer": stack.num_layers,
    }


def _huggingface_original(config: ModelConfig) -> dict[str, Any]:
    act = config.main.activation
    return original_hparams(config, "gpt2", "GPT2LMHeadModel") | {
        "n_inner": config.main.feed_forward,
        "activation_function": {"gelu_tanh": "gelu_new", "gelu_erf": "gelu"}.get(act, act),
    }


def original_hparams(config: ModelConfig, model_type: str, architecture: str) -> dict[str, Any]:
    """Write what `hparams` reads, as Hugging Face's config.json of a GPT or GPT-2 does."""
    stack = config.main
    data = _openai_original(config)
    return {
        "model_type": model_type,
        "architectures": [architecture],
        "vocab_size": data.pop("n_vocab"),
        "n_positions": stack.positions,
        **data,
        "layer_norm_epsilon": stack.norm_eps,
        "resid_pdrop": stack.dropout,
        "embd_pdrop": stack.dropout,
        "attn_pdrop": stack.attention_dropout,
        "initializer_range": config.initializer,
        "tie_word_embeddings": config.tied,
    }


def _openai_rows(config: ModelConfig) -> list[Row]:
    rows = [row("token.weight", "model/wte"), row("decoder.embedding.position.weight", "model/wpe")]
    rows += [row("decoder.norm.weight", "model/ln_f/g"), row("decoder.norm.bias", "model/ln_f/b")]
    for i in range(config.main.num_layers):
        ours, theirs = f"decoder.blocks.{i}", f"model/h{i}"
        rows += _fused(f"{ours}.attention", f"{theirs}/attn/c_attn", "/w", "/b", "split_convolution")
        for name, other in (
            ("attention.output", "attn/c_proj"),
            ("feed_forward.input", "mlp/c_fc"),
            ("feed_forward.output", "mlp/c_proj"),
        ):
            rows += [
                row(f"{ours}.{name}.weight", f"{theirs}/{other}/w", "convolution"),
                row(f"{ours}.{name}.bias", f"{theirs}/{other}/b"),
            ]
        for name, other in (("attention_pre", "ln_1"), ("feed_forward_pre", "ln_2")):
            rows += [
                row(f"{ours}.{name}.weight", f"{theirs}/{other}/g"),
                row(f"{ours}.{name}.bias", f"{theirs}/{other}/b"),
            ]
    return rows


def _fused(ours: str, theirs: str, weight: str, bias: str, how: str) -> list[Row]:
    names = ("query", "key", "value")
    return [
        Row(tuple(f"{ours}.{name}.weight" for name in names), theirs + weight, how),
        Row(tuple(f"{ours}.{name}.bias" for name in names), theirs + bias, "split"),
    ]


def _huggingface_rows(config: ModelConfig) -> list[Row]:
    rows = [
        row("token.weight", "transformer.wte.weight"),
        row("decoder.embedding.position.weight", "transformer.wpe.weight"),
        *torch_pair("decoder.norm", "transformer.ln_f"),
    ]
    if not config.tied:
        rows.append(row("output.weight", "lm_head.weight"))
    return rows + blocks(config, conv1d_layer("attention_pre", "feed_forward_pre"), "transformer.h.{}")


def conv1d_layer(ln_1: str, ln_2: str) -> Callable[[str, str], list[Row]]:
    """Make the rows of a block with Hugging Face's Conv1D; ln_1, ln_2: which of our norms stand under these names."""

    def layer(ours: str, theirs: str) -> list[Row]:
        return [
            *_fused(f"{ours}.attention", f"{theirs}.attn.c_attn", ".weight", ".bias", "split_transpose"),
            *torch_pair(f"{ours}.attention.output", f"{theirs}.attn.c_proj", "transpose"),
            *torch_pair(f"{ours}.feed_forward.input", f"{theirs}.mlp.c_fc", "transpose"),
            *torch_pair(f"{ours}.feed_forward.output", f"{theirs}.mlp.c_proj", "transpose"),
            *torch_pair(f"{ours}.{ln_1}", f"{theirs}.ln_1"),
            *torch_pair(f"{ours}.{ln_2}", f"{theirs}.ln_2"),
        ]

    return layer


GPT2 = Family(
    "gpt2",
    tensorflow=Names(
        config=_config,
        original=lambda config: write_transformer(config, gelu="gelu_tanh"),
        rows=_rows,
        sizes=gpt_sizes(),
        marks=("gpt/output/LayerNorm/gamma",),
    ),
    huggingface=Names(
        config=partial(_openai_config, family="gpt2"),
        original=_huggingface_original,
        rows=_huggingface_rows,
        sizes=Sizes(
            token="transformer.wte.weight",
            position="transformer.wpe.weight",
            layer="transformer.h.{}.",
            query="transformer.h.0.attn.c_proj.weight",
            feed_forward="transformer.h.0.mlp.c_fc.weight",
        ),
        repeats={"lm_head.weight": "transformer.wte.weight"},
        dropped=CAUSAL_MASK | {r"^lm_head\.weight$": "the same tensor as the embedding"},
        absent=("transformer.emb_norm.weight",),
        model_type="gpt2",
        style="gpt2",
        prefix="transformer.",
    ),
)
GPT2_OPENAI = Family(
    "gpt2_openai",
    tensorflow=Names(
        config=partial(_openai_config, family="gpt2_openai"),
        original=_openai_original,
        style="gpt2",
        rows=_openai_rows,
        sizes=Sizes(
            token="model/wte",
            position="model/wpe",
            layer="model/h{}/",
            query="model/h0/attn/c_proj/w",
            feed_forward="model/h0/mlp/c_fc/w",
        ),
    ),
    writes_as="gpt2",
)
