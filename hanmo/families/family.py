"""What a family is: its config.json, the names of its tensors, and what distinguishes it. Data only."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hanmo.config import ModelConfig, Sublayer
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
class Layout:
    """How a format spells and stores the parameters of a layer.

    dense, norm: endings of weight and bias, or of the weight alone.   table: ending of an embedding.
    how: of a dense layer's weight.   relative: how of T5's table of relative positions.
    """

    dense: tuple[str, ...] = (".weight", ".bias")
    norm: tuple[str, ...] = (".weight", ".bias")
    table: str = ".weight"
    how: str = "same"
    relative: str = "same"
    separator: str = "."


TORCH, CONV1D = Layout(), Layout(how="transpose")
TENSORFLOW = Layout(("/kernel", "/bias"), ("/gamma", "/beta"), "", how="transpose", separator="/")


@dataclass(frozen=True)
class Table:
    """The layers of a network in the names of one format.

    names: our layer → theirs, written with dots; or our prefix → (theirs, the layers behind both). "encoder.blocks.{}"
    stands for every block. Our name tells whether a layer is an embedding, a norm or dense; "query+key+value" are
    stored as one; what ends in ".weight" or ".bias" is one parameter, stored as it is.
    """

    layout: Layout
    names: Mapping[str, Any]

    def rows(self, config: ModelConfig) -> list[Row]:
        """Make the rows of a model; raises ConfigError if it has an output that Hugging Face's MLM heads have not."""
        if self.layout is TORCH and config.output == "mlm" and not config.tied:
            raise ConfigError(
                "tie_word_embeddings is false in config.json; Hanmo reads MLM heads whose output is the embedding: "
                "set it to true if both are the same, or leave the head out of the file"
            )
        found: dict[str, Row] = {}
        for ours in self.names:
            side = ours.partition(".")[0]
            stack = getattr(config, side) if side in ("encoder", "decoder") else config.main
            if stack is None or (ours in ("output", "output.weight") and config.tied):
                continue
            for i in range(1 if "{}" not in ours or stack.shared_layers else stack.num_layers):
                rows = [row for layer in self._layers(ours, i) for row in _rows(self.layout, *layer)]
                for row in rows:  # a tensor of several blocks is copied into each
                    if other := found.get(row.theirs):
                        row = Row(other.ours + row.ours, row.theirs, f"copy_{row.how}")
                    found[row.theirs] = row
        return list(found.values())

    def sizes_and_heads(self) -> tuple[Sizes, dict[str, str]]:
        """Tell which tensors show the sizes, and `Names.heads`."""
        layers = dict(layer for ours in self.names for layer in self._layers(ours, 0))

        def find(*names: str) -> str:
            there = [side + name for name in names for side in ("", "encoder.", "decoder.") if side + name in layers]
            return next(_rows(self.layout, there[0], layers[there[0]])).theirs if there else ""

        heads = {
            "pool": find("pooler.dense"),
            "nsp": find("pooler.nsp", "pooler.nsp.weight"),
            "mlm": find("output.bias"),
            "discriminator": find("discriminator.dense"),
        }
        block = next(f"{theirs[0]}." for ours, theirs in self.names.items() if "{}" in ours)
        block = block if "{" in block else block.replace("0", "{}", 1)  # one block for all layers, with a number
        sizes = Sizes(
            token=find("token"),
            layer=block.replace(".", self.layout.separator),
            query=find("blocks.0.attention.query", "blocks.0.attention.output"),
            feed_forward=find("blocks.0.feed_forward.gate", "blocks.0.feed_forward.input"),
            position=find("embedding.position"),
            segment=find("embedding.segment"),
            heads=find("relative") if self.layout.relative == "same" else "",
            columns=self.layout.how != "same",
        )
        return sizes, {head: theirs for head, theirs in heads.items() if theirs}

    def _layers(self, ours: str, i: int) -> Iterator[tuple[str, str]]:
        theirs = self.names[ours]
        prefix, layers = theirs if isinstance(theirs, tuple) else (theirs, {"": ""})
        for own, foreign in layers.items():
            name, other = f"{ours}.{own}".format(i).rstrip("."), f"{prefix}.{foreign}".format(i).rstrip(".")
            yield name, other.replace(".", self.layout.separator)


def _rows(layout: Layout, ours: str, theirs: str) -> Iterator[Row]:
    before, dot, last = ours.rpartition(".")
    if last in ("weight", "bias"):
        yield Row((ours,), theirs)
    elif last in ("token", "position", "segment", "relative"):
        yield Row((f"{ours}.weight",), theirs + layout.table, layout.relative if last == "relative" else "same")
    elif last == "norm" or last.endswith(("_pre", "_post")):
        for kind, ending in zip(("weight", "bias"), layout.norm, strict=False):
            yield Row((f"{ours}.{kind}",), theirs + ending)
    else:
        parts = [before + dot + name for name in last.split("+")]
        ways = (layout.how, "same") if len(parts) == 1 else (f"split_{layout.how}", "split")
        for kind, ending, how in zip(("weight", "bias"), layout.dense, ways, strict=False):
            yield Row(tuple(f"{part}.{kind}" for part in parts), theirs + ending, how)


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
    code: file beside the weights → file of assets/transformers, where transformers has no such network.
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
    code: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, layout: Layout, names: Mapping[str, Any], **fields: Any) -> "Names":
        """Make a format from a `Table`, which gives the rows, sizes and heads that `fields` does not."""
        table = Table(layout, names)
        sizes, heads = table.sizes_and_heads()
        given: dict[str, Any] = {"rows": table.rows, "sizes": sizes, "heads": heads}
        return cls(**given | fields)

    @property
    def reasons(self) -> dict[str, str]:
        """Regular expression of names that no model needs → why."""
        return TRAINING | dict(self.dropped)


def code_files(name: str) -> dict[str, str]:
    """Return the files of a network's code for transformers and its model card, for `Names.code`."""
    code = (f"configuration_{name}.py", f"modeling_{name}.py")
    return {"README.md": "MODEL_CARD.md", **dict(zip(code, code, strict=True))}


def auto_map(name: str, word: str, **classes: str) -> dict[str, dict[str, str]]:
    """Tell transformers which class of such code each of its own stands for.

    word: what the names of the classes begin with.   classes: transformers' class → the rest of ours.
    """
    found = {auto: f"modeling_{name}.{word}{ending}" for auto, ending in classes.items()}
    return {"auto_map": {"AutoConfig": f"configuration_{name}.{word}Config", **found}}


@dataclass(frozen=True)
class Family:
    """A kind of network, in TensorFlow's names and, where there is one, Hugging Face's.

    republished: the names of a conversion to torch by others, read only.
    writes_as: the family whose Hugging Face names this one is written in, if it has none of its own.
    """

    name: str
    tensorflow: Names | None = None
    huggingface: Names | None = None
    republished: Names | None = None
    writes_as: str = ""

    def names(self, form: str) -> Names | None:
        """Return the table of names of one of `FORMATS`; None if there is none."""
        return {"tensorflow": self.tensorflow, "huggingface": self.huggingface, "republished": self.republished}[form]

    @property
    def model_types(self) -> set[str]:
        """What a config.json may call the family as its model_type."""
        own = {names.model_type for names in (self.huggingface, self.republished) if names is not None}
        return {self.name, self.writes_as, *own} - {""}


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
