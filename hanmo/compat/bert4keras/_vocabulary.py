"""bert4keras's load_vocab and save_vocab, and which tokens a simplified vocabulary leaves out.

Knows vocab.txt as bert4keras reads it, which is more lenient than hanmo.tokenizers.read_vocab.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, overload

from hanmo.checkpoint.staged import atomic_path
from hanmo.errors import MissingFile, TokenizerError
from hanmo.tokenizers.bert_rules import is_chinese, is_punctuation

__all__ = ["StrPath", "is_redundant", "load_vocab", "save_vocab"]

StrPath = str | os.PathLike[str]


@overload
def load_vocab(
    dict_path: StrPath,
    encoding: str = ...,
    simplified: Literal[False] = ...,
    startswith: Sequence[str] | None = ...,
) -> dict[str, int]: ...
@overload
def load_vocab(
    dict_path: StrPath, encoding: str = ..., *, simplified: Literal[True], startswith: Sequence[str] | None = ...
) -> tuple[dict[str, int], list[int]]: ...
@overload
def load_vocab(
    dict_path: StrPath, encoding: str, simplified: Literal[True], startswith: Sequence[str] | None = ...
) -> tuple[dict[str, int], list[int]]: ...
def load_vocab(
    dict_path: StrPath,
    encoding: str = "utf-8",
    simplified: bool = False,
    startswith: Sequence[str] | None = None,
) -> dict[str, int] | tuple[dict[str, int], list[int]]:
    """Read a vocab.txt: the first field of every line → its id.

    simplified: leave out the tokens that no text can give, and return (vocabulary, keep_tokens), the latter the old
    ids of the tokens kept. startswith: tokens that stay whatever they are, and come first. A token that stands
    twice keeps its later place, by which other ids shift, as in bert4keras; hanmo.tokenizers.read_vocab shifts none.
    Raises MissingFile, and TokenizerError for bytes that are not of the encoding, or a token of startswith that is
    not there.
    """
    if not Path(dict_path).is_file():
        raise MissingFile(f"there is no vocabulary at {dict_path}; set dict_path to the model's vocab.txt")
    ids: dict[str, int] = {}
    try:
        with open(dict_path, encoding=encoding) as lines:
            for line in lines:
                fields = line.split()
                ids[fields[0] if fields else ""] = len(ids)
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"{dict_path} is not {encoding} at byte {error.start}; give its encoding to load_vocab"
        ) from None
    if not simplified:
        return ids
    first = list(dict.fromkeys(startswith or []))
    missing = [token for token in first if token not in ids]
    if missing:
        raise TokenizerError(f"startswith names {missing[0]!r}, which {dict_path} does not hold; remove it")
    in_order = sorted(ids, key=lambda token: ids[token])
    kept = first + [token for token in in_order if token not in first and not is_redundant(token)]
    return {token: number for number, token in enumerate(kept)}, [ids[token] for token in kept]


def save_vocab(dict_path: StrPath, token_dict: Mapping[str, int], encoding: str = "utf-8") -> None:
    """Write a vocabulary as a vocab.txt, in the order of its ids; the file appears whole or not at all."""
    text = "".join(token + "\n" for token in sorted(token_dict, key=lambda token: token_dict[token]))
    with atomic_path(Path(dict_path)) as made:
        made.write_text(text, encoding=encoding)


def is_redundant(token: str) -> bool:
    """Say whether no text gives this token: it is longer than a character and holds a character that stands alone."""
    return len(token) > 1 and any(is_chinese(ch) or is_punctuation(ch) for ch in token.removeprefix("##"))
