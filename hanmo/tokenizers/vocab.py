"""BERT's vocabulary files: one token per line, the line number is the id."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from hanmo.checkpoint.staged import atomic_path
from hanmo.errors import MissingFile, TokenizerError
from hanmo.files import read_bytes

MAX_VOCAB = 32 << 20  # bytes; the largest vocabulary file in use, of 250,000 tokens, has 4 MiB


def read_vocab(path: str | Path) -> list[str]:
    r"""Read a vocab.txt: the tokens in the order of their ids.

    Only '\n' ends a line, as U+2028 is a token of bert-base-chinese; the last newline is optional. A token is the first
    field of its line, or the line itself if it is one white character other than a space or tab. A repeated token has
    the id of its last line, as in BERT's own reader and transformers.
    Raises MissingFile, and TokenizerError for a file that is not UTF-8, begins with a byte order mark, has '\r\n' line
    ends or an empty line: each would shift ids or change a token.
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
    """Write a vocab.txt for read_vocab, atomically.

    Raises TokenizerError for a token that cannot be a line, or that is repeated.
    """
    path = Path(path)
    first: dict[str, int] = {}
    for number, token in enumerate(tokens, 1):
        if first.setdefault(token, number) != number:
            raise TokenizerError(
                f"{path} holds {token!r} twice, at lines {first[token]} and {number}; remove one of them"
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


def tokens_in_order(ids: Mapping[str, int], where: str) -> list[str]:
    """Return the tokens in the order of their ids. Raises TokenizerError unless the ids of `where` are 0, 1, 2 …."""
    tokens = sorted(ids, key=lambda token: ids[token] if type(ids[token]) is int else -1)
    for expected, token in enumerate(tokens):
        if type(ids[token]) is not int or ids[token] != expected:
            raise TokenizerError(
                f"the ids of {where} are not 0, 1, 2 …: {token!r} has {ids[token]!r}, expected {expected}; "
                "the file is damaged or was edited"
            )
    return tokens


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
