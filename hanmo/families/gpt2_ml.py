"""GPT2_ML (imcaspar/gpt2-ml, after Grover): `h = x + attention(x)`, `out = LN1(h + feed_forward(LN0(h)))`.

A norm after the embeddings, none at the end; exact gelu, eps 1e-5; the output is the token embedding, without bias.
The original applies no attention dropout, whatever its config says.
"""

from functools import partial

from hanmo.config import ModelConfig, Sublayer
from hanmo.families.family import (
    Config,
    Family,
    Names,
    Row,
    Sizes,
    blocks,
    google,
    layers,
    read,
    torch_pair,
    transformer,
    write_transformer,
)
from hanmo.families.gpt2 import CAUSAL_MASK, conv1d_block, transformer_sizes

ORDER = (Sublayer("attention"), Sublayer("feed_forward", pre=True, post=True))
_BLOCK = {
    "attention.query": "query_layer",
    "attention.key": "key_layer",
    "attention.value": "value_layer",
    "attention.output": "context_projection_layer",
    "feed_forward_pre": "LayerNorm_mlp_ln0",
    "feed_forward.input": "intermediate",
    "feed_forward.output": "output",
    "feed_forward_post": "LayerNorm_mlp_ln1",
}

# Republished checkpoints carry a configuration with GPT-2's field names.
_GPT2_KEYS = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "activation_function": "hidden_act",
    "embd_pdrop": "hidden_dropout_prob",
}


def _config(data: Config) -> ModelConfig:
    if "n_embd" in data:
        data = {_GPT2_KEYS.get(key, key): value for key, value in data.items()}
        data = {"intermediate_size": 4 * read(data, "hidden_size", int)} | data
    stack = transformer(
        data,
        gelu="gelu_erf",
        mask="causal",
        order=ORDER,
        segments=0,
        norm_eps=1e-5,
        embedding_norm_eps=1e-5,
        attention_dropout=0.0,
    )
    return ModelConfig(
        family="gpt2_ml",
        vocab_size=read(data, "vocab_size", int),
        decoder=stack,
        output="lm",
        initializer=float(data.get("initializer_range", 0.02)),
    )


def gpt2_ml_config(
    *, vocab_size: int, num_layers: int, hidden_size: int, positions: int, head_dim: int = 64, dropout: float = 0.0
) -> ModelConfig:
    """Return the configuration of a GPT2_ML network of another size; the feed-forward is four times as wide.

    Raises ConfigError if sizes do not fit.
    """
    return _config(
        {
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "num_hidden_layers": num_layers,
            "num_attention_heads": max(1, hidden_size // head_dim),
            "intermediate_size": 4 * hidden_size,
            "max_position_embeddings": positions,
            "hidden_act": "gelu",
            "hidden_dropout_prob": dropout,
        }
    )


def _rows(config: ModelConfig) -> list[Row]:
    embedding = {
        "token": "word_embed",
        "decoder.embedding.position": "pos_embed",
        "decoder.embedding.norm": "LayerNorm_embed_norm",
    }
    return [
        *layers(google, embedding, theirs="newslm.embeddings"),
        *blocks(config, partial(layers, google, _BLOCK), "newslm.layer{:02d}"),
    ]


def _torch_rows(config: ModelConfig) -> list[Row]:
    names = {"token": "wte", "decoder.embedding.position": "wpe", "decoder.embedding.norm": "emb_norm"}
    return [
        *layers(torch_pair, names, theirs="transformer"),
        *blocks(config, conv1d_block("feed_forward_pre", "feed_forward_post"), "transformer.h.{}"),
    ]


GPT2_ML = Family(
    "gpt2_ml",
    tensorflow=Names(
        config=_config,
        original=partial(write_transformer, gelu="gelu_erf"),
        rows=_rows,
        sizes=Sizes(
            token="newslm/embeddings/word_embed",
            position="newslm/embeddings/pos_embed",
            layer="newslm/layer{:02d}/",
            query="newslm/layer00/query_layer/kernel",
            feed_forward="newslm/layer00/intermediate/kernel",
        ),
    ),
    # As ghosthamlet/gpt2-ml-torch converts it (gpt2_ml_torch/modeling_gpt2.py), with a network of its own.
    huggingface=Names(
        config=_config,
        original=partial(write_transformer, gelu="gelu_erf"),
        rows=_torch_rows,
        sizes=transformer_sizes(),
        marks=("transformer.emb_norm.weight",),
        repeats={"lm_head.weight": "transformer.wte.weight"},
        dropped=CAUSAL_MASK,
        model_type="gpt2",  # so its config.json calls it
        prefix="transformer.",
        read_only=True,
    ),
)
