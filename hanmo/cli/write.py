"""`hanmo write`: prompts in, text out, as it is written.

Standard output holds the texts alone, each beginning with its prompt. Knows options and streams.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hanmo.cli.screen import echo, on_screen, progress, say
from hanmo.cores import set_torch_threads
from hanmo.errors import ConfigError, PromptError

if TYPE_CHECKING:
    from hanmo.pipeline import Pipeline

__all__ = ["write"]


class Weights(str, Enum):
    """How weights are held in memory."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    int8 = "int8"
    int4 = "int4"


class Stop(str, Enum):
    """Where a text may end."""

    sentence = "sentence"
    none = "none"


class Mask(str, Enum):
    """How an encoder is made to write."""

    causal = "causal"
    prefix = "prefix"


PreTokenize = Annotated[
    bool | None,
    typer.Option(
        "--pre-tokenize/--no-pre-tokenize",
        help="Cut texts into words by jieba first; default: where the vocabulary is one of words (RoFormer, WoBERT).",
        show_default=False,
    ),
]


def _own(value: str) -> str:
    """Name a default that a model's own generation_config.json goes before."""
    return f"the model's, or {value}"


def write(
    text: Annotated[
        list[str] | None, typer.Argument(help="Texts to go on from; none, or -, reads one from standard input.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="A checkpoint: prefix, file or folder.", show_default="the small one inside Hanmo"),
    ] = None,
    weights: Annotated[Weights | None, typer.Option(help="Hold the weights so; default: as the file does.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …; auto takes a GPU if there is one.")] = "auto",
    n: Annotated[int, typer.Option("-n", help="Texts for each prompt.")] = 1,
    preset: Annotated[str | None, typer.Option(help="Draw as article, gpt2-ml-demo or greedy did.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from the k likeliest tokens.", show_default=_own("5"))] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the likeliest tokens that reach p together.")] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="Below 1 safer, above 1 freer; 0 always takes the likeliest.", show_default=_own("1")),
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1 makes what was written less likely.", show_default=_own("1"))
    ] = None,
    no_repeat_ngram: Annotated[
        int | None,
        typer.Option(help="Never write a run of so many tokens twice; 0 is no limit.", show_default=_own("0")),
    ] = None,
    beams: Annotated[int | None, typer.Option(help="Search with so many beams instead of drawing.")] = None,
    length_penalty: Annotated[
        float, typer.Option(help="With --beams: rank by log-probability over length to this power.")
    ] = 0.0,
    min_chars: Annotated[
        int | None,
        typer.Option(help="End with the first sentence after so many.", show_default="128, or --max-chars if less"),
    ] = None,
    max_chars: Annotated[int, typer.Option(help="Write at most so many characters.")] = 256,
    max_tokens: Annotated[int | None, typer.Option(help="Write at most so many tokens.")] = None,
    stop: Annotated[Stop, typer.Option(help="Where a text may end.")] = Stop.sentence,
    stop_string: Annotated[list[str] | None, typer.Option(help="End before this; may be given several times.")] = None,
    keep_last: Annotated[
        bool, typer.Option("--keep-last", help="Cut a prompt that is too long from the left.")
    ] = False,
    parse_special: Annotated[
        bool, typer.Option(help="Read [CLS] and other special tokens in a prompt as tokens, not as characters.")
    ] = True,
    seed: Annotated[int | None, typer.Option(help="Repeat the draws of an earlier run.")] = None,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Show a text while it is written.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for each text.")] = False,
    config: Annotated[Path | None, typer.Option(help="The config.json, if not beside the checkpoint.")] = None,
    family: Annotated[str | None, typer.Option(help="The family, where names fit several.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="The vocabulary, if not beside the checkpoint.")] = None,
    pre_tokenize: PreTokenize = None,
    mask: Annotated[Mask | None, typer.Option(help="Have a BERT-like encoder write.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of the processor, to compute with.", show_default="its cores")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help='Write for each line of this file: a prompt, or {"prompt": …}.')
    ] = None,
    out: Annotated[Path | None, typer.Option(help="With --file: where results go; goes on if interrupted.")] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="With --file: texts to write at once; in int8, int4 and bfloat16 texts depend on it.", show_default="8"
        ),
    ] = None,
    ray: Annotated[bool, typer.Option("--ray", help="With --file: spread the rows over the Ray cluster.")] = False,
) -> None:
    """Go on from a text, or from each row of a file.

    [bold]hanmo write 今天天气不错 --model gpt2/model.ckpt-100000 -n 3 --top-k 5[/bold]

    [bold]hanmo write --file prompts.jsonl --out results.jsonl --model gpt2/model.ckpt-100000[/bold]
    """
    if file is None and (out is not None or batch is not None or ray):
        raise typer.BadParameter("--out, --batch and --ray are for the rows of a file; give it with --file")
    if file is not None and (out is None or text or as_json):
        raise typer.BadParameter("--file takes --out for its results, which are JSON lines, and no text nor --json")
    prompts = [] if file else [_from_stdin()] if not text or text == ["-"] else text
    if model is None:
        from hanmo.pipeline import SMALL

        model, weights = SMALL, weights or (Weights.int8 if device in ("auto", "cpu") else None)
    reading = {"config": config, "family": family, "tokenizer": tokenizer, "mask": mask and mask.value}
    open_model = partial(_load, model, weights, device, reading | {"pre_tokenize": pre_tokenize}, threads)
    how: dict[str, Any] = {
        "preset": preset,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "repetition_penalty": repetition_penalty,
        "no_repeat_ngram": no_repeat_ngram,
        "length_penalty": length_penalty,
        "min_chars": min_chars,
        "max_chars": max_chars,
        "max_tokens": max_tokens,
        "stop": stop.value if stop is Stop.sentence else None,
        "stop_strings": tuple(stop_string or ()),
        "keep_last": keep_last,
        "parse_special": parse_special,
    }
    if file is not None and out is not None:
        from hanmo.cli.batch import write_file

        options = {
            "weights": weights and weights.value,
            "device": device,
            "config": config and str(config.resolve()),
            "family": family,
            "tokenizer": tokenizer and str(tokenizer.resolve()),
            "mask": mask and mask.value,
            "pre_tokenize": pre_tokenize,
        }
        write_file(
            file,
            out,
            model=model,
            open_model=open_model,
            options=options,
            how=how,
            seed=seed,
            n=n,
            beams=beams,
            batch=batch,
            ray=ray,
        )
        return
    loaded = open_model()
    for number, prompt in enumerate(prompts):
        if parse_special:
            _note_special(loaded, prompt)
        if number and not as_json:
            print()
        if n == 1 and beams is None and not as_json:
            _one(loaded, prompt, seed, how, shown=stream)
        else:
            _several(loaded, prompt, n, seed, beams, how, as_json=as_json)


def _note_special(loaded: "Pipeline", prompt: str) -> None:
    from hanmo.tokenizers.prompt import special_tokens_in

    if loaded.tokenizer is not None and (names := special_tokens_in(loaded.tokenizer, prompt)):
        say(f"read {', '.join(names)} in the prompt as special tokens; --no-parse-special reads them as characters")


def _from_stdin() -> str:
    if sys.stdin.isatty():
        raise typer.BadParameter("give a text to go on from, or pipe one in")
    try:
        return sys.stdin.buffer.read().decode("utf-8").rstrip("\n")
    except UnicodeDecodeError as error:
        raise PromptError(f"standard input is not UTF-8: {error.reason} at byte {error.start}; convert it") from None


def _load(
    model: Path, weights: Weights | None, device: str, reading: dict[str, Any], threads: int | None
) -> "Pipeline":
    """Open a model; reading: what `hanmo.load` and `open_writer` both take."""
    on_gpu = weights is Weights.int8 and device.startswith("cuda")
    if weights in (Weights.int8, Weights.int4) and not on_gpu:
        return _open(model, weights, device, reading, threads)
    import torch

    from hanmo.loading import load

    set_torch_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device is {device!r}; expected cpu, cuda, cuda:0 …, mps or auto") from None
    kind = "bfloat16" if on_gpu else weights.value if weights else None
    with _bytes_read(model, "loading") as count:
        loaded = load(model, dtype=kind, device=place, progress=count, **reading)
    if on_gpu:
        from hanmo.inference.cuda.blocks import quantized

        loaded.model = quantized(loaded.model)
    return loaded


def _open(model: Path, weights: Weights, device: str, reading: dict[str, Any], threads: int | None) -> "Pipeline":
    """Open the CPU engine, which converts the weights when it first sees them and needs no torch after that."""
    if device not in ("auto", "cpu"):
        raise ConfigError(
            f"device is {device!r} and weights are {weights.value}; these run on a CPU: leave --device out"
        )
    from hanmo.pipeline import open_writer

    with _bytes_read(model, "converting") as count:
        return open_writer(model, weights=weights.value, progress=count, threads=threads, **reading)


@contextmanager
def _bytes_read(model: Path, title: str) -> Iterator[Callable[[int], None]]:
    """Show a bar while the block reads a checkpoint; gives a function to call with the bytes of each tensor."""
    from hanmo.checkpoint.open import locate, open_source

    if (found := locate(model)).format == "adapters":
        from hanmo.training.lora import base_of

        found = locate(base_of(found.path)[0])
    with open_source(found) as source:
        total = sum(info.nbytes for info in source.tensors.values())
    done = 0
    with progress(title) as show:

        def count(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            show(done, total)

        yield count


def _one(loaded: "Pipeline", prompt: str, seed: int | None, how: dict[str, Any], *, shown: bool) -> None:
    """Write one text, showing it piece by piece; at Ctrl-C what is there so far stays."""
    text = loaded.stream(prompt, seed=seed, **how)
    begins = "" if loaded.config.is_encoder_decoder or loaded.config.main.mask == "prefix" else prompt
    begun = False
    try:
        for piece in text:
            if shown:
                print(on_screen(piece if begun else begins + piece), end="", flush=True)
            begun = True
    finally:
        if begun or text.reason is not None:
            print("" if shown and begun else on_screen(begins + text.text), flush=True)
    if seed is None and sys.stderr.isatty():
        say(f"--seed {text.seed} writes this again")
    if text.reason == "context":
        say("stopped early: prompt and text fill all positions that the model knows")


def _several(
    loaded: "Pipeline", prompt: str, n: int, seed: int | None, beams: int | None, how: dict[str, Any], *, as_json: bool
) -> None:
    whole = loaded.write_detailed(prompt, n=n, seed=seed, beams=beams, **how)
    for number, written in enumerate(whole):
        text = loaded.joined(prompt, written)
        if as_json:
            record = {"prompt": prompt, "text": text, "reason": written.reason, "seed": written.seed}
            echo(json.dumps(record | {"sample": written.sample, "score": written.score}, ensure_ascii=False))
        else:
            print(("\n" if number else "") + on_screen(text))
        if written.reason == "context":
            say("stopped early: prompt and text fill all positions that the model knows")
