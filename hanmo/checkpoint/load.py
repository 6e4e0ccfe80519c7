"""Fill a model from a checkpoint, strictly and without a second copy in memory.

Every parameter is filled, and every foreign tensor is used or listed with the reason why not. Tensors that need no
change stay copy-on-write views of the mapped file; others are converted one by one and their pages released.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    ours = dict(model.named_parameters())
    fresh_names = [name for name in ours if fresh is not None and re.search(fresh, name)]
    report = Report()
    wanted: dict[str, Row] = {}
    for row in rows:
        if any(name in ours for name in row.ours):
            wanted[row.theirs] = row
        # A head or stack may be left out, blocks may not.
        elif row.theirs in source.tensors and all(
            name.startswith("pooler.nsp.") or getattr(model, name.partition(".")[0], model) is None for name in row.ours
        ):
            report.dropped[row.theirs] = "a part that this model was built without"
    _check_names(source, wanted, dropped, report)
    filled = {name for row in wanted.values() for name in row.ours}.union(fresh_names)
    if lost := [name for name in ours if name not in filled]:
        raise TensorMismatch(f"the model has {lost[0]}, which checkpoints of this family do not hold")
    for row in wanted.values():
        _check_shape(source, row, [ours[name].shape for name in row.ours], edit)
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
    for name in fresh_names:
        _set(model, name, torch.zeros(ours[name].shape, dtype=dtype or torch.float32))
    return report


def _set(model: nn.Module, name: str, tensor: Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    # `data` shares memory, not the counter of changes: parts of one fused tensor are updated one at a time in backward.
    parameter = nn.Parameter(tensor.data, requires_grad=tensor.is_floating_point())
    model.get_submodule(parent).register_parameter(leaf, parameter)


def _check_names(source: Source, wanted: Mapping[str, Row], dropped: Mapping[str, str], report: Report) -> None:
    def nearest(name: str, names: Iterable[str]) -> str:
        near = difflib.get_close_matches(name, list(names), n=10, cutoff=0.3)
        return f"; the nearest names are {', '.join(near)}" if near else "; no name is near it"

    for name in source.tensors:
        if name in wanted or name in report.dropped:
            continue
        reason = next((why for pattern, why in dropped.items() if re.match(pattern, name)), None)
        if reason is None:
            raise TensorMismatch(
                f"{source.path} holds {name}, which this model has no place for{nearest(name, wanted)}"
            )
        report.dropped[name] = reason
    if missing := [name for name in wanted if name not in source.tensors]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        near = nearest(missing[0], source.tensors)
        raise TensorMismatch(f"{source.path} lacks {missing[0]}{more}, which this model needs{near}")


# Which fields of config.json give a parameter's axes, by a pattern of our name.
_FIELDS = {
    r"^token\.weight$": ("vocab_size", "hidden_size (or embedding_size)"),
    r"embedding\.position\.weight$": ("max_position_embeddings", "hidden_size (or embedding_size)"),
    r"embedding\.segment\.weight$": ("type_vocab_size", "hidden_size (or embedding_size)"),
    r"feed_forward\.(input|gate)\.weight$": ("hidden_size", "intermediate_size"),
    r"attention\.(query|key|value)\.weight$": (
        "hidden_size",
        "num_attention_heads, attention_head_size or _key_size",
    ),
}


def _check_shape(source: Source, row: Row, shapes: list[torch.Size], edit: VocabularyEdit | None) -> None:
    """Raise ConfigError if a tensor has another shape than the model's; shapes: of the row's parameters."""
    stored = source.tensors[row.theirs].shape
    shape, expected = list(stored), foreign_shape(row, shapes)
    if edit is not None and row.ours[0] in VOCABULARY and shape:
        axis = 1 if row.how == "transpose" else 0
        shape[axis] = edit.size(shape[axis])
    if tuple(shape) == expected:
        return
    advice = "config.json belongs to another checkpoint"
    for pattern, names in _FIELDS.items():
        if re.search(pattern, row.ours[0]) and len(shape) == len(expected) == 2:
            axis = next(i for i in range(2) if shape[i] != expected[i])
            advice = f"set {names[axis]} in config.json so that {expected[axis]} becomes {shape[axis]}"
    raise ConfigError(
        f"{row.theirs} in {source.path} is {list(stored)}; the configuration makes it {list(expected)}; {advice}"
    )
