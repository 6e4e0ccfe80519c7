"""The CPU engine over mapped weights: the fused step where a model has it, OpenVINO elsewhere.

Knows requests, rows and caches. Imports torch only to convert weights; knows no text and no sampling.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import openvino as ov

from hanmo.checkpoint.open import Location, locate
from hanmo.checkpoint.source import Array
from hanmo.checkpoint.staged import clear_abandoned
from hanmo.config import ModelConfig, StackConfig
from hanmo.errors import ConfigError, MissingFile
from hanmo.files import cache_folder
from hanmo.inference import store
from hanmo.inference.fused.quantized import FusedDynamicRows, FusedRows, open_stack
from hanmo.inference.fused.quantized_row import FusedRow
from hanmo.inference.openvino.graph import build_decoder, build_encoder
from hanmo.inference.openvino.rows import OpenVinoRows, append_tokens
from hanmo.inference.openvino.weights import FORMAT, KINDS, Weights
from hanmo.inference.prompts import check_can_generate, padded
from hanmo.nn.position import Tokens

__all__ = ["OpenVinoEngine", "open_weights", "run_encoder"]

CACHE_PRECISION = {"float32": "f32", "bfloat16": "bf16", "int8": "u8", "int4": "u8"}
"""The CPU plugin's type of keys and values by the kind of weights."""


def open_weights(
    path: str | Path | Location,
    *,
    weights: str,
    config: str | Path | ModelConfig | None = None,
    family: str | None = None,
    folder: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Weights:
    """Map a checkpoint's weights from the folder of built files, built first if they are missing or damaged.

    weights: "float32", "bfloat16", "int8" (a scale for each output) or "int4" (a scale for each group of inputs).
    config, family: as for `hanmo.load`.   folder: of built files; None is `files.cache_folder()`.
    progress: called with the bytes of each tensor that is read, while building.
    Raises ConfigError for an option out of range; MissingFile, CheckpointError or ConfigError as loading does.
    """
    if weights not in KINDS:
        raise ConfigError(f"weights is {weights!r}; expected one of {', '.join(KINDS)}")
    text = config.to_json() if isinstance(config, ModelConfig) else None
    if isinstance(config, (str, Path)):
        if not Path(config).is_file():
            raise MissingFile(f"no configuration at {config}; give the config.json that belongs to the checkpoint")
        text = Path(config).read_text("utf-8")
    options = {"format": FORMAT, "weights": weights, "family": family, "config": text}
    built = store.built_path(folder or cache_folder(), found := locate(path), options)
    if not store.is_whole(built):
        from hanmo.inference.openvino.build import build

        build(found, built, weights=weights, config=config, family=family, progress=progress)
        store.seal(built)
        clear_abandoned(built.parent)
    return Weights(built)


@cache
def core() -> ov.Core:
    """Give the one OpenVINO of this process, which is never freed.

    The CPU plugin sets the stack of signal handlers and frees it with the last Core: the next Ctrl-C would then crash
    the process (seen with OpenVINO 2026.4.1).
    """
    return ov.Core()


def compile_graph(model: ov.Model, kind: str, threads: int | None) -> ov.CompiledModel:
    """Compile a graph for the CPU; kind: of its weights, which decides the precision of everything else."""
    # Beside int8 and int4, bfloat16 adds little to the rounding of the weights, and long prompts are read much faster.
    precision = "f32" if kind == "float32" else "bf16"
    options = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision}
    options["KV_CACHE_PRECISION"] = CACHE_PRECISION[kind]
    if kind in ("int8", "int4"):
        options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 128
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    return core().compile_model(model, "CPU", options)


class OpenVinoEngine:
    """Run a model that can generate over mapped weights; an `Engine`.

    mask: "causal" or "prefix" lets a BERT-like encoder generate.   threads: None leaves it to OpenVINO.
    start: the id that a decoder with an encoder begins with (0 in T5).
    joins: whether rows join others in one cache; only in float32, where that changes no text.
    Raises CheckpointError if the model cannot generate, ConfigError for an unsupported network.
    """

    def __init__(
        self, weights: Weights, *, mask: str | None = None, threads: int | None = None, start: int = 0
    ) -> None:
        self.config = config = weights.config if mask is None else weights.config.with_mask(mask)
        check_can_generate(config)
        self.vocab_size, self.max_positions = config.vocab_size, config.main.context
        self.start, self._threads = start, threads
        self._weights = weights  # the graphs share its pages
        self._encoder = (
            compile_graph(build_encoder(weights, config), weights.kind, threads) if config.is_encoder_decoder else None
        )
        self.joins = weights.kind == "float32" and config.main.mask == "causal" and not config.is_encoder_decoder
        self._compiling = Lock()
        self._compiled: ov.CompiledModel | None = None
        self._fused = open_stack(weights, config, threads)
        if self._fused is None:
            self._decoder()

    @property
    def token_bytes(self) -> int:
        """The most bytes that keys and values of one token of a row take, scales of quantized ones included."""
        stack, number, scales = self.config.main, 4 if self._weights.kind == "float32" else 2, 0
        if CACHE_PRECISION[self._weights.kind] == "u8" and self._fused is None:
            number, scales = 1, 16
        return stack.num_layers * stack.num_heads * ((stack.key_dim + stack.head_dim) * number + scales)

    def prefill(self, prompts: Sequence[Sequence[int]], *, room: int) -> tuple[Any, Array]:
        """Read prompts, shorter ones padded on the left; see `Engine.prefill`.

        With the fused step a prompt is read as it is alone, so that a row's logits do not depend on the others.
        """
        if self._fused is not None and self._encoder is None and len(prompts) > 1:
            dynamic = FusedDynamicRows(self._fused)
            read = dynamic.step([(dynamic.add(len(prompt) + room), prompt, 1) for prompt in prompts])
            return FusedRows(self._fused, list(dynamic.rows.values())), np.concatenate(read)
        ids, mask = padded(prompts, left=True)
        rows = self.new_rows(len(prompts))
        if self._encoder is not None and self.config.encoder is not None:
            found = run_encoder(self._encoder, self.config.encoder, ids, mask)
            memory = {name: array for name, array in found.items() if name.startswith("memory.")}
            rows.set_memory(memory, np.ones(ids.shape, bool) if mask is None else mask)
            ids, mask = np.full((len(prompts), 1), self.start), None
        return rows, rows.run(ids, mask=mask)[:, -1]

    def dynamic_rows(self) -> FusedDynamicRows | None:
        """Return rows that join and leave, None without the fused step; see `DynamicEngine`."""
        if self._fused is None:
            return None
        divides = self._encoder is None and self.config.main.mask == "causal"
        return FusedDynamicRows(self._fused, None if divides else self._read_alone)

    def _read_alone(self, prompt: Sequence[int]) -> tuple[FusedRow, Array]:
        rows, logits = self.prefill([prompt], room=0)
        return rows.fused[0], logits

    def logits(self, ids: Sequence[int]) -> Array:
        """Score what comes after each id of one text: [ids, vocab]."""
        return self.new_rows(1).run(np.array([ids]), keep=len(ids))[0]

    def new_rows(self, count: int) -> OpenVinoRows:
        """Give rows without tokens, to be filled by their `run`."""
        return OpenVinoRows(lambda: self._decoder().create_infer_request(), self.config.main, count, self._fused)

    def _decoder(self) -> ov.CompiledModel:
        """Compile the graph when it is first needed, which the fused step never does."""
        with self._compiling:
            if self._compiled is None:
                graph = build_decoder(self._weights, self.config)
                self._compiled = compile_graph(graph, self._weights.kind, self._threads)
            return self._compiled


def run_encoder(
    compiled: ov.CompiledModel,
    stack: StackConfig,
    ids: Array,
    mask: Array | None,
    *,
    segments: Array | None = None,
    **more: Array,
) -> dict[str, Array]:
    """Run an encoder's graph on ids [b, n]: its outputs by name.

    mask: [b, n], False for padding.   segments: [b, n].   more: further inputs.
    """
    _, feed = append_tokens(stack, Tokens(), ids, mask=mask, segment=0 if segments is None else segments)
    request = compiled.create_infer_request()
    request.infer({**feed, **more}, share_inputs=True)
    return {each.any_name: request.get_tensor(each).data.copy() for each in compiled.outputs}
