"""bert4keras's AutoRegressiveDecoder: beam search and sampling over a user-defined predict.

Results are those of 0.11.5 (`wraps`) and 0.6.0 (`set_rtype`, predict with `step`): no length normalisation, finished
beams are dropped, samples come in the order in which they end, and NumPy's global generator draws them. Unlike there,
predictions may be read-only, and NaN is a clear error.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hanmo.errors import CheckpointError, ConfigError, Unsupported

Array = npt.NDArray[Any]
Predict = Callable[..., Any]

_RTYPES = ("probas", "logits")


def softmax(x: Array, axis: int = -1) -> Array:
    """Return the softmax along an axis, in the dtype of x."""
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis=axis, keepdims=True))


class AutoRegressiveDecoder:
    """Base class of a generator; a subclass defines a decorated `predict` for `beam_search` and `random_sample`.

    start_id: first id of every output, None for none; it is returned and counts for minlen.
    end_id: the id that ends an output.   maxlen: maximum of predictions.   minlen: minimum length of an output.
    """

    def __init__(self, start_id: int | None, end_id: int | None, maxlen: int, minlen: int | None = 1) -> None:
        self.start_id, self.end_id = start_id, end_id
        self.maxlen, self.minlen = maxlen, minlen or 1
        self.models: dict[Any, LastToken] = {}
        self.first_output_ids = np.array([[] if start_id is None else [start_id]], dtype=int)

    @staticmethod
    def wraps(default_rtype: str = "probas", use_states: bool = False) -> Callable[[Predict], Predict]:
        """Decorate predict(self, inputs, output_ids, states), which then takes temperature and rtype too.

        default_rtype: what it returns, "probas" (summing to 1) or "logits" (before the softmax).
        use_states: whether it returns (prediction, states); otherwise states are None after the first step.
        """
        _check("rtype", default_rtype, default_rtype in _RTYPES, "'probas' or 'logits'")

        def decorate(predict: Predict) -> Predict:
            def decorated(
                self: Any,
                inputs: Any,
                output_ids: Any,
                states: Any = None,
                temperature: float = 1,
                rtype: str = default_rtype,
            ) -> tuple[Array, Any]:
                _check("rtype", rtype, rtype in _RTYPES, "'probas' or 'logits'")
                result = predict(self, inputs, output_ids, states)
                scores, states = result if use_states else (result, None)
                if default_rtype == "logits":
                    scores = softmax(scores / temperature)
                elif temperature != 1:
                    scores = np.power(scores, 1.0 / temperature)
                    scores = scores / scores.sum(axis=-1, keepdims=True)
                return (scores if rtype == "probas" else np.log(scores + 1e-12)), states

            return decorated

        return decorate

    @staticmethod
    def set_rtype(default: str = "probas") -> Callable[[Predict], Predict]:
        """Decorate predict(self, inputs, output_ids, step) of version 0.6, without temperature; beams add logits up."""
        _check("rtype", default, default in _RTYPES, "'probas' or 'logits'")

        def decorate(predict: Predict) -> Predict:
            def decorated(self: Any, inputs: Any, output_ids: Any, step: int, rtype: str = default) -> Array:
                _check("rtype", rtype, rtype in _RTYPES, "'probas' or 'logits'")
                scores = predict(self, inputs, output_ids, step)
                if default == rtype:
                    return np.asarray(scores)
                return np.log(scores + 1e-12) if default == "probas" else softmax(scores)

            return decorated

        return decorate

    def last_token(self, model: Any) -> "LastToken":
        return self.models.setdefault(model, LastToken(model))

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        raise Unsupported(
            f"{type(self).__name__} has no predict; write one, decorated with @AutoRegressiveDecoder.wraps(...)"
        )

    def beam_search(
        self, inputs: Sequence[Any], topk: int, states: Any = None, temperature: float = 1, min_ends: int = 1
    ) -> Array:
        """Return the best sequence of ids.

        inputs: one sample each.   topk: beams.   states: for the first predict.   min_ends: end_ids that end an output.
        """
        _check("topk", topk, topk >= 1, "1 or more")
        rows = [np.array([one]) for one in inputs]
        ids, totals = self.first_output_ids, np.zeros(1)
        for step in range(self.maxlen):
            scores, states = self._ask(rows, ids, states, step, temperature, "logits")
            if step == 0:
                rows = [np.repeat(row, topk, axis=0) for row in rows]
            scores = totals[:, None] + scores
            if topk > scores.size:
                raise ConfigError(f"topk is {topk}, but predict scores only {scores.size} ids; lower topk")
            chosen = _partition(scores, topk, axis=None)[-topk:]
            parents, new = np.divmod(chosen, scores.shape[1])
            ids = np.concatenate([ids[parents], new[:, None]], axis=1)
            totals = scores.ravel()[chosen]
            ended = self._ended(ids, min_ends)
            best = totals.argmax()
            if ended[best]:
                break
            if ended.any():
                rows, ids, totals = [row[~ended] for row in rows], ids[~ended], totals[~ended]
                topk = len(ids)
        return np.asarray(ids[totals.argmax()])

    def random_sample(
        self,
        inputs: Sequence[Any],
        n: int,
        topk: int | None = None,
        topp: float | None = None,
        states: Any = None,
        temperature: float = 1,
        min_ends: int = 1,
    ) -> list[Array]:
        """Return n sequences of ids, sampled with NumPy's global generator, in the order in which they end.

        topk: sample from the topk likeliest ids; 0 keeps all.   topp: then from the likeliest that together reach topp.
        """
        _check("n", n, n >= 1, "1 or more")
        _check("topk", topk, topk is None or topk >= 0, "0 or more")
        rows, ids = [np.array([one]) for one in inputs], self.first_output_ids
        results: list[Array] = []
        for step in range(self.maxlen):
            chances, states = self._ask(rows, ids, states, step, temperature, "probas")
            chances = chances / chances.sum(axis=1, keepdims=True)
            if step == 0:
                chances, ids = np.repeat(chances, n, axis=0), np.repeat(ids, n, axis=0)
                rows = [np.repeat(row, n, axis=0) for row in rows]
            ids = np.concatenate([ids, _draw(chances, topk, topp)], axis=1)
            ended = self._ended(ids, min_ends)
            results.extend(ids[ended])
            rows, ids = [row[~ended] for row in rows], ids[~ended]
            if not len(ids):
                break
        return [*results, *ids]

    def _ask(
        self, rows: list[Array], ids: Array, states: Any, step: int, temperature: float, rtype: str
    ) -> tuple[Array, Any]:
        """Call predict with the arguments of the version that its parameters show."""
        if "step" in inspect.signature(self.predict).parameters:
            if temperature != 1:
                raise Unsupported(
                    f"temperature is {temperature}, but predict is decorated with set_rtype, which knows none; "
                    "decorate it with @AutoRegressiveDecoder.wraps(...) and take states instead of step"
                )
            scores = self.predict(rows, ids, step, rtype=rtype)
        else:
            scores, states = self.predict(rows, ids, states, temperature, rtype)
        if np.isnan(scores).any():
            raise CheckpointError(
                f"predict returned {np.isnan(scores).sum()} NaN among {np.size(scores)} scores at step {step}; the "
                "model's weights are probably damaged: check the checkpoint"
            )
        return scores, states

    def _ended(self, ids: Array, min_ends: int) -> Array:
        ends = ids == self.end_id
        return np.asarray(ends[:, -1] & (ends.sum(axis=1) >= min_ends) & (ids.shape[1] >= self.minlen))


class LastToken:
    """A model that predicts for the last token of each row only."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the last position of every output; the arguments of Keras after x are ignored."""
        if hasattr(self.model, "predict_last"):  # computes no other position in the first place
            return self.model.predict_last(x)
        outputs = self.model.predict(x)
        return [output[:, -1] for output in outputs] if isinstance(outputs, list) else outputs[:, -1]

    predict_on_batch = predict


def _draw(chances: Array, topk: int | None, topp: float | None) -> Array:
    """Draw one id for each row, [rows, 1], after filtering by topk and then by topp."""
    ids = np.broadcast_to(np.arange(chances.shape[1]), chances.shape)
    if topk is not None:
        if topk > chances.shape[1]:
            raise ConfigError(f"topk is {topk}, but predict scores only {chances.shape[1]} ids; lower topk")
        likeliest = _partition(chances, topk, axis=1)[:, -topk:]
        ids, chances = (np.take_along_axis(each, likeliest, axis=1) for each in (ids, chances))
        chances = chances / chances.sum(axis=1, keepdims=True)
    if topp is not None:
        falling = chances.astype(np.longdouble).argsort(axis=1)[:, ::-1]  # for equal chances, as in _partition
        ids, chances = (np.take_along_axis(each, falling, axis=1) for each in (ids, chances))
        reached = np.cumsum(chances, axis=1) >= topp
        chances[:, 1:][reached[:, :-1]] = 0  # all after the id that reaches topp
        chances = chances / chances.sum(axis=1, keepdims=True)
    drawn = np.array([[np.random.choice(len(row), p=row)] for row in chances])
    return np.take_along_axis(ids, drawn, axis=1)


def _partition(scores: Array, topk: int, *, axis: int | None) -> Array:
    """Return the indices that move the topk largest scores to the end, in the order of NumPy 1.

    That order decides what a seed draws. For common dtypes NumPy 2 uses vector instructions, whose order depends on
    the processor; for long doubles it keeps the algorithm of NumPy 1.
    """
    return scores.astype(np.longdouble).argpartition(-topk, axis=axis)


def _check(name: str, value: Any, valid: bool, expected: str) -> None:
    if not valid:
        raise ConfigError(f"{name} is {value!r}; expected {expected}")
