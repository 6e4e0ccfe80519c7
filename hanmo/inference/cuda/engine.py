"""The GPU engine: decode steps of static shapes, each captured as a CUDA graph once.

Without a GPU the same steps run one kernel at a time, which is how they are tested. Knows no text and no sampling.

    prefill ──► Cache ──first step──► Slots, acquired from the engine until the rows are freed
    dynamic_rows ──► Slots of rows that join and leave
    one graph for each   (rows rounded up to a power of two, bucket of columns), shared by all texts
"""

import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from hanmo.inference.cuda.blocks import step
from hanmo.inference.cuda.rows import StaticDynamicRows
from hanmo.inference.cuda.slots import Slots, column_bucket, row_bucket
from hanmo.inference.fused.support import has_fused_step
from hanmo.inference.torch_engine import TorchEngine, TorchRows
from hanmo.model import Model
from hanmo.nn.attention import AttentionInputs
from hanmo.nn.cache import Cache

WARM_UP = 3  # runs before a capture, in which libraries choose kernels and allocate memory


class StaticEngine(TorchEngine):
    """Run a model as `TorchEngine` does, each decode step without host synchronisation.

    The logits are torch tensors on every device. The model's parameters are read in place: changed values count at
    once, but a model that is moved needs a new engine.
    Raises CheckpointError if the model cannot generate.
    """

    def __init__(self, model: Model, *, start: int = 0) -> None:
        super().__init__(model, start=start)
        self.device = model.token.weight.device
        for layer in model.modules():
            if isinstance(layer, nn.Linear):  # [out, in], as the kernels read it; TensorFlow's is [in, out]
                layer.weight.data = layer.weight.data.contiguous()
        self._free: list[Slots] = []
        self._captures = self.device.type == "cuda"

    def prefill(self, prompts: Sequence[Sequence[int]], *, room: int) -> tuple[TorchRows, Any]:
        """Read prompts, shorter ones padded on the left; see `Engine.prefill`."""
        cache, logits = self.read(prompts, room=0)
        return StaticRows(self, cache, cache.length + max(room, 1)), torch.as_tensor(logits)

    def read(self, prompts: Sequence[Sequence[int]], *, room: int) -> tuple[Cache, Any]:
        """Run prompts through the model; see `TorchEngine.read`."""
        with self._here():
            return super().read(prompts, room=room)

    def extend(self, cache: Cache, ids: Sequence[int]) -> Tensor:
        """Append ids to the only row of a cache; see `TorchEngine.extend`."""
        with self._here():
            return super().extend(cache, ids)

    def dynamic_rows(self) -> StaticDynamicRows:
        """Return rows that join and leave; see `DynamicEngine`."""
        return StaticDynamicRows(self)

    def send(self, numbers: Sequence[float]) -> Tensor:
        """Copy numbers to the device without waiting for its queue; see `QueueingEngine.send`."""
        host = torch.tensor(numbers, dtype=torch.float64)
        return host.pin_memory().to(self.device, non_blocking=True) if self._captures else host

    def fetch(self, ids: Tensor) -> Callable[[], list[int]]:
        """Begin to copy ids from the device; see `QueueingEngine.fetch`."""
        if not self._captures:
            return ids.tolist
        host = torch.empty(ids.shape, dtype=ids.dtype, pin_memory=True)
        with self._here():
            host.copy_(ids, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()

        def wait() -> list[int]:
            copied.synchronize()
            return host.tolist()

        return wait

    def acquire(self, rows: int, capacity: int, memory: int) -> Slots:
        """Take free or new memory for so many rows, columns, and columns of an encoder's output."""
        rows, capacity, memory = row_bucket(rows), column_bucket(capacity), memory and column_bucket(memory)
        for slots in self._free:
            if slots.rows >= rows and slots.capacity >= capacity and slots.memory_capacity == memory:
                self._free.remove(slots)
                return slots.cleared()
        self._free.clear()  # too small now; their graphs are freed with them
        return Slots(self.model, rows, capacity, memory)

    def run(self, slots: Slots, rows: int, columns: int) -> Tensor:
        """Step the first rows over the columns in use: logits [rows, vocab], valid until the next step."""
        shape = row_bucket(rows), column_bucket(columns)
        if not self._captures:
            return self._forward(slots.window(*shape))[:rows]
        with self._here():
            if shape not in slots.graphs:
                slots.graphs[shape] = self._capture(slots, slots.window(*shape))
            graph, logits = slots.graphs[shape]
            graph.replay()
        return logits[:rows]

    def _here(self) -> AbstractContextManager[object]:
        """Make the model's GPU the current device."""
        return torch.cuda.device(self.device) if self._captures else nullcontext()

    def _capture(self, slots: Slots, window: Slots) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        if slots.stream is None:
            # torch refuses a pool whose graphs are all freed, and cuBLAS keeps a workspace for each stream: the runs
            # before a capture must be on the stream of the capture.
            slots.stream, slots.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()  # type: ignore[no-untyped-call]
        here, stream = torch.cuda.current_stream(), slots.stream
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):  # writes the same keys to the same columns as the replay
                self._forward(window)
        here.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # One pool for all graphs: no two run at once, and logits are copied before the next one runs.
        with torch.cuda.graph(graph, pool=slots.pool, stream=stream, capture_error_mode="thread_local"):
            logits = self._forward(window)
        return graph, logits

    def _forward(self, window: Slots) -> Tensor:
        """Compute a step from the window's tensors alone, without host synchronisation: [rows, vocab]."""
        model, stack = self.model, self.model.main
        limit = stack.config.context
        # A finished row may run one extra step, whose result is discarded.
        new = window.slot[:, None].clamp(0, None if limit is None else limit - 1)
        columns = torch.arange(window.capacity, device=self.device)[None]
        real = (columns <= window.slot[:, None])[:, None, None]
        inputs = AttentionInputs()
        stack.place(inputs, new, columns)
        # A bias, which the fused kernel takes as it is; it would convert a boolean mask in every block.
        bias = window.keys[0].new_zeros(1) if inputs.bias is None else inputs.bias
        inputs.bias = bias.masked_fill(~real, float("-inf"))
        inputs_by_kind = {"attention": inputs}
        if stack.config.has_cross:
            inputs_by_kind["cross"] = stack.cross_inputs(new, None, window.memory_mask, window)
        ids = window.ids[:, None]
        segments = torch.ones_like(ids) if self.prefix else None
        x = stack.embedding(model.vectors(stack, ids, segments), new, segments)
        scores: dict[str, Tensor | None] | None = None
        fused = has_fused_step(stack.config, "cuda")
        x = x[:, 0] if fused else x
        for layer in range(stack.config.num_layers):
            block: Any = stack.blocks[0 if stack.config.shared_layers else layer]
            if fused:
                x = step(block, x, inputs, window, layer=layer, slot=window.slot)
            else:
                x, scores = block(x, inputs_by_kind, cache=window, layer=layer, scores=scores)
        x = x[:, None] if fused else x
        return model.logits(x if stack.norm is None else stack.norm(x))[:, -1]


class StaticRows(TorchRows):
    """The rows of one `prefill`: their cache, and slots from the first step on."""

    _engine: StaticEngine

    def __init__(self, engine: StaticEngine, cache: Cache, capacity: int) -> None:
        super().__init__(engine, cache)
        self._capacity, self._length, self._rows = capacity, cache.length, cache.rows
        self._slots: Slots | None = None
        self._return: Callable[[], object] = lambda: None

    @torch.inference_mode()
    def step(self, ids: Any) -> Any:
        """Append one id to every row and return the logits [rows, vocab]; see `Rows.step`.

        ids: a sequence, or a tensor on the device. Those below 0 are no ids; the logits of their rows are not used.
        Raises ValueError if there is no room for them.
        """
        if self._length == self._capacity:
            raise ValueError(f"the rows have room for {self._capacity} tokens; prefill them with a larger room")
        if (slots := self._slots) is None:  # copied only now, when a prompt's n samples are n rows already
            memory = self._cache.memory[0]
            slots = self._engine.acquire(self._rows, self._capacity, memory[0].shape[2] if memory else 0)
            slots.fill(self._cache, range(self._rows))
            self._hold(slots)
            del self._cache
        slots.ids[: self._rows] = torch.as_tensor(ids).clamp(min=0)
        logits = self._engine.run(slots, self._rows, self._length + 1).to(torch.float32, copy=True)
        slots.slot[: self._rows] += 1
        self._length += 1
        return logits

    @torch.inference_mode()
    def reorder(self, rows: Sequence[int]) -> None:
        """Make new row i a copy of old row rows[i]; see `Rows.reorder`."""
        if (slots := self._slots) is None:
            super().reorder(rows)
        elif len(rows) <= slots.rows:
            slots.take(slots, [pair for pair in enumerate(rows) if pair[0] != pair[1]], self._length)
        else:
            larger = self._engine.acquire(len(rows), self._capacity, slots.memory_capacity)
            larger.take(slots, list(enumerate(rows)), self._length)
            self._hold(larger)
        self._rows = len(rows)

    def _hold(self, slots: Slots) -> None:
        """Keep slots until they are replaced or these rows are freed."""
        self._return()
        self._slots = slots
        self._return = finalizer = weakref.finalize(self, self._engine._free.append, slots)
        finalizer.atexit = False
