"""POST /v1/completions: from a request to rows of the scheduler or a beam search, and from pieces to the answer."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from hanmo.errors import HanmoError
from hanmo.generate.draw import fresh_seed
from hanmo.generate.loop import room_behind
from hanmo.generate.options import GenerationConfig
from hanmo.generate.scheduler import RowRequest
from hanmo.generate.text import Stream, read_prompt
from hanmo.server.beams import search_beams
from hanmo.server.errors import RequestError, as_request_error
from hanmo.server.generation import Echo, Generation, Piece, Row, Scored
from hanmo.server.models import Served
from hanmo.server.requests import Chat, Completion, parse
from hanmo.server.state import State, read_body, state_of, to_json, to_json_list, unless_gone

_TOKENS = 16  # OpenAI's default of max_tokens
_PAUSE = 15.0  # seconds after which a stream that waits sends a comment, for proxies
_REASONS = {
    "end": "stop", "sentence": "stop", "string": "stop", "chars": "length", "length": "length", "context": "length",
}  # fmt: skip


@dataclass(frozen=True)
class _Prompt:
    text: str
    ids: list[int]
    echo: Echo | None


@dataclass(frozen=True)
class _Job:
    """A request that can be answered.   seed: of the texts, given or drawn.   chat: answers a dialogue."""

    asked: Completion
    model: Served
    prompts: list[_Prompt]
    config: GenerationConfig
    seed: int
    chat: bool = False

    def frame(self) -> dict[str, Any]:
        """Return the fields that every object of the answer has."""
        return {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": f"chat.completion{'.chunk' * self.asked.stream}" if self.chat else "text_completion",
            "created": int(time.time()),
            "model": self.model.name,
            "system_fingerprint": self.model.fingerprint,
            "seed": None if self.asked.beams else self.seed,
        }

    def usage(self, written: int) -> dict[str, int]:
        read = sum(len(prompt.ids) for prompt in self.prompts)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


async def completions(request: Request) -> Response:
    """Continue texts."""
    return await _answered(request, _prepare)


async def chat_completions(request: Request) -> Response:
    """Answer a dialogue."""
    return await _answered(request, _prepare_chat)


async def _answered(request: Request, prepare: Callable[[bytes, State], _Job]) -> Response:
    begun, state = time.monotonic(), state_of(request)
    job = await state.run(prepare, await read_body(request), state)
    if job.config.continues:  # then the model's positions limit the prompt
        state.release_body(request.scope)
    if job.asked.beams is not None:
        choices, written = await unless_gone(request.receive, _searched(job))
        return await state.answer({**job.frame(), "usage": job.usage(written)}, "choices", choices)
    generation = await state.run(_start, job, state, begun, asyncio.get_running_loop())
    if job.asked.stream:
        return _EventStream(generation, _events(job, generation))
    try:
        pieces = await unless_gone(request.receive, generation.whole())
        return Response(await state.run(_answer, job, generation, pieces), media_type="application/json")
    except HanmoError as error:
        raise as_request_error(error, generating=True) from None
    finally:
        generation.close()


def _prepare(body: bytes, state: State) -> _Job:
    """Parse and tokenize; runs in a thread. Raises RequestError and other HanmoErrors."""
    asked = parse(body, Completion)
    return _job(asked, state.models.find(asked.model))


def _prepare_chat(body: bytes, state: State) -> _Job:
    """Do as `_prepare` for a dialogue."""
    if state.template is None:
        message = "these models continue texts and were given no chat template; use /v1/completions"
        raise RequestError(message, code="no_chat_template")
    asked = parse(body, Chat)
    model = state.models.find(asked.model)
    messages = [message.model_dump() for message in asked.messages]
    return replace(_job(asked.completion(state.template.render(messages, model.tokenizer)), model), chat=True)


def _job(asked: Completion, model: Served) -> _Job:
    given = asked.prompt if isinstance(asked.prompt, list) and not isinstance(asked.prompt[0], int) else [asked.prompt]
    scheduler = model.generator
    if asked.beams is None:
        scheduler.check_queue(len(given) * asked.candidates)  # before each is tokenized
    elif len(given) > model.max_queue:
        message = f"{len(given)} texts at once do not fit the queue of {model.max_queue}; ask for fewer"
        raise RequestError(message, param="prompt")
    config = _settings(asked, model)
    if asked.echo and not config.continues:
        raise RequestError("echo is for a text that continues its prompt; this model answers it", param="echo")
    prompts = [_prompt(each, asked, model, config) for each in given]
    seed = fresh_seed() if asked.seed is None else asked.seed
    return _Job(asked.model_copy(update={"prompt": ""}), model, prompts, config, seed)


def _settings(asked: Completion, model: Served) -> GenerationConfig:
    """Return the settings of generation; what is not given is the model's, as in `Pipeline.generation_config`."""
    most = asked.max_tokens
    if most is None and asked.max_chars is None and not asked.stop_at_sentence:
        most = _TOKENS
    config = model.pipeline.generation_config(
        temperature=asked.temperature,
        top_k=asked.top_k,
        top_p=asked.top_p,
        repetition_penalty=asked.repetition_penalty,
        no_repeat_ngram=asked.no_repeat_ngram,
        length_penalty=asked.length_penalty or 0.0,
        min_chars=asked.min_chars,
        max_chars=asked.max_chars,
        max_tokens=None if most is None else max(1, most),  # of 0, which returns no text, one is generated
        stop="sentence" if asked.stop_at_sentence else None,
        stop_strings=[asked.stop] if isinstance(asked.stop, str) else asked.stop,
        keep_last=asked.keep_last,
        parse_special=asked.parse_special,
        speculation=model.speculation,
    )
    bias = tuple((_bias_id(name, model), number) for name, number in asked.logit_bias.items())
    return replace(config, sampling=replace(config.sampling, bias=bias))


def _bias_id(name: str, model: Served) -> int:
    size = model.pipeline.config.vocab_size
    if not (name.isascii() and name.isdecimal() and len(name) < 10 and int(name) < size and str(int(name)) == name):
        raise RequestError(f"logit_bias holds {name[:20]!r}; expected ids from 0 to {size - 1}", param="logit_bias")
    return int(name)


def _prompt(given: str | list[int], asked: Completion, model: Served, config: GenerationConfig) -> _Prompt:
    """Tokenize one prompt. Raises PromptError, and RequestError if its text cannot be as long as is asked for."""
    engine = model.pipeline.engine
    if isinstance(given, str):
        ids = read_prompt(engine, model.tokenizer, given, config)
    else:
        model.check_ids(given, param="prompt")
        ids = given
    most = engine.max_positions if config.continues else None
    wanted = asked.max_tokens if asked.max_tokens is not None else 1
    if most is not None and asked.keep_last:
        ids = ids[-max(most - wanted, (most + 1) // 2) :]
    if most is not None and len(ids) + wanted > most:
        raise RequestError(
            f"the prompt has {len(ids)} tokens and max_tokens is {wanted}, the model knows {most} positions; "
            "shorten the prompt, or ask for fewer",
            param="prompt",
            code="context_length_exceeded",
        )
    placed = asked.keep_last or (asked.echo and asked.logprobs is not None)
    if not isinstance(given, str):
        echo = _decoded(ids, model)
    else:
        echo = _last(given, len(ids), asked, model) if config.continues and placed else Echo(given, (), ())
    return _Prompt(echo.text, ids, echo if asked.echo else None)


def _last(text: str, count: int, asked: Completion, model: Served) -> Echo:
    """Return the end of a text that has at most so many tokens, marks before them included, and their places."""
    found = model.tokenizer.encode(text, ends=False, special=asked.parse_special, detail=True)
    assert found.offsets is not None
    spans = found.offsets[-count:]
    first = spans[0][0] if len(spans) < len(found.offsets) else 0
    return Echo(text[first:], found.ids[-count:], [(start - first, stop - first) for start, stop in spans])


def _decoded(ids: Sequence[int], model: Served) -> Echo:
    """Return the text of ids, and their places."""
    stream, spans, at = model.tokenizer.stream(), list[tuple[int, int]](), 0
    for id in ids:
        size = len(stream.push(id))
        spans.append((at, at + size))
        at += size
    return Echo(model.tokenizer.decode(ids), ids, spans)


def _start(job: _Job, state: State, begun: float, loop: asyncio.AbstractEventLoop) -> Generation:
    """Submit the rows; runs in a thread. Raises QueueFull, SchedulerClosed and ConfigError."""
    asked, rows, requests = job.asked, list[Row](), list[RowRequest]()
    scored = asked.logprobs is not None
    for prompt in job.prompts:
        for number in range(asked.candidates):
            stream = Stream(job.model.tokenizer, prompt.text, prompt.ids, job.config, job.seed)
            row = Row(len(rows), stream, echo=prompt.echo, scored=scored, discard=asked.max_tokens == 0)
            rows.append(row)
            requests.append(
                RowRequest(
                    prompt=prompt.ids,
                    seed=job.seed,
                    sample=asked.sample + number,
                    sampling=job.config.sampling,
                    limits=job.config.limits,
                    history=job.config.continues,
                    stop=row.stop,
                    speculate=job.config.speculation == "auto",
                    top_logprobs=asked.logprobs if scored else 0 if asked.candidates > asked.n else None,
                    prompt_logprobs=scored and asked.echo,
                )
            )
    generation = Generation(rows, loop, clock=state.metrics.clock(job.model.name, begun))
    generation.ticket = job.model.generator.submit(requests, generation.emit)
    return generation


def _answer(job: _Job, generation: Generation, pieces: Sequence[Piece]) -> bytes:
    """Return the JSON of the answer without a stream; runs in a thread."""
    kept, n, candidates = list[Piece](), job.asked.n, job.asked.candidates
    for start in range(0, len(pieces), candidates):
        rows: Sequence[int] = range(start, start + candidates)
        if candidates > n:
            rows = sorted(rows, key=lambda row: -generation.rows[row].mean_logprob())
        kept += [pieces[row] for row in rows[:n]]
    frame = {**job.frame(), "usage": job.usage(_written(generation))}
    return to_json_list(frame, "choices", (_choice(job, index, piece) for index, piece in enumerate(kept)))


async def _events(job: _Job, generation: Generation) -> AsyncIterator[bytes]:
    """Yield the events of a stream."""
    frame, options, begun = job.frame(), job.asked.stream_options, set[int]()
    try:
        async for pieces in generation.pieces(pause=_PAUSE):
            for piece in pieces:
                yield _event({**frame, "choices": [_choice(job, piece.row, piece, begun=piece.row in begun)]})
                begun.add(piece.row)
            if not pieces:
                yield b": waiting\n\n"
        if options is not None and options.include_usage:
            yield _event({**frame, "choices": [], "usage": job.usage(_written(generation))})
        yield b"data: [DONE]\n\n"
    except HanmoError as error:
        yield _event(as_request_error(error, generating=True).body())


class _EventStream(StreamingResponse):
    """Server-sent events; if the client leaves, or after the end, the rows are freed."""

    def __init__(self, generation: Generation, events: AsyncIterator[bytes]) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(receive, self.stream_response(send))
        except ClientDisconnect:
            pass
        finally:
            self._generation.close()


async def _searched(job: _Job) -> tuple[list[dict[str, Any]], int]:
    """Search with beams, one prompt after the other; return the choices and the number of tokens."""
    choices, written = list[dict[str, Any]](), 0
    with job.model.thread.turn():
        for prompt in job.prompts:
            room = room_behind(job.model.pipeline.engine, prompt.ids, job.config.limits)
            job.model.generator.check_fits(job.asked.beams or 1, len(prompt.ids) + room)
            found = await search_beams(job.model, prompt.text, job.asked.beams or 1, job.config)
            written += sum(len(each.ids) for each in found)
            for each in found[: job.asked.n]:
                text = prompt.text + each.text if job.asked.echo else each.text
                choice = _choice(job, len(choices), Piece(0, text, reason=each.reason))
                choices.append({**choice, "score": each.score})
    return choices, written


def _written(generation: Generation) -> int:
    return sum(len(row.stream.ids) for row in generation.rows)


def _choice(job: _Job, index: int, piece: Piece, *, begun: bool = False) -> dict[str, Any]:
    """Return a choice, or what a piece adds to one that has begun."""
    text: dict[str, Any] = {"text": piece.text}
    if job.chat:
        message = {"content": piece.text} if begun else {"role": "assistant", "content": piece.text}
        text = {"delta" if job.asked.stream else "message": message}
    return {
        "index": index,
        **text,
        "logprobs": None if job.asked.logprobs is None else _logprobs(job.model, piece.tokens),
        "finish_reason": None if piece.reason is None else _REASONS[piece.reason],
        "stop_reason": piece.reason,
    }


def _logprobs(model: Served, tokens: Sequence[Scored]) -> dict[str, Any]:
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [None if token.logprobs is None else _finite(token.logprobs.id) for token in tokens],
        "top_logprobs": [dict(_likeliest(model, token)) or None for token in tokens],
        "text_offset": [token.start for token in tokens],
    }


def _likeliest(model: Served, token: Scored) -> Iterator[tuple[str, float]]:
    """Yield the strings of the likeliest tokens and the token itself; of equal strings the first stays."""
    if token.logprobs is None:
        return
    found: dict[str, float] = {}
    for id, logprob in (*token.logprobs.top, (token.id, token.logprobs.id)):
        found.setdefault(token.text if id == token.id and token.text else model.string(id), _finite(logprob))
    yield from found.items()


def _finite(number: float) -> float:
    return max(number, -9999.0)  # JSON has no infinity


def _event(content: Mapping[str, Any]) -> bytes:
    return f"data: {to_json(content)}\n\n".encode()
