"""Added tokens: those that a folder's files add to its vocabulary, and their positions in a text.

Hugging Face `tokenizers` matches them, with its flags: lstrip and rstrip include the white space beside a token,
single_word requires word boundaries, and normalized matches the normalized (lower case) text.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Normalizer

from hanmo.errors import TokenizerError
from hanmo.files import read_json

_NAMES = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_REST = ""
MAX_JSON = 64 << 20  # bytes; a tokenizer.json of 250,000 tokens has up to 33 MB


class AddedSplitter:
    """Finds added tokens in texts.

    tokens: id → token.   normalizer: of the tokenizer; for tokens with the flag normalized.
    Raises TokenizerError for such a token that normalization makes empty.
    """

    def __init__(self, tokens: Mapping[int, AddedToken], normalizer: Normalizer | None = None) -> None:
        self._rust = RustTokenizer(WordLevel({_REST: 0}, unk_token=_REST))
        if normalizer is not None:
            self._rust.normalizer = normalizer
            for token in tokens.values():
                if token.normalized and not normalizer.normalize_str(token.content):
                    raise TokenizerError(f"the added token {token.content!r} is empty after normalization; remove it")
        self._rust.add_tokens(list(tokens.values()))
        self._ids = {self._rust.token_to_id(token.content): number for number, token in tokens.items()}

    def split(self, text: str) -> Iterator[tuple[int | None, int, int]]:
        """Yield (id, start, stop) for each added token in text, and (None, start, stop) for the text between."""
        found = self._rust.encode(text, add_special_tokens=False)
        at = 0
        for inner, (start, stop) in zip(found.ids, found.offsets, strict=True):
            if inner in self._ids:
                if start > at:
                    yield None, at, start
                yield self._ids[inner], start, stop
                at = stop
        if at < len(text):
            yield None, at, len(text)


def read_added(
    folder: Path, ids: Mapping[str, int], tokenizer_json: Mapping[str, Any] | None = None
) -> dict[int, AddedToken]:
    """Read the added and special tokens that the files of a folder list: id → token.

    ids: the vocabulary; special tokens listed without an id have it there, and are left out if they have none.
    tokenizer_json: the content of the folder's tokenizer.json if known.
    Raises TokenizerError for a damaged file.
    """
    config, special = read_object(folder / "tokenizer_config.json"), read_object(folder / "special_tokens_map.json")
    listed = "added_tokens_decoder" in config
    if tokenizer_json is None and not listed:
        tokenizer_json = read_object(folder / "tokenizer.json")
    try:
        named = {token.content: token for source in (special, config) for token in _named(source)}
        found = [(ids[name], token) for name, token in named.items() if name in ids]
        if listed:
            found += [(number, _token(entry)) for number, entry in config["added_tokens_decoder"].items()]
        else:
            older = read_object(folder / "added_tokens.json")
            found += [(number, named.get(name) or _token(name)) for name, number in older.items()]
            found += [(entry["id"], _token(entry)) for entry in (tokenizer_json or {}).get("added_tokens") or ()]
        return {int(number): token for number, token in found}
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as fault:
        raise TokenizerError(
            f"the added tokens in the tokenizer's files of {folder} are not listed as transformers does ({fault}); "
            "download the files again"
        ) from None


def extended(tokens: Sequence[str], added: Mapping[int, AddedToken], where: str) -> list[str]:
    """Return a vocabulary's tokens followed by the added ones.

    Raises TokenizerError for an id that is another token's, or not the next.
    """
    result = list(tokens)
    for number, token in sorted(added.items()):
        if number == len(result):
            result.append(token.content)
        elif not 0 <= number < len(result) or result[number] != token.content:
            other = f"which is {result[number]!r}" if 0 <= number < len(result) else f"expected {len(result)}"
            raise TokenizerError(
                f"the token {token.content!r} that is added to {where} has the id {number}, {other}; "
                "are the vocabulary and added_tokens.json, tokenizer_config.json or tokenizer.json of one model?"
            )
    return result


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; {} if there is no file or another value in it. Raises TokenizerError for invalid JSON."""
    if not path.is_file():
        return {}
    value = read_json(path, error=TokenizerError, kind=object, limit=MAX_JSON, advice="; correct it or remove it")
    return value if isinstance(value, dict) else {}


def _named(source: Mapping[str, Any]) -> list[AddedToken]:
    """Return the special tokens of a tokenizer_config.json or special_tokens_map.json."""
    found = [source[name] for name in _NAMES if source.get(name)]
    for name in ("additional_special_tokens", "extra_special_tokens"):
        more = source.get(name) or ()
        found += more.values() if isinstance(more, dict) else more
    return [_token(entry, special=True) for entry in found]


def _token(entry: object, *, special: bool = False) -> AddedToken:
    entry = {"content": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or not isinstance(entry.get("content"), str) or not entry["content"]:
        raise TypeError(f"a token is {str(entry)[:80]}; expected its text, or an object with its content")
    special = special or bool(entry.get("special"))
    flags = {name: bool(entry.get(name)) for name in ("single_word", "lstrip", "rstrip")}
    return AddedToken(entry["content"], special=special, normalized=bool(entry.get("normalized", not special)), **flags)
