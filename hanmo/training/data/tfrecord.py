"""Token ids of the TFRecord files that bert4keras's pretraining/data_utils.py writes, one document an example.

    file    = record …
    record  = size, 8 bytes | masked crc32c of the size, 4 bytes | tf.train.Example | its masked crc32c, 4 bytes
    Example = token_ids: [CLS] ids [SEP] [PAD] …, and RoBERTa's mask_ids, which are not read

Knows the framing, the message and the marks around a document. A file is read a record at a time.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import IO

from crc32c import crc32c

from hanmo.checkpoint.tf.protobuf import fields, read_varint, signed64
from hanmo.checkpoint.tf.sstable import masked
from hanmo.errors import CorruptFile, DataError
from hanmo.tokenizers.protocol import Tokenizer
from hanmo.training.data.documents import Part

_MAX_RECORD = 1 << 20  # bytes; an example of 512 ids has some 2,000
_ADVICE = "expected what bert4keras's pretraining/data_utils.py writes"


def read_records(file: IO[bytes], path: Path, source: str, *, tokenizer: Tokenizer) -> Iterator[Part]:
    """Yield the ids of each example without marks and padding, as a document; empty ones are skipped.

    path: for messages.   tokenizer: of the vocabulary that the ids are of.
    Raises DataError naming file and record for a damaged or foreign one, and for ids outside of the vocabulary.
    """
    number = 0
    while head := file.read(12):
        number += 1
        where = f"{path} record {number}"
        size = int.from_bytes(_checked(head, 8, where, "size"), "little")
        if size > _MAX_RECORD:
            raise DataError(f"{where} claims {size:,} bytes, expected at most {_MAX_RECORD:,}; {_ADVICE}")
        example = _checked(file.read(size + 4), size, where, "data")
        try:
            ids = _token_ids(example, where)
        except CorruptFile as error:
            raise DataError(f"{where} is not an example: {error}; {_ADVICE}") from None
        if ids := _without_marks(ids, tokenizer, where):
            yield Part("", source, ids=tuple(ids))


def _checked(stored: bytes, size: int, where: str, name: str) -> bytes:
    """Return the first bytes of what is followed by its checksum."""
    if len(stored) < size + 4:
        raise DataError(f"{where} is cut short: {len(stored):,} of {size + 4:,} bytes are there; fetch the file again")
    data, checksum = stored[:size], int.from_bytes(stored[size:], "little")
    if masked(crc32c(data)) != checksum:
        raise DataError(f"the {name} of {where} fails its checksum: it is damaged, or the file is no TFRecord file")
    return data


def _token_ids(example: bytes, where: str) -> list[int]:
    """Return the integers of the feature token_ids. Raises CorruptFile for a malformed message."""
    features = {}
    for group in _chunks(example, 1):
        for entry in _chunks(group, 1):
            features[b"".join(_chunks(entry, 1)).decode(errors="replace")] = b"".join(_chunks(entry, 2))
    ids = []
    for integers in _chunks(features.get("token_ids", b""), 3):
        for packed in _chunks(integers, 1):
            at = 0
            while at < len(packed):
                value, at = read_varint(packed, at)
                ids.append(signed64(value))
    if not ids:
        names = ", ".join(repr(name[:200]) for name in sorted(features)[:10]) or "nothing"
        raise DataError(f"{where} has no integers in 'token_ids': it holds {names}; {_ADVICE}")
    return ids


def _chunks(message: bytes, number: int) -> Iterator[bytes]:
    """Yield the values of a field of strings or messages."""
    return (value for found, value in fields(message) if found == number and isinstance(value, bytes))


def _without_marks(ids: list[int], tokenizer: Tokenizer, where: str) -> list[int]:
    """Check ids, and cut the padding and the two marks off."""
    advice = "give the vocabulary that the file was made with"
    for each in ids:
        if not 0 <= each < tokenizer.vocab_size:
            raise DataError(
                f"{where} holds the id {each}; the vocabulary has {tokenizer.vocab_size:,} tokens; {advice}"
            )
    special, stop = tokenizer.special, len(ids)
    while stop and ids[stop - 1] == (special.pad or 0):
        stop -= 1
    ids = ids[:stop]
    for mark, at, verb in ((special.start, 0, "begins"), (special.end, -1, "ends")):
        if mark is not None and ids[at:][:1] != [mark]:
            found = f"the id {ids[at]}" if ids else "padding"
            raise DataError(f"{where} {verb} with {found}; expected {tokenizer.id_to_token(mark)}, {mark}; {advice}")
    return ids[int(special.start is not None) : len(ids) - int(special.end is not None)]
