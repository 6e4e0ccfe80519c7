"""The CPU engine: OpenVINO for prompts and batches, the fused step for single rows, over mapped weights.

Knows requests, rows and caches. Imports torch only to convert weights; knows no text and no sampling.
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

from hanmo.checkpoint.open import Location, locate
from hanmo.checkpoint.staged import clear_abandoned
from hanmo.config import ModelConfig
from hanmo.errors import CheckpointError, ConfigError, MissingFile
from hanmo.inference import store
from hanmo.inference.fused.quantized_rows import SingleRow, Steps, open_steps
from hanmo.inference.openvino.graph import build_decoder, build_encoder
from hanmo.inference.openvino.inputs import Tokens, key_mask
from hanmo.inference.openvino.weights import FORMAT, KINDS, Weights

__all__ = ["OpenVinoEngine", "OpenVinoRows", "cpu_options", "open_engine", "open_weights"]

Array = npt.NDArray[Any]

SHORT = 16  # ids of a prompt that the fused step reads one by one, whatever ran before, without OpenVINO's graph


def open_engine(
    path: str | Path,
    *,
    weights: str = "int8",
    threads: int | None = None,
    config: str | Path | ModelConfig | None = None,
    family: str | None = None,
    mask: str | None = None,
    folder: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> "OpenVinoEngine":
    """Open a checkpoint of any format for writing on a CPU; the first time its weights are converted and kept.

    weights: "float32", "bfloat16", "int8" (a scale for each output) or "int4" (a scale for each group of inputs).
    threads: None leaves it to OpenVINO.   config, family, mask: as for `hanmo.load`.
    folder: where built files are kept; None is `store.default_folder()`.
    progress: called with the bytes of each tensor that is read, while building.
    Raises ConfigError for an option out of range; MissingFile, CheckpointError or ConfigError as loading does.
    """
    found = open_weights(path, weights=weights, config=config, family=family, folder=folder, progress=progress)
    return OpenVinoEngine(found, mask=mask, threads=threads)


def open_weights(
    path: str | Path | Location,
    *,
    weights: str,
    config: str | Path | ModelConfig | None = None,
    family: str | None = None,
    folder: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Weights:
    """Map a checkpoint's weights from the folder of built files, built first if they are not there or are damaged.

    Arguments and errors as for `open_engine`.
    """
    if weights not in KINDS:
        raise ConfigError(f"weights is {weights!r}; expected one of {', '.join(KINDS)}")
    options = {"format": FORMAT, "weights": weights, "family": family, "config": _text(config)}
    built = store.built_path(folder or store.default_folder(), found := locate(path), options)
    if not store.is_whole(built):
        from hanmo.inference.openvino.build import build

        build(found, built, weights=weights, config=config, family=family, progress=progress)
        store.seal(built)
        clear_abandoned(built.parent)
    return Weights(built)


@cache
def core() -> ov.Core:
    """Give the one OpenVINO of this process, which lives as long as it.

    The CPU plugin sets the stack that signal handlers run on and frees it when the last Core goes: the next Ctrl-C
    would then crash the process (seen with OpenVINO 2026.4.1).
    """
    return ov.Core()


def cpu_options(kind: str, threads: int | None) -> dict[str, Any]:
    """Choose how precisely OpenVINO computes: exactly where the weights are exact."""
    options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    if kind == "float32":
        options |= {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    elif kind == "bfloat16":
        options |= {"INFERENCE_PRECISION_HINT": "bf16", "KV_CACHE_PRECISION": "bf16"}
    else:
        # What the rounding of bfloat16 adds to that of the weights is little; long prompts gain much.
        options |= {"INFERENCE_PRECISION_HINT": "bf16", "KV_CACHE_PRECISION": "u8"}
        options |= {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 128}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    return options


class OpenVinoEngine:
    """Run a model over mapped weights; an `Engine` if it writes.

    mask: "causal" or "prefix" lets a BERT-like encoder write.   threads: None leaves it to OpenVINO.
    start: the id that a decoder with an encoder begins with (0 in T5).
    Raises CheckpointError if the model does not write, ConfigError for a network that is not carried.
    """

    def __init__(
        self, weights: Weights, *, mask: str | None = None, threads: int | None = None, start: int = 0
    ) -> None:
        config = weights.config
        if mask is not None:
            changes: dict[str, Any] = {"decoder" if config.decoder else "encoder": replace(config.main, mask=mask)}
            config = replace(config, **changes)
        if not config.can_generate:
            raise CheckpointError(
                "this model does not write: it has no output onto its vocabulary, or sees both ways; "
                "a BERT writes when it is loaded with mask='prefix' or 'causal'"
            )
        self.config, self.start = config, start
        options = cpu_options(weights.kind, threads)
        self._cache_bytes = {"f32": 4, "bf16": 2, "u8": 1}[options["KV_CACHE_PRECISION"]]
        self._weights, self._options = weights, options  # the graphs share the weights' pages
        self._encoder = (
            core().compile_model(build_encoder(weights, config), "CPU", options) if config.is_encoder_decoder else None
        )
        self._compiling = Lock()
        self._compiled: ov.CompiledModel | None = None
        self._steps = open_steps(weights, config, threads)
        if self._steps is None:
            self._decoder()

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.config.vocab_size

    @property
    def max_positions(self) -> int | None:
        """The most ids of a row; an encoder-decoder's prompt is not counted, its decoder has no last position."""
        return self.config.main.context

    @property
    def token_bytes(self) -> int:
        """How many bytes the keys and values of one token of a row take at most, scales of rounded ones included."""
        stack = self.config.main
        number, scales = (1, 16) if self._cache_bytes == 1 and self._steps is None else (max(2, self._cache_bytes), 0)
        return stack.num_layers * stack.num_heads * ((stack.key_dim + stack.head_dim) * number + scales)

    def _decoder(self) -> ov.CompiledModel:
        """Compile the graph when it is first asked for: a short text that is written alone never does."""
        with self._compiling:
            if self._compiled is None:
                self._compiled = core().compile_model(build_decoder(self._weights, self.config), "CPU", self._options)
            return self._compiled

    def prefill(self, prompts: Sequence[Sequence[int]], *, room: int) -> tuple["OpenVinoRows", Array]:
        """Read prompts, shorter ones padded on the left; see `Engine.prefill`."""
        ids, real = _padded(prompts)
        rows = self.new_rows(len(prompts))
        if self._encoder is not None:
            rows.remember(self._read(ids, real), np.ones(ids.shape, bool) if real is None else real)
            ids, real = np.full((len(prompts), 1), self.start), None
        return rows, rows.run(ids, real=real)[:, -1]

    def logits(self, ids: Sequence[int]) -> Array:
        """Score what comes after each id of one text, without a cache that lasts: [ids, vocab]."""
        return self.new_rows(1).run(np.array([ids]), keep=len(ids))[0]

    def new_rows(self, count: int) -> "OpenVinoRows":
        """Give rows that hold nothing yet, to be filled by their `run`."""
        return OpenVinoRows(
            lambda: self._decoder().create_infer_request(), Tokens(self.config.main), count, self._steps
        )

    def _read(self, ids: Array, real: Array | None) -> dict[str, Array]:
        assert self._encoder is not None and self.config.encoder is not None
        inputs = Tokens(self.config.encoder).append(ids, real=real)
        request = self._encoder.create_infer_request()
        request.infer(inputs, share_inputs=True)
        names = (output.any_name for output in self._encoder.outputs)
        return {name: request.get_tensor(name).data.copy() for name in names if name.startswith("memory.")}


class OpenVinoRows:
    """The rows of one `prefill`: a request, whose state is their cache, and what is known of their tokens.

    The cache of a single row that goes on by a few ids may lie in a `SingleRow` instead, until the request is asked.
    """

    def __init__(
        self, new_request: Callable[[], ov.InferRequest], tokens: Tokens, rows: int, steps: Steps | None = None
    ) -> None:
        self._new_request, self._tokens, self._steps = new_request, tokens, steps
        self._single: SingleRow | None = None
        self._order = list(range(rows))  # which row of the state each row goes on from
        self._memory: dict[str, Array] = {}

    @cached_property
    def _request(self) -> ov.InferRequest:
        return self._new_request()

    @cached_property
    def _needs(self) -> set[str]:
        return {name for each in self._request.model_inputs for name in each.names}

    def step(self, ids: Sequence[int]) -> Array:
        """Append one id to every row and return the logits [rows, vocab]; see `Rows.step`."""
        prefix = self._tokens.stack.mask == "prefix"
        return self.run(np.array(ids)[:, None], segment=int(prefix))[:, -1]

    def reorder(self, rows: Sequence[int]) -> None:
        """Keep these rows in this order; the cache follows at the next step. See `Rows.reorder`."""
        kept = list(rows)
        if kept == [0] and self._single is not None:
            return
        self._settle(self.length)
        self._order = [self._order[row] for row in kept]
        self._tokens.take(kept)
        self._memory = {name: array[kept] for name, array in self._memory.items()}

    def remember(self, memory: dict[str, Array], real: Array) -> None:
        """Have all steps attend to the keys and values of an encoder's output; real: [b, m]."""
        self._memory = {**memory, "memory_mask": key_mask(real)}

    @property
    def count(self) -> int:
        """How many rows there are."""
        return len(self._order)

    @property
    def length(self) -> int:
        """How many tokens of each row are in the cache."""
        return self._tokens.positions.shape[1]

    def cut(self, length: int) -> None:
        """Forget every token from `length` on."""
        if length < self.length:
            if self._single is not None:
                self._single.cut(length)
            else:
                self._fill(self._request, self._states(self._order, length))
                self._order = list(range(len(self._order)))
            self._tokens.cut(length)

    def copy(self, row: int, length: int) -> "OpenVinoRows":
        """Give one row with its first `length` tokens; this one stays as it is."""
        tokens = copy(self._tokens)
        tokens.take([row])
        tokens.cut(length)
        new = OpenVinoRows(self._new_request, tokens, 1, self._steps)
        states = self._states([self._order[row]], length)
        if self._single is not None and self._steps is not None:
            new._single = SingleRow(self._steps, states, length)
        else:
            self._fill(new._request, states)
        return new

    def _states(self, rows: list[int], length: int) -> dict[str, Array]:
        """Give the first tokens' keys and values of these rows, [b, heads, length, size] each, by name.

        What the plugin keeps in 8 bits comes out as float32, and goes back to the same bits.
        """
        if not length:
            return {}
        if self._single is not None:
            return self._single.states(length)
        return {
            each.name: np.ascontiguousarray(each.state.data[rows, :, :length]) for each in self._request.query_state()
        }

    def _fill(self, request: ov.InferRequest, states: dict[str, Array]) -> None:
        for each in request.query_state():
            if states:
                each.state = ov.Tensor(states[each.name])
            else:
                each.reset()

    def _settle(self, length: int) -> None:
        """Have the request hold the cache of so many tokens."""
        if self._single is not None:
            self._fill(self._request, self._states([0], length))
            self._single, self._order = None, [0]

    def _run_alone(self, steps: Steps, ids: Sequence[int], positions: Sequence[int], length: int) -> Array:
        """Append ids to the one row past OpenVINO, behind `length` others: logits [ids, vocab]."""
        if self._single is None:
            self._single = SingleRow(steps, self._states(self._order, length), length)
            self.__dict__.pop("_request", None)  # and its copy of the cache
        return np.array([self._single.step(int(id), int(place)) for id, place in zip(ids, positions, strict=True)])

    def run(
        self,
        ids: Array,
        *,
        segment: int | Array = 0,
        real: Array | None = None,
        positions: Array | None = None,
        keep: int = 1,
    ) -> Array:
        """Append ids [b, n] to the rows: logits [b, keep, vocab] of the last `keep` of them.

        segment, real, positions: as for `Tokens.append`.
        """
        tokens, length = self._tokens, self.length
        inputs = tokens.append(ids, segment=segment, real=real, positions=positions)
        short = len(ids) == 1 and ids.shape[1] <= SHORT and (tokens.real is None or bool(tokens.real.all()))
        if self._steps is not None and short:
            return self._run_alone(self._steps, ids[0], inputs["positions"][0], length)[None, -keep:]
        self._settle(length)
        inputs |= self._memory
        inputs["beam_idx"] = np.array(self._order, np.int32)
        inputs["keep"] = np.array([keep], np.int32)
        if "memory_buckets" in self._needs:
            inputs["memory_buckets"] = self._tokens.memory_buckets(self._memory["memory_mask"].shape[-1], ids.shape[1])
        self._request.infer(inputs, share_inputs=True)
        self._order = list(range(len(ids)))
        logits: Array = self._request.get_tensor("logits").data
        return logits.copy()


def _text(config: str | Path | ModelConfig | None) -> str | None:
    """Give what a configuration says, for it tells built files apart."""
    if config is None:
        return None
    if isinstance(config, ModelConfig):
        return config.to_json()
    if not Path(config).is_file():
        raise MissingFile(f"no configuration at {config}; give the config.json that belongs to the checkpoint")
    return Path(config).read_text("utf-8")


def _padded(prompts: Sequence[Sequence[int]]) -> tuple[Array, Array | None]:
    """Put prompts into one array, and say where it is not padding, unless all of it is not."""
    longest = max(len(prompt) for prompt in prompts)
    ids = np.array([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    lengths = np.array([len(prompt) for prompt in prompts])
    if (lengths == longest).all():
        return ids, None
    return ids, np.arange(longest) >= longest - lengths[:, None]
