"""GPT2_ML (imcaspar/gpt2-ml, after Grover): `h = x + attention(x)`, `out = LN1(h + feed_forward(LN0(h)))`.

A norm after the embeddings, none at the end; exact gelu, eps 1e-5; the output is the token embedding, without bias.
The original applies no attention dropout, whatever its config says.
"""

from hanmo.config import ModelConfig, Sublayer
from hanmo.families.family import (
    Config,
    Family,
    Names,
    Row,
    Sizes,
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
from hanmo.families.gpt2 import CAUSAL_MASK, conv1d_layer

ORDER = (Sublayer("attention"), Sublayer("feed_forward", pre=True, post=True))


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


def _rows(config: ModelConfig) -> list[Row]:
    rows = [
        row("token.weight", "newslm/embeddings/word_embed"),
        row("decoder.embedding.position.weight", "newslm/embeddings/pos_embed"),
        *norm("decoder.embedding.norm", "newslm/embeddings/LayerNorm_embed_norm"),
    ]
    for i in range(config.main.num_layers):
        ours, theirs = f"decoder.blocks.{i}", f"newslm/layer{i:02d}"
        rows += [
            *query_key_value(dense, f"{ours}.attention", f"{theirs}/{{}}_layer"),
            *dense(f"{ours}.attention.output", f"{theirs}/context_projection_layer"),
            *norm(f"{ours}.feed_forward_pre", f"{theirs}/LayerNorm_mlp_ln0"),
            *dense(f"{ours}.feed_forward.input", f"{theirs}/intermediate"),
            *dense(f"{ours}.feed_forward.output", f"{theirs}/output"),
            *norm(f"{ours}.feed_forward_post", f"{theirs}/LayerNorm_mlp_ln1"),
        ]
    return rows


def _torch_rows(config: ModelConfig) -> list[Row]:
    return [
        row("token.weight", "transformer.wte.weight"),
        row("decoder.embedding.position.weight", "transformer.wpe.weight"),
        *torch_pair("decoder.embedding.norm", "transformer.emb_norm"),
        *blocks(config, conv1d_layer("feed_forward_pre", "feed_forward_post"), "transformer.h.{}"),
    ]


GPT2_ML = Family(
    "gpt2_ml",
    tensorflow=Names(
        config=_config,
        original=lambda config: write_transformer(config, gelu="gelu_erf"),
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
        original=lambda config: write_transformer(config, gelu="gelu_erf"),
        rows=_torch_rows,
        sizes=Sizes(
            token="transformer.wte.weight",
            position="transformer.wpe.weight",
            layer="transformer.h.{}.",
            query="transformer.h.0.attn.c_proj.weight",
            feed_forward="transformer.h.0.mlp.c_fc.weight",
        ),
        marks=("transformer.emb_norm.weight",),
        repeats={"lm_head.weight": "transformer.wte.weight"},
        dropped=CAUSAL_MASK,
        model_type="gpt2",  # so its config.json calls it
        prefix="transformer.",
        read_only=True,
    ),
)
