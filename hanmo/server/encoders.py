"""POST /v1/embeddings, /v1/fill and /v1/tasks/{name}: a model's answers that are no generated rows."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hanmo.server.errors import RequestError
from hanmo.server.models import Served
from hanmo.server.requests import Embeddings, Fill, Predict, parse
from hanmo.server.requests import Request as Asked
from hanmo.server.state import in_thread, read_body, state_of, unless_gone

_BATCH = 32  # inputs after which a client that has left is noticed
Kind = TypeVar("Kind", bound=Asked)


async def embeddings(request: Request) -> Response:
    """Encode texts as vectors."""
    asked, model = await _read(request, Embeddings, _check_embeddings)
    alone = isinstance(asked.input, str) or isinstance(asked.input[0], int)
    texts: list[Any] = [asked.input] if alone else list(asked.input)
    encode: Any = model.network.encode if isinstance(texts[0], str) else model.network.encode_ids
    options: dict[str, Any] = {} if asked.pool is None else {"pool": asked.pool}
    tokens, vectors = 0, list[Any]()
    for start in range(0, len(texts), _BATCH):
        part = texts[start : start + _BATCH]
        tokens += await unless_gone(request.receive, in_thread(model.executor, _count_tokens, model, part))
        work = in_thread(model.executor, encode, part, batch=_BATCH, **options)
        vectors += list(await unless_gone(request.receive, work))
    size = len(vectors[0])
    if asked.dimensions not in (None, size):
        raise RequestError(f"dimensions is {asked.dimensions}; the model has {size}: leave it out", param="dimensions")
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(vector, asked.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": data, "model": model.name, "usage": usage})


async def fill(request: Request) -> Response:
    """Find tokens for the masks in a text."""
    asked, model = await _read(request, Fill, lambda asked, model: model.network)
    work = in_thread(model.executor, model.network.fill, asked.input, k=asked.k)
    found = await unless_gone(request.receive, work)
    masks = [[asdict(candidate) for candidate in candidates] for candidates in found]
    return JSONResponse({"object": "fill", "model": model.name, "masks": masks})


async def tasks(request: Request) -> Response:
    """Predict with a task."""
    name = request.path_params["name"]
    model = state_of(request).models.find(name)
    asked, _ = await _read(request, Predict, lambda asked, _: model.task, name=name)
    alone = isinstance(asked.input, str | dict)
    items = [asked.input] if alone else [tuple(each) if isinstance(each, list) else each for each in asked.input]
    results = list[Any]()
    for start in range(0, len(items), _BATCH):
        part: Any = items[start : start + _BATCH]
        work = in_thread(model.executor, lambda part: list(model.task.predict(part, batch=_BATCH)), part)
        results += await unless_gone(request.receive, work)
    return JSONResponse({"object": "predictions", "model": name, "results": results})


async def _read(
    request: Request, kind: type[Kind], check: Callable[[Kind, Served], object], *, name: str | None = None
) -> tuple[Kind, Served]:
    """Read and check a request, and find its model.   name: of the model, if the path has it."""
    state, body = state_of(request), await read_body(request)
    asked = await state.run(parse, body, kind)
    if name is not None and asked.model not in (None, name):
        raise RequestError(f"model is {asked.model!r}, the path says {name!r}; leave model out", param="model")
    model = state.models.find(name or asked.model)
    check(asked, model)
    return asked, model


def _check_embeddings(asked: Embeddings, model: Served) -> None:
    if model.network.config.main.mask == "prefix":
        raise RequestError(f"the model {model.name!r} has no vectors of texts", param="model")


def _count_tokens(model: Served, texts: Sequence[Any]) -> int:
    """Count the tokens of texts, or of their ids.

    Raises RequestError for a text that the model would truncate; a task reads long ones in windows.
    """
    found = model.tokenizer.encode_batch(texts) if isinstance(texts[0], str) else texts
    lengths = [len(tokens) for tokens in found]
    most = model.pipeline.config.main.context
    if most is not None and max(lengths) > most and not hasattr(model.pipeline, "predict"):
        place = next(place for place, length in enumerate(lengths) if length > most)
        raise RequestError(
            f"the text {texts[place][:20]!r} has {lengths[place]} tokens, the model knows {most} positions; shorten it",
            param="input",
            code="context_length_exceeded",
        )
    return sum(lengths)


def _encoded(vector: Any, form: str) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
    found: list[float] = np.asarray(vector, np.float32).tolist()
    return found
