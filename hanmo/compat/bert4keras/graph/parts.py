"""Parts of a network of one stack as Keras layers, which a script joins anew: its embeddings, its blocks, its heads.

Each takes the inputs of the model too, for masks and positions depend on them.
"""

from typing import Any

from array_api_compat import torch as xp
from keras import KerasTensor
from torch import Tensor

from hanmo.compat.bert4keras._runners import finish, key_mask, new_tokens
from hanmo.compat.bert4keras.configs import Settings
from hanmo.compat.bert4keras.graph.network import NetworkLayer, output_shapes
from hanmo.errors import Unsupported
from hanmo.model import Model
from hanmo.nn.position import Tokens


class Part(NetworkLayer):
    """A part of a network; its inputs are hidden states [b, n, hidden_size], then those of `Settings.inputs`."""

    def __init__(self, network: Model, settings: Settings, prefixes: tuple[str, ...], **options: Any) -> None:
        config = network.config
        if config.is_encoder_decoder or config.main.score_residual != "none":
            kind = "a T5" if config.is_encoder_decoder else "a RealFormer"
            raise Unsupported(f"apply_embeddings and its like are not supported for {kind}; use the model as it is")
        side = "decoder" if config.decoder else "encoder"
        super().__init__(
            network, settings, tuple(prefix.replace("main.", f"{side}.") for prefix in prefixes), **options
        )

    def get_config(self) -> dict[str, Any]:
        raise NotImplementedError("it joins parts of networks anew")

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        hidden, *given = inputs
        if hidden.is_meta:
            return hidden
        with self._running(training):
            return self.run(hidden, self._named(given))

    def run(self, hidden: Tensor, named: dict[str, Tensor]) -> Any:
        raise NotImplementedError

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        return KerasTensor((None, None, self.network.main.config.hidden_size), dtype="float32")

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        ids = inputs[1]
        return None if isinstance(ids, KerasTensor) or ids.is_meta else key_mask(ids)


class Embeddings(Part):
    """The embeddings; hidden states are those of the inputs, ids first, and ignored."""

    def __init__(self, network: Model, settings: Settings, **options: Any) -> None:
        super().__init__(network, settings, ("token", "main.embedding"), **options)

    def run(self, hidden: Tensor, named: dict[str, Tensor]) -> Tensor:
        stack, tokens = self.network.main, new_tokens(named, self.network.main.config.shared_segments)
        segments = tokens.get("segments")
        x = self.network.vectors(stack, tokens["ids"], segments)
        return stack.embedding(x, tokens["positions"], segments, _condition(self.settings, named))


class Block(Part):
    """One block."""

    def __init__(self, network: Model, settings: Settings, index: int, **options: Any) -> None:
        number = 0 if network.config.main.shared_layers else index
        super().__init__(network, settings, (f"main.blocks.{number}.", "main.relative"), **options)
        self._keep(block=network.main.blocks[number])

    def run(self, hidden: Tensor, named: dict[str, Tensor]) -> Tensor:
        stack, given = self.network.main, new_tokens(named, self.network.main.config.shared_segments)
        seen = {name: given.get(name) for name in ("segments", "mask", "positions")}
        tokens = Tokens().append(stack.config.mask, hidden, xp, **seen)
        attention = {"attention": stack.attention_inputs(tokens, hidden.shape[1])}
        x, _ = self.block(hidden, attention, condition=_condition(self.settings, named))
        return x


class Heads(Part):
    """The last norm and the outputs of the model."""

    def __init__(self, network: Model, settings: Settings, **options: Any) -> None:
        super().__init__(network, settings, ("token", "main.norm", "output", "pooler", "discriminator"), **options)

    def run(self, hidden: Tensor, named: dict[str, Tensor]) -> list[Tensor]:
        condition, stack = _condition(self.settings, named), self.network.main
        hidden = hidden if stack.norm is None else stack.norm(hidden, condition)
        return finish(self.network.config, self.settings, self.network.heads(hidden, condition))

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> list[KerasTensor]:
        shapes = output_shapes(self.network.config, self.settings)
        return [KerasTensor((None, *shape), dtype="float32") for shape in shapes]

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        mask = super().compute_mask(inputs)
        shapes = output_shapes(self.network.config, self.settings)
        return None if mask is None else [mask if shape[0] is None else None for shape in shapes]


def _condition(settings: Settings, named: dict[str, Tensor]) -> Tensor | None:
    return None if settings.condition is None else named[settings.condition]
