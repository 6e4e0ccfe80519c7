"""A tokenizer.json of Hugging Face, run by their Rust library; load.py reads one with WordPiece by wordpiece.py."""

import base64
import json
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

from hanmo.errors import MissingFile, TokenizerError
from hanmo.files import errors_as, read_json
from hanmo.tokenizers.added import MAX_JSON
from hanmo.tokenizers.protocol import Spans, SpecialIds, WindowTokenizer, check_text

_MAX_ID = 1 << 24  # the library allocates for every id up to the largest
_MAX_STRING, _MAX_REGEX, _MAX_TEMPLATE = 256, 4096, 16  # characters, characters, parts around a text
_NAMES = {
    "pad": ("[PAD]", "<pad>", "<|pad|>"),
    "unk": ("[UNK]", "<unk>"),
    "start": ("[CLS]", "<s>", "<bos>", "<|begin_of_text|>"),
    "end": ("[SEP]", "</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>"),
    "mask": ("[MASK]", "<mask>"),
}


class TokenizerJson(WindowTokenizer):
    """The tokenizer that a tokenizer.json describes.

    The marks are those of the file's post-processor; ends=None adds them if it does.
    Raises MissingFile, and TokenizerError for a file that is no tokenizer or has more than one mark on a side.
    """

    def __init__(self, path: str | Path, *, ends: bool | None = None) -> None:
        found = read_tokenizer_json(path)
        self._path = path
        with errors_as(TokenizerError, f"{path} is no tokenizer that Hugging Face tokenizers reads"):
            self._rust = RustTokenizer.from_str(json.dumps(found))
            self._rust.no_truncation()
            self._rust.no_padding()
            self._rust.encode_special_tokens = True  # a text's '</s>' is plain characters unless special=True
            self.vocab_size = int(self._rust.get_vocab_size(with_added_tokens=True))
            listed = [token for token in found.get("added_tokens") or [] if token.get("special")]
            named = {str(token["content"]): int(token["id"]) for token in listed}
        with errors_as(TokenizerError, f"{path} cannot split a text"):
            plain = list(self._rust.encode("1", add_special_tokens=False).ids)
            marked = list(self._rust.encode("1").ids)
            between = len(self._rust.encode("1", "1").ids) - len(marked) - len(plain)
        extra = len(marked) - len(plain)
        before = next((at for at in range(extra + 1) if marked[at : at + len(plain)] == plain), None)
        if before is None:
            raise TokenizerError(
                f"{path} changes a text's own ids where it puts marks around it; expected them unchanged"
            )
        if before > 1 or extra - before > 1:
            raise TokenizerError(
                f"{path} puts {before} marks before a text and {extra - before} after it, "
                "expected at most one on a side"
            )
        special = {kind: self._first(*names) for kind, names in _NAMES.items()}
        if extra:
            special |= {"start": marked[0] if before else None, "end": marked[-1] if extra > before else None}
        ends = extra > 0 if ends is None else ends
        super().__init__(SpecialIds(**special), named, ends=ends, between=max(1, between))

    def token_to_id(self, token: str) -> int | None:
        number: int | None = self._rust.token_to_id(token)
        return number

    def id_to_token(self, number: int) -> str:
        return str(self._rust.id_to_token(self._check_id(number)))

    def _part(self, text: str, *, special: bool, detail: bool) -> tuple[list[int], Spans]:
        check_text(text)
        with errors_as(TokenizerError, f"{self._path} cannot split a text"):
            found = (self._asking if special else self._rust).encode(text, add_special_tokens=False)
        return list(found.ids), list(found.offsets) if detail else []

    def _plain(self, text: str, *, detail: bool) -> tuple[list[int], Spans]:
        return self._part(text, special=False, detail=detail)

    @cached_property
    def _asking(self) -> RustTokenizer:
        """The same tokenizer, reading special tokens written in a text."""
        rust = RustTokenizer.from_str(self._rust.to_str())
        rust.encode_special_tokens = False
        return rust

    def _read(self, ids: list[int]) -> str:
        checked = [self._check_id(number) for number in ids]
        with errors_as(TokenizerError, f"{self._path} cannot join ids to a text"):
            return str(self._rust.decode(checked, skip_special_tokens=False))


def read_tokenizer_json(path: str | Path) -> dict[str, Any]:
    """Read the JSON of a tokenizer.json. Raises MissingFile, and TokenizerError if it is none."""
    path = Path(path)
    if not path.is_file():
        raise MissingFile(f"there is no tokenizer.json at {path}; name the file, or the folder that holds it")
    found: dict[str, Any] = read_json(path, error=TokenizerError, limit=MAX_JSON, advice="; download it again")
    if not isinstance(found.get("model"), dict):
        raise TokenizerError(f"{path} has no 'model', as every tokenizer.json has; name the right file")
    listed, added = found["model"].get("vocab"), found.get("added_tokens")
    ids = list(listed.values()) if isinstance(listed, dict) else []
    ids += [each.get("id") for each in added if isinstance(each, dict)] if isinstance(added, list) else []
    if most := max((number for number in ids if type(number) is int and number >= _MAX_ID), default=0):
        raise TokenizerError(f"{path} claims the id {most:,}; expected less than {_MAX_ID:,}")
    if reason := _excess([found.get(name) for name in ("normalizer", "pre_tokenizer", "decoder", "post_processor")]):
        raise TokenizerError(f"{path} {reason}; download it again")
    return found


def _excess(parts: list[Any]) -> str:
    """Describe a part that would take the library unbounded time or memory; '' if there is none."""
    while parts:
        part = parts.pop()
        if isinstance(part, list):
            parts += part
        for key, value in part.items() if isinstance(part, dict) else ():
            if key == "precompiled_charsmap" and isinstance(value, str):
                try:
                    table = base64.b64decode(value)
                except ValueError as error:
                    return f"has a precompiled_charsmap that is not base64 ({error})"
                if int.from_bytes(table[:4], "little") > len(table) - 4:  # the library allocates what it claims
                    return f"has a precompiled_charsmap of {len(table)} bytes that claims more"
            elif isinstance(value, str) and len(value) > (most := _MAX_REGEX if key == "Regex" else _MAX_STRING):
                return f"has a {key} of {len(value):,} characters; expected at most {most:,}"
            elif key in ("single", "pair") and isinstance(value, list) and len(value) > _MAX_TEMPLATE:
                return f"has a template of {len(value)} parts; expected at most {_MAX_TEMPLATE}"
            else:
                parts.append(value)
    return ""
