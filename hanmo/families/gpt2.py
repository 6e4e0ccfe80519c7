"""GPT-2: pre-norm and a norm at the end; gelu by tanh, eps 1e-5 (openai/gpt-2, TsinghuaAI/CPM-Generate).

Two layouts in TensorFlow: "gpt2" as CPM was converted, BERT-like; "gpt2_openai" as OpenAI published, with kernels
[1, in, out].
"""

from functools import partial
from typing import Any

from hanmo.config import ModelConfig, StackConfig
from hanmo.errors import ConfigError
from hanmo.families.family import (
    PRE_NORM,
    Config,
    Family,
    Names,
    Pair,
    Row,
    Sizes,
    activation,
    blocks,
    google,
    layers,
    pair,
    read,
    row,
    torch_pair,
    transformer,
    write_transformer,
)

__all__ = [
    "CAUSAL_MASK",
    "GPT2",
    "GPT2_OPENAI",
    "conv1d_block",
    "gpt_sizes",
    "hparams",
    "original_hparams",
    "transformer_sizes",
]

_FIXED: dict[str, Any] = {
    "mask": "causal",
    "order": PRE_NORM,
    "segments": 0,
    "embedding_norm": False,
    "final_norm": True,
    "norm_eps": 1e-5,
}

CAUSAL_MASK = {r"^(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)$": "the causal mask"}

# Options of Hugging Face's GPT-2 that OpenAI's does not have.
_PLAIN = {"scale_attn_by_inverse_layer_idx": False, "scale_attn_weights": True, "add_cross_attention": False}

_BLOCK = {
    "attention_pre": "attention.input.LayerNorm",
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "feed_forward_pre": "input.LayerNorm",
    "feed_forward.input": "intermediate.dense",
    "feed_forward.output": "output.dense",
}


def _config(data: Config) -> ModelConfig:
    stack = transformer(data, gelu="gelu_tanh", **_FIXED)
    return ModelConfig(family="gpt2", vocab_size=read(data, "vocab_size", int), decoder=stack, output="lm")


def _rows(config: ModelConfig) -> list[Row]:
    embedding = {"token": "word_embeddings", "decoder.embedding.position": "position_embeddings"}
    return [
        *layers(google, embedding, theirs="gpt.embeddings"),
        *google("decoder.norm", "gpt.output.LayerNorm"),
        *blocks(config, partial(layers, google, _BLOCK), "gpt.transformer.layer_{}"),
    ]


def gpt_sizes(segment: str = "") -> Sizes:
    """Name the tensors that tell sizes in bert4keras's conversions of GPT and CPM."""
    return Sizes(
        token="gpt/embeddings/word_embeddings",
        position="gpt/embeddings/position_embeddings",
        segment=segment,
        layer="gpt/transformer/layer_{}/",
        query="gpt/transformer/layer_0/attention/self/query/kernel",
        feed_forward="gpt/transformer/layer_0/intermediate/dense/kernel",
    )


def transformer_sizes(token: str = "wte", position: str = "wpe") -> Sizes:
    """Name the tensors that tell sizes in Hugging Face's GPT and GPT-2."""
    return Sizes(
        token=f"transformer.{token}.weight",
        position=f"transformer.{position}.weight",
        layer="transformer.h.{}.",
        query="transformer.h.0.attn.c_proj.weight",
        feed_forward="transformer.h.0.mlp.c_fc.weight",
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


def _openai(ours: str, theirs: str) -> list[Row]:
    return pair(ours, theirs, dense=("/w", "/b"), norm=("/g", "/b"), how="convolution")


def _openai_block(ours: str, theirs: str) -> list[Row]:
    dense = {"attention.output": "attn/c_proj", "feed_forward.input": "mlp/c_fc", "feed_forward.output": "mlp/c_proj"}
    names = dense | {"attention_pre": "ln_1", "feed_forward_pre": "ln_2"}
    return [
        *_fused(f"{ours}.attention", f"{theirs}/attn/c_attn", "/w", "/b", "split_convolution"),
        *[r for own, foreign in names.items() for r in _openai(f"{ours}.{own}", f"{theirs}/{foreign}")],
    ]


def _openai_rows(config: ModelConfig) -> list[Row]:
    names = {"token": "model/wte", "decoder.embedding.position": "model/wpe", "decoder.norm": "model/ln_f"}
    return [*layers(_openai, names), *blocks(config, _openai_block, "model/h{}")]


def _fused(ours: str, theirs: str, weight: str, bias: str, how: str) -> list[Row]:
    names = ("query", "key", "value")
    return [
        Row(tuple(f"{ours}.{name}.weight" for name in names), theirs + weight, how),
        Row(tuple(f"{ours}.{name}.bias" for name in names), theirs + bias, "split"),
    ]


def _huggingface_rows(config: ModelConfig) -> list[Row]:
    names = {"token": "wte", "decoder.embedding.position": "wpe", "decoder.norm": "ln_f"}
    return [
        *layers(torch_pair, names, theirs="transformer"),
        *([] if config.tied else [row("output.weight", "lm_head.weight")]),
        *blocks(config, conv1d_block("attention_pre", "feed_forward_pre"), "transformer.h.{}"),
    ]


def conv1d_block(ln_1: str, ln_2: str) -> Pair:
    """Make the rows of a block with Hugging Face's Conv1D; ln_1, ln_2: which of our norms have these names."""
    dense = {"attention.output": "attn.c_proj", "feed_forward.input": "mlp.c_fc", "feed_forward.output": "mlp.c_proj"}

    def block(ours: str, theirs: str) -> list[Row]:
        return [
            *_fused(f"{ours}.attention", f"{theirs}.attn.c_attn", ".weight", ".bias", "split_transpose"),
            *layers(partial(torch_pair, how="transpose"), dense, ours, theirs),
            *layers(torch_pair, {ln_1: "ln_1", ln_2: "ln_2"}, ours, theirs),
        ]

    return block


GPT2 = Family(
    "gpt2",
    tensorflow=Names(
        config=_config,
        original=partial(write_transformer, gelu="gelu_tanh"),
        rows=_rows,
        sizes=gpt_sizes(),
        marks=("gpt/output/LayerNorm/gamma",),
    ),
    huggingface=Names(
        config=partial(_openai_config, family="gpt2"),
        original=_huggingface_original,
        rows=_huggingface_rows,
        sizes=transformer_sizes(),
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
