"""What a model is, as data: frozen, checked, JSON both ways. Knows no family, which families/ translate to this."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from hanmo.errors import ConfigError
from hanmo.files import parse_json, read_json

_MOST = 1 << 31  # what no size, factor or number of anything reaches

_ACTIVATIONS = (
    "gelu_erf", "gelu_tanh", "relu", "silu", "tanh", "sigmoid", "elu", "selu", "softplus", "softsign", "leaky_relu",
    "squared_relu", "linear",
)  # fmt: skip
_CHOICES = {
    "kind": ("attention", "cross", "feed_forward"),
    "mask": ("full", "causal", "prefix"),
    "position": ("none", "learned", "sinusoidal", "rotary", "relative", "buckets"),
    "norm": ("layer", "rms"),
    "activation": _ACTIVATIONS,
    "condition_activation": _ACTIVATIONS,
    "score_residual": ("none", "previous", "cumulative"),
    "output": ("none", "lm", "mlm"),
    "pool": ("none", *_ACTIVATIONS),
    "head_activation": _ACTIVATIONS,
}
# Fields, what holds for each of them, and how an error says so.
_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("hidden_size num_layers num_heads head_dim key_dim feed_forward", lambda n: n >= 1, "1 or more"),
    ("embedding_size vocab_size", lambda n: n >= 1, "1 or more"),
    ("segments condition condition_hidden position_offset", lambda n: n >= 0, "0 or more"),
    ("buckets bucket_distance relative_clip", lambda n: n >= 2, "2 or more"),
    ("num_layers", lambda n: n <= 4096, "at most 4,096"),  # no tensor of a file bounds this, nor the next
    ("relative_clip", lambda n: n <= 1 << 16, "at most 65,536"),
    ("dropout attention_dropout hierarchical", lambda x: 0 <= x < 1, "a number from 0 up to 1"),
    ("norm_eps embedding_norm_eps", lambda x: 0 < x < 1, "a small number above 0"),
)

T = TypeVar("T", "Sublayer", "StackConfig", "ModelConfig")

RENAMED = {"depth": "num_layers", "width": "hidden_size", "heads": "num_heads", "embedding_width": "embedding_size"}
RENAMED |= {"vocab": "vocab_size", "writes": "can_generate", "answers": "is_encoder_decoder"}
"""Names of version 0.1, which are still read in hanmo.json and as attributes."""


class _Renamed:
    def __getattr__(self, name: str) -> Any:
        return object.__getattribute__(self, RENAMED.get(name, name))


@dataclass(frozen=True)
class Sublayer:
    """One residual step of a block: `x = post(x + f(pre(x)))`, each norm there or not."""

    kind: str
    pre: bool = False
    post: bool = False

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, kw_only=True)
class StackConfig(_Renamed):
    """One stack of blocks with its embeddings: an encoder, or a decoder.

    head_dim: features of a value; key_dim: of a query and a key, usually the same.
    order: the sub-layers of every block.   positions: rows of the table of learned positions, if there is one.
    position_offset: row of the first token's position; RoBERTa leaves the rows before it unused.
    hierarchical: alpha of the hierarchical decomposition of learned positions (kexue.fm/archives/7947); 0 is off.
    score_scale: factor of the attention scores; None is key_dim ** -0.5, T5 uses 1.
    score_residual: "cumulative" adds the scores of all earlier blocks (RealFormer, arXiv 2012.11747), "previous" only
        those of the block before (bert4keras), "none" is off.
    cross_positions: whether cross-attention has T5's relative bias too (bert4keras; the paper's code has not).
    condition: size of the vector that shifts and scales the norms (conditional layer norm), condition_hidden: of a
        hidden layer in between; 0 is none.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    head_dim: int
    key_dim: int
    feed_forward: int
    order: tuple[Sublayer, ...]
    mask: str = "full"
    position: str = "learned"
    positions: int | None = None
    position_offset: int = 0
    hierarchical: float = 0.0
    relative_clip: int = 64
    buckets: int = 32
    bucket_distance: int = 128
    segments: int = 0
    shared_segments: bool = False
    embedding_size: int
    embedding_norm: bool = True
    embedding_norm_eps: float = 1e-12
    final_norm: bool = False
    norm: str = "layer"
    norm_eps: float = 1e-12
    norm_scale: bool = True
    norm_bias: bool = True
    bias: bool = True
    gated: bool = False
    activation: str = "gelu_erf"
    score_scale: float | None = None
    score_residual: str = "none"
    cross_positions: bool = False
    shared_layers: bool = False
    condition: int = 0
    condition_hidden: int = 0
    condition_activation: str = "linear"
    dropout: float = 0.0
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        _check(self)
        position, offset = self.position, self.position_offset
        learned = position == "learned"
        _refuse(not self.order, "order is empty; expected at least one sublayer")
        if learned:
            _refuse(self.positions is None, "positions is missing; learned positions need their number")
            _refuse((self.positions or 0) <= offset, f"positions is {self.positions}; expected {1 + offset} or more")
        for name in ("hierarchical", "position_offset"):
            unused = getattr(self, name) and not learned
            _refuse(unused, f"{name} is set but position is {position!r}; it needs learned positions")
        both = self.hierarchical and offset
        _refuse(both, "hierarchical and position_offset are both set; expected at most one of them")
        if position in ("rotary", "relative", "sinusoidal"):
            name = "embedding_size" if position == "sinusoidal" else "key_dim"
            size = getattr(self, name)
            _refuse(size % 2, f"{name} is {size}; {position} positions need an even number")
        _refuse(
            position == "relative" and self.key_dim != self.head_dim,
            f"key_dim is {self.key_dim}, head_dim is {self.head_dim}; relative positions need them equal",
        )
        _refuse(
            position == "buckets" and not 1 < self.buckets // 2 < self.bucket_distance,
            f"buckets is {self.buckets}, bucket_distance is {self.bucket_distance}; "
            "expected at least 4 buckets, and a distance of more than half of them",
        )
        untold = self.mask == "prefix" and self.segments < 2
        _refuse(untold, f"mask is 'prefix' but segments is {self.segments}; the prefix is told by two segment ids")

    @property
    def scale(self) -> float:
        """Factor of the attention scores."""
        return self.key_dim**-0.5 if self.score_scale is None else self.score_scale

    @property
    def context(self) -> int | None:
        """Number of tokens that the stack can see; None where its positions have no end."""
        if self.position != "learned" or self.positions is None:
            return None
        return self.positions**2 if self.hierarchical else self.positions - self.position_offset

    @property
    def has_cross(self) -> bool:
        """Whether blocks attend to another stack's output."""
        return any(sublayer.kind == "cross" for sublayer in self.order)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(_Renamed):
    """A model: at most one encoder and one decoder over one vocabulary, and the heads on top.

    family: which tables of names apply; no network code asks for it.
    output: "lm" projects onto the vocabulary, "mlm" transforms first (dense, activation, norm) and adds a bias, "none".
    tied: the output projection is the token embedding.
    logit_scale: factor of the last hidden state before the projection (T5 1.0: hidden_size ** -0.5).
    pool: activation of the pooler on the first token ("tanh", "linear"), or "none"; nsp: next-sentence head on it.
    discriminator: ELECTRA's head, one logit a token.
    head_activation, head_norm_eps: of the "mlm" transform and the discriminator.
    initializer: standard deviation of fresh weights.
    generation: the fields of Hugging Face's config.json about the tokenizer and the ids that begin and end a text
    ("decoder_start_token_id", "eos_token_id", "tokenizer_class" …), as they were read.
    """

    family: str
    vocab_size: int
    encoder: StackConfig | None = None
    decoder: StackConfig | None = None
    output: str = "none"
    tied: bool = True
    logit_scale: float = 1.0
    pool: str = "none"
    nsp: bool = False
    discriminator: bool = False
    head_activation: str = "gelu_erf"
    head_norm_eps: float = 1e-12
    initializer: float = 0.02
    generation: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _check(self)
        first, last = self.encoder or self.main, self.main
        without = self.nsp and self.pool == "none"
        _refuse(without, "nsp is set but pool is 'none'; the next-sentence head needs the pooler")
        _refuse(
            first.embedding_size != last.embedding_size,
            f"embedding_size is {first.embedding_size} in the encoder and {last.embedding_size} in the decoder; "
            "they share one embedding",
        )

    @property
    def main(self) -> StackConfig:
        """The stack whose output the heads take."""
        if (stack := self.decoder or self.encoder) is None:
            raise ConfigError("neither encoder nor decoder is given; expected at least one of them")
        return stack

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether it has both an encoder and a decoder, as T5 has."""
        return self.encoder is not None and self.decoder is not None

    @property
    def can_generate(self) -> bool:
        """Whether it can generate text: it returns logits, and no token attends to a later one of its own text."""
        return self.output != "none" and self.main.mask != "full"

    @property
    def decoder_start(self) -> int | None:
        """The id that a decoder behind an encoder begins with; None if `generation` has none.

        Raises ConfigError for an id that the vocabulary does not have.
        """
        for name in ("decoder_start_token_id", "bos_token_id"):  # in this order in transformers
            if (told := self.generation.get(name)) is not None:
                found = self._token_ids(name)
                if len(found) != 1 or not 0 <= found[0] < self.vocab_size:
                    raise ConfigError(f"{name} is {told!r}; expected one id from 0 to {self.vocab_size - 1}")
                return found[0]
        return None

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids that end a text; () if `generation` has none in the vocabulary.

        A GPT-2 with a vocabulary of its own often keeps 50256, the default of transformers, which never comes then.
        """
        return tuple(number for number in self._token_ids("eos_token_id") if 0 <= number < self.vocab_size)

    def with_mask(self, mask: str) -> "ModelConfig":
        """Return a copy whose main stack has another attention mask: "causal" or "prefix" lets an encoder write."""
        main = replace(self.main, mask=mask)
        return replace(self, decoder=main) if self.decoder else replace(self, encoder=main)

    def _token_ids(self, name: str) -> list[int]:
        value = self.generation.get(name)
        found = [] if value is None else value if isinstance(value, list) else [value]
        if not all(type(number) is int for number in found):
            raise ConfigError(f"{name} is {value!r}; expected an id, or a list of ids")
        return found

    def to_json(self) -> str:
        """Write the configuration as JSON text, one key a line."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "ModelConfig":
        """Read what `to_json` wrote.

        Raises ConfigError on broken JSON, an unknown or missing key, a value of the wrong type or out of range.
        """
        return _build(cls, parse_json(text, "the model's configuration", error=ConfigError, unique=True), "the model")

    @classmethod
    def read(cls, path: Path) -> "ModelConfig":
        """Read a hanmo.json. Raises ConfigError naming the file, MissingFile."""
        return _build(cls, read_json(path, error=ConfigError, unique=True), f"the model of {path}")


def _build(cls: type[T], data: Any, where: str) -> T:
    if not isinstance(data, dict):
        raise ConfigError(f"{where} is {type(data).__name__}; expected a JSON object")
    known = [field.name for field in fields(cls)]
    data = {RENAMED.get(key, key): value for key, value in data.items()}
    if unknown := sorted(set(data) - set(known)):
        raise ConfigError(f"{where} has the unknown key {unknown[0]!r}; known are {', '.join(known)}")
    try:
        return cls(**{key: _convert(value, _KINDS[cls][key], f"{key} of {where}") for key, value in data.items()})
    except TypeError as error:
        raise ConfigError(f"{where} is not complete: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{error} (in {where})") from None


def _convert(value: Any, kinds: tuple[type, ...], where: str) -> Any:
    """Turn objects and lists into what the field holds; their fields' own types are checked when they are made."""
    if StackConfig in kinds and value is not None:
        return _build(StackConfig, value, where)
    if tuple in kinds:
        if not isinstance(value, list):
            raise ConfigError(f"{where} is {value!r}; expected a list")
        return tuple(_build(Sublayer, item, where) for item in value)
    return float(value) if float in kinds and type(value) is int and abs(value) < _MOST else value


def _kinds(cls: type) -> dict[str, tuple[type, ...]]:
    """Return the types that each field may hold; a float may be given as an int."""
    kinds = {}
    for name, hint in get_type_hints(cls).items():
        allowed = [get_origin(each) or each for each in (get_args(hint) if isinstance(hint, UnionType) else (hint,))]
        kinds[name] = tuple(allowed + [int] * (float in allowed))
    return kinds


def _check(config: Sublayer | StackConfig | ModelConfig) -> None:
    """Raise ConfigError for a field of another type or out of its range."""
    for name, kinds in _KINDS[type(config)].items():
        value = getattr(config, name)
        if type(value) not in kinds or (type(value) is float and not math.isfinite(value)):
            raise ConfigError(f"{name} is {str(value)[:200]!r}; expected {kinds[0].__name__}")
        if type(value) is int and abs(value) >= _MOST:
            raise ConfigError(f"{name} is {value:,}; expected a number below 2**31")
        if name in _CHOICES and value not in _CHOICES[name]:
            raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(_CHOICES[name])}")
    for names, fits, expected in _RULES:
        for name in names.split():
            value = getattr(config, name, None)
            _refuse(value is not None and not fits(value), f"{name} is {value!r}; expected {expected}")


def _refuse(wrong: object, message: str) -> None:
    if wrong:
        raise ConfigError(message)


_KINDS = {cls: _kinds(cls) for cls in (Sublayer, StackConfig, ModelConfig)}
