"""The torch engine: a Model and its cache as an `Engine`, on a CPU or a GPU. Knows no text and no sampling."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hanmo.inference.fused.float32 import fused_step
from hanmo.inference.prompts import check_can_generate, padded
from hanmo.model import Model
from hanmo.nn.cache import Cache


class TorchEngine:
    """Run a model that can generate: a decoder, a BERT-like stack with a causal or prefix mask, or an encoder-decoder.

    start: the id that a decoder with an encoder begins with (0 in T5).
    joins: whether rows join others in one cache; only in float32, where that changes no text.
    Raises CheckpointError if the model cannot generate.
    """

    def __init__(self, model: Model, *, start: int = 0) -> None:
        check_can_generate(model.config)
        self.model = model
        model.main.fused_step = fused_step
        self.start = start
        self.vocab_size, self.max_positions = model.config.vocab_size, model.config.main.context
        self.prefix = model.config.main.mask == "prefix"
        weight = model.token.weight
        self.joins = weight.dtype == torch.float32 and weight.device.type == "cpu"

    @property
    def token_bytes(self) -> int:
        """Bytes of the keys and values of one token of a row."""
        stack = self.model.main.config
        return stack.num_layers * stack.num_heads * (stack.key_dim + stack.head_dim) * self.model.token.weight.itemsize

    def prefill(self, prompts: Sequence[Sequence[int]], *, room: int) -> tuple["TorchRows", Any]:
        """Read prompts, shorter ones padded on the left; see `Engine.prefill`."""
        cache, logits = self.read(prompts, room=max(room, 1))
        return TorchRows(self, cache), logits

    @torch.inference_mode()
    def read(self, prompts: Sequence[Sequence[int]], *, room: int) -> tuple[Cache, Any]:
        """Run prompts through the model: a cache with room for so many more tokens, and the logits [rows, vocab]."""
        device = self.model.token.weight.device
        padded_ids, padding = padded(prompts, left=True)
        ids = torch.from_numpy(padded_ids).to(device)
        mask = None if padding is None else torch.from_numpy(padding).to(device)
        more: dict[str, Any] = {"mask": mask}
        if self.model.config.is_encoder_decoder:
            more = {"source": ids, "source_mask": mask}
            ids = torch.full((len(prompts), 1), self.start, device=device)
        elif self.prefix:
            more["segments"] = torch.zeros_like(ids)
        capacity, dtype = ids.shape[1] + room, self.model.token.weight.dtype
        cache = Cache(self.model.main.config, rows=len(prompts), capacity=capacity, dtype=dtype, device=device)
        logits = self.model(ids, cache=cache, logits="last", **more).logits
        return cache, as_array(logits)

    @torch.inference_mode()
    def extend(self, cache: Cache, ids: Sequence[int]) -> Tensor:
        """Append ids to the only row of a cache: the logits [ids, vocab] behind each."""
        new = torch.tensor([ids], device=self.model.token.weight.device)
        segments = torch.ones_like(new) if self.prefix else None
        logits: Tensor = self.model(new, segments=segments, cache=cache, logits="all").logits
        return logits[0].float()


class TorchRows:
    """The rows of one `prefill`: their cache."""

    def __init__(self, engine: TorchEngine, cache: Cache) -> None:
        self._engine = engine
        self._cache = cache

    @torch.inference_mode()
    def step(self, ids: Sequence[int]) -> Any:
        """Append one id to every row and return the logits [rows, vocab]; see `Rows.step`."""
        model = self._engine.model
        new = torch.tensor(ids, device=model.token.weight.device)[:, None]
        segments = torch.ones_like(new) if self._engine.prefix else None
        return as_array(model(new, segments=segments, cache=self._cache, logits="last").logits)

    def extend(self, ids: Sequence[int]) -> Any:
        """Append ids to the only row and return the logits [ids, vocab] behind each."""
        return as_array(self._engine.extend(self._cache, ids)[:, None])

    @torch.inference_mode()
    def reorder(self, rows: Sequence[int]) -> None:
        """Make new row i a copy of old row rows[i]; see `Rows.reorder`."""
        self._cache.reorder(torch.tensor(rows, device=self._cache.keys[0].device))

    @torch.inference_mode()
    def join(self, other: "TorchRows") -> None:
        """Append the rows of another `prefill`; see `JoinableRows.join`."""
        self._cache.join(other._cache)


def as_array(logits: Tensor) -> Any:
    """Give the last of logits [rows, n, vocab] in float32: NumPy from a CPU, a tensor from other devices."""
    last = logits[:, -1].float()
    return last.numpy() if last.device.type == "cpu" else last
