"""Random draws that depend on (seed, sample, step) only.

A counter-based generator gives one number per (seed, sample, step), which is looked up in the row's cumulative
probabilities, so a draw does not depend on the batch.
"""

import secrets

import array_api_compat
import numpy as np

from hanmo.errors import CheckpointError, ConfigError
from hanmo.generate.rules import Array, exponentials, few_columns


def uniform(seed: int, sample: int, step: int) -> float:
    """Return the number in [0, 1) for this seed, sample and step, each from 0 to 2**64 - 1.

    Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) with key (seed, sample) and the step
    as counter; NumPy guarantees the stream across versions.
    """
    key = np.array([seed, sample], dtype=np.uint64)
    counter = np.array([step, 0, 0, 0], dtype=np.uint64)
    bits: int = np.random.Philox(key=key, counter=counter).random_raw()
    return (bits >> 11) * 2.0**-53


def fresh_seed() -> int:
    """Return a random 32-bit seed, short enough to be typed again."""
    return secrets.randbits(32)


def check_seed(seed: int) -> None:
    """Raise ConfigError unless the seed is in the range that the generator's key has."""
    if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**64:
        raise ConfigError(f"seed is {seed!r}; expected a whole number from 0 to 2**64 - 1")


def choose(logits: Array, numbers: Array) -> Array:
    """Choose one id per row: the first whose cumulative probability exceeds the row's number.

    logits: [rows, vocab_size], -inf where an id is ruled out.   numbers: [rows], in [0, 1); a sequence or an array.
    Returns ids [rows] on the device of the logits; negative codes for `checked` where no id can be chosen.
    """
    if (columns := few_columns(logits)) is not None:  # the sums of the others are 0
        ids = choose(logits[:, columns], numbers)
        return np.where(ids < 0, ids, columns[ids])
    powers = exponentials(logits)
    xp = array_api_compat.array_namespace(powers)
    cumulated = xp.cumulative_sum(powers, axis=-1)
    total = cumulated[:, -1:]
    target = xp.asarray(numbers, dtype=powers.dtype, device=array_api_compat.device(logits))[:, None] * total
    ids = xp.sum(xp.astype(cumulated <= target, xp.int64), axis=-1)
    # A number just below 1 may round to 1: then no sum exceeds the target.
    ids = xp.where(ids == logits.shape[-1], xp.argmax(powers, axis=-1), ids)
    return xp.where(xp.isfinite(total[:, 0]), ids, -1 - _broken(logits))


def checked(ids: list[int], vocab_size: int) -> list[int]:
    """Return the ids of `choose` if all are valid.

    Raises CheckpointError if the logits of a row held NaN or +inf, ConfigError if they were all -inf.
    """
    for id in ids:
        if id < 0:
            raise no_choice(vocab_size, broken=-1 - id)
    return ids


def check_scores(logits: Array) -> None:
    """Raise CheckpointError if any of the logits [rows, vocab_size] is NaN or +inf."""
    if broken := int(_broken(logits).sum()):
        raise no_choice(logits.shape[-1], broken=broken)


def no_choice(vocab_size: int, *, broken: int = 0) -> CheckpointError | ConfigError:
    """Return the error for a row without an id to choose.   broken: number of logits that are NaN or +inf."""
    if broken:
        return CheckpointError(
            f"{broken} of the model's {vocab_size} scores for the next id are NaN or infinite; its weights are "
            "probably damaged, or overflow in this precision: check the checkpoint, or load it as float32"
        )
    return ConfigError(
        f"the rules leave none of {vocab_size} ids to choose from: allow more ids, ban fewer, or raise or leave out "
        "no_repeat_ngram"
    )


def _broken(logits: Array) -> Array:
    xp = array_api_compat.array_namespace(logits)
    return xp.sum(xp.astype(xp.isnan(logits) | (logits == xp.inf), xp.int64), axis=-1)
