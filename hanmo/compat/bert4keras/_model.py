"""A network behind Keras's inference interface: `predict` with NumPy in and out, layers by name, outputs to select.

Id 0 is masked as a key except at the first position; outputs end in their activation.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hanmo.compat.bert4keras import _runners, _weights
from hanmo.compat.bert4keras._absent import Absent
from hanmo.compat.bert4keras._prefix import Prefix
from hanmo.compat.bert4keras.configs import Settings, get_weights_dtype
from hanmo.config import ModelConfig
from hanmo.errors import ConfigError, PromptError, Unsupported
from hanmo.model import Model

Array = npt.NDArray[Any]


class Handle(Absent):
    """An input or output of a model, for `keras.models.Model` to select; it cannot be computed with."""

    def __init__(self, model: "KerasModel", kind: str, index: int) -> None:
        super().__init__(f"computing with a model's {kind}")
        self.model, self.kind, self.index = model, kind, index


class KerasModel:
    """A network with the interface of a Keras model; `inputs` and `outputs` are handles for `keras.models.Model`.

    quantized: computes `predict` instead of the network, from the same checkpoint.
    fill: loads the network's weights; called when they are first needed.
    """

    def __init__(
        self,
        network: Model,
        settings: Settings,
        *,
        quantized: _runners.QuantizedRunner | None = None,
        fill: Callable[[], None] | None = None,
    ) -> None:
        self.config, self.settings = network.config, settings
        self.layer_map = _weights.keras_layers(network, settings, lambda: self.network)
        self.input_names = list(settings.inputs)
        self.inputs = [Handle(self, "input", i) for i in range(len(settings.inputs))]
        self.outputs = [Handle(self, "output", i) for i in range(len(_runners.outputs_of(network.config, settings)))]
        self.input, self.output = _only(self.inputs), _only(self.outputs)
        self._network = network.eval()
        self._quantized, self._fill, self._stamp = quantized, fill, 0
        self._compute_with(quantized or _runners.TorchRunner(network, settings))

    def _compute_with(self, runner: _runners.Runner) -> None:
        self._runner = runner
        supported = Prefix.supports(self.config, self.settings)
        self.prefix = Prefix(self.config, self.settings, runner) if supported else None

    @property
    def network(self) -> Model:
        """The network with the checkpoint's own weights, which a quantized model loads here."""
        if self._fill is not None:
            self._fill()
            self._fill, self._stamp = None, _runners.stamp(self._network)
        return self._network

    def predict(
        self, x: Any, batch_size: int | None = None, verbose: int = 0, steps: int | None = None
    ) -> Array | list[Array]:
        """Compute the outputs of arrays, in batches; where they continue the last call's, of the new tokens only.

        x: one array, a list of arrays in the order of `input_names`, or a dict by those names; integers for tokens.
        batch_size: rows at once, 32 as in Keras.   verbose, steps: ignored.
        """
        return self._predict(x, batch_size or 32, last=False)

    def predict_last(self, x: Any, batch_size: int | None = None) -> Array | list[Array]:
        """Return `predict(x)[:, -1]` of every output, without scoring the vocabulary at the other positions."""
        outputs = self._predict(x, batch_size or 32, last=True)
        return [output[:, -1] for output in outputs] if isinstance(outputs, list) else outputs[:, -1]

    def predict_on_batch(self, x: Any) -> Array | list[Array]:
        return self._predict(x, sys.maxsize, last=False)

    def _predict(self, x: Any, batch_size: int, *, last: bool) -> Array | list[Array]:
        inputs = _arrays(x, self.config, self.settings)
        if self._quantized is not None and self._fill is None and _runners.stamp(self._network) != self._stamp:
            _runners.warn_unquantized(self._quantized.dtype, "the model's weights were changed")
            self._quantized = None
            self._compute_with(_runners.TorchRunner(self._network, self.settings))
        rows = len(next(iter(inputs.values())))
        parts: list[list[Array]] = []
        with torch.inference_mode():
            if self.prefix is not None:
                output = self.prefix.predict(inputs, last=last, rows_at_once=batch_size)
                if output is not None:
                    return output
            for start in range(0, rows, batch_size):
                batch = {name: array[start : start + batch_size] for name, array in inputs.items()}
                parts.append(self._runner.run(batch, last=last))
        return _only([np.concatenate(part) if len(part) > 1 else part[0] for part in zip(*parts, strict=True)])

    def get_layer(self, name: str) -> _weights.KerasLayer:
        if name not in self.layer_map:
            raise ConfigError(f"no layer is named {name!r}; there are {', '.join(self.layer_map)}")
        return self.layer_map[name]

    @property
    def layers(self) -> list[_weights.KerasLayer]:
        return list(self.layer_map.values())

    save = save_weights = _weights.save
    load_weights = _weights.load_weights

    def count_params(self) -> int:
        return sum(parameter.numel() for parameter in self._network.parameters())

    def summary(self) -> None:
        for layer in self.layers:
            print(f"{layer.name:<48}{', '.join(str(weight.shape) for weight in layer.get_weights())}")
        print(f"Total params: {self.count_params():,}")

    __call__ = Absent("calling a model on tensors")
    compile = fit = fit_generator = train_on_batch = evaluate = evaluate_generator = test_on_batch = Absent(
        "compiling and fitting a model"
    )


def load_model(filepath: Any, custom_objects: Any = None, compile: bool = False) -> KerasModel:
    """Load what `model.save` wrote; the other arguments are Keras's and ignored. For errors see `_weights.load`."""
    network, settings = _weights.load(filepath)
    _runners.warn_unquantized(get_weights_dtype(), f"{filepath} was saved by model.save")
    return KerasModel(network, settings)


def select_outputs(inputs: Any, outputs: Any) -> KerasModel:
    """Make a model of some outputs of another: `keras.models.Model(model.inputs, model.outputs[0])`.

    Raises Unsupported for anything else, which would be a new graph.
    """
    selected = outputs if isinstance(outputs, list | tuple) else [outputs]
    given = inputs if isinstance(inputs, list | tuple) else [inputs]
    handles = [each for each in selected if isinstance(each, Handle) and each.kind == "output"]
    models = {id(each.model): each.model for each in (*handles, *given) if isinstance(each, Handle)}
    if len(models) != 1 or len(handles) != len(selected) or not handles:
        raise Unsupported(
            "keras.models.Model is supported for the inputs and outputs of one bert4keras model; for a new graph put "
            "a torch.nn.Module on what model.network computes"
        )
    model = handles[0].model
    if len(given) != len(model.inputs):
        raise Unsupported(f"the model has {len(model.inputs)} inputs and {len(given)} are given; give model.inputs")
    if [each.index for each in handles] == list(range(len(model.outputs))):
        return model  # a new one would not be quantized
    old = model.settings.chosen
    indices = [each.index if old is None else old[each.index] for each in handles]
    return KerasModel(model.network, replace(model.settings, chosen=indices))


def _only(items: list[Any]) -> Any:
    return items[0] if len(items) == 1 else items


def _arrays(x: Any, config: ModelConfig, settings: Settings) -> dict[str, Array]:
    """Check the inputs of `predict` and convert them to arrays by name: int64 for tokens, float32 for the rest."""
    names, stack = settings.inputs, config.main
    if isinstance(x, dict):
        x = [x[name] for name in names]
    elif not isinstance(x, list | tuple) or (len(names) == 1 and len(x) != 1):
        x = [x]
    if len(x) != len(names):
        raise ConfigError(f"predict was given {len(x)} inputs; this model has {len(names)}: {', '.join(names)}")
    limits = {"Input-Segment": None if stack.shared_segments else stack.segments, "Input-Position": stack.context}
    arrays = {}
    for name, value in zip(names, x, strict=True):
        array = np.ascontiguousarray(value)
        integers = name not in ("Input-Context", settings.condition)
        array = arrays[name] = array.astype(np.int64 if integers else np.float32, copy=not array.flags.writeable)
        if not integers:
            continue
        if array.ndim != 2:
            raise ConfigError(f"{name} has the shape {array.shape}; expected [rows, tokens], such as np.array([ids])")
        if not array.size:
            raise PromptError(f"{name} has the shape {array.shape}, without a token; give each text at least one")
        limit = limits.get(name, config.vocab_size)
        if limit is not None and not 0 <= array.min() <= array.max() < limit:
            wrong = array.max() if array.min() >= 0 else array.min()
            what, hint = ("", "") if name in limits else ("the id ", ": is it this vocabulary's?")
            raise ConfigError(f"{name} holds {what}{wrong}; the model knows 0 … {limit - 1}{hint}")
    if len({len(array) for array in arrays.values()}) > 1:
        counts = ", ".join(str(len(array)) for array in arrays.values())
        raise ConfigError(f"the inputs have {counts} rows; expected as many in each")
    if len({array.shape for name, array in arrays.items() if name in _runners.TOKENS}) > 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items() if name in _runners.TOKENS)
        raise ConfigError(f"the inputs have the shapes {shapes}; expected one number a token in each")
    return arrays
