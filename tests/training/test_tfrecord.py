"""TFRecord files of ids are packed as the texts that have these ids; damaged and foreign ones are named."""

import gzip
from pathlib import Path

import pytest
from crc32c import crc32c

from hanmo.checkpoint.tf.protobuf import encode_bytes, varint
from hanmo.checkpoint.tf.sstable import masked
from hanmo.errors import DataError
from hanmo.tokenizers import WordPiece
from hanmo.training.data.documents import read_documents
from hanmo.training.data.pack import PackReport, TokenEncoder, pack
from hanmo.training.data.packed import PackedFile

PAD, UNK, CLS, SEP, _, SKY, EARTH, DARK = range(8)
TOKENIZER = WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"天地玄"])


def checked(data: bytes) -> bytes:
    return data + masked(crc32c(data)).to_bytes(4, "little")


def record(data: bytes) -> bytes:
    return checked(len(data).to_bytes(8, "little")) + checked(data)


def example(kind: int = 3, **features: list[int]) -> bytes:
    """Make a tf.train.Example; kind: 3 for int64_list, 2 for float_list."""
    entries = b""
    for name, numbers in features.items():
        packed = b"".join(varint(number & (1 << 64) - 1) for number in numbers)
        feature = encode_bytes(kind, encode_bytes(1, packed))
        entries += encode_bytes(1, encode_bytes(1, name.encode()) + encode_bytes(2, feature))
    return encode_bytes(1, entries)


def packed(path: Path, *, separator: str | None = None) -> tuple[PackReport, list[int], PackedFile]:
    out = path.with_name("packed")
    report = pack([path], out, encoder=TokenEncoder(TOKENIZER, separator=separator), processes=1)
    file = PackedFile(out)
    return report, file.ids.tolist(), file


@pytest.mark.parametrize("separator", [None, "[SEP]"])
@pytest.mark.parametrize("masks", [{}, {"mask_ids": [0, 5, 0, 0, 0, 0]}])
def test_ids_are_packed_as_their_texts_are(tmp_path: Path, separator: str | None, masks: dict[str, list[int]]) -> None:
    rows = [[CLS, SKY, EARTH, SEP, PAD, PAD], [CLS, SEP, PAD, PAD, PAD, PAD], [CLS, DARK, SKY, EARTH, DARK, SEP]]
    (tmp_path / "a.tfrecord").write_bytes(b"".join(record(example(token_ids=row, **masks)) for row in rows))
    (tmp_path / "a.jsonl").write_text('{"text": "天地"}\n{"text": "玄天地玄"}\n', "utf-8")
    for ending in ("tfrecord", "jsonl"):
        pack([tmp_path / f"a.{ending}"], tmp_path / ending, encoder=TokenEncoder(TOKENIZER, separator=separator))
    for name in ("bin", "documents", "json"):
        assert (tmp_path / f"tfrecord.{name}").read_bytes() == (tmp_path / f"jsonl.{name}").read_bytes()
    assert PackedFile(tmp_path / "tfrecord").facts["documents"] == 2


def test_unknown_ids_are_counted_as_characters(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrecord"
    path.write_bytes(record(example(token_ids=[CLS, SKY, UNK, UNK, SEP])))
    report, ids, file = packed(path)
    assert ids == [SKY, UNK, UNK]
    assert (report.characters, report.unknown, report.distinct_unknown) == (3, 2, 0)
    assert file.documents["characters"].tolist() == [3]


def test_compressed_files_and_folders_with_texts_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "b.txt").write_text("玄", "utf-8")
    (folder / "a.0.tfrecord.gz").write_bytes(gzip.compress(record(example(token_ids=[CLS, SKY, SEP]))))
    _, ids, file = packed(folder)
    assert ids == [SKY, DARK] and file.sources == ["a", "b"]


def test_readers_of_text_refuse_ids(tmp_path: Path) -> None:
    (tmp_path / "a.tfrecord").write_bytes(record(example(token_ids=[CLS, SKY, SEP])))
    with pytest.raises(DataError, match=r"a\.tfrecord ends in '\.tfrecord'; expected one of \.txt"):
        list(read_documents([tmp_path / "a.tfrecord"]))


GOOD = record(example(token_ids=[CLS, SKY, SEP]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a\.tfrecord holds no text"),
        (GOOD + GOOD[:5], r"a\.tfrecord record 2 is cut short: 5 of 12 bytes are there; fetch the file again"),
        (GOOD[:-1], r"a\.tfrecord record 1 is cut short: \d+ of \d+ bytes are there"),
        (GOOD[:12], r"a\.tfrecord record 1 is cut short: 0 of \d+ bytes are there"),
        ("天地玄黄".encode(), r"the size of .*a\.tfrecord record 1 fails its checksum: .* or the file is no TFRecord"),
        (GOOD + GOOD[:20] + b"?" + GOOD[21:], r"the data of .*a\.tfrecord record 2 fails its checksum"),
        (checked((1 << 40).to_bytes(8, "little")), r"record 1 claims 1,099,511,627,776 bytes, expected at most 1,048,"),
        (record(b"\x0a\x7f"), r"record 1 is not an example: protobuf field 1 claims 127 bytes, 0 are left; expected"),
        (record(b""), r"record 1 has no integers in 'token_ids': it holds nothing; expected what bert4keras's"),
        (
            record(example(ids=[1], mask_ids=[1])),
            r"record 1 has no integers in 'token_ids': it holds 'ids', 'mask_ids'",
        ),
        (record(example(kind=2, token_ids=[1])), r"record 1 has no integers in 'token_ids': it holds 'token_ids'"),
        (record(example(token_ids=[CLS, 8, SEP])), r"record 1 holds the id 8; the vocabulary has 8 tokens; give the"),
        (record(example(token_ids=[CLS, -1, SEP])), r"record 1 holds the id -1; the vocabulary has 8 tokens"),
        (GOOD + record(example(token_ids=[SKY, SEP])), r"record 2 begins with the id 5; expected \[CLS\], 2; give the"),
        (record(example(token_ids=[CLS, SKY])), r"record 1 ends with the id 5; expected \[SEP\], 3; give the"),
        (record(example(token_ids=[PAD, PAD])), r"record 1 begins with padding; expected \[CLS\], 2"),
    ],
)
def test_damaged_and_foreign_records_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.tfrecord").write_bytes(content)
    with pytest.raises(DataError, match=message):
        packed(tmp_path / "a.tfrecord")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tfrecord"]


def test_no_changed_byte_goes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrecord"
    for at in range(len(GOOD)):
        path.write_bytes(GOOD[:at] + bytes([GOOD[at] ^ 0x10]) + GOOD[at + 1 :])
        with pytest.raises(DataError, match=r"a\.tfrecord record 1 "):
            packed(path)
