"""The keys of config.json: what BERT, GPT-2 and T5 call the fields of a stack; read and written by the same table."""

from collections.abc import Mapping
from typing import Any

from hanmo.config import ModelConfig, StackConfig
from hanmo.errors import ConfigError
from hanmo.families.family import POST_NORM, Config

# Our field → the key.
BERT = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "feed_forward": "intermediate_size",
    "activation": "hidden_act",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "positions": "max_position_embeddings",
    "segments": "type_vocab_size",
    "embedding_size": "embedding_size",
    "head_dim": "attention_head_size",
    "key_dim": "attention_key_size",
    "shared_segments": "shared_segment_embeddings",
}
GPT2 = {
    "positions": "n_positions",
    "hidden_size": "n_embd",
    "num_heads": "n_head",
    "num_layers": "n_layer",
    "feed_forward": "n_inner",
    "activation": "activation_function",
    "norm_eps": "layer_norm_epsilon",
    "dropout": "resid_pdrop",
    "attention_dropout": "attn_pdrop",
}
T5 = {
    "hidden_size": "d_model",
    "head_dim": "d_kv",
    "feed_forward": "d_ff",
    "num_heads": "num_heads",
    "num_layers": "num_layers",
    "buckets": "relative_attention_num_buckets",
    "bucket_distance": "relative_attention_max_distance",
    "activation": "feed_forward_proj",
    "dropout": "dropout_rate",
    "attention_dropout": "dropout_rate",
    "norm_eps": "layer_norm_epsilon",
}

_REQUIRED = ("hidden_size", "num_layers", "num_heads", "feed_forward")
_KINDS = {"dropout": float, "attention_dropout": float, "norm_eps": float, "shared_segments": bool}
_ACTIVATIONS = {
    "gelu_python": "gelu_erf",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "swish": "silu",
    "relu2": "squared_relu",
} | {name: name for name in ("gelu_erf", "gelu_tanh", "relu", "silu", "tanh", "linear", "squared_relu")}


def read(config: Config, key: str, kind: type, default: Any = None) -> Any:
    """Return a value of a foreign config.json; raises ConfigError if it is missing or of another type."""
    value = config.get(key)
    value = default if value is None else value
    if value is None:
        raise ConfigError(f"{key} is missing in config.json; expected {kind.__name__}")
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ConfigError(f"{key} is {value!r} in config.json; expected {kind.__name__}")
    return value


def activation(config: Config, gelu: str, key: str = "hidden_act") -> str:
    """Read an activation's name; "gelu" means `gelu`."""
    name, known = config.get(key) or "gelu", {"gelu": gelu} | _ACTIVATIONS
    if not isinstance(name, str) or name not in known:
        raise ConfigError(f"{key} is {name!r} in config.json; known are {', '.join(known)}")
    return known[name]


def read_stack(config: Config, keys: Mapping[str, str] = BERT, *, gelu: str, **fixed: Any) -> StackConfig:
    """Read a stack in these keys.

    gelu: what this family's code means by an activation "gelu".   fixed: fields that the family fixes.
    Raises ConfigError for a value that is missing or of another type, and if the heads do not divide the hidden size.
    """
    values: dict[str, Any] = {"positions": 512, "segments": 2} if keys is BERT else {}
    for ours in keys.keys() - fixed.keys():
        key = keys[ours]
        if ours == "activation":
            values[ours] = activation(config, gelu, key)
        elif ours in _REQUIRED or config.get(key) is not None:
            values[ours] = read(config, key, _KINDS.get(ours, int))
    hidden_size, heads = values["hidden_size"], values["num_heads"]
    if "head_dim" not in values:
        if heads < 1 or hidden_size % heads:
            hint = f", or {keys['head_dim']} beside them" if "head_dim" in keys else ""
            raise ConfigError(
                f"{keys['hidden_size']} is {hidden_size}, {keys['num_heads']} is {heads} in config.json; "
                f"expected heads that divide it{hint}"
            )
        values["head_dim"] = hidden_size // heads
    implied = {"order": POST_NORM, "key_dim": values["head_dim"], "embedding_size": hidden_size}
    return StackConfig(**implied | values | fixed)


def read_model(config: Config, family: str, **fields: Any) -> ModelConfig:
    """Read what configurations of all families have in common; fields: the stacks and heads."""
    initializer = read(config, "initializer_range", float, 0.02)
    return ModelConfig(family=family, vocab_size=read(config, "vocab_size", int), initializer=initializer, **fields)


def write_model(config: ModelConfig, keys: Mapping[str, str] = BERT, *, gelu: str, **names: str) -> dict[str, Any]:
    """Write what `read_stack` and `read_model` read; names: our activation → its name there."""
    stack = config.main
    implied = {
        "head_dim": stack.hidden_size / stack.num_heads,
        "key_dim": stack.head_dim,
        "embedding_size": stack.hidden_size,
        "shared_segments": False,
    }
    values = {ours: getattr(stack, ours) for ours in keys}
    data: dict[str, Any] = {"vocab_size": config.vocab_size}
    data |= {keys[ours]: value for ours, value in values.items() if ours not in implied or value != implied[ours]}
    data[keys["activation"]] = ({gelu: "gelu"} | names).get(stack.activation, stack.activation)
    if stack.positions is None and "positions" in keys:
        data[keys["positions"]] = 512
    return data | {"initializer_range": config.initializer}
