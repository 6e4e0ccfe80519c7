"""Encoders on a CPU: OpenVINO reads whole texts, over the same mapped weights as the engine that writes.

Knows ids and arrays; knows no text, and not what vectors and logits are wanted for.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hanmo.errors import CheckpointError
from hanmo.inference.openvino.engine import core, cpu_options
from hanmo.inference.openvino.graph import build_encoder
from hanmo.inference.openvino.inputs import Tokens
from hanmo.inference.openvino.weights import Weights

__all__ = ["OpenVinoEncoder"]

Array = npt.NDArray[Any]


class OpenVinoEncoder:
    """Run an encoder (BERT and its kin) over mapped weights; see `openvino_engine.open_weights`.

    threads: None leaves it to OpenVINO.
    Raises CheckpointError for a model that is no encoder alone, ConfigError for a network that is not carried.
    """

    def __init__(self, weights: Weights, *, threads: int | None = None) -> None:
        self.config = weights.config
        if self.config.encoder is None or self.config.decoder is not None:
            raise CheckpointError(f"a {self.config.family} is no encoder alone; open it with open_engine to write")
        model = build_encoder(weights, self.config)
        self._compiled = core().compile_model(model, "CPU", cpu_options(weights.kind, threads))
        self._names = {name for each in self._compiled.inputs for name in each.names}
        self._weights = weights  # the graph shares its pages

    def read(self, texts: Sequence[Sequence[int]], *, places: Sequence[tuple[int, int]] = ()) -> dict[str, Array]:
        """Read texts, of different lengths perhaps, and give what the network makes of them, in float32.

        "hidden" [b, n, hidden_size], shorter texts padded at the end, and "mask" [b, n], False there.
        places: (text, token) of those whose "logits" [places, vocab] are wanted.
        As the model has them: "pooled" [b, hidden_size], "nsp" [b, 2], "discriminator" [b, n, 1].
        """
        longest = max(len(text) for text in texts)
        ids = np.array([[*text, *[0] * (longest - len(text))] for text in texts])
        real = np.arange(longest) < np.array([len(text) for text in texts])[:, None]
        assert self.config.encoder is not None
        inputs = Tokens(self.config.encoder).append(ids, real=None if real.all() else real)
        if "places" in self._names:
            # One place at least: the product with an empty matrix is not defined everywhere.
            inputs["places"] = np.array([row * longest + token for row, token in places] or [0], np.int32)
        request = self._compiled.create_infer_request()
        request.infer(inputs, share_inputs=True)
        found = {each.any_name: request.get_tensor(each).data.copy() for each in self._compiled.outputs}
        if "logits" in found:
            found["logits"] = found["logits"][: len(places)]
        return {**found, "mask": real}
