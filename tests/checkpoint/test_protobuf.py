"""Varints and protobuf fields, and what is refused of them."""

import pytest
from bundle_tools import num
from hypothesis import given
from hypothesis import strategies as st

from hanmo.checkpoint.tf.protobuf import encode_bytes, encode_fixed32, encode_int, fields, read_varint, signed64, varint
from hanmo.errors import CorruptFile


@given(st.integers(0, (1 << 64) - 1), st.binary(max_size=4))
def test_a_varint_reads_back_and_ends_where_it_ends(value, rest):
    assert varint(value) == num(value)
    assert read_varint(varint(value) + rest, 0) == (value, len(varint(value)))


@pytest.mark.parametrize(
    ("data", "bits"),
    [(b"", 64), (b"\x80", 64), (b"\xff" * 9, 64), (b"\xff" * 10 + b"\x01", 64), (b"\xff" * 9 + b"\x02", 64),
     (b"\x80" * 500 + b"\x01", 64), (b"\xff\xff\xff\xff\x10", 32), (b"\x80" * 5 + b"\x01", 32)],
)  # fmt: skip
def test_a_varint_cut_short_or_too_long_is_refused(data, bits):
    with pytest.raises(CorruptFile, match=f"varint at byte 0 of {len(data)} is cut short or longer than {bits} bits"):
        read_varint(data, 0, bits=bits)


def test_negative_numbers_are_twos_complement():
    assert [signed64((1 << 64) - 1), signed64(1 << 63), signed64((1 << 63) - 1)] == [-1, -(1 << 63), (1 << 63) - 1]
    assert list(fields(encode_int(4, -5))) == [(4, (1 << 64) - 5)]


def test_fields_read_back_in_order():
    message = encode_int(1, 300) + encode_bytes(2, b"abc") + encode_fixed32(6, 7) + encode_bytes(3, b"")
    assert list(fields(message)) == [(1, 300), (2, b"abc"), (6, 7), (3, b"")]
    assert encode_int(1, 0) == encode_fixed32(1, 0) == b""
    assert list(fields(b"\x09" + bytes(range(8)))) == [(1, 0x0706050403020100)]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"\x0b\x0c", "field 1 of wire type 3"),
        (b"\x02\x00", "field 0 of wire type 2"),
        (b"\x0e", "field 1 of wire type 6"),
        (b"\x12\x05abc", "field 2 claims 5 bytes, 3 are left"),
        (b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "field 2 claims 9,223,372,036,854,775,807 bytes, 0 are left"),
        (b"\x35\x00\x00", "field 6 claims 4 bytes, 2 are left"),
        (b"\x08", "varint at byte 1 of 1"),
    ],
)
def test_a_broken_message_is_refused(message, words):
    with pytest.raises(CorruptFile, match=words):
        list(fields(message))
