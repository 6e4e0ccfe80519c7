"""The table format: what reads back, what is refused."""

import cramjam
import pytest
from bundle_tools import MAGIC, block, num, seal, table, table_of
from hypothesis import given
from hypothesis import strategies as st

from hanmo.checkpoint.tf.sstable import read_table, write_table
from hanmo.errors import CheckpointError, CorruptFile

ROWS = [(b"a", b"1"), (b"ab", b""), (b"abc\xff", b"3" * 300), (b"b", b"4")]


def _written(rows, **how):
    out = bytearray()
    write_table(rows, out.extend, **{"block_size": 4096, **how})
    return bytes(out)


@given(
    st.dictionaries(st.binary(max_size=30), st.binary(max_size=60), max_size=60),
    st.sampled_from([1, 64, 500, 1 << 18]),
    st.integers(1, 20),
)
def test_what_is_written_reads_back(rows, block_size, restart):
    rows = sorted(rows.items())
    assert list(read_table(_written(rows, block_size=block_size, restart=restart))) == rows


def test_plain_and_snappy_blocks_read_the_same():
    assert list(read_table(table(ROWS[:2], ROWS[2:]))) == ROWS
    assert list(read_table(table(ROWS[:2], ROWS[2:], snappy=True))) == ROWS


def test_keys_that_are_not_sorted_are_not_written():
    with pytest.raises(CheckpointError, match=r"b'a' is written after b'b'; keys must be sorted"):
        _written([(b"b", b""), (b"a", b"")])


def _edit(data, at, new):
    return data[:at] + new + data[at + len(new) :]


def _handles(meta, index):
    return (num(meta[0]) + num(meta[1]) + num(index[0]) + num(index[1])).ljust(40, b"\0") + MAGIC


GOOD = table(ROWS)
OVERLONG = b"\xff" * 11


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes are too few for a table"),
        (GOOD[-47:], "47 bytes are too few"),
        (GOOD[:-8] + b"notmagic", "ends in 0x636967616d746f6e, not in a table's magic number 0xdb4775248b80fb57"),
        (GOOD[:-48] + _handles((0, 0), (1 << 62, 8)), "block of 8 bytes at 4,611,686,018,427,387,904 reaches past"),
        (GOOD[:-48] + _handles((0, 0), (0, 1 << 62)), "block of 4,611,686,018,427,387,904 bytes at 0 reaches past"),
        (GOOD[:-48] + OVERLONG.ljust(40, b"\0") + MAGIC, "varint at byte 0 of 48"),
        (_edit(GOOD, 5, b"\x99"), "block at 0 fails its checksum"),
        (table_of([block(ROWS)], [b"b"], 2), "block at 0 is of type 2; known are 0"),
        (table(ROWS[2:], ROWS[:2]), r"b'a' comes after b'b': keys are not sorted"),
        (table(ROWS, ROWS[3:]), r"key b'b' comes twice"),
        (table_of([block(ROWS)], [b"abc"]), r"key b'b' is past its block's bound b'abc'"),
        (table_of([block([])], [b"z"]), "data block at 0 is empty"),
        (table_of([b"\x01"], [b"z"]), "block of 1 bytes claims -1 restart points"),
        (table_of([b"\xff" * 4], [b"z"]), "block of 4 bytes claims 4,294,967,295 restart points"),
        (table_of([b"\x00\x01\x7fa" + block([])], [b"z"]), "entry at 3 claims 0 shared, 1 own and 127 value bytes"),
        (table_of([b"\x04\x01\x00a" + block([])], [b"z"]), "entry at 3 claims 4 shared, 1 own"),
        (table_of([b"\x00" + b"\xff" * 12 + block([])], [b"z"]), "varint at byte 1 of 21 is cut short or longer"),
        (table_of([num(1 << 31) + b"\0\0"], [b"z"], 1), "Snappy block at 0 claims 2,147,483,648 bytes"),
        (table_of([b"\x20\xff\xff\xff"], [b"z"], 1), "Snappy block at 0 cannot be unpacked"),
        (table_of([b""], [b"z"], 1), "varint at byte 0 of 0"),
    ],
)  # fmt: skip
def test_a_table_that_is_not_one_is_refused(data, words):
    with pytest.raises(CorruptFile, match=words):
        list(read_table(data))


def test_a_handle_with_more_behind_it_is_refused():
    body = block(ROWS)
    out = seal(body)
    top = block([(b"z", num(0) + num(len(body)) + b"\0")])
    footer = _handles((0, len(body)), (len(out), len(top)))
    with pytest.raises(CorruptFile, match="block handle of 4 bytes, of which only 3 are used"):
        list(read_table(out + seal(top) + footer))


def test_an_index_block_that_points_at_itself_is_read_once():
    handle = num(0) + num(len(block([(b"z", b"00")])))
    top = block([(b"z", handle)])
    data = seal(top) + _handles((0, len(top)), (0, len(top)))
    assert list(read_table(data)) == [(b"z", handle)]


def test_an_index_block_that_names_itself_again_and_again_is_refused():
    handle = num(0) + num(len(block([(b"y", b"00"), (b"z", b"00")])))
    top = block([(b"y", handle), (b"z", handle)])
    data = seal(top) + _handles((0, len(top)), (0, len(top)))
    with pytest.raises(CorruptFile, match=r"key b'z' is past its block's bound b'y'"):
        list(read_table(data))


def test_keys_that_unpack_to_more_than_the_budget_are_refused():
    long = b"\x00" + num(60_000) + b"\x00" + b"k" * 60_000
    more = b"".join(num(60_000 + i) + b"\x01\x00" + b"k" for i in range(400))
    with pytest.raises(CorruptFile, match="keys unpack to more than 16 MiB"):
        list(read_table(table_of([long + more + block([])], [b"z"])))


def test_a_snappy_block_that_unpacks_to_more_than_the_budget_is_refused():
    packed = bytes(cramjam.snappy.compress_raw(bytes(40 << 20)))
    with pytest.raises(CorruptFile, match="claims 41,943,040 bytes"):
        list(read_table(table_of([packed], [b"z"], 1)))
