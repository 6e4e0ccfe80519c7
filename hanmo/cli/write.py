"""`hanmo write`: prompts in, text out, as it is generated.

Standard output holds the texts alone, each with its prompt. Knows options and streams.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, BadParameter, Option

from hanmo.cli import options as shared
from hanmo.cli.options import OPENING, SPECULATION, option, with_options
from hanmo.cli.screen import counted, echo, on_screen, say
from hanmo.errors import PromptError
from hanmo.opening import on_cpu_engine, open_model

if TYPE_CHECKING:
    from hanmo.pipeline import Pipeline

_OR = "the model's, or {}"  # a default that the model's generation_config.json overrides

# The arguments of `Pipeline.write` that are options.
_GENERATION: dict[str, tuple[Any, Any]] = {
    "preset": option(str, "Sample as article, gpt2-ml-demo or greedy did."),
    "top_k": option(int, "Sample from the k most likely tokens.", show_default=_OR.format(5)),
    "top_p": option(float, "Sample from the most likely tokens whose probabilities reach p."),
    "temperature": option(
        float, "Below 1 safer, above 1 more diverse; 0 takes the most likely.", show_default=_OR.format(1)
    ),
    "repetition_penalty": option(float, "Above 1 makes repetition less likely.", show_default=_OR.format(1)),
    "no_repeat_ngram": option(int, "Never repeat a run of so many tokens; 0 is no limit.", show_default=_OR.format(0)),
    "length_penalty": option(float, "With --beams: rank by log-probability over length to this power.", default=0.0),
    "min_chars": option(
        int, "Stop at the first sentence end after so many.", show_default="128, or --max-chars if less"
    ),
    "max_chars": option(int, "Generate at most so many characters.", default=256),
    "max_tokens": option(int, "Generate at most so many tokens."),
    "stop": option(Literal["sentence", "none"], "Where a text may end.", default="sentence"),
    "stop_strings": option(list[str], "Stop before this string; repeatable.", "--stop-string"),
    "keep_last": option(bool, "Truncate a prompt that is too long on the left.", "--keep-last", default=False),
    "speculation": SPECULATION,
    "parse_special": option(
        bool, "Read [CLS] and other special tokens in a prompt as tokens, not as characters.", default=True
    ),
}
_BATCH = "With --file: texts generated at once; int8, int4 and bfloat16 results may depend on it."


@with_options(_GENERATION | OPENING)
def write(
    text: Annotated[
        list[str] | None, Argument(help="Texts to continue; none, or -, reads one from standard input.")
    ] = None,
    *,
    model: shared.Model = None,
    weights: shared.Weights = None,
    device: shared.Device = "auto",
    threads: shared.Threads = None,
    n: Annotated[int, Option("-n", help="Texts per prompt.")] = 1,
    beams: Annotated[int | None, Option(help="Search with so many beams instead of sampling.")] = None,
    seed: Annotated[int | None, Option(help="Repeat the samples of an earlier run.")] = None,
    stream: Annotated[bool, Option(help="Show a text while it is generated.")] = True,
    as_json: shared.Json = False,
    file: Annotated[Path | None, Option(help='Continue each line of this file: a prompt, or {"prompt": …}.')] = None,
    out: Annotated[Path | None, Option(help="With --file: the results; an interrupted run goes on.")] = None,
    batch: Annotated[int | None, Option(help=_BATCH, show_default="8")] = None,
    ray: Annotated[bool, Option("--ray", help="With --file: spread the rows over the Ray cluster.")] = False,
    **options: Any,
) -> None:
    """Continue a text, or each row of a file.

    [bold]hanmo write 今天天气不错 --model gpt2/model.ckpt-100000 -n 3 --top-k 5[/bold]

    [bold]hanmo write --file prompts.jsonl --out results.jsonl --model gpt2/model.ckpt-100000[/bold]
    """
    if file is None and (out is not None or batch is not None or ray):
        raise BadParameter("--out, --batch and --ray are for the rows of a file; give it with --file")
    if file is not None and (out is None or text or as_json):
        raise BadParameter("--file takes --out for its results, which are JSON lines, and no text nor --json")
    prompts = [] if file else [_from_stdin()] if not text or text == ["-"] else text
    if model is None:
        from hanmo.pipeline import SMALL

        model, weights = SMALL, weights or ("int8" if device in ("auto", "cpu") else None)
    reading = {"weights": weights, "device": device} | {name: options[name] for name in OPENING}
    how = {name: options[name] for name in _GENERATION}
    how |= {"stop": None if how["stop"] == "none" else how["stop"], "stop_strings": tuple(how["stop_strings"] or ())}
    opened = partial(_open, model, reading | {"threads": threads})
    if file is not None and out is not None:
        from hanmo.cli.batch import write_file

        drawing = {"seed": seed, "n": n, "beams": beams, "batch": 8 if batch is None else batch, "how": how}
        write_file(file, out, model=model, open_model=opened, reading=reading, drawing=drawing, ray=ray)
        return
    loaded = opened()
    for number, prompt in enumerate(prompts):
        if how["parse_special"]:
            _note_special(loaded, prompt)
        if number and not as_json:
            print()
        if n == 1 and beams is None and not as_json:
            _one(loaded, prompt, seed, how, shown=stream)
        else:
            _several(loaded, prompt, how | {"n": n, "seed": seed, "beams": beams}, as_json=as_json)


def _note_special(loaded: "Pipeline", prompt: str) -> None:
    from hanmo.tokenizers.prompt import special_tokens_in

    if loaded.tokenizer is not None and (names := special_tokens_in(loaded.tokenizer, prompt)):
        say(f"read {', '.join(names)} in the prompt as special tokens; --no-parse-special reads them as characters")


def _from_stdin() -> str:
    if sys.stdin.isatty():
        raise BadParameter("give a text to continue, or pipe one in")
    try:
        return sys.stdin.buffer.read().decode("utf-8").rstrip("\n")
    except UnicodeDecodeError as error:
        raise PromptError(f"standard input is not UTF-8: {error.reason} at byte {error.start}; convert it") from None


def _open(model: Path, reading: dict[str, Any]) -> "Pipeline":
    """Open a model with a progress bar over the bytes of its checkpoint."""
    from hanmo.checkpoint.open import locate, open_source

    if (found := locate(model)).format == "adapters":
        from hanmo.training.lora import base_of

        found = locate(base_of(found.path)[0])
    with open_source(found) as source:
        total = sum(info.nbytes for info in source.tensors.values())
    title = "converting" if on_cpu_engine(reading["weights"], reading["device"]) else "loading"
    with counted(title, total) as count:
        return open_model(model, progress=count, **reading)


def _one(loaded: "Pipeline", prompt: str, seed: int | None, how: dict[str, Any], *, shown: bool) -> None:
    """Generate one text and show it piece by piece; Ctrl-C keeps what is there so far."""
    text, begun = loaded.stream(prompt, seed=seed, **how), False
    begins = "" if loaded.config.is_encoder_decoder or loaded.config.main.mask == "prefix" else prompt
    try:
        for piece in text:
            if shown:
                print(on_screen(piece if begun else begins + piece), end="", flush=True)
            begun = True
    finally:
        if begun or text.reason is not None:
            print("" if shown and begun else on_screen(begins + text.text), flush=True)
    if seed is None and sys.stderr.isatty():
        say(f"--seed {text.seed} gives this text again")
    _note_end(text.reason)


def _several(loaded: "Pipeline", prompt: str, how: dict[str, Any], *, as_json: bool) -> None:
    for number, written in enumerate(loaded.write_detailed(prompt, **how)):
        text = loaded.joined(prompt, written)
        if as_json:
            record = {"prompt": prompt, "text": text, "reason": written.reason, "seed": written.seed}
            echo(json.dumps(record | {"sample": written.sample, "score": written.score}, ensure_ascii=False))
        else:
            print(("\n" if number else "") + on_screen(text))
        _note_end(written.reason)


def _note_end(reason: str | None) -> None:
    if reason == "context":
        say("stopped early: prompt and text fill all positions of the model")
