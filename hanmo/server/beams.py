"""Beam search for one request, in the model's own thread, which ends within a step if the client leaves."""

import asyncio
from collections.abc import Sequence
from threading import Event
from typing import Any

from hanmo.generate.loop import Engine, QueueingEngine, Rows
from hanmo.generate.options import GenerationConfig
from hanmo.generate.rules import Array
from hanmo.generate.text import GeneratedText, search
from hanmo.server.errors import RequestError
from hanmo.server.models import Served
from hanmo.server.state import in_thread


async def search_beams(model: Served, text: str, beams: int, config: GenerationConfig) -> list[GeneratedText]:
    """Continue a text by beam search: up to `beams` texts, best first."""
    if isinstance(model.pipeline.engine, QueueingEngine):
        raise RequestError("beams are for models on a CPU here; the scheduler alone uses the GPU", param="beams")
    engine = _Stoppable(model.pipeline.engine)
    try:
        return await in_thread(model.executor, search, engine, model.tokenizer, text, beams, config=config)
    except asyncio.CancelledError:
        engine.stopped.set()
        raise


class _Stoppable:
    """An engine whose rows raise RequestError when they have been stopped."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.stopped = engine, Event()
        self.vocab_size, self.max_positions = engine.vocab_size, engine.max_positions

    def prefill(self, prompts: Sequence[Sequence[int]], *, room: int) -> tuple[Rows, Array]:
        self.check()
        rows, logits = self._engine.prefill(prompts, room=room)
        return _StoppableRows(self, rows), logits

    def check(self) -> None:
        if self.stopped.is_set():
            raise RequestError("the client has left", status=499)


class _StoppableRows:
    def __init__(self, engine: _Stoppable, rows: Rows) -> None:
        self._engine, self._rows = engine, rows

    def step(self, ids: Sequence[int]) -> Any:
        self._engine.check()
        return self._rows.step(ids)

    def reorder(self, rows: Sequence[int]) -> None:
        self._rows.reorder(rows)
