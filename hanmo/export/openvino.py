"""A decoder as a folder that OpenVINO GenAI runs: the graph of the CPU engine with the inputs that GenAI feeds.

input_ids, position_ids [b, n], attention_mask [b, m], beam_idx [b]  →  logits [b, n, vocab]
"""

import json
import os
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset15 as op

from hanmo.checkpoint.open import Location
from hanmo.checkpoint.save import add_files
from hanmo.checkpoint.staged import atomic_folder
from hanmo.config import ModelConfig
from hanmo.errors import CheckpointError
from hanmo.inference.openvino.engine import open_weights
from hanmo.inference.openvino.graph import Graph
from hanmo.inference.openvino.weights import Node

__all__ = ["MODEL", "export_openvino"]

MODEL = "openvino_model.xml"
_HIDDEN = np.float32(-65504)  # what attention adds where a token is hidden; finite in all types
_NAMES = {"ids": "input_ids", "positions": "position_ids"}


def export_openvino(
    source: Path | Location,
    path: str | Path,
    *,
    weights: str = "float32",
    config: str | Path | ModelConfig | None = None,
    family: str | None = None,
    files: Callable[[ModelConfig], Mapping[str, Path | dict[str, Any]]] = lambda config: {},
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write openvino_model.xml and .bin, config.json and the given files into a new folder.

    weights: "float32", "bfloat16", "int8" or "int4".   config, family: as for `hanmo.load`.
    files: gives the files beside the graph, by name, as for `add_files`; "config.json" is added to the graph's.
    Raises CheckpointError for a model that GenAI cannot run: one with an encoder, without learned positions, or whose
    tokens see later ones.
    """
    with atomic_folder(Path(path), overwrite=overwrite) as folder:
        with TemporaryDirectory(dir=folder) as built:
            kept = open_weights(
                source, weights=weights, config=config, family=family, folder=Path(built), progress=progress
            )
            _check(kept.config)
            graph = _GenAI(kept, kept.config, kept.config.main)
            model = graph.model({"logits": graph.logits(graph.stack_output("decoder", cached=True))})
            ov.save_model(model, folder / MODEL, compress_to_fp16=False)
        found = dict(files(kept.config))
        added = found.pop("config.json", {})
        assert isinstance(added, dict)
        sizes = {
            "model_type": kept.config.family,
            "vocab_size": kept.config.vocab_size,
            "max_position_embeddings": kept.config.main.positions,
        }
        data = kept.config.generation | sizes | added
        (folder / "config.json").write_text(json.dumps(data, indent=2) + os.linesep, "utf-8")
        add_files(folder, found)
    return Path(path)


def _check(config: ModelConfig) -> None:
    stack = config.main
    reasons = {
        "it is an encoder": config.decoder is None,
        "it has an encoder": config.encoder is not None,
        "it has no output": config.output != "lm",
        f"its mask is {stack.mask!r}": stack.mask != "causal",
        f"its positions are {stack.position!r}": stack.position != "learned" or stack.position_offset != 0,
        f"its scores are {stack.score_residual!r}": stack.score_residual != "none",
    }
    if wrong := next((reason for reason, holds in reasons.items() if holds), None):
        raise CheckpointError(
            f"a {config.family} cannot go to OpenVINO GenAI: {wrong}; decoders with learned positions can "
            "(gpt2_ml, gpt2, gpt)"
        )


class _GenAI(Graph):
    """The graph with GenAI's inputs: masks follow from the attention mask, segments are 0."""

    def input(self, name: str, shape: list[int], dtype: ov.Type = ov.Type.i32) -> Node:
        if name in _NAMES:
            self.inputs.setdefault(name, super().input(_NAMES[name], shape, ov.Type.i64))
            return self.inputs[name]
        if name == "segments":
            return op.broadcast(np.int32(0), op.shape_of(self.inputs["ids"], "i64"))
        if name == "mask":
            return self._mask
        return super().input(name, shape, dtype)

    @cached_property
    def _mask(self) -> Node:
        """Return what is added to attention scores, [b, 1, n, m]: 0, or _HIDDEN for padding and later tokens."""
        given = super().input("attention_mask", [-1, -1], ov.Type.i64)
        all_of, new = (op.gather(op.shape_of(each, "i64"), 1, 0) for each in (given, self.inputs["ids"]))
        keys = op.range(np.int64(0), all_of, np.int64(1), output_type="i64")
        rows = op.range(op.subtract(all_of, new), all_of, np.int64(1), output_type="i64")
        seen = op.less_equal(op.unsqueeze(keys, [0]), op.unsqueeze(rows, [1]))
        real = op.unsqueeze(op.equal(given, np.int64(1)), [1, 2])
        both = op.logical_and(op.unsqueeze(seen, [0, 1]), real)
        return op.select(both, np.float32(0), _HIDDEN)

    def model(self, results: dict[str, Node]) -> ov.Model:
        self.inputs = {name: node for name, node in self.inputs.items() if name not in _NAMES}
        return super().model(results)
