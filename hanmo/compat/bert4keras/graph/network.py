"""A Hanmo network as one Keras layer: ids in; the model's outputs, and those of sub-layers that are asked for, out."""

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import keras
import torch
from keras import KerasTensor
from torch import Tensor, nn

from hanmo.compat.bert4keras._runners import forward, key_mask, outputs_of
from hanmo.compat.bert4keras._weights import KerasLayer, keras_layers, layer_paths
from hanmo.compat.bert4keras.configs import Settings
from hanmo.config import ModelConfig
from hanmo.errors import ConfigError, Unsupported
from hanmo.model import Model

_made: list["weakref.ref[Network]"] = []

_PARTS = {
    "encoder": ("token", "encoder."),
    "decoder": ("token", "decoder.", "output"),
    "model": ("",),
}


def networks() -> list["Network"]:
    """List the networks that models were built on and that still exist, the latest first."""
    return [network for each in reversed(_made) if (network := each()) is not None]


@dataclass(frozen=True)
class Tap:
    """Where the output of a sub-layer is found.

    name: bert4keras's.   path: of a module.   before: the output is the module's input, for its own is another's.
    times: how often the module runs.   shape: of the output, without the batch.
    """

    name: str
    path: str
    before: bool
    times: int
    shape: tuple[int | None, ...]


def variables_of(network: nn.Module, layers: dict[str, KerasLayer]) -> dict[str, keras.Variable]:
    """Wrap the parameters of a network as Keras's variables, by name, without copies; always the same ones.

    Their paths are those of the original, such as "Transformer-0-FeedForward-Norm/gamma", which optimizers select by.
    """
    if not hasattr(network, "keras_variables"):
        network.to(keras.src.backend.torch.core.get_device(), torch.float32)
        scopes = {weight: (name, *_original(name, weight)) for name, layer in layers.items() for weight in layer.names}
        found = {}
        for name, parameter in network.named_parameters():
            *scope, own = scopes.get(name, (name.replace(".", "_"),))
            with ExitStack() as stack:
                for each in scope:
                    stack.enter_context(keras.name_scope(each))
                found[name] = keras.Variable(parameter, name=own, trainable=parameter.requires_grad)
        network.keras_variables = found  # type: ignore[assignment]
    variables: dict[str, keras.Variable] = network.keras_variables  # type: ignore[assignment]
    return variables


def _original(layer: str, weight: str) -> tuple[str, ...]:
    """Name a parameter of a layer as the original does, its projections as Hanmo does."""
    *_, module, own = weight.split(".")
    if "-Norm" in layer:
        part = {"hidden": "hidden_dense", "condition_scale": "gamma_dense", "condition_bias": "beta_dense"}.get(module)
        return (part, "kernel") if part else ({"weight": "gamma", "bias": "beta"}[own],)
    if "Embedding-" in layer and own == "weight" and "Mapping" not in layer:
        return ("embeddings",)
    return (module, {"weight": "kernel"}.get(own, own))


def taps_of(config: ModelConfig, settings: Settings, modules: dict[str, nn.Module]) -> list[Tap]:
    """List the sub-layers of a network by bert4keras's names, in the order in which they run."""
    taps: list[Tap] = []
    adds = _sums(config)
    for name, paths in layer_paths(config, settings.name).items():
        path = paths[0] if len(paths) == 1 else paths[0].rpartition(".")[0]
        if not path.startswith(_PARTS[settings.part]):
            continue
        side, _, rest = path.partition(".")
        stack = getattr(config, side) if side in ("encoder", "decoder") else config.main
        times = stack.num_layers if stack.shared_layers and rest.startswith("blocks.") else 1
        if path == "token" and settings.part == "model" and config.is_encoder_decoder:
            times = 2
        if path.endswith("_post"):
            taps.append(Tap(f"{name.partition('-Norm')[0]}-Add", path, True, times, (None, stack.hidden_size)))
        before = rest == "embedding.position"
        if before:
            path = f"{side}.embedding.norm"
        if path in modules:
            taps.append(Tap(name, path, before, times, _shape(path, config, stack)))
        if path in adds:
            taps.append(Tap(f"{name}-Add", adds[path], True, 1, (None, stack.hidden_size)))
        if rest == "embedding.norm":
            projected = f"{side}.embedding.project"
            path, before = (projected, True) if projected in modules else (f"{side}.embedding", False)
            taps.append(Tap(name.replace("Norm", "Dropout"), path, before, 1, (None, stack.embedding_size)))
    return taps


def _sums(config: ModelConfig) -> dict[str, str]:
    """Map the sub-layers whose sum x + f(x) has no norm of its own to the norm that follows."""
    found: dict[str, str] = {}
    for side in ("encoder", "decoder"):
        stack = getattr(config, side)
        if stack is None or stack.shared_layers:
            continue
        steps = [(f"{side}.blocks.{i}.{each.kind}", each) for i in range(stack.num_layers) for each in stack.order]
        following = [f"{path}_pre" if each.pre else "" for path, each in steps[1:]]
        following.append(f"{side}.norm" if stack.final_norm else "")
        found |= {path: norm for (path, each), norm in zip(steps, following, strict=True) if norm and not each.post}
    return found


def _shape(path: str, config: ModelConfig, stack: Any) -> tuple[int | None, ...]:
    if path.startswith("pooler."):
        return (2,) if path.endswith("nsp") else (stack.hidden_size,)
    if path in ("output", "discriminator.output"):
        return (None, config.vocab_size if path == "output" else 1)
    narrow = path in ("token", "output.dense", "output.norm") or ".embedding." in path
    return (None, stack.embedding_size if narrow and not path.endswith(".project") else stack.hidden_size)


def output_shapes(config: ModelConfig, settings: Settings) -> list[tuple[int | None, ...]]:
    """List the shapes of the outputs of a model, without the batch."""
    shapes: dict[str, tuple[int | None, ...]] = {
        "hidden": (None, config.main.hidden_size),
        "logits": (None, config.vocab_size),
        "pooled": (config.main.hidden_size,),
        "nsp": (2,),
        "discriminator": (None, 1),
    }
    return [shapes[kind] for kind, _ in outputs_of(config, settings)]


class NetworkLayer(keras.layers.Layer):
    """A layer that runs a network or a part of it.

    prefixes: of the names of the parameters that it trains.
    """

    def __init__(self, network: Model, settings: Settings, prefixes: tuple[str, ...] = ("",), **options: Any) -> None:
        super().__init__(autocast=False, **options)  # ids are not to be cast
        self.supports_masking = True
        weighted = keras_layers(network, settings, lambda: network)
        variables = variables_of(network, weighted)
        self._tracked = [variable for name, variable in variables.items() if name.startswith(prefixes)]
        # Keras would track what else is set as an attribute, and save it.
        self._keep(network=network, settings=settings, variables_by_name=variables, weighted=weighted)
        self.built = True

    def _keep(self, **attributes: Any) -> None:
        for name, value in attributes.items():
            object.__setattr__(self, name, value)

    def _named(self, inputs: Any) -> dict[str, Tensor]:
        """Name the inputs of the model; ids become integers."""
        given = inputs if isinstance(inputs, list | tuple) else [inputs]
        vectors = ("Input-Context", self.settings.condition)
        return {
            name: tensor if name in vectors or isinstance(tensor, KerasTensor) else tensor.long()
            for name, tensor in zip(self.settings.inputs, given, strict=True)
        }

    @contextmanager
    def _running(self, training: bool | None) -> Iterator[None]:
        """Put the network into the mode and the precision of a call."""
        if self.network.training != bool(training):
            self.network.train(bool(training))
        mixed = self.compute_dtype in ("float16", "bfloat16")
        dtype = getattr(torch, self.compute_dtype) if mixed else None
        with torch.autocast(self.network.token.weight.device.type, dtype, enabled=mixed):
            yield


@keras.saving.register_keras_serializable("hanmo")
class Network(NetworkLayer):
    """A layer that runs a network.

    inputs: ids and what else `Settings.inputs` lists, in its order.
    Its outputs are those of the model, then one for each use of each of `taps`, None unless it was asked for.
    """

    def __init__(self, network: Model, settings: Settings, **options: Any) -> None:
        super().__init__(network, settings, **options)
        modules = dict(network.named_modules())
        self._keep(modules=modules, asked=set())
        self._keep(taps=taps_of(network.config, settings, modules), kinds=outputs_of(network.config, settings))
        self._keep(slots=[(tap, i) for tap in self.taps for i in range(tap.times)])
        names = dict.fromkeys([tap.name for tap in self.taps] + list(self.weighted))
        self._keep(sublayers={name: Sublayer(self, name, self.weighted.get(name)) for name in names})
        _made.append(weakref.ref(self))

    def get_config(self) -> dict[str, Any]:
        own = {"network": self.network.config.to_json(), "settings": asdict(self.settings), "asked": sorted(self.asked)}
        return super().get_config() | own

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Network":
        """Make a layer with uninitialized weights."""
        options = {name: config[name] for name in ("name", "trainable", "dtype")}
        network = Model(ModelConfig.from_json(config["network"])).eval()
        made = cls(network, Settings(**config["settings"]), **options)
        made.asked.update(config["asked"])
        return made

    def symbol(self, name: str, use: int) -> KerasTensor:
        """Return the symbolic output of a sub-layer, which the network computes from now on."""
        indices = [i for i, (tap, _) in enumerate(self.slots) if tap.name == name]
        if not indices or not -len(indices) <= use < len(indices):
            many = f"it has {len(indices)} outputs" if indices else "its output is not kept apart"
            raise Unsupported(
                f"output {use} of the layer {name!r} is not supported: {many}; the layers with outputs are "
                + ", ".join(dict.fromkeys(tap.name for tap in self.taps))
            )
        self.asked.add(indices[use])
        outputs: list[KerasTensor] = self.output  # of its first use
        return outputs[len(self.kinds) + indices[use]]

    def call(self, inputs: Any, training: bool | None = None) -> list[Tensor | None]:
        named = self._named(inputs)
        if any(tensor.is_meta for tensor in named.values()):
            return self._shapes_alone(named)
        with self._recorded() as seen, self._running(training):
            found = forward(self.network, self.settings, named)
        return [*found, *(self._seen(seen, slot) for slot in range(len(self.slots)))]

    @contextmanager
    def _recorded(self) -> Iterator[dict[tuple[str, bool], list[Tensor]]]:
        """Collect the inputs and outputs of the modules that were asked for, by (path, whether it is the input)."""
        seen: dict[tuple[str, bool], list[Tensor]] = {}

        def keep(place: tuple[str, bool], value: Any) -> None:
            seen.setdefault(place, []).append(value[0] if isinstance(value, tuple) else value)

        with ExitStack() as hooks:
            for path, before in {(self.slots[slot][0].path, self.slots[slot][0].before) for slot in self.asked}:
                module, place = self.modules[path], (path, before)
                if before:
                    handle = module.register_forward_pre_hook(lambda _, given, place=place: keep(place, given))
                else:
                    handle = module.register_forward_hook(lambda _, given, made, place=place: keep(place, made))
                hooks.callback(handle.remove)
            yield seen

    def _seen(self, seen: dict[tuple[str, bool], list[Tensor]], slot: int) -> Tensor | None:
        tap, use = self.slots[slot]
        return seen[tap.path, tap.before][use].float() if slot in self.asked else None

    def _specs(self) -> list[tuple[int | None, ...]]:
        """List the shapes of all outputs, without the batch."""
        own = output_shapes(self.network.config, self.settings)
        return own + [tap.shape for tap, _ in self.slots]

    def _shapes_alone(self, named: dict[str, Tensor]) -> list[Tensor | None]:
        rows, count = named[self.settings.inputs[-1 if "Decoder-Input-Token" in named else 0]].shape
        found: list[Tensor | None] = []
        for i, shape in enumerate(self._specs()):
            sizes = (rows, *(count if size is None else size for size in shape))
            computed = i < len(self.kinds) or i - len(self.kinds) in self.asked
            found.append(torch.empty(sizes, device="meta") if computed else None)
        return found

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> list[KerasTensor]:
        return [KerasTensor((None, *shape), dtype="float32") for shape in self._specs()]

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> list[Tensor | None] | None:
        named = self._named(inputs)
        ids = named.get("Decoder-Input-Token", next(iter(named.values())))
        if isinstance(ids, KerasTensor) or ids.is_meta:
            return None
        mask = key_mask(ids)
        if self.network.main.config.shared_segments and "Input-Segment" in named:
            mask &= key_mask(named["Input-Segment"])
        computed = [True] * len(self.kinds) + [slot in self.asked for slot in range(len(self.slots))]
        along = [shape[0] is None for shape in self._specs()]
        return [mask if each and has else None for each, has in zip(computed, along, strict=True)]

    def sublayer(self, name: str) -> "Sublayer | None":
        """Return the sub-layer of this name, None if there is none."""
        return next((each for each in self.sublayers.values() if each.name == name), None)


class Sublayer:
    """A layer of bert4keras inside a network: its weights, and its outputs as symbolic tensors."""

    def __init__(self, network: Network, name: str, weights: KerasLayer | None) -> None:
        self._network, self._key, self.name, self._weights = network, name, name, weights

    def get_output_at(self, node_index: int) -> KerasTensor:
        return self._network.symbol(self._key, node_index)

    @property
    def output(self) -> KerasTensor:
        """The output of its last use."""
        return self.get_output_at(-1)

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The shape of its output, without the batch."""
        return next((tap.shape for tap in self._network.taps if tap.name == self._key), ())

    @property
    def weights(self) -> list[keras.Variable]:
        names = [] if self._weights is None else self._weights.names
        return [self._network.variables_by_name[name] for name in names]

    @property
    def embeddings(self) -> keras.Variable:
        """The table of an embedding."""
        if self._key.rpartition("-")[2] not in ("Token", "Segment", "Position") or not self.weights:
            raise ConfigError(f"the layer {self.name!r} has no embeddings; layers such as 'Embedding-Token' have")
        return self.weights[0]

    @property
    def trainable(self) -> bool:
        return all(each.trainable for each in self.weights)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        for each in self.weights:
            each.trainable = value

    @property
    def trainable_weights(self) -> list[keras.Variable]:
        return [each for each in self.weights if each.trainable]

    def get_weights(self) -> list[Any]:
        return [] if self._weights is None else self._weights.get_weights()

    def set_weights(self, weights: list[Any]) -> None:
        if self._weights is not None:
            self._weights.set_weights(weights)

    def count_params(self) -> int:
        return sum(each.value.numel() for each in self.weights)
