"""bert4keras's configuration keys and model names, read into a ModelConfig that computes what bert4keras computes.

Its differences from the original networks are reproduced: exact gelu by default, eps 1e-7 in some blocks, T5's output
scaled even when untied, T5's relative bias in cross-attention, RealFormer's scores from the previous block only.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from hanmo.config import ModelConfig
from hanmo.errors import ConfigError, Unsupported
from hanmo.families import FAMILIES
from hanmo.families.keys import activation

_BERT_VARIANTS = ("bert", "albert", "albert_unshared", "nezha", "roformer", "roformer_v2")
_GPTS = ("gpt", "gpt2", "gpt2_ml")
# bert4keras's 23 model names → our families.
MODELS = {name: name for name in (*_BERT_VARIANTS, "electra", *_GPTS)} | {"roberta": "bert"}
for _name, _family in {"t5": "t5.1.0", "t5.1.0": "t5.1.0", "t5.1.1": "t5.1.1", "mt5.1.1": "mt5.1.1"}.items():
    MODELS |= {f"{_name}{part}": _family for part in ("", "_encoder", "_decoder")}
_BLOCK_EPS = {"gpt": 1e-12} | dict.fromkeys(("albert", "nezha", "roformer", "roformer_v2"), 1e-7)
# Keyword arguments of build_transformer_model; as in bert4keras others are ignored, for config.json has more.
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
    "layers": "layers of another Keras model cannot be reused; load two models",
    "attention_caches": "caches of Keras tensors are not supported; see Model.new_cache",
    "autoresize_weights": "resizing weights to other shapes is not supported; edit the tensors with hanmo.checkpoint",
}
T5_INPUTS = {
    "model": ["Encoder-Input-Token", "Decoder-Input-Token"],
    "encoder": ["Encoder-Input-Token"],
    "decoder": ["Input-Context", "Decoder-Input-Token"],
}

_gelu = "erf"
_weights_dtype: str | None = None


def set_gelu(version: str) -> None:
    """Set what "gelu" means in models built from now on: 'erf' (exact, the default) or 'tanh'."""
    global _gelu
    if version.lower() not in ("erf", "tanh"):
        raise ConfigError(f"gelu version is {version!r}; expected 'erf' or 'tanh'")
    _gelu = version.lower()


def set_weights_dtype(dtype: str | None) -> None:
    """Set the dtype of the weights of models loaded from now on; None keeps that of the file.

    dtype: "float32", "bfloat16", or "int8" and "int4", which models that write compute in; others, after a warning,
    keep the dtype of the file.
    """
    global _weights_dtype
    if dtype not in (None, "float32", "bfloat16", "int8", "int4"):
        raise ConfigError(f"dtype of the weights is {dtype!r}; expected 'float32', 'bfloat16', 'int8', 'int4' or None")
    _weights_dtype = dtype


def get_weights_dtype() -> str | None:
    """Return what `set_weights_dtype` has set."""
    return _weights_dtype


@dataclass
class Input:
    """A placeholder for an extra input, such as the condition of conditional norms.

    shape: as in Keras, without the batch; the last number is the hidden size.
    """

    shape: tuple[int | None, ...]
    name: str = "cond"

    @property
    def hidden_size(self) -> int:
        if not self.shape or self.shape[-1] is None:
            raise ConfigError(f"shape of Input {self.name!r} is {self.shape}; its last number must be known")
        return self.shape[-1]


@dataclass
class Settings:
    """The inputs and outputs of a Keras model around a network.

    part: "model", or for a T5 also "encoder" or "decoder".   lm, mlm, pool, nsp, discriminator: the activation of that
    output, None without it.   chosen: indices of the outputs to give; None for all.
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


def read(data: dict[str, Any], name: str, application: str) -> tuple[ModelConfig, Settings]:
    """Read bert4keras's configuration: config.json updated by the keyword arguments.

    Raises ConfigError for an unknown model or a combination that bert4keras refuses too, Unsupported for what needs
    Keras.
    """
    for key, why in REFUSED.items():
        if data.get(key):
            raise Unsupported(f"{key} is set: {why}")
    if name not in MODELS:
        raise ConfigError(f"model is {name!r}; known are {', '.join(MODELS)}")
    if application not in ("encoder", "lm", "unilm"):
        raise ConfigError(f"application is {application!r}; expected 'encoder', 'lm' or 'unilm'")
    family = MODELS[name]
    if application != "encoder" and family not in _BERT_VARIANTS:
        raise ConfigError(f"{name!r} model can not be used as {application!r} application")
    data = _with_original_keys(data)
    names = FAMILIES[family].tensorflow
    assert names is not None
    config = names.config(data)
    settings = Settings(name, custom_positions=bool(data.get("custom_position_ids", False)))
    changes = _stack_changes(data, family)
    if config.is_encoder_decoder:
        config = _t5(config, data, changes, settings)
        settings.inputs = list(T5_INPUTS[settings.part])
    else:
        if family in _GPTS:
            settings.lm = data.get("final_activation", "softmax")
            config = replace(config, decoder=replace(config.main, **changes))
        else:
            if application != "encoder":
                changes["mask"] = "causal" if application == "lm" else "prefix"
            config = _encoder(replace(config, encoder=replace(config.main, **changes)), data, application, settings)
        given = {"Token": True, "Segment": config.main.segments, "Position": settings.custom_positions}
        settings.inputs = [f"Input-{kind}" for kind, present in given.items() if present]
    condition = data.get("layer_norm_cond")
    if condition is not None:
        settings.condition = getattr(condition, "name", None) or "cond"
        settings.inputs.append(settings.condition)
    return config, settings


def _with_original_keys(data: dict[str, Any]) -> dict[str, Any]:
    def gelu(activation: Any) -> Any:
        if isinstance(activation, list | tuple):
            return [gelu(each) for each in activation]
        return f"gelu_{_gelu}" if activation == "gelu" else activation

    attention = "attention_probs_dropout_prob"
    return data | {
        "hidden_act": gelu(data.get("hidden_act")),
        "max_position_embeddings": data.get("max_position", data.get("max_position_embeddings", 512)),
        "type_vocab_size": data.get("segment_vocab_size", data.get("type_vocab_size", 2)),
        "hidden_dropout_prob": data.get("dropout_rate", data.get("hidden_dropout_prob")) or 0,
        attention: data.get("attention_dropout_rate", data.get(attention)) or 0,
    }


def _stack_changes(data: dict[str, Any], family: str) -> dict[str, Any]:
    changes: dict[str, Any] = {"attention_dropout": float(data["attention_probs_dropout_prob"])}
    if family in _BLOCK_EPS:
        changes["norm_eps"] = _BLOCK_EPS[family]
    if hierarchical := data.get("hierarchical_position"):
        changes["hierarchical"] = 0.4 if hierarchical is True else float(hierarchical)
    if data.get("residual_attention_scores"):
        changes["score_residual"] = "previous"
    condition = data.get("layer_norm_cond")
    if condition is not None:
        changes["condition"] = int(getattr(condition, "hidden_size", condition))
        changes["condition_hidden"] = int(data.get("layer_norm_cond_hidden_size") or 0)
        named = {"layer_norm_cond_hidden_act": data.get("layer_norm_cond_hidden_act") or "linear"}
        changes["condition_activation"] = activation(named, f"gelu_{_gelu}", "layer_norm_cond_hidden_act")
    return changes


def _activation(value: Any, default: str) -> str | None:
    """Read a with_… argument: True means the default activation, a str names one, anything else that there is none."""
    return default if value is True else (value or None)


def _encoder(config: ModelConfig, data: dict[str, Any], application: str, settings: Settings) -> ModelConfig:
    if config.family == "electra":
        settings.discriminator = _activation(data.get("with_discriminator"), "sigmoid")
        return replace(config, discriminator=settings.discriminator is not None)
    settings.mlm = _activation(data.get("with_mlm") or application != "encoder", "softmax")
    if config.family != "roformer_v2":
        settings.nsp = "softmax" if data.get("with_nsp") else None
        settings.pool = _activation(data.get("with_pool") or settings.nsp is not None, "tanh")
    output = config.output if settings.mlm else "none"
    return replace(config, output=output, pool=settings.pool or "none", nsp=settings.nsp is not None)


def _t5(config: ModelConfig, data: dict[str, Any], changes: dict[str, Any], settings: Settings) -> ModelConfig:
    assert config.encoder is not None and config.decoder is not None
    encoder = replace(config.encoder, **changes)
    decoder = replace(config.decoder, **changes, cross_positions=bool(data.get("cross_position_bias", True)))
    settings.lm = _activation(data.get("with_lm", True), "softmax")
    settings.part = settings.name.partition("_")[2] or "model"
    output, scale = "lm" if settings.lm else "none", encoder.hidden_size**-0.5
    config = replace(config, encoder=encoder, decoder=decoder, output=output, logit_scale=scale)
    if settings.part == "encoder":
        return replace(config, decoder=None, output="none", tied=True)
    return replace(config, encoder=None) if settings.part == "decoder" else config
