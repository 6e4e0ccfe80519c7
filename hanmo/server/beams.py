"""Beam search for one request, in the model's own thread, which ends within a step if the client leaves."""

from collections.abc import Sequence
from typing import Any

from hanmo.generate.loop import Engine, Rows
from hanmo.generate.options import GenerationConfig
from hanmo.generate.rules import Array
from hanmo.generate.text import GeneratedText, search
from hanmo.server.errors import RequestError
from hanmo.server.model_thread import check_wanted
from hanmo.server.models import Served


async def search_beams(model: Served, text: str, beams: int, config: GenerationConfig) -> list[GeneratedText]:
    """Continue a text by beam search: up to `beams` texts, best first."""
    if model.scheduler_owns_device:
        raise RequestError("beams are for models on a CPU here; the scheduler alone uses the GPU", param="beams")
    engine = _Stoppable(model.pipeline.engine)
    return await model.thread.run(search, engine, model.tokenizer, text, beams, config=config)


class _Stoppable:
    """An engine whose steps raise RequestError when the request was cancelled."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.vocab_size, self.max_positions = engine.vocab_size, engine.max_positions

    def prefill(self, prompts: Sequence[Sequence[int]], *, room: int) -> tuple[Rows, Array]:
        check_wanted()
        rows, logits = self._engine.prefill(prompts, room=room)
        return _StoppableRows(rows), logits


class _StoppableRows:
    def __init__(self, rows: Rows) -> None:
        self._rows, self.reorder = rows, rows.reorder

    def step(self, ids: Sequence[int]) -> Any:
        check_wanted()
        return self._rows.step(ids)
