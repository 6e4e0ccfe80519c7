"""`hanmo pack` and `hanmo vocab`: encode text for training, and make the vocabulary of a new model.

Knows options and the summary; `hanmo.training` does the work.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, BadParameter, Option

from hanmo.cli import options as shared
from hanmo.cli.screen import echo, progress, say
from hanmo.errors import DataError

if TYPE_CHECKING:
    from hanmo.training.data.pack import PackReport, TokenEncoder

_Inputs = Annotated[
    list[Path],
    Argument(
        metavar="INPUT", help="txt, jsonl, csv, tsv, tfrecord, also .xz .gz .bz2, or folders.", show_default=False
    ),
]
_Force = Annotated[bool, Option("--force", help="Replace what is there.")]
_TextKey = Annotated[str, Option(help="Field of jsonl, or column of csv, that holds the text.")]


def pack(
    inputs: _Inputs,
    out: Annotated[Path, Option("--out", help="NAME of NAME.bin, NAME.documents and NAME.json.", show_default=False)],
    tokenizer: Annotated[Path | None, Option(help="The vocabulary: file or folder.")] = None,
    model: Annotated[Path | None, Option(help="A checkpoint with its vocabulary beside it.")] = None,
    pre_tokenize: shared.PreTokenize = None,
    text_key: _TextKey = "text",
    source_key: Annotated[str, Option(help="Field that names the source; default: the file's name.")] = "source",
    document: shared.Document = "file",
    separator: shared.Separator = None,
    processes: Annotated[int | None, Option(min=1, help="Worker processes; default: one per core.")] = None,
    force: _Force = False,
) -> None:
    """Encode text into token files that training memory-maps.

    UTF-8 and GB18030 are recognised. The same input gives the same bytes. An interrupted run leaves no
    partial files.

    For example:

      hanmo pack corpus/ notes.jsonl --out data/train --model mega

      hanmo pack poems.txt --document line --out data/poems --tokenizer vocab.txt --separator [SEP]
    """
    from hanmo.tokenizers.load import load_tokenizer
    from hanmo.training.data.pack import TokenEncoder
    from hanmo.training.data.pack import pack as pack_files

    if (tokenizer is None) == (model is None):
        raise BadParameter("give --tokenizer with a vocabulary, or --model with a checkpoint beside one")
    if tokenizer is None:
        from hanmo.checkpoint.open import locate

        assert model is not None
        tokenizer = locate(model).folder
    _refuse(force, *(out.with_name(f"{out.name}.{ending}") for ending in ("bin", "documents", "json")))
    encoder = TokenEncoder(load_tokenizer(tokenizer, pre_tokenize=pre_tokenize), separator=separator)
    keys = {"text_key": text_key, "source_key": source_key}
    with progress(f"packing {out.name}") as show:
        report = pack_files(inputs, out, encoder=encoder, document=document, processes=processes, progress=show, **keys)
    _summarise(report, encoder, out)


def vocab(
    inputs: _Inputs,
    out: Annotated[Path, Option("--out", help="The vocab.txt to write.", show_default=False)],
    size: Annotated[int, Option(min=1, help="Number of tokens.")] = 8000,
    pieces: Annotated[int, Option(min=0, help="How many of them are pieces of ASCII words.")] = 500,
    coverage: Annotated[float, Option(min=0, max=1, help="Least share of the text's characters to cover.")] = 0.999,
    common: Annotated[bool, Option(help="Include the 3,755 common characters, even if the text has not all.")] = True,
    text_key: _TextKey = "text",
    force: _Force = False,
) -> None:
    """Make the vocabulary of a new model: the most frequent characters, and tokens for newline, space and the end.

    For example:

      hanmo vocab corpus/ --out vocab.txt --size 8000
    """
    from hanmo.tokenizers.vocab import write_vocab
    from hanmo.training.data.documents import read_documents
    from hanmo.training.data.vocabulary import CorpusCounts, common_characters, make_vocabulary

    _refuse(force, out)
    counts, always = CorpusCounts(), common_characters() if common else ""
    with progress("counting") as show:
        counts.add(part.text for part in read_documents(inputs, text_key=text_key, progress=show))
    made = make_vocabulary(counts, size=size, pieces=pieces, coverage=coverage, always=always)
    write_vocab(out, made.tokens)
    echo(
        f"{out}: {len(made.tokens):,} tokens, of them {made.characters:,} characters, which make {made.coverage:.3%} "
        f"of the text, and {made.pieces:,} pieces of words"
    )


def _refuse(force: bool, *paths: Path) -> None:
    """Raise DataError if a file exists that may not be replaced."""
    for path in paths:
        if not force and path.exists():
            raise DataError(f"{path} exists; give another --out, or --force to replace it")


def _summarise(report: "PackReport", encoder: "TokenEncoder", out: Path) -> None:
    tokenizer, plural = encoder.tokenizer, "" if report.documents == 1 else "s"
    echo(
        f"{out}.bin: {report.documents:,} document{plural}, {report.characters:,} characters, {report.tokens:,} tokens"
    )
    echo(f"after each document: {'no mark' if report.end is None else tokenizer.id_to_token(report.end)}")
    share = report.unknown / report.tokens
    most = " ".join(character for character, _ in report.outside.most_common(10))
    if report.unknown:
        characters = f"; {report.distinct_unknown:,} characters, the most: {most}" if most else ""
        echo(f"unknown: {share:.2%} of the tokens{characters}")
    if most and share > 0.05:
        say(f"{share:.1%} of the tokens are unknown, most of them {most}; is this the vocabulary for these texts?")
    if 0 not in (tokenizer.special.pad, tokenizer.special.unk):
        say(f"id 0 is {tokenizer.id_to_token(0)!r} in this vocabulary; training never has it predicted")
