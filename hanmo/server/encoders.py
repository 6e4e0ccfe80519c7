"""POST /v1/embeddings, /v1/fill and /v1/tasks/{name}: a model's answers that are no generated rows."""

import base64
import re
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, TypeVar

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from hanmo.server.errors import RequestError
from hanmo.server.models import Served
from hanmo.server.requests import MAX_BEAMS, Embeddings, Fill, Predict, parse
from hanmo.server.requests import Request as Asked
from hanmo.server.state import State, read_body, state_of, unless_gone

_BATCH = 32  # inputs that are computed by one call
Kind = TypeVar("Kind", bound=Asked)
Checked = TypeVar("Checked")


async def embeddings(request: Request) -> Response:
    """Encode texts as vectors."""
    asked, model, network = await _read(request, Embeddings, lambda _, model: model.network)
    options: dict[str, Any] = {} if asked.pool is None else {"pool": asked.pool}
    vectors = list[Any]()
    with model.thread.turn():
        texts, tokens = await unless_gone(request.receive, model.thread.run(_texts, asked, model))
        encode: Any = network.encode if isinstance(texts[0], str) else network.encode_ids
        for start in range(0, len(texts), _BATCH):
            work = model.thread.run(encode, texts[start : start + _BATCH], batch=_BATCH, **options)
            vectors += list(await unless_gone(request.receive, work))
            size = len(vectors[0])
            if asked.dimensions not in (None, size):
                message = f"dimensions is {asked.dimensions}; the model has {size}: leave it out"
                raise RequestError(message, param="dimensions")
    data = (
        {"object": "embedding", "index": index, "embedding": _encoded(vector, asked.encoding_format)}
        for index, vector in enumerate(vectors)
    )
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return await state_of(request).answer({"object": "list", "model": model.name, "usage": usage}, "data", data)


async def fill(request: Request) -> Response:
    """Find tokens for the masks in a text."""
    asked, model, _ = await _read(request, Fill, lambda _, model: model.network)
    with model.thread.turn():
        found = await unless_gone(request.receive, model.thread.run(_filled, asked, model))
    masks = ([vars(candidate) for candidate in candidates] for candidates in found)
    return await state_of(request).answer({"object": "fill", "model": model.name}, "masks", masks)


async def tasks(request: Request) -> Response:
    """Predict with a task."""
    name = request.path_params["name"]
    asked, model, task = await _read(request, Predict, lambda _, model: model.task, name=name)
    alone = isinstance(asked.input, str | dict)
    items = [asked.input] if alone else [tuple(each) if isinstance(each, list) else each for each in asked.input]
    results = list[Any]()
    with model.thread.turn():
        for start in range(0, len(items), _BATCH):
            part: Any = items[start : start + _BATCH]
            work = model.thread.run(task.predict, part, batch=_BATCH)
            results += await unless_gone(request.receive, work)
    return await state_of(request).answer({"object": "predictions", "model": name}, "results", results)


async def _read(
    request: Request, kind: type[Kind], check: Callable[[Kind, Served], Checked], *, name: str | None = None
) -> tuple[Kind, Served, Checked]:
    """Read and check a request, and find its model.   name: of the model, if the path has it."""

    def read(body: bytes, state: State) -> tuple[Kind, Served, Checked]:
        asked = parse(body, kind)
        if name is not None and asked.model not in (None, name):
            raise RequestError(f"model is {asked.model!r}, the path says {name!r}; leave model out", param="model")
        model = state.models.find(name or asked.model)
        return asked, model, check(asked, model)

    state = state_of(request)
    return await state.run(read, await read_body(request), state)


def _texts(asked: Embeddings, model: Served) -> tuple[Sequence[Any], int]:
    """Return the texts, or their ids, and the number of their tokens.

    Raises RequestError for a text that the model would truncate; a task reads long ones in windows.
    """
    config = model.network.config
    if config.main.mask == "prefix":
        raise RequestError(f"the model {model.name!r} has no vectors of texts", param="model")
    alone = isinstance(asked.input, str) or isinstance(asked.input[0], int)
    texts: list[Any] = [asked.input] if alone else list(asked.input)
    if isinstance(texts[0], str):
        found: Sequence[Any] = model.tokenizer.encode_batch(texts)
    else:
        model.check_ids(chain(*texts), param="input")
        found = texts
    lengths, most = [len(tokens) for tokens in found], config.main.context
    if most is not None and max(lengths) > most and not hasattr(model.pipeline, "predict"):
        place = next(place for place, length in enumerate(lengths) if length > most)
        raise RequestError(
            f"the text {texts[place][:20]!r} has {lengths[place]} tokens, the model knows {most} positions; shorten it",
            param="input",
            code="context_length_exceeded",
        )
    return texts, sum(lengths)


def _filled(asked: Fill, model: Served) -> Any:
    """Fill. Raises RequestError and ConfigError for what a T5, which searches with k beams, has no room for."""
    if model.network.config.is_encoder_decoder:
        _check_beams(asked, model)
    return model.network.fill(asked.input, k=asked.k)


def _check_beams(asked: Fill, model: Served) -> None:
    from hanmo.model_pipeline import SPAN

    if asked.k > MAX_BEAMS:
        raise RequestError(f"k is {asked.k}; a T5 searches with so many beams: give {MAX_BEAMS} or fewer", param="k")
    spans = len(re.findall(r"\[MASK\]|<extra_id_", asked.input))
    read = len(model.tokenizer.encode(asked.input, special=True))
    model.generator.check_fits(asked.k, read + SPAN * (spans + 1))


def _encoded(vector: Any, form: str) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
    found: list[float] = np.asarray(vector, np.float32).tolist()
    return found
