"""keras.Model with the habits of Keras 2: what training at compile time, predicting and saving meant."""

import math
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import torch
from keras import KerasTensor

from hanmo.compat.bert4keras.graph import saving
from hanmo.compat.bert4keras.graph.gradients import GraphModel, run_step
from hanmo.compat.bert4keras.graph.network import Network, Sublayer
from hanmo.compat.bert4keras.graph.phase import phase

Array = npt.NDArray[Any]
_OLD_OPTIONS = ("max_queue_size", "workers", "use_multiprocessing")


class Habits(GraphModel):
    """What Keras 2 did otherwise; mixed into keras.Model and keras.Sequential."""

    def compile(self, optimizer: Any = "rmsprop", loss: Any = None, metrics: Any = None, **options: Any) -> None:
        """Configure training; the weights that are trainable now are those that this model will train."""
        options.pop("sample_weight_mode", None)
        super().compile(optimizer=optimizer, loss=loss, metrics=metrics, **options)
        self._freeze()

    def _freeze(self) -> None:
        object.__setattr__(self, "trained", list(self.trainable_variables))  # Keras would track a list of variables

    def _symbolic_build(self, *arguments: Any, **options: Any) -> None:
        if not all(layer.built for layer in self._flatten_layers()):
            super()._symbolic_build(*arguments, **options)
            self._freeze()
        # Metrics and losses are built by the first batch; Keras would run the model once more to build them.
        if self.optimizer is not None and not self.optimizer.built:
            self.optimizer.build(self.trained)

    @property
    def trainable_weights(self) -> list[keras.Variable]:
        return self.trained if phase.training and hasattr(self, "trained") else super().trainable_weights

    def train_step(self, data: Any) -> Any:
        trained = set(map(id, self.trained))
        for each in self.variables:
            if each.value.is_floating_point() and each.value.requires_grad != (id(each) in trained):
                each.value.requires_grad_(id(each) in trained)
        with phase(training=True):
            return super().train_step(self._in_order(data))

    def test_step(self, data: Any) -> Any:
        return super().test_step(self._in_order(data))

    def _in_order(self, data: Any) -> Any:
        """Put targets that are given by the names of outputs into the order of outputs."""
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        if not isinstance(y, dict):
            return data
        ordered = [y[name] for name in self.output_names] if set(self.output_names) <= set(y) else list(y.values())
        return x, ordered if len(ordered) > 1 else ordered[0], weights

    def zero_grad(self, set_to_none: bool = True) -> None:
        for each in self.variables:
            each.value.grad = None

    def fit(self, x: Any = None, *arguments: Any, **options: Any) -> Any:
        """Train on arrays or on the batches of a generator, whose targets may be None."""
        options.setdefault("verbose", 1 if sys.stdout.isatty() else 2)
        options.setdefault("shuffle", not isinstance(x, Iterator))
        options["validation_data"] = _batches(options.get("validation_data"))
        return super().fit(_batches(x), *arguments, **_of_keras_3(options))

    def fit_generator(self, generator: Any, steps_per_epoch: int | None = None, epochs: int = 1, **options: Any) -> Any:
        return self.fit(generator, steps_per_epoch=steps_per_epoch, epochs=epochs, **options)

    def train_on_batch(self, *arguments: Any, **options: Any) -> Any:
        """Train on one batch; return its own loss and metrics."""
        self.reset_metrics()  # Keras before 3.11 averages over the calls
        return super().train_on_batch(*arguments, **options)

    def test_on_batch(self, *arguments: Any, **options: Any) -> Any:
        self.reset_metrics()
        return super().test_on_batch(*arguments, **options)

    def evaluate(self, x: Any = None, *arguments: Any, **options: Any) -> Any:
        options.setdefault("verbose", 0)
        return super().evaluate(_batches(x), *arguments, **_of_keras_3(options))

    def evaluate_generator(self, generator: Any, steps: int | None = None, **options: Any) -> Any:
        return self.evaluate(generator, steps=steps, **options)

    def predict(
        self, x: Any, batch_size: int | None = None, verbose: Any = 0, steps: int | None = None, **options: Any
    ) -> Any:
        """Compute the outputs of arrays or lists of them, or of the batches of an iterator."""
        if isinstance(x, Iterator):
            with phase(training=False, predicting=True):
                return super().predict(_batches(x), verbose=verbose, steps=steps, **_of_keras_3(options))
        arrays = self._arrays_of(x)
        rows, size = len(arrays[0]), batch_size or 32
        parts = [self._predicted([each[at : at + size] for each in arrays]) for at in range(0, rows, size)]
        outputs = [np.concatenate(part) for part in zip(*parts, strict=True)]
        return outputs if len(self.outputs) > 1 else outputs[0]

    def predict_generator(self, generator: Any, steps: int | None = None, **options: Any) -> Any:
        return self.predict(generator, steps=steps, **options)

    def predict_on_batch(self, x: Any) -> Any:
        return self.predict(x, batch_size=sys.maxsize)

    def _arrays_of(self, x: Any) -> list[Array]:
        names = [each.name for each in self.inputs]
        if isinstance(x, dict):
            x = [x[name] for name in names]
        elif not isinstance(x, list | tuple) or (len(names) == 1 and len(x) != 1):
            x = [x]
        return [each.detach().cpu().numpy() if isinstance(each, torch.Tensor) else np.asarray(each) for each in x]

    def _predicted(self, arrays: list[Array]) -> list[Array]:
        """Run one batch; with gradients only where a layer takes them."""
        tensors = [keras.ops.convert_to_tensor(each) for each in arrays]
        given = tensors if len(tensors) > 1 else tensors[0]
        with phase(training=False, predicting=True), torch.no_grad():
            found = run_step(self, lambda: self(given, training=False))
        return [each.detach().float().cpu().numpy() for each in keras.tree.flatten(found)]

    @property
    def layers(self) -> list[Any]:
        """The layers in their order; those of a network one by one."""
        if not self.built:  # Keras collects its own
            return super().layers
        found: list[Any] = []
        for layer in super().layers:
            found += layer.sublayers.values() if isinstance(layer, Network) else [layer]
        return found

    def get_layer(self, name: str | None = None, index: int | None = None) -> Any:
        for layer in self._flatten_layers(include_self=False) if index is None else ():
            if isinstance(layer, Network) and (found := layer.sublayer(name or "")) is not None:
                return found
        return super().get_layer(name=name, index=index)

    def add_loss(self, loss: Any) -> None:
        """Add a loss: symbolic tensors of the model's graph, computed in every step, or in a step a tensor."""
        symbols = [each for each in keras.tree.flatten(loss) if isinstance(each, KerasTensor)]
        if not symbols:
            super().add_loss(loss)
        for symbol in symbols:
            # A functional model refuses what every layer takes.
            self._extended([(symbol, partial(keras.layers.Layer.add_loss, self))])

    def add_metric(self, value: Any, name: str | None = None, aggregation: str = "mean") -> None:
        """Report the mean of a symbolic tensor of the model's graph."""
        metric = keras.metrics.Mean(name=name or value.name)
        self._metrics.append(metric)
        self._extended([(value, metric.update_state)])

    def _extended(self, new: list[tuple[KerasTensor, Any]]) -> None:
        """Compute symbolic tensors besides the outputs in every step, and call a function with each of them."""
        pairs = [*self.__dict__.get("beside", ()), *new]
        extended = keras.Model(self.inputs, [*self.outputs, *(symbol for symbol, _ in pairs)])
        # Keras would track these attributes.
        object.__setattr__(self, "beside", pairs)
        object.__setattr__(self, "extended", extended)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None, **options: Any) -> Any:
        pairs = self.__dict__.get("beside")
        if pairs is None or phase.predicting:
            return super().call(inputs, training=training, mask=mask, **options)
        found, count = self.extended(inputs, training=training), len(self.outputs)
        for (_, take), value in zip(pairs, found[count:], strict=True):
            take(value)
        return found[:count] if count > 1 else found[0]

    def summary(self, *arguments: Any, print_fn: Any = print, **options: Any) -> None:
        """Print the layers with the shapes of their outputs and the numbers of their weights; options are ignored."""
        for layer in self.layers:
            own = isinstance(layer, Sublayer)
            shapes = [(None, *layer.shape)] if own else [each.shape for each in keras.tree.flatten(layer.output)]
            text = ", ".join(str(shape) for shape in shapes)
            print_fn(f"{layer.name:<48} {text:<32} {layer.count_params():>14,}")
        counts = {True: 0, False: 0}
        for each in self.weights:
            counts[each.trainable] += math.prod(each.shape)
        print_fn(f"Total params: {sum(counts.values()):,}")
        print_fn(f"Trainable params: {counts[True]:,}")
        print_fn(f"Non-trainable params: {counts[False]:,}")

    save, save_weights, load_weights = saving.save_model, saving.save_weights, saving.load_weights


def _batches(x: Any) -> Any:
    """Make a generator of tuples, which Keras 3 wants, of an iterator, without targets that are None."""
    if not isinstance(x, Iterator):
        return x
    parts = (batch if isinstance(batch, tuple | list) else (batch,) for batch in x)
    return (tuple(part for part in batch if part is not None) for batch in parts)


def _of_keras_3(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in _OLD_OPTIONS}


@keras.saving.register_keras_serializable("hanmo")
class Model(Habits, keras.Model):
    """keras.Model with the habits of Keras 2."""


@keras.saving.register_keras_serializable("hanmo")
class Sequential(Habits, keras.Sequential):
    """keras.Sequential with the habits of Keras 2."""
