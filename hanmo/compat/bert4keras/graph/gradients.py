"""Habits of Keras 2's graphs: `K.gradients`, `K.function`, `search_layer`, a model's total_loss and train_function.

Knows Keras's graphs and autograd, not the networks: a Keras layer that contains layers of bert4keras has a method
`sublayer(name)`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import torch
from keras import KerasTensor
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node
from torch.nn.attention import SDPBackend, sdpa_kernel

from hanmo.compat.bert4keras.graph.lifting import Deferred, Values, is_symbolic, tensor
from hanmo.compat.bert4keras.graph.phase import phase
from hanmo.errors import Unsupported

__all__ = ["GraphModel", "function", "gradients", "in_train_phase", "learning_phase", "run_step", "search_layer"]


class _Again(Exception):
    """The step has to run again, so that gradients can be taken in it."""


def run_step(model: Any, step: Callable[[], Any]) -> Any:
    """Run a step of a model, where `gradients` may be called; the first time that it is, the step starts again."""
    if not getattr(model, "takes_gradients", False):
        try:
            with phase(model=model, inner=False):
                return step()
        except _Again:
            object.__setattr__(model, "takes_gradients", True)
    # Fused attention has no gradient of its gradient.
    with phase(model=model, inner=True), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        return step()


def learning_phase() -> int:
    return int(phase.training)


def in_train_phase(x: Any, alt: Any, training: bool | None = None) -> Any:
    """Return x in training, else alt; each may be a function without arguments."""
    chosen = x if (phase.training if training is None else training) else alt
    return chosen() if callable(chosen) else chosen


class Gradient(Tensor):
    """A dense gradient that has `values` as TensorFlow's IndexedSlices: a row for each lookup in the table."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    rows: Callable[[], Tensor]

    @property
    def values(self) -> Tensor:  # type: ignore[override]
        """The gradients of the rows that were looked up [lookups, size], not added up where a row occurs twice."""
        return self.rows()


def gradients(loss: Any, variables: Any) -> list[Any]:
    """Return the gradients of the sum of a loss; None for a variable on which it does not depend.

    Of symbolic tensors and deferred values: deferred ones, for `function`.
    """
    wanted = list(variables) if isinstance(variables, list | tuple) else [variables]
    if isinstance(loss, Deferred | KerasTensor):
        every = Deferred(lambda values: _later(loss, wanted, values))
        return [every[index] for index in range(len(wanted))]
    sources = [tensor(each) for each in wanted]
    if phase.model is not None and not phase.inner:
        raise _Again
    if is_symbolic():
        return [_gradient(torch.zeros_like(source), loss, source) for source in sources]
    with torch.enable_grad():
        found = torch.autograd.grad(loss.sum(), sources, create_graph=True, allow_unused=True)
    return [
        None if each is None else _gradient(each, loss, source) for each, source in zip(found, sources, strict=True)
    ]


def _later(loss: Any, wanted: list[Any], values: Values) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        if isinstance(loss, KerasTensor):
            for each in values.placeholders:
                if isinstance(each, KerasTensor) and values[id(each)].is_floating_point():
                    values[id(each)].requires_grad_()
            total, *sources = values.of_graph([loss, *(each for each in wanted if isinstance(each, KerasTensor))])
        else:
            total, sources = loss.value(values), []
        inner = iter(sources)
        sources = [next(inner) if isinstance(each, KerasTensor) else tensor(each) for each in wanted]
        return torch.autograd.grad(total.sum(), sources, allow_unused=True)


def _gradient(dense: Tensor, loss: Tensor, table: Tensor) -> Gradient:
    def rows() -> Tensor:
        if is_symbolic():
            return dense
        edges = [GradientEdge(node, 0) for node in _lookups(loss, table)]
        if not edges:
            raise Unsupported("the gradient has no `values`: the variable is not a table that is looked up only")
        found = torch.autograd.grad(loss.sum(), edges, create_graph=True)
        return torch.cat([each.flatten(0, -2) for each in found])

    gradient = dense.as_subclass(Gradient)
    gradient.rows = rows
    return gradient


def _lookups(loss: Tensor, table: Tensor) -> list[Node]:
    """Return the lookups in a table that a loss depends on; none if it is also used in another way."""
    found: list[Node] = []
    seen: set[Node] = set()
    todo = [] if loss.grad_fn is None else [loss.grad_fn]
    while todo:
        node = todo.pop()
        for after, _ in node.next_functions:
            if getattr(after, "variable", None) is table:
                if "Embedding" not in node.name():
                    return []
                found.append(node)
            elif after is not None and after not in seen:
                seen.add(after)
                todo.append(after)
    return found


def function(
    inputs: Sequence[Any], outputs: Any, updates: Any = None, **options: Any
) -> Callable[[Sequence[Any]], Any]:
    """Return a function from the arrays of placeholders to those of outputs, computed as in prediction.

    Further arrays in its list are ignored, and so are inputs that are numbers, as the learning phase is one.
    """
    if updates:
        raise Unsupported("updates= of K.function is not supported; assign with K.set_value after the call")
    many = isinstance(outputs, list | tuple)
    wanted = list(outputs) if many else [outputs]

    def call(arrays: Sequence[Any]) -> Any:
        values = Values({id(place): _as_input(place, array) for place, array in zip(inputs, arrays, strict=False)})
        values.placeholders = list(inputs)
        graph = [each for each in wanted if isinstance(each, KerasTensor)]
        with phase(predicting=True), torch.enable_grad():  # a layer may call `gradients`
            found = iter(values.of_graph(graph) if graph else [])
        results = [next(found) if isinstance(each, KerasTensor) else _value(each, values) for each in wanted]
        arrays = [keras.ops.convert_to_numpy(each) for each in results]
        return arrays if many else arrays[0]

    return call


def _as_input(place: Any, array: Any) -> Any:
    return keras.ops.convert_to_tensor(np.asarray(array), place.dtype if isinstance(place, KerasTensor) else None)


def _value(each: Any, values: Values) -> Any:
    return each.value(values) if isinstance(each, Deferred) else tensor(each)


def search_layer(inputs: Any, name: str, exclude_from: Any = None) -> Any:
    """Return the layer of this name among those that inputs come from; None if there is none.

    inputs: a layer, a symbolic tensor, or in a loss a tensor, which stands for the outputs of the model that runs.
    """
    if isinstance(inputs, keras.Operation):
        todo = [inputs]
    elif isinstance(inputs, KerasTensor):
        todo = [inputs._keras_history.operation]
    elif phase.model is not None:
        todo = [each._keras_history.operation for each in phase.model.outputs]
    else:
        raise Unsupported(f"search_layer({name!r}) was given a tensor outside of a model's step; give a model's output")
    seen: set[int] = set()
    while todo:
        layer = todo.pop(0)
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        if layer.name == name:
            return layer
        found = layer.sublayer(name) if hasattr(layer, "sublayer") else None
        if found is not None:
            return found
        if isinstance(layer, keras.Model):
            todo += layer.layers
        todo += [each._keras_history.operation for node in layer._inbound_nodes for each in node.input_tensors]
    return None


class _TrainFunction:
    """What `fit` calls with Keras 3's data, and scripts with a flat list: inputs, targets, weights of each target.

    function: a script's own, which takes the list; None: a training step.
    """

    def __init__(self, model: "GraphModel", function: Callable[[list[Any]], Any] | None = None) -> None:
        self.model, self.function = model, function

    def __call__(self, data: Any) -> Any:
        from_keras = len(data) == 1 and isinstance(data[0], tuple | list)
        if self.function is not None:
            return self.function(_flat(data[0]) if from_keras else data)
        return self.model.train_step(data[0] if from_keras else self.model.batch_of(data))


def _flat(data: tuple[Any, ...]) -> list[Any]:
    x, y, weights = (
        [keras.ops.convert_to_numpy(each) for each in keras.tree.flatten(part) if each is not None]
        for part in keras.utils.unpack_x_y_sample_weight(data)
    )
    return x + y + weights + [np.ones(len(x[0]), np.float32) for _ in y[len(weights) :]]


_Base: Any = object  # what is mixed in has the attributes of keras.Model


class Placeholder:
    """A target or its weights, in the inputs of a function."""


class GraphModel(_Base):
    """What scripts written for Keras 2's graphs use of a model; comes before keras.Model among the bases."""

    _train_function: Any = None

    @property
    def train_function(self) -> Any:
        """What `fit` calls for each batch; a script may put its own in, which takes and returns what this one does."""
        return self._train_function

    @train_function.setter
    def train_function(self, function: Any) -> None:
        if function is not None and not isinstance(function, _TrainFunction):
            own = not function.__module__.startswith("keras.")
            function = _TrainFunction(self, function if own else None)
        object.__setattr__(self, "_train_function", function)

    def _make_train_function(self) -> None:
        self.train_function = _TrainFunction(self)

    def batch_of(self, flat: Sequence[Any]) -> tuple[Any, ...]:
        """Return the flat list of a training function as Keras 3's inputs, targets and weights."""
        count = len(self.inputs)
        middle = count + (len(flat) - count) // 2
        tensors = [keras.ops.convert_to_tensor(each) for each in flat]
        parts = [tensors[:count], tensors[count:middle], tensors[middle:]]
        if all((each == 1).all() for each in parts[2]):
            parts[2] = []
        return tuple(part[0] if len(part) == 1 else part or None for part in parts)

    def _places(self, name: str) -> list[Placeholder]:
        if name not in self.__dict__:
            object.__setattr__(self, name, tuple(Placeholder() for _ in self.outputs))
        return list(self.__dict__[name])

    @property
    def _feed_inputs(self) -> list[KerasTensor]:
        return list(self.inputs)

    @property
    def _feed_targets(self) -> list[Placeholder]:
        return self._places("_target_places")

    @property
    def _feed_sample_weights(self) -> list[Placeholder]:
        return self._places("_weight_places")

    @property
    def total_loss(self) -> Deferred:
        """The loss of the placeholders in `_feed_inputs` and `_feed_targets`, without dropout."""

        def compute(values: Values) -> Any:
            x = [values[id(each)] for each in self._feed_inputs]
            y = [values[id(each)] for each in self._feed_targets if id(each) in values]
            predicted = self(x if len(x) > 1 else x[0], training=False)
            return self.compute_loss(x=x, y=y[0] if len(y) == 1 else y or None, y_pred=predicted)

        return Deferred(compute)

    def train_step(self, data: Any) -> Any:
        data = keras.tree.map_structure(tensor, data)
        return run_step(self, lambda: super(GraphModel, self).train_step(data))

    def test_step(self, data: Any) -> Any:
        data = keras.tree.map_structure(tensor, data)
        return run_step(self, lambda: super(GraphModel, self).test_step(data))
