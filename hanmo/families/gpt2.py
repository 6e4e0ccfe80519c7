"""GPT-2: pre-norm and a norm at the end; gelu by tanh, eps 1e-5 (openai/gpt-2, TsinghuaAI/CPM-Generate).

Two layouts in TensorFlow: "gpt2" as CPM was converted, BERT-like; "gpt2_openai" as OpenAI published, with kernels
[1, in, out].
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from hanmo.config import ModelConfig
from hanmo.errors import ConfigError
from hanmo.families import keys
from hanmo.families.family import CONV1D, PRE_NORM, TENSORFLOW, Config, Family, Layout, Names

_FIXED: dict[str, Any] = {"order": PRE_NORM, "segments": 0, "final_norm": True}
_NAMES = {
    "token": "gpt.embeddings.word_embeddings",
    "decoder.embedding.position": "gpt.embeddings.position_embeddings",
    "decoder.norm": "gpt.output.LayerNorm",
    "decoder.blocks.{}": (
        "gpt.transformer.layer_{}",
        {
            "attention_pre": "attention.input.LayerNorm",
            "attention.query": "attention.self.query",
            "attention.key": "attention.self.key",
            "attention.value": "attention.self.value",
            "attention.output": "attention.output.dense",
            "feed_forward_pre": "input.LayerNorm",
            "feed_forward.input": "intermediate.dense",
            "feed_forward.output": "output.dense",
        },
    ),
}
DENSE = {
    "attention.query+key+value": "attn.c_attn",
    "attention.output": "attn.c_proj",
    "feed_forward.input": "mlp.c_fc",
    "feed_forward.output": "mlp.c_proj",
}
_OPENAI = Layout(("/w", "/b"), ("/g", "/b"), "", how="convolution", separator="/")
_OPENAI_NAMES = {
    "token": "model.wte",
    "decoder.embedding.position": "model.wpe",
    "decoder.norm": "model.ln_f",
    "decoder.blocks.{}": ("model.h{}", DENSE | {"attention_pre": "ln_1", "feed_forward_pre": "ln_2"}),
}
_HUGGINGFACE_NAMES = {
    "token": "transformer.wte",
    "decoder.embedding.position": "transformer.wpe",
    "decoder.norm": "transformer.ln_f",
    "output.weight": "lm_head.weight",  # where it is not tied
    "decoder.blocks.{}": ("transformer.h.{}", DENSE | {"attention_pre": "ln_1", "feed_forward_pre": "ln_2"}),
}
# Options of Hugging Face's GPT-2 that OpenAI's does not have.
_PLAIN = {"scale_attn_by_inverse_layer_idx": False, "scale_attn_weights": True, "add_cross_attention": False}


def huggingface_names(names: Mapping[str, Any], **fields: Any) -> Names:
    """Make a format in Hugging Face's names of a GPT, whose files may hold the embedding a second time."""
    values: dict[str, Any] = {
        "dropped": {
            r"^(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)$": "the causal mask",
            r"^lm_head\.weight$": "the same tensor as the embedding",
        },
        "repeats": {"lm_head.weight": f"{names['token']}.weight"},
        "style": "gpt2",
        "prefix": "transformer.",
    }
    return Names.of(CONV1D, names, **values | fields)


def causal_config(data: Config, *, family: str, gelu: str, **fixed: Any) -> ModelConfig:
    """Read a causal model in BERT's keys.

    gelu: what "gelu" means.   fixed: fields of StackConfig that the family fixes.
    """
    fields: dict[str, Any] = {"mask": "causal", "embedding_norm": False, "norm_eps": 1e-5} | fixed
    return keys.read_model(data, family, decoder=keys.read_stack(data, gelu=gelu, **fields), output="lm")


def hparams(data: Config, *, family: str, gelu: str, names: Mapping[str, str] = keys.GPT2, **fixed: Any) -> ModelConfig:
    """Read a causal model in the keys of hparams.json, which Hugging Face's config.json of a GPT or GPT-2 has too.

    names: our field → its key.   gelu, fixed: as in `causal_config`.
    """
    for key, value in _PLAIN.items():
        if data.get(key, value) != value:
            raise ConfigError(f"{key} is {data[key]!r} in config.json; Hanmo reads GPT-2 with {value}")
    data = dict(data)
    for key, other, factor in (("n_positions", "n_ctx", 1), ("n_inner", "n_embd", 4), ("vocab_size", "n_vocab", 1)):
        data[key] = data.get(key) or factor * keys.read(data, other, int)
    eps = keys.read(data, "layer_norm_epsilon", float, 1e-5)
    fixed = {"mask": "causal", "embedding_norm": False, "norm_eps": eps} | fixed
    tied = data.get("tie_word_embeddings", True)
    stack = keys.read_stack(data, names, gelu=gelu, **fixed)
    return keys.read_model(data, family, decoder=stack, output="lm", tied=tied)


def write_hparams(
    config: ModelConfig, model_type: str, word: str, names: Mapping[str, str] = keys.GPT2, **activations: str
) -> dict[str, Any]:
    """Write what `hparams` reads, as Hugging Face's config.json.   activations: as for `keys.write_model`."""
    return keys.write_model(config, names, **activations) | {
        "model_type": model_type,
        "architectures": [f"{word}LMHeadModel"],
        "n_ctx": config.main.positions,
        "embd_pdrop": config.main.dropout,
        "tie_word_embeddings": config.tied,
    }


def _openai_config(data: Config, *, family: str) -> ModelConfig:
    data = {"activation_function": "gelu_new"} | dict(data)
    return hparams(data, family=family, gelu="gelu_erf", **_FIXED)


def _openai_original(config: ModelConfig) -> dict[str, Any]:
    sizes = {keys.GPT2[ours]: getattr(config.main, ours) for ours in ("hidden_size", "num_heads", "num_layers")}
    return {"n_vocab": config.vocab_size, "n_ctx": config.main.positions} | sizes


GPT2 = Family(
    "gpt2",
    tensorflow=Names.of(
        TENSORFLOW,
        _NAMES,
        config=partial(causal_config, family="gpt2", gelu="gelu_tanh", **_FIXED),
        original=partial(keys.write_model, gelu="gelu_tanh"),
        marks=("gpt/output/LayerNorm/gamma",),
    ),
    huggingface=huggingface_names(
        _HUGGINGFACE_NAMES,
        config=partial(_openai_config, family="gpt2"),
        original=partial(write_hparams, model_type="gpt2", word="GPT2", gelu="gelu_erf", gelu_tanh="gelu_new"),
        absent=("transformer.emb_norm.weight",),
        model_type="gpt2",
    ),
)
GPT2_OPENAI = Family(
    "gpt2_openai",
    tensorflow=Names.of(
        _OPENAI,
        _OPENAI_NAMES,
        config=partial(_openai_config, family="gpt2_openai"),
        original=_openai_original,
        style="gpt2",
    ),
    writes_as="gpt2",
)
