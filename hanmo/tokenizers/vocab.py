"""Vocabulary files of BERT's kind: one token a line, the line number is the id.

Knows the file and what may be wrong with it. Knows no splitting of text.
"""

from collections.abc import Sequence
from pathlib import Path

from hanmo.checkpoint.staged import atomic_path
from hanmo.errors import MissingFile, TokenizerError
from hanmo.files import read_bytes

__all__ = ["MAX_VOCAB", "read_vocab", "write_vocab"]

MAX_VOCAB = 32 << 20
"""The most bytes of a vocabulary; the largest in use, of 250,000 words, has 4 MiB."""


def read_vocab(path: str | Path) -> list[str]:
    r"""Read a vocab.txt: the tokens in the order of their ids.

    Lines end at '\n' and nowhere else, for U+2028 is itself a line of bert-base-chinese; a last newline is optional. A
    token is the first field of its line, or the whole line where that is one white character other than a space or tab.
    A token may stand on several lines; its id is then the last of them, as BERT's own reader and transformers have it.
    Raises MissingFile, and TokenizerError for a file that is not UTF-8, begins with a byte order mark, has '\r\n' line
    ends or an empty line: all of these would move ids or change a token, so nothing is mended in silence.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFile(f"there is no vocabulary at {path}; name a vocab.txt, or the folder that holds one")
    data = read_bytes(path, error=TokenizerError, limit=MAX_VOCAB)
    if data.startswith(b"\xef\xbb\xbf"):
        raise TokenizerError(
            f"{path} begins with a byte order mark (EF BB BF), which would become part of the first token; "
            "save it as UTF-8 without BOM"
        )
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TokenizerError(f"{path} is not UTF-8 at byte {error.start}, in line {line}; save it as UTF-8") from None
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise TokenizerError(f"{path} is empty; expected one token a line")
    return _tokens(lines, path)


def write_vocab(path: str | Path, tokens: Sequence[str]) -> None:
    """Write a vocab.txt that read_vocab reads back as the same tokens; the file appears whole or not at all.

    Raises TokenizerError for a token that a line cannot hold, or that stands twice.
    """
    path = Path(path)
    first: dict[str, int] = {}
    for number, token in enumerate(tokens, 1):
        if first.setdefault(token, number) != number:
            raise TokenizerError(
                f"{path} holds {token!r} twice, at lines {first[token]} and {number}; every token must stand once"
            )
    for token, line in zip(tokens, _tokens(list(tokens), path), strict=True):
        if token != line:
            raise TokenizerError(f"the token {token!r} cannot be a line of {path}: it holds white space; remove it")
    try:
        data = "".join(token + "\n" for token in tokens).encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"a token of {path} holds the lone surrogate {error.object[error.start]!r}; remove it"
        ) from None
    with atomic_path(path) as made:
        made.write_bytes(data)


def _tokens(lines: list[str], path: Path) -> list[str]:
    tokens: list[str] = []
    for number, line in enumerate(lines, 1):
        if line.endswith("\r"):
            raise TokenizerError(
                f"{path} has Windows line ends ('\\r\\n', first at line {number}); "
                "turn them into '\\n', as dos2unix does"
            )
        fields = line.split()
        token = fields[0] if fields else line.strip(" \t")
        if not token:
            raise TokenizerError(
                f"line {number} of {path} is empty, yet would take the id {number - 1}; remove it, or restore its token"
            )
        tokens.append(token)
    return tokens
