"""What a family is: its config.json, the names of its variables, and what distinguishes it. Data only."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hanmo.config import ModelConfig, StackConfig, Sublayer
from hanmo.errors import ConfigError

Config = Mapping[str, Any]

POST_NORM = (Sublayer("attention", post=True), Sublayer("feed_forward", post=True))
PRE_NORM = (Sublayer("attention", pre=True), Sublayer("feed_forward", pre=True))


@dataclass(frozen=True)
class Row:
    """One line of a table of names: our parameters, a foreign tensor, and how one becomes the other.

    how: a name of `hanmo.checkpoint.names.HOW`; "same", "transpose", … each with its inverse.
    """

    ours: tuple[str, ...]
    theirs: str
    how: str = "same"


@dataclass(frozen=True)
class Sizes:
    """The foreign tensors whose shapes tell a network's sizes where there is no config.json.

    layer: a prefix with {} for the block's number.   heads: a tensor with one row a head, where there is one.
    columns: True where kernels are [in, out].
    """

    token: str
    layer: str
    query: str
    feed_forward: str
    position: str = ""
    segment: str = ""
    heads: str = ""
    columns: bool = True


@dataclass(frozen=True)
class Names:
    """One format of a family's checkpoints.

    config: reads that format's config.json.   original: writes it.   rows: every tensor a model may have, all heads
    included.   heads: "mlm", "pool", "nsp", "discriminator", "decoder" or "untied" → the foreign tensor without which a
    model does not have it.
    dropped: regular expression of foreign names → why they are not needed, beyond what is so in all (`TRAINING`).
    repeats: foreign name → the foreign name of the same numbers, where files hold a tied tensor twice.
    made: foreign tensors that hold no parameter → the way of `checkpoint.names.MADE` that makes them for a writer.
    marks, absent: tensors that are there, and are not, in this family alone among those with the same names.
    model_type: what a Hugging Face config.json calls it.   prefix: what names lack where the bare network was saved.
    style: whose keys its config.json uses: "bert", "gpt2" or "t5".   read_only: no other program reads such files.
    """

    config: Callable[[Config], ModelConfig]
    original: Callable[[ModelConfig], dict[str, Any]]
    rows: Callable[[ModelConfig], list[Row]]
    sizes: Sizes
    heads: Mapping[str, str] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)
    repeats: Mapping[str, str] = field(default_factory=dict)
    made: Mapping[str, str] = field(default_factory=dict)
    marks: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    model_type: str = ""
    prefix: str = ""
    style: str = "bert"
    read_only: bool = False

    @property
    def reasons(self) -> dict[str, str]:
        """Regular expression of names that no model needs → why."""
        return TRAINING | dict(self.dropped)


@dataclass(frozen=True)
class Family:
    """A kind of network, in TensorFlow's names and, where there is one, Hugging Face's.

    writes_as: the family whose Hugging Face names this one is written in, if it has none of its own.
    """

    name: str
    tensorflow: Names | None = None
    huggingface: Names | None = None
    writes_as: str = ""

    def names(self, form: str) -> Names | None:
        """Return the table of names of a format, "tensorflow" or "huggingface"; None if there is none."""
        return self.tensorflow if form == "tensorflow" else self.huggingface

    @property
    def model_types(self) -> set[str]:
        """What a config.json may call the family as its model_type."""
        own = self.huggingface.model_type if self.huggingface is not None else ""
        return {self.name, self.writes_as, own} - {""}


# What training and fine-tuning leave in a checkpoint of any family, in TensorFlow's names and in torch's.
TRAINING = {
    r".*/adam_[mv]$": "Adam's state",
    r".*/adafactor_(vr|vc|v|m)$": "AdaFactor's state",
    r".*_slot_v[rc]?$": "AdaFactor's state (mesh-TensorFlow)",
    r".*/(lamb|LAMB)_[mv]$": "LAMB's state",
    r".*/Momentum$": "the state of SGD with momentum",
    r"^beta[12]_power$|.*/(Adam|AdamW|LAMB)(Optimizer)?(_1)?$": "the optimizer's state",
    r".*/AdamWeightDecayOptimizer(_1)?$": "the optimizer's state",
    r".*/ExponentialMovingAverage$|^(ema|ema_model|model_ema)\.": "a moving average of the weights",
    r"^global_step$": "the training step",
    r"^(bad_steps|good_steps|loss_scale)$": "the loss scale of mixed-precision training",
    r"^_CHECKPOINTABLE_OBJECT_GRAPH$": "TensorFlow's object graph",
    # google-research's run_classifier.py, run_squad.py (of BERT and ALBERT), and ELECTRA's finetune/.
    r"^output_(weights|bias)$|^cls/squad/|^(start|end)_logits/|^answer_class/|^task_specific/": "a head of fine-tuning",
    # transformers' heads for classification and question answering; "fc" and "crf" as many write them themselves.
    r"^(classifier|score|qa_outputs|classification_head|multiple_choice_head|fc|crf)\.": "a head of fine-tuning",
}


Pair = Callable[[str, str], list[Row]]
"""Makes the rows of one layer from our name and the foreign one, written with dots."""


def row(ours: str, theirs: str, how: str = "same") -> Row:
    """Make a row of one parameter."""
    return Row((ours,), theirs, how)


def pair(
    ours: str, theirs: str, *, dense: tuple[str, str], norm: tuple[str, str], table: str = "", how: str = "same"
) -> list[Row]:
    """Make the rows of a layer: an embedding table, a norm or a dense layer, by our name.

    dense, norm: endings of the foreign weight and bias.   table: ending of an embedding.   how: of a dense weight.
    """
    last = ours.rpartition(".")[2]
    if last in ("token", "position", "segment"):
        return [row(f"{ours}.weight", theirs + table)]
    if last == "norm" or last.endswith(("_pre", "_post")):
        return [row(f"{ours}.weight", theirs + norm[0]), row(f"{ours}.bias", theirs + norm[1])]
    return [row(f"{ours}.weight", theirs + dense[0], how), row(f"{ours}.bias", theirs + dense[1])]


def google(ours: str, theirs: str) -> list[Row]:
    """Make the rows of a layer in TensorFlow's names: kernel [in, out] and bias, gamma and beta of norms."""
    theirs = theirs.replace(".", "/")
    return pair(ours, theirs, dense=("/kernel", "/bias"), norm=("/gamma", "/beta"), how="transpose")


def torch_pair(ours: str, theirs: str, how: str = "same") -> list[Row]:
    """Make the rows of a layer in torch's names: weight and bias."""
    ends = (".weight", ".bias")
    return pair(ours, theirs, dense=ends, norm=ends, table=".weight", how=how)


def layers(make: Pair, names: Mapping[str, str], ours: str = "", theirs: str = "") -> list[Row]:
    """Make the rows of several layers; names: ours → theirs, behind the prefixes `ours` and `theirs`."""
    ours, theirs = (f"{prefix}." if prefix else "" for prefix in (ours, theirs))
    return [r for own, foreign in names.items() for r in make(ours + own, theirs + foreign)]


def blocks(config: ModelConfig, layer: Pair, theirs: str) -> list[Row]:
    """Make the rows of every block of a single stack; layer: makes one's; theirs: a name with {} for the number."""
    side = "decoder" if config.decoder else "encoder"
    return [r for i in range(config.main.num_layers) for r in layer(f"{side}.blocks.{i}", theirs.format(i))]


def read(config: Config, key: str, kind: type, default: Any = None) -> Any:
    """Return a value of a foreign config.json; raises ConfigError if it is missing or of another type."""
    value = config.get(key, default)
    if value is None:
        raise ConfigError(f"{key} is missing in config.json; expected {kind.__name__}")
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ConfigError(f"{key} is {value!r} in config.json; expected {kind.__name__}")
    return value


def head_sizes(config: Config, hidden_size: int, heads: int) -> dict[str, int]:
    """Read head_dim and key_dim; raises ConfigError if the hidden_size does not divide and no size is given."""
    head_dim = config.get("attention_head_size")
    if head_dim is None:
        if heads < 1 or hidden_size % heads:
            raise ConfigError(
                f"hidden_size is {hidden_size}, num_attention_heads is {heads}; expected heads that divide it, "
                f"or attention_head_size beside them in config.json"
            )
        head_dim = hidden_size // heads
    return {"head_dim": head_dim, "key_dim": config.get("attention_key_size") or head_dim}


def transformer(config: Config, *, gelu: str, **changes: Any) -> StackConfig:
    """Read a stack from the field names that Google's BERT began and most followed.

    gelu: what this family's code means by hidden_act "gelu".   changes: fields of StackConfig that the family fixes.
    """
    hidden_size, heads = read(config, "hidden_size", int), read(config, "num_attention_heads", int)
    values: dict[str, Any] = {
        "num_layers": read(config, "num_hidden_layers", int),
        "hidden_size": hidden_size,
        "num_heads": heads,
        **head_sizes(config, hidden_size, heads),
        "feed_forward": read(config, "intermediate_size", int),
        "order": POST_NORM,
        "positions": config.get("max_position_embeddings", 512),
        "segments": config.get("type_vocab_size", 2),
        "shared_segments": bool(config.get("shared_segment_embeddings", False)),
        "embedding_size": config.get("embedding_size") or hidden_size,
        "activation": activation(config, gelu),
        "dropout": float(config.get("hidden_dropout_prob") or 0),
        "attention_dropout": float(config.get("attention_probs_dropout_prob") or 0),
    }
    return StackConfig(**values | changes)


def activation(config: Config, gelu: str, key: str = "hidden_act") -> str:
    """Read an activation's name; "gelu" means `gelu`."""
    name = config.get(key) or "gelu"
    known = {
        "gelu": gelu,
        "gelu_erf": "gelu_erf",
        "gelu_python": "gelu_erf",
        "gelu_new": "gelu_tanh",
        "gelu_tanh": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "gelu_fast": "gelu_tanh",
        "relu": "relu",
        "silu": "silu",
        "swish": "silu",
        "tanh": "tanh",
        "linear": "linear",
        "relu2": "squared_relu",
        "squared_relu": "squared_relu",
    }
    if name not in known:
        raise ConfigError(f"{key} is {name!r} in config.json; known are {', '.join(known)}")
    return known[name]


def write_transformer(config: ModelConfig, *, gelu: str) -> dict[str, Any]:
    """Write what `transformer` reads."""
    stack = config.main
    data: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": stack.hidden_size,
        "num_hidden_layers": stack.num_layers,
        "num_attention_heads": stack.num_heads,
        "intermediate_size": stack.feed_forward,
        "hidden_act": "gelu" if stack.activation == gelu else stack.activation,
        "hidden_dropout_prob": stack.dropout,
        "attention_probs_dropout_prob": stack.attention_dropout,
        "max_position_embeddings": stack.positions or 512,
        "type_vocab_size": stack.segments,
        "initializer_range": config.initializer,
    }
    if stack.embedding_size != stack.hidden_size:
        data["embedding_size"] = stack.embedding_size
    if stack.head_dim * stack.num_heads != stack.hidden_size:
        data["attention_head_size"] = stack.head_dim
    if stack.key_dim != stack.head_dim:
        data["attention_key_size"] = stack.key_dim
    if stack.shared_segments:
        data["shared_segment_embeddings"] = True
    return data
