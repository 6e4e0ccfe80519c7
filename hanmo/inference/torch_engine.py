"""The torch engine: a Model and its cache behind the loop's interface, on a CPU or a GPU.

Knows networks and arrays. Knows no text and none of the rules by which ids are chosen.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hanmo.errors import CheckpointError
from hanmo.inference.fused.float32_rows import fused_step
from hanmo.model import Model
from hanmo.nn.cache import Cache


class TorchEngine:
    """Run a model that writes: a decoder, a BERT-like stack with a causal or prefix mask, or an encoder-decoder.

    start: the id that a decoder with an encoder begins with (0 in T5).
    Raises CheckpointError if the model cannot write.
    """

    def __init__(self, model: Model, *, start: int = 0) -> None:
        if not model.config.can_generate:
            raise CheckpointError(
                "this model does not write: it has no output onto its vocabulary, or sees both ways; "
                "a BERT writes when it is loaded with mask='prefix' or 'causal'"
            )
        self.model = model
        model.main.fused_step = fused_step
        self.start = start
        self.prefix = model.config.main.mask == "prefix"

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.model.config.vocab_size

    @property
    def max_positions(self) -> int | None:
        """The most ids of a row; an encoder-decoder's prompt is not counted, its decoder has no last position."""
        return self.model.config.main.context

    def prefill(self, prompts: Sequence[Sequence[int]], *, room: int) -> tuple["TorchRows", Any]:
        """Read prompts, shorter ones padded on the left; see `Engine.prefill`."""
        cache, logits = self.read(prompts, room=max(room, 1))
        return TorchRows(self, cache), logits

    @torch.inference_mode()
    def read(self, prompts: Sequence[Sequence[int]], *, room: int) -> tuple[Cache, Any]:
        """Run prompts through the model: a cache with room for so many more tokens, and the logits [rows, vocab]."""
        device = self.model.token.weight.device
        longest = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        mask: Tensor | None = None
        if any(len(prompt) < longest for prompt in prompts):
            lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
            mask = torch.arange(longest, device=device) >= longest - lengths[:, None]
        more: dict[str, Any] = {"mask": mask}
        if self.model.config.is_encoder_decoder:
            more = {"source": ids, "source_mask": mask}
            ids = torch.full((len(prompts), 1), self.start, device=device)
        elif self.prefix:
            more["segments"] = torch.zeros_like(ids)
        stack = self.model.main.config
        cache = Cache(
            stack,
            rows=len(prompts),
            capacity=ids.shape[1] + room,
            dtype=self.model.token.weight.dtype,
            device=device,
        )
        logits = self.model(ids, cache=cache, logits="last", **more).logits
        return cache, given(logits)


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
        return given(model(new, segments=segments, cache=self._cache, logits="last").logits)

    @torch.inference_mode()
    def reorder(self, rows: Sequence[int]) -> None:
        """Keep these rows in this order; see `Rows.reorder`."""
        self._cache.reorder(torch.tensor(rows, device=self._cache.keys[0].device))


def given(logits: Tensor) -> Any:
    """Hand on [rows, 1, vocab] as [rows, vocab] in float32: NumPy from a CPU, torch from where it lies otherwise."""
    last = logits[:, -1].float()
    return last.numpy() if last.device.type == "cpu" else last
