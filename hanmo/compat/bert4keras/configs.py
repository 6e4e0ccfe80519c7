"""bert4keras's configuration keys and model names, read into a ModelConfig that computes what bert4keras does.

Where it differs from the originals it is followed here: exact gelu by default, eps 1e-7 in some blocks, T5's output
scaled even when untied, T5's relative bias in cross-attention, RealFormer's scores of the block before only.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from hanmo.config import ModelConfig, StackConfig
from hanmo.errors import ConfigError, Unsupported
from hanmo.families import FAMILIES

# Our family of each of bert4keras's 23 names.
MODELS = {
    "bert": "bert",
    "roberta": "bert",
    "albert": "albert",
    "albert_unshared": "albert_unshared",
    "nezha": "nezha",
    "roformer": "roformer",
    "roformer_v2": "roformer_v2",
    "electra": "electra",
    "gpt": "gpt",
    "gpt2": "gpt2",
    "gpt2_ml": "gpt2_ml",
    **{
        f"{name}{part}": family
        for name, family in {"t5": "t5.1.0", "t5.1.0": "t5.1.0", "t5.1.1": "t5.1.1", "mt5.1.1": "mt5.1.1"}.items()
        for part in ("", "_encoder", "_decoder")
    },
}
BERT_KIN = ("bert", "albert", "albert_unshared", "nezha", "roformer", "roformer_v2")
_BLOCK_EPS = {"albert": 1e-7, "nezha": 1e-7, "roformer": 1e-7, "roformer_v2": 1e-7}
# Keyword arguments of build_transformer_model; any other is passed over, as bert4keras does, for config.json has more.
KEYWORDS = frozenset(
    (
        "config_path checkpoint_path model application return_keras_model with_mlm with_nsp with_pool with_lm "
        "with_discriminator final_activation keep_tokens compound_tokens vocab_size hidden_size num_hidden_layers "
        "num_attention_heads intermediate_size hidden_act embedding_size attention_head_size attention_key_size "
        "dropout_rate attention_dropout_rate hidden_dropout_prob attention_probs_dropout_prob initializer_range "
        "max_position max_position_embeddings segment_vocab_size type_vocab_size custom_position_ids "
        "hierarchical_position shared_segment_embeddings residual_attention_scores cross_position_bias "
        "layer_norm_cond layer_norm_cond_hidden_size layer_norm_cond_hidden_act"
    ).split()
)
REFUSED = {
    "layers": "Keras layers from outside cannot be reused; load two models",
    "attention_caches": "caches of Keras tensors are not carried; see Model.new_cache",
    "autoresize_weights": "resizing weights to other shapes is not carried; edit the tensors with hanmo.checkpoint",
}


@dataclass
class Settings:
    """What a face needs beside the network: which outputs, and the activation on each.

    part: "model", or for a T5 also "encoder" or "decoder".   lm, mlm, pool, nsp, discriminator: name of the activation
    on that output, or None where it is not asked for.   chosen: which of those outputs, in this order; None: all.
    """

    name: str
    part: str = "model"
    lm: str | None = None
    mlm: str | None = None
    pool: str | None = None
    nsp: str | None = None
    discriminator: str | None = None
    custom_positions: bool = False
    condition: str | None = None
    inputs: list[str] = field(default_factory=list)
    chosen: list[int] | None = None


def read(data: dict[str, Any], name: str, application: str, gelu: str) -> tuple[ModelConfig, Settings]:
    """Read bert4keras's configuration: config.json with the keyword arguments over it.

    gelu: "erf" or "tanh", what `set_gelu` chose.   Raises ConfigError for an unknown model or a combination that
    bert4keras refuses too, Unsupported for what needs Keras.
    """
    for key, why in REFUSED.items():
        if data.get(key):
            raise Unsupported(f"{key} is set: {why}")
    if name not in MODELS:
        raise ConfigError(f"model is {name!r}; known are {', '.join(MODELS)}")
    if application not in ("encoder", "lm", "unilm"):
        raise ConfigError(f"application is {application!r}; expected 'encoder', 'lm' or 'unilm'")
    family = MODELS[name]
    if application != "encoder" and family not in BERT_KIN:
        raise ConfigError(f"{name!r} model can not be used as {application!r} application")
    names = FAMILIES[family].tensorflow
    assert names is not None
    config = names.config(_translate(data, gelu))
    settings = Settings(name, custom_positions=bool(data.get("custom_position_ids", False)))
    condition = data.get("layer_norm_cond")
    if condition is not None:
        settings.condition = getattr(condition, "name", None) or "cond"
    if family in ("t5.1.0", "t5.1.1", "mt5.1.1"):
        return _t5(config, data, name, settings)
    if family in ("gpt", "gpt2", "gpt2_ml"):
        return _gpt(config, data, family, settings)
    return _encoder(config, data, family, application, settings)


def _translate(data: dict[str, Any], gelu: str) -> dict[str, Any]:
    def exact(act: Any) -> Any:
        if isinstance(act, list | tuple):
            return [exact(a) for a in act]
        return f"gelu_{gelu}" if act == "gelu" else act

    result = dict(data)
    result["hidden_act"] = exact(data.get("hidden_act"))
    result["max_position_embeddings"] = data.get("max_position", data.get("max_position_embeddings", 512))
    result["type_vocab_size"] = data.get("segment_vocab_size", data.get("type_vocab_size", 2))
    result["hidden_dropout_prob"] = data.get("dropout_rate", data.get("hidden_dropout_prob")) or 0
    key = "attention_probs_dropout_prob"
    result[key] = data.get("attention_dropout_rate", data.get(key)) or 0
    return result


def _stack_changes(data: dict[str, Any], family: str) -> dict[str, Any]:
    changes: dict[str, Any] = {"attention_dropout": float(_translate(data, "erf")["attention_probs_dropout_prob"])}
    if family in _BLOCK_EPS:
        changes["norm_eps"] = _BLOCK_EPS[family]
    elif family == "gpt":
        changes["norm_eps"] = 1e-12
    if hierarchical := data.get("hierarchical_position"):
        changes["hierarchical"] = 0.4 if hierarchical is True else float(hierarchical)
    if data.get("residual_attention_scores"):
        changes["score_residual"] = "previous"
    condition = data.get("layer_norm_cond")
    if condition is not None:
        changes["condition"] = int(getattr(condition, "hidden_size", condition))
        changes["condition_hidden"] = int(data.get("layer_norm_cond_hidden_size") or 0)
        changes["condition_activation"] = data.get("layer_norm_cond_hidden_act") or "linear"
    return changes


def _on(value: Any, default: str) -> str | None:
    """Read a with_… argument: True means its usual activation, a name that one, nothing no such output."""
    return default if value is True else (value or None)


def _encoder(
    config: ModelConfig, data: dict[str, Any], family: str, application: str, settings: Settings
) -> tuple[ModelConfig, Settings]:
    changes = _stack_changes(data, family)
    if application != "encoder":
        changes["mask"] = "causal" if application == "lm" else "prefix"
    stack = replace(config.main, **changes)
    if family == "electra":
        settings.discriminator = _on(data.get("with_discriminator"), "sigmoid")
        config = replace(config, encoder=stack, discriminator=settings.discriminator is not None)
    else:
        settings.mlm = _on(data.get("with_mlm") or application != "encoder", "softmax")
        if family != "roformer_v2":
            settings.nsp = "softmax" if data.get("with_nsp") else None
            settings.pool = _on(data.get("with_pool") or settings.nsp is not None, "tanh")
        config = replace(
            config,
            encoder=stack,
            output=config.output if settings.mlm else "none",
            pool=settings.pool or "none",
            nsp=settings.nsp is not None,
        )
    settings.inputs = _inputs(stack, settings)
    return config, settings


def _gpt(config: ModelConfig, data: dict[str, Any], family: str, settings: Settings) -> tuple[ModelConfig, Settings]:
    stack = replace(config.main, **_stack_changes(data, family))
    settings.lm = data.get("final_activation", "softmax")
    settings.inputs = _inputs(stack, settings)
    return replace(config, decoder=stack), settings


def _t5(config: ModelConfig, data: dict[str, Any], name: str, settings: Settings) -> tuple[ModelConfig, Settings]:
    assert config.encoder is not None and config.decoder is not None
    changes = _stack_changes(data, config.family)
    encoder = replace(config.encoder, **changes)
    decoder = replace(config.decoder, **changes, cross_positions=bool(data.get("cross_position_bias", True)))
    settings.lm = _on(data.get("with_lm", True), "softmax")
    settings.part = name.partition("_")[2] or "model"
    output = "lm" if settings.lm else "none"
    scale = encoder.hidden_size**-0.5
    config = replace(config, encoder=encoder, decoder=decoder, output=output, logit_scale=scale)
    if settings.part == "encoder":
        config = replace(config, decoder=None, output="none", tied=True)
    elif settings.part == "decoder":
        config = replace(config, encoder=None)
    settings.inputs = {
        "model": ["Encoder-Input-Token", "Decoder-Input-Token"],
        "encoder": ["Encoder-Input-Token"],
        "decoder": ["Input-Context", "Decoder-Input-Token"],
    }[settings.part]
    if settings.condition:
        settings.inputs.append(settings.condition)
    return config, settings


def _inputs(stack: StackConfig, settings: Settings) -> list[str]:
    inputs = ["Input-Token"]
    if stack.segments:
        inputs.append("Input-Segment")
    if settings.custom_positions:
        inputs.append("Input-Position")
    if settings.condition:
        inputs.append(settings.condition)
    return inputs
