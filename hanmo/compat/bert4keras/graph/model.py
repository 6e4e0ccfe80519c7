"""keras.Model with the habits of Keras 2: what training at compile time, predicting and saving meant."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import torch

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
        object.__setattr__(self, "trained", list(self.trainable_variables))  # Keras would track a list of variables

    def _symbolic_build(self, *arguments: Any, **options: Any) -> None:
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
            return super().train_step(data)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for each in self.variables:
            each.value.grad = None

    def fit(self, *arguments: Any, **options: Any) -> Any:
        for name in _OLD_OPTIONS:
            options.pop(name, None)
        options.setdefault("verbose", 1 if sys.stdout.isatty() else 2)
        return super().fit(*arguments, **options)

    fit_generator = fit

    def evaluate(self, *arguments: Any, **options: Any) -> Any:
        for name in _OLD_OPTIONS:
            options.pop(name, None)
        options.setdefault("verbose", 0)
        return super().evaluate(*arguments, **options)

    evaluate_generator = evaluate

    def predict(
        self, x: Any, batch_size: int | None = None, verbose: Any = 0, steps: int | None = None, **options: Any
    ) -> Any:
        """Compute the outputs of arrays or lists of them, or of the batches of an iterator."""
        if isinstance(x, Iterator) or (isinstance(x, Iterable) and hasattr(x, "forfit")):
            for name in _OLD_OPTIONS:
                options.pop(name, None)
            with phase(training=False, predicting=True):
                return super().predict(x, verbose=verbose, steps=steps, **options)
        arrays = self._arrays_of(x)
        rows, size = len(arrays[0]), batch_size or 32
        parts = [self._predicted([each[at : at + size] for each in arrays]) for at in range(0, rows, size)]
        outputs = [np.concatenate(part) for part in zip(*parts, strict=True)]
        return outputs if len(self.outputs) > 1 else outputs[0]

    predict_generator = predict

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
        given = arrays if len(arrays) > 1 else arrays[0]
        with phase(training=False, predicting=True), torch.no_grad():
            found = run_step(self, lambda: self(given, training=False))
        return [each.detach().float().cpu().numpy() for each in keras.tree.flatten(found)]

    def get_layer(self, name: str | None = None, index: int | None = None) -> Any:
        if name is not None:
            for layer in self._flatten_layers(include_self=False):
                if isinstance(layer, Network) and (found := layer.sublayer(name)) is not None:
                    return found
        return super().get_layer(name=name, index=index)


class Model(Habits, keras.Model):
    """keras.Model with the habits of Keras 2."""


class Sequential(Habits, keras.Sequential):
    """keras.Sequential with the habits of Keras 2."""


class NetworkModel(Model):
    """A model of one network, as `build_transformer_model` returns it; its `layers` are bert4keras's."""

    @property
    def layers(self) -> list[Any]:
        network = self.__dict__.get("network")
        return super().layers if network is None else list(network.sublayers.values())


__all__ = ["Model", "NetworkModel", "Sequential", "Sublayer"]
