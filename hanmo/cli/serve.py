"""`hanmo serve`: models behind OpenAI's HTTP interface. `hanmo.server` does the work."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import BadParameter, Option

from hanmo.cli import options as shared
from hanmo.cli.options import OPENING, SPECULATION, option, with_options
from hanmo.cli.screen import say
from hanmo.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from hanmo.server.chat import ChatTemplate


_OPTIONS: dict[str, tuple[Any, Any]] = {
    "origin": option(list[str], "A web origin whose pages may send requests, such as https://example.com; repeatable."),
    "allowed_host": option(
        list[str], "A host name, beside localhost, to which requests without a key may be sent; repeatable."
    ),
    "speculation": SPECULATION,
    "max_rows": option(int, "Texts generated at once.", default=32, min=1),
    "max_queue": option(int, "Texts that wait; more are refused.", default=256, min=1),
    "cache_memory": option(
        str,
        "Memory for the keys and values of all texts, such as 8GiB or 8G.",
        show_default="half of what is free",
    ),
    "max_body": option(int, "Largest body of a request, in MiB.", default=16, min=1),
    "grace": option(float, "Seconds that running requests have after SIGTERM.", default=60, min=0),
    "write_timeout": option(float, "Seconds after which a client that reads nothing is dropped.", default=30, min=1),
}


@with_options(_OPTIONS | OPENING)
def serve(
    *,
    model: Annotated[
        list[str] | None,
        Option(
            help="A checkpoint, an encoder or a task's folder, as PATH or NAME=PATH; repeatable.",
            show_default="the small one inside Hanmo",
        ),
    ] = None,
    weights: shared.Weights = None,
    device: shared.Device = "auto",
    threads: shared.Threads = None,
    host: Annotated[str, Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    api_key: Annotated[list[str] | None, Option(help="A key that requests must send; repeatable.")] = None,
    api_keys: Annotated[Path | None, Option(help="A file of keys, one a line.", show_default=False)] = None,
    anonymous: Annotated[bool, Option("--anonymous", help="Answer other machines without a key.")] = False,
    root_path: Annotated[str, Option(help="Path prefix under which a proxy forwards requests.")] = "",
    chat_template: Annotated[
        Path | None, Option(help="A Jinja template of dialogues, for /v1/chat/completions.", show_default=False)
    ] = None,
    **options: Any,
) -> None:
    """Serve models over HTTP, with OpenAI's interface.

    [bold]hanmo serve --model gpt2/model.ckpt-100000 --weights int8[/bold]

    [bold]hanmo serve --model gpt2=gpt2/model.ckpt-100000 --model bert --api-keys keys.txt --host 0.0.0.0[/bold]
    """
    begun = time.monotonic()
    if root_path and not root_path.startswith("/"):
        raise BadParameter(f"--root-path is {root_path!r}; expected a path that begins with /")
    _check_extra()
    from hanmo.server.app import make_app
    from hanmo.server.models import open_served
    from hanmo.server.run import Server, bind
    from hanmo.server.security import check_host, check_keys, is_local, read_keys

    keys = [*(api_key or ()), *(() if api_keys is None else read_keys(api_keys))]
    check_keys(keys)
    check_host(host, keys, anonymous=anonymous)
    weights = weights or ("int8" if not model and device in ("auto", "cpu") else None)
    named = _named(model or ())
    how = {"weights": weights, "device": device, "threads": threads, **_shared(options, len(named))}
    with bind(host, port) as listening:
        app = make_app(
            [open_served(name, path, **how) for name, path in named.items()],
            keys=keys,
            origins=options["origin"] or (),
            hosts=None if keys else options["allowed_host"] or (() if is_local(host) else None),
            root_path=root_path,
            max_requests=2 * (options["max_rows"] + options["max_queue"]),
            max_body=options["max_body"] << 20,
            template=None if chat_template is None else _template(chat_template),
        )
        limits = {name: options[name] for name in ("grace", "write_timeout")}
        Server(app, **limits, ready=partial(_say_ready, begun)).run([listening])
    say("all requests have ended")


def _shared(options: dict[str, Any], models: int) -> dict[str, Any]:
    """Return the options with which each of so many models is opened. Raises BadParameter for one of a single model."""
    reading = {name: options[name] for name in OPENING}
    if models > 1 and (given := [name for name, value in reading.items() if value is not None]):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise BadParameter(f"{names} would be for every model, and there are {models}; start a server for each")
    memory = None
    if options["cache_memory"] is not None:
        from hanmo.training.memory import parse_size

        memory = parse_size(options["cache_memory"]) // models
    limits = {name: options[name] for name in ("speculation", "max_rows", "max_queue")}
    return {**reading, **limits, "cache_memory": memory, "models": models}


def _check_extra() -> None:
    try:
        import httptools  # noqa: F401
        import jinja2  # noqa: F401
        import prometheus_client  # noqa: F401
        import pydantic  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtra(f"serving needs {error.name}; install it with: pip install 'hanmo[serve]'") from None


def _named(given: Sequence[str]) -> dict[str, Path]:
    """Return the models by name, each given as PATH or NAME=PATH; a path that exists with its "=" is a path."""
    from hanmo.checkpoint.open import included
    from hanmo.server.models import name_of

    found: dict[str, Path] = {}
    for each in given or ("small",):
        name, equals, place = each.partition("=")
        path = included(each if not equals or Path(each).exists() else place)
        name = name if equals and path == included(place) else name_of(path)
        if name in found:
            raise ConfigError(f"two models are named {name!r}; name them by --model NAME=PATH")
        found[name] = path
    return found


def _template(path: Path) -> "ChatTemplate":
    from hanmo.server.chat import ChatTemplate
    from hanmo.server.security import read_text

    return ChatTemplate(read_text(path))


def _say_ready(begun: float, address: str) -> None:
    say(f"serving on {address} after {time.monotonic() - begun:.1f} s; Ctrl-C ends")
