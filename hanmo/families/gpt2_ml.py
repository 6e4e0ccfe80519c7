"""GPT2_ML (imcaspar/gpt2-ml, after Grover): `h = x + attention(x)`, `out = LN1(h + feed_forward(LN0(h)))`.

A norm after the embeddings, none at the end; exact gelu, eps 1e-5; the output is the token embedding, without bias.
The original applies no attention dropout, whatever its config says.
"""

from functools import partial
from typing import Any

from hanmo.config import ModelConfig, Sublayer
from hanmo.families import keys
from hanmo.families.family import TENSORFLOW, TORCH, Config, Family, Names, auto_map, code_files
from hanmo.families.gpt2 import DENSE, causal_config, hparams, huggingface_names

ORDER = (Sublayer("attention"), Sublayer("feed_forward", pre=True, post=True))
_NAMES = {
    "token": "newslm.embeddings.word_embed",
    "decoder.embedding.position": "newslm.embeddings.pos_embed",
    "decoder.embedding.norm": "newslm.embeddings.LayerNorm_embed_norm",
    "decoder.blocks.{}": (
        "newslm.layer{:02d}",
        {
            "attention.query": "query_layer",
            "attention.key": "key_layer",
            "attention.value": "value_layer",
            "attention.output": "context_projection_layer",
            "feed_forward_pre": "LayerNorm_mlp_ln0",
            "feed_forward.input": "intermediate",
            "feed_forward.output": "output",
            "feed_forward_post": "LayerNorm_mlp_ln1",
        },
    ),
}
_HUGGINGFACE_NAMES = {
    "token": "model.embed_tokens",
    "decoder.embedding.position": "model.embed_positions",
    "decoder.embedding.norm": "model.embed_norm",
    "decoder.blocks.{}": (
        "model.layers.{}",
        {
            "attention.query": "self_attn.q_proj",
            "attention.key": "self_attn.k_proj",
            "attention.value": "self_attn.v_proj",
            "attention.output": "self_attn.o_proj",
            "feed_forward_pre": "mlp_ln0",
            "feed_forward.input": "mlp.up_proj",
            "feed_forward.output": "mlp.down_proj",
            "feed_forward_post": "mlp_ln1",
        },
    ),
}
_REPUBLISHED_NAMES = {
    "token": "transformer.wte",
    "decoder.embedding.position": "transformer.wpe",
    "decoder.embedding.norm": "transformer.emb_norm",
    "decoder.blocks.{}": ("transformer.h.{}", DENSE | {"feed_forward_pre": "ln_1", "feed_forward_post": "ln_2"}),
}


def _config(data: Config) -> ModelConfig:
    read = causal_config
    if "n_embd" in data:  # republished checkpoints have GPT-2's keys
        read, data = hparams, dict(data) | {"resid_pdrop": data.get("embd_pdrop")}
    return read(
        data,
        family="gpt2_ml",
        gelu="gelu_erf",
        order=ORDER,
        segments=0,
        norm_eps=1e-5,
        embedding_norm=True,
        embedding_norm_eps=1e-5,
        attention_dropout=0.0,
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
            "hidden_dropout_prob": dropout,
        }
    )


def _huggingface_original(config: ModelConfig) -> dict[str, Any]:
    written = keys.write_model(config, gelu="gelu_erf")
    unused = ("attention_probs_dropout_prob", "type_vocab_size")
    return {key: value for key, value in written.items() if key not in unused} | {
        "model_type": "gpt2_ml",
        "architectures": ["GPT2MLForCausalLM"],
        **auto_map("gpt2_ml", "GPT2ML", AutoModel="Model", AutoModelForCausalLM="ForCausalLM"),
        "layer_norm_eps": config.main.norm_eps,
        "tie_word_embeddings": True,
    }


GPT2_ML = Family(
    "gpt2_ml",
    tensorflow=Names.of(TENSORFLOW, _NAMES, config=_config, original=partial(keys.write_model, gelu="gelu_erf")),
    # transformers has no such network; the names are those of hanmo/assets/transformers/modeling_gpt2_ml.py.
    huggingface=Names.of(
        TORCH,
        _HUGGINGFACE_NAMES,
        config=_config,
        original=_huggingface_original,
        repeats={"lm_head.weight": "model.embed_tokens.weight"},
        model_type="gpt2_ml",
        prefix="model.",
        code=code_files("gpt2_ml"),
    ),
    # As ghosthamlet/gpt2-ml-torch converts it (gpt2_ml_torch/modeling_gpt2.py), with a network of its own.
    republished=huggingface_names(
        _REPUBLISHED_NAMES,
        config=_config,
        original=partial(keys.write_model, gelu="gelu_erf"),
        marks=("transformer.emb_norm.weight",),
        model_type="gpt2",  # so its config.json calls it
        style="bert",
        read_only=True,
    ),
)
