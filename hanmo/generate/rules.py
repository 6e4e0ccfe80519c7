"""The sampling rules, for NumPy and torch through the array API; torch is not imported.

Every rule takes logits [rows, vocab_size] of any float dtype, -inf where an id is masked, and returns a new array of
the same shape and dtype. Among equal scores the lower id is kept first. `sampling.py` defines the order of the rules.
"""

import math
import operator
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import array_api_compat
import numpy as np

from hanmo.errors import ConfigError

Array: TypeAlias = Any  # a NumPy array or a torch tensor
Crossing: TypeAlias = Literal["keep", "drop"]
_FEW = 1024  # ids that top-p keeps nearly always


def temperature(logits: Array, t: float) -> Array:
    """Divide the logits by t: below 1 sharpens the choice, above 1 flattens it.

    t: above 0 and finite, else ConfigError.   The result is shifted so that the highest is 0.
    """
    check_number("temperature", t, above=0.0)
    xp, _ = _library(logits)
    highest = xp.max(logits, axis=-1, keepdims=True)
    shifted = logits - xp.where(xp.isfinite(highest), highest, xp.zeros_like(highest))
    # With the highest at 0 no score overflows to +inf; others may become -inf.
    with np.errstate(over="ignore"):
        return shifted / max(float(t), float(xp.finfo(logits.dtype).smallest_normal))


def top_k(logits: Array, k: int) -> Array:
    """Mask all but the k highest-scored ids of every row.

    k: 1 or more, else ConfigError; vocab_size or more keeps everything.
    """
    check_count("top_k", k)
    xp, device = _library(logits)
    if k >= logits.shape[-1]:
        return xp.asarray(logits, copy=True)
    counts = xp.full((logits.shape[0], 1), k, dtype=xp.int64, device=device)
    return _keep_largest(logits, logits, counts, _largest(logits, k))


def top_p(logits: Array, p: float, *, crossing: Crossing = "keep") -> Array:
    """Mask all but the smallest set of ids whose probability reaches p.

    p: in (0, 1]; 1 keeps everything.
    crossing: whether the id with which the sum reaches p is kept: "keep", as in Holtzman et al. 2019 (arXiv
    1904.09751), bert4keras and most others, or "drop", as in the original gpt2-ml. At least one id per row is kept.
    Raises ConfigError for another p or crossing.
    """
    check_number("top_p", p, above=0.0, most=1.0)
    check_crossing(crossing)
    xp, _ = _library(logits)
    if p == 1:
        return xp.asarray(logits, copy=True)
    if (columns := few_columns(logits)) is not None:
        kept = np.full_like(logits, -np.inf)
        kept[:, columns] = top_p(logits[:, columns], p, crossing=crossing)
        return kept
    probabilities = softmax(logits)
    # Libraries differ in the last bit of an exponential: sums this near to p count as p.
    slack = 1e-12 if probabilities.dtype == xp.float64 else 1e-6
    falling = _largest(probabilities, _FEW)
    short = xp.cumulative_sum(falling, axis=-1) < p - slack  # true for a prefix of every row
    if falling.shape[-1] < logits.shape[-1] and not (~short[:, -1]).all():
        falling = _largest(probabilities, logits.shape[-1])
        short = xp.cumulative_sum(falling, axis=-1) < p - slack
    counts = xp.sum(xp.astype(short, xp.int64), axis=-1, keepdims=True)
    counts = xp.clip(counts + 1 if crossing == "keep" else counts, 1, logits.shape[-1])
    return _keep_largest(logits, probabilities, counts, falling)


def repetition_penalty(logits: Array, history: Sequence[Sequence[int]], penalty: float) -> Array:
    """Make the ids of each row's history less likely: positive scores / penalty, negative ones * penalty.

    history: the ids so far, one sequence per row, of any lengths.
    penalty: above 0 and finite, else ConfigError; CTRL's is 1.2 (Keskar et al. 2019, arXiv 1909.05858).
    """
    check_number("repetition_penalty", penalty, above=0.0)
    xp, device = _library(logits)
    seen = np.zeros(tuple(logits.shape), dtype=bool)
    for row, ids in enumerate(history):
        seen[row, list(ids)] = True
    return xp.where(xp.asarray(seen, device=device), xp.where(logits > 0, logits / penalty, logits * penalty), logits)


def no_repeat_ngram(logits: Array, history: Sequence[Sequence[int]], size: int) -> Array:
    """Mask every id that would repeat an n-gram of the history.

    history: as for repetition_penalty.   size: n, 1 or more, else ConfigError.
    """
    check_count("no_repeat_ngram", size)
    xp, device = _library(logits)
    repeats = np.zeros(tuple(logits.shape), dtype=bool)
    for row, ids in enumerate(history):
        start = tuple(ids[len(ids) - size + 1 :])
        for at in range(len(ids) - size + 1):
            if tuple(ids[at : at + size - 1]) == start:
                repeats[row, ids[at + size - 1]] = True
    return _mask(logits, xp.asarray(repeats, device=device))


def banned(logits: Array, ids: Sequence[int]) -> Array:
    """Mask these ids in every row. Raises ConfigError for an id outside the vocabulary."""
    return _mask(logits, _members("banned", tuple(ids), logits.shape[-1], *_library(logits)))


def allowed(logits: Array, ids: Sequence[int]) -> Array:
    """Mask all but these ids in every row. Raises ConfigError for an id outside the vocabulary, or no ids."""
    if not len(ids):
        raise ConfigError("allowed holds no id, so nothing could be written; give some ids or None for all of them")
    return _mask(logits, ~_members("allowed", tuple(ids), logits.shape[-1], *_library(logits)))


def add_bias(logits: Array, bias: Sequence[tuple[int, float]]) -> Array:
    """Add numbers to the logits of some ids in every row. Raises ConfigError for an id outside the vocabulary."""
    xp, device = _library(logits)
    check_ids("bias", [id for id, _ in bias], logits.shape[-1])
    added = np.zeros(logits.shape[-1], dtype=np.float32)
    for id, number in bias:
        added[id] += number
    return logits + xp.astype(xp.asarray(added, device=device), logits.dtype)


def few_columns(logits: Array) -> Array | None:
    """Return the ids that some row may choose if most are masked in all; None otherwise, and for other than NumPy."""
    if not array_api_compat.is_numpy_array(logits):
        return None
    columns = np.flatnonzero((logits != -np.inf).any(axis=0))
    return columns if 0 < 4 * len(columns) <= logits.shape[-1] else None


def softmax(logits: Array) -> Array:
    """Return probabilities, widened; a row without a finite score is NaN."""
    powers = exponentials(logits)
    return powers / _library(powers)[0].sum(powers, axis=-1, keepdims=True)


def exponentials(logits: Array) -> Array:
    """Return exp(logits - the row's highest), widened: unnormalised probabilities."""
    scores = widen(logits)
    xp, _ = _library(scores)
    with np.errstate(invalid="ignore"):  # rows of only -inf, or with NaN or +inf, become NaN, which `checked` reports
        return xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))


def widen(logits: Array) -> Array:
    """Convert to float64, so that results do not depend on the order of summation; to float32 on Apple GPUs."""
    xp, device = _library(logits)
    return xp.astype(logits, xp.float32 if str(device).startswith("mps") else xp.float64)


def to_numpy(array: Array) -> "np.ndarray[Any, Any]":
    """Copy an array of any library and device to NumPy."""
    return np.asarray(array_api_compat.to_device(array, "cpu"))


def check_count(name: str, value: int, *, least: int = 1, most: float = math.inf) -> None:
    """Raise ConfigError unless value is an integer from `least` to `most`."""
    try:
        fits = least <= operator.index(value) <= most
    except TypeError:
        fits = False
    if not fits:
        wanted = f"of {least} or more" if most == math.inf else f"from {least} to {most:,}"
        raise ConfigError(f"{name} is {value!r}; expected a whole number {wanted}")


def check_ids(name: str, ids: Sequence[int], vocab_size: int) -> None:
    """Raise ConfigError for an id outside the vocabulary."""
    for id in ids:
        if not 0 <= id < vocab_size:
            raise ConfigError(f"{name} holds id {id}; the vocabulary has ids 0 to {vocab_size - 1}")


def check_number(name: str, value: float, *, above: float, most: float = math.inf) -> None:
    """Raise ConfigError unless above < value <= most and value is finite."""
    if not isinstance(value, (int, float, np.number)) or not math.isfinite(value) or not above < value <= most:
        upper = "a finite number" if most == math.inf else f"at most {most:g}"
        raise ConfigError(f"{name} is {value!r}; expected above {above:g} and {upper}")


def check_crossing(value: str) -> None:
    """Raise ConfigError unless value is "keep" or "drop"."""
    if value not in ("keep", "drop"):
        raise ConfigError(f"top_p's crossing is {value!r}; expected 'keep' or 'drop' for the id that crosses p")


def _library(logits: Array) -> tuple[Any, Any]:
    return array_api_compat.array_namespace(logits), array_api_compat.device(logits)


def _largest(values: Array, count: int) -> Array:
    """Return the `count` largest of each row, falling; all of them for other than NumPy, which could not stop early."""
    size = values.shape[-1]
    if array_api_compat.is_numpy_array(values) and count < size:
        return np.sort(np.partition(values, size - count)[:, size - count :])[:, ::-1]
    return _library(values)[0].sort(values, axis=-1, descending=True, stable=False)


def _keep_largest(logits: Array, values: Array, counts: Array, falling: Array) -> Array:
    """Mask all but the counts [rows, 1] largest of values, lower ids first among equal ones.

    falling: the largest values, as many as the counts or more. Sorting values and counting ties is several times faster
    than sorting ids by value. The conditions select what is masked, so that NaN is kept and reported by `checked`.
    """
    xp, device = _library(logits)
    within = xp.arange(falling.shape[-1], device=device) < counts
    highest = xp.full((), xp.inf, dtype=falling.dtype, device=device)
    border = xp.min(xp.where(within, falling, highest), axis=-1, keepdims=True)
    if array_api_compat.is_numpy_array(values):
        if (np.count_nonzero(values >= border, axis=-1, keepdims=True) == counts).all():
            return _mask(logits, values < border)  # no ties
    above = xp.sum(xp.astype(values > border, xp.int64), axis=-1, keepdims=True)
    tied = values == border
    nth = xp.cumulative_sum(xp.astype(tied, xp.int64), axis=-1)
    return _mask(logits, (values < border) | (tied & (nth > counts - above)))


def _mask(logits: Array, drop: Array) -> Array:
    xp, device = _library(logits)
    # Created on the device: copying a number to a GPU would synchronise with it.
    return xp.where(drop, xp.full((), -xp.inf, dtype=logits.dtype, device=device), logits)


@lru_cache(maxsize=16)
def _members(name: str, ids: tuple[int, ...], vocab_size: int, xp: Any, device: Any) -> Array:
    """Return [vocab_size], True for these ids; cached, as every step uses the same."""
    check_ids(name, ids, vocab_size)
    members = np.zeros(vocab_size, dtype=bool)
    members[list(ids)] = True
    return xp.asarray(members, device=device)
