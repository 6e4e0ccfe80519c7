"""Fill a model from a checkpoint, strictly and without a second copy in memory.

Every parameter is filled, and every foreign tensor is used or listed with the reason why not. Tensors that need no
change stay copy-on-write views of the mapped file; others are converted one by one and their pages released.
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from hanmo.checkpoint.names import foreign_shape, import_row
from hanmo.checkpoint.source import Array, Source
from hanmo.checkpoint.vocabulary_edit import VOCABULARY, VocabularyEdit
from hanmo.errors import ConfigError, TensorMismatch
from hanmo.families import Row
from hanmo.model import Model

# The dtypes that NumPy has no name for come as bits.
_BITS = {"bfloat16": torch.bfloat16, "float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}


FLOATS = ("float32", "bfloat16", "float16", "float64")
"""Dtypes that weights may be converted to."""


def as_dtype(dtype: torch.dtype | str | None, known: Sequence[str] = FLOATS) -> torch.dtype | None:
    """Read a dtype that is torch's own or its name, "bfloat16". Raises ConfigError if it is not one of `known`."""
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in known:
        raise ConfigError(f"dtype is {dtype!r}; expected one of {', '.join(known)}")
    found: torch.dtype = getattr(torch, name)
    return found


@dataclass
class Report:
    """How many tensors were used, and which were left out and why."""

    used: int = 0
    dropped: dict[str, str] = field(default_factory=dict)


def as_tensor(array: Array, dtype: str) -> Tensor:
    """Return a reader's array as a torch tensor that shares its memory."""
    if not array.flags.writeable or not array.flags.aligned:
        array = np.array(array)
    tensor = torch.from_numpy(array)
    return tensor.view(_BITS[dtype]) if dtype in _BITS else tensor


def fill(
    model: Model,
    source: Source,
    rows: list[Row],
    *,
    dropped: Mapping[str, str],
    dtype: torch.dtype | None = None,
    edit: VocabularyEdit | None = None,
    fresh: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Fill a model on the meta device from an open checkpoint.

    rows: the table of the family.   dropped: patterns of names that no model needs → the reason.
    dtype: of floating tensors in the model; None keeps the file's.   edit: a change of the vocabulary; the model has
    the size after it.   fresh: pattern of our parameters that no checkpoint has; they are filled with zeros.
    progress: called with the bytes of each tensor when it is in.
    Raises TensorMismatch for missing, unexpected or wrongly shaped tensors, ConfigError where config.json is to blame.
    """
    ours = {name: parameter for name, parameter in model.named_parameters()}
    report = Report()
    wanted: dict[str, Row] = {}
    for row in rows:
        if any(name in ours for name in row.ours):
            wanted[row.theirs] = row
        elif row.theirs in source.tensors and all(_left_out(model, name) for name in row.ours):
            report.dropped[row.theirs] = "a part that this model was built without"
    _check_names(source, wanted, dropped, report)
    _check_filled(ours, wanted, fresh)
    _check_shapes(source, wanted, ours, edit)
    for name in source.in_file_order:
        if name not in wanted:
            continue
        row, info = wanted[name], source.tensors[name]
        tensor = as_tensor(source.read(name), info.dtype)
        parts = import_row(row, tensor)
        if edit is not None and row.ours[0] in VOCABULARY:
            parts = [edit.apply(part) for part in parts]
        parts = [part.to(dtype) if dtype is not None and part.is_floating_point() else part for part in parts]
        if row.how.startswith("copy"):
            parts = [part.clone() for part in parts]
        for target, part in zip(row.ours, parts, strict=True):
            _set(model, target, part)
        if all(part.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr() for part in parts):
            source.release(name)
        report.used += 1
        if progress is not None:
            progress(info.nbytes)
    for name, parameter in ours.items():
        if fresh is not None and re.search(fresh, name):
            _set(model, name, torch.zeros(parameter.shape, dtype=dtype or torch.float32))
    return report


def _set(model: nn.Module, name: str, tensor: Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    module = model.get_submodule(parent)
    # `data` shares memory, not the counter of changes: parts of one fused tensor are updated one at a time in backward.
    module.register_parameter(leaf, nn.Parameter(tensor.data, requires_grad=tensor.is_floating_point()))


def _left_out(model: Model, name: str) -> bool:
    """Tell whether the model lacks the head or stack that a parameter belongs to; blocks are never left out."""
    return name.startswith("pooler.nsp.") or getattr(model, name.partition(".")[0], model) is None


def _check_names(source: Source, wanted: Mapping[str, Row], dropped: Mapping[str, str], report: Report) -> None:
    for name in source.tensors:
        if name in wanted or name in report.dropped:
            continue
        reason = next((why for pattern, why in dropped.items() if re.match(pattern, name)), None)
        if reason is None:
            raise TensorMismatch(
                f"{source.path} holds {name}, which this model has no place for{_nearest(name, wanted)}"
            )
        report.dropped[name] = reason
    if missing := [name for name in wanted if name not in source.tensors]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise TensorMismatch(
            f"{source.path} lacks {missing[0]}{more}, which this model needs{_nearest(missing[0], source.tensors)}"
        )


def _nearest(name: str, names: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, names, n=10, cutoff=0.3)
    return f"; the nearest names are {', '.join(near)}" if near else "; no name is near it"


def _check_filled(ours: Mapping[str, nn.Parameter], wanted: Mapping[str, Row], fresh: str | None) -> None:
    have = {name for row in wanted.values() for name in row.ours}
    for name in ours:
        if name not in have and not (fresh is not None and re.search(fresh, name)):
            raise TensorMismatch(f"the model has {name}, which checkpoints of this family do not hold")


def _check_shapes(
    source: Source, wanted: Mapping[str, Row], ours: Mapping[str, nn.Parameter], edit: VocabularyEdit | None
) -> None:
    for name, row in wanted.items():
        info = source.tensors[name]
        shapes = [ours[target].shape for target in row.ours]
        expected = foreign_shape(row, shapes)
        shape = info.shape
        if edit is not None and row.ours[0] in VOCABULARY:
            axis = 1 if row.how == "transpose" else 0
            shape = tuple(edit.size(n) if i == axis else n for i, n in enumerate(shape))
        if tuple(shape) != expected:
            raise ConfigError(
                f"{name} in {source.path} is {list(info.shape)}; the configuration makes it {list(expected)}"
                f"{_blame(row.ours[0], shape, expected)}"
            )


# Which field of config.json a shape hangs on: our name's pattern → (axis, field).
_FIELDS = (
    (r"^token\.weight$", ("vocab_size", "hidden_size (or embedding_size)")),
    (r"embedding\.position\.weight$", ("max_position_embeddings", "hidden_size (or embedding_size)")),
    (r"embedding\.segment\.weight$", ("type_vocab_size", "hidden_size (or embedding_size)")),
    (r"feed_forward\.(input|gate)\.weight$", ("hidden_size", "intermediate_size")),
    (
        r"attention\.(query|key|value)\.weight$",
        ("hidden_size", "num_attention_heads, attention_head_size or _key_size"),
    ),
)


def _blame(ours: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> str:
    for pattern, names in _FIELDS:
        if re.search(pattern, ours) and len(shape) == len(expected) == 2:
            axis = next(i for i in range(2) if shape[i] != expected[i])
            return f"; set {names[axis]} in config.json so that {expected[axis]} becomes {shape[axis]}"
    return "; config.json belongs to another checkpoint"
