"""Damaged indexes: whatever is changed in them, only Hanmo's own errors, and bounded memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import cramjam
import numpy as np
import pytest
from bundle_tools import block, bytes_field, entry, header, num, slice_of, table, table_of, write_data
from hypothesis import given, settings
from hypothesis import strategies as st

from hanmo.checkpoint.tf.bundle import Bundle
from hanmo.checkpoint.tf.writer import write_bundle
from hanmo.errors import CorruptFile, HanmoError

DATA = Path(__file__).parent.parent / "data"
SMALL = (DATA / "goldens" / "bert" / "model.ckpt.index").read_bytes()
EDITS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8)
ROWS = [header(), *((f"v{i}".encode(), entry(offset=24 * i)) for i in range(6))]
# Two Snappy blocks of a thousand tensors, the form of the published GPT2_ML indexes; and one of those if it is there.
MANY = [(f"newslm/layer{i:04d}/kernel".encode(), entry(offset=24 * i)) for i in range(1000)]
PUBLISHED = DATA.parent.parent.parent / "shared" / "checkpoints-index" / "mega-clue-tok-tf_model.ckpt-220000.index"
REAL = PUBLISHED.read_bytes() if PUBLISHED.is_file() else table([header(), *MANY[:500]], MANY[500:], snappy=True)


def _edited(data: bytes, edits: list[tuple[float, int]]) -> bytes:
    out = bytearray(data)
    for place, byte in edits:
        out[int(place * len(out))] = byte
    return bytes(out)


def _survives(folder: Path, index: bytes) -> bool:
    """Open the index and read all; return whether it opened. Fails the test for a foreign error or much memory."""
    prefix = folder / "m"
    prefix.with_name("m.index").write_bytes(index)
    write_data(prefix, bytes(4_096))
    tracemalloc.start()
    try:
        bundle = Bundle(prefix, verify=False)
    except HanmoError as error:
        assert "m.index" in str(error)
        return False
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= (64 << 20) + 8 * len(index)
    for name in bundle.tensors:
        try:
            bundle.read(name)
        except HanmoError as error:
            assert str(error)
    return True


@settings(max_examples=60, deadline=None)
@given(EDITS, st.sampled_from([REAL, SMALL]), st.floats(0.9, 1.1))
def test_bytes_changed_anywhere(tmp_path_factory, edits, index, length):
    cut = _edited(index, edits)[: int(len(index) * length)]
    _survives(tmp_path_factory.mktemp("m"), cut)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(EDITS, st.booleans(), st.integers(0, 40))
def test_bytes_changed_under_a_right_checksum(tmp_path_factory, edits, snappy, cut):
    body = block(ROWS)
    if snappy:
        body = _edited(bytes(cramjam.snappy.compress_raw(body)), edits)
    else:
        body = _edited(body, edits)
    _survives(tmp_path_factory.mktemp("m"), table_of([body[: len(body) - cut]], [b"\xff"], int(snappy)))


INTS = st.integers(-(1 << 63), (1 << 64) - 1) | st.integers(-2, 40) | st.sampled_from([4, 8, 24])
EXTENTS = st.lists(st.tuples(INTS, st.none() | INTS), max_size=4).map(slice_of)
ENTRIES = st.builds(
    entry,
    dtype=INTS | st.integers(1, 30),
    shape=st.lists(INTS | st.integers(0, 6), max_size=5).map(tuple),
    shard=st.just(0) | INTS,
    offset=INTS,
    size=INTS,
    slices=st.just(()) | st.lists(EXTENTS, max_size=3).map(tuple),
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.binary(min_size=1, max_size=6), ENTRIES | st.binary(max_size=20), max_size=6))
def test_entries_that_claim_anything(tmp_path_factory, entries):
    rows = [header(), *sorted(entries.items())]
    _survives(tmp_path_factory.mktemp("m"), table_of([block(rows)], [b"\xff" * 8]))


def test_the_fuzz_can_tell_right_from_wrong(tmp_path):
    assert _survives(tmp_path, REAL) and _survives(tmp_path, SMALL)
    assert _survives(tmp_path, table_of([block(ROWS)], [b"\xff"]))
    assert not _survives(tmp_path, REAL[:-1])


def _crowd(count: int) -> bytes:
    """Many tiny string tensors, whose names share all but three bytes."""
    names = (bytes([1 + (i >> 14), i >> 7 & 127, i & 127]) for i in range(count))
    return b"".join(b"\x00\x03\x02" + name + b"\x08\x07" for name in names)


def _slices() -> bytes:
    return block([(b"v", bytes_field(7, slice_of([(0, 1)])) * 300_000)])


def _axes() -> bytes:
    return block([(b"v", bytes_field(2, bytes_field(2, b"") * 500_000))])


@pytest.mark.parametrize(
    ("make", "snappy", "words"),
    [
        (lambda: _crowd(200_000), True, "lists more than .* bytes of memory can hold"),
        pytest.param(
            lambda: _crowd(200_000), False, "lists more than .* bytes of memory can hold", marks=pytest.mark.slow
        ),
        pytest.param(_slices, True, "lists more than .* bytes of memory can hold", marks=pytest.mark.slow),
        (_slices, False, "lists more than .* bytes of memory can hold"),
        (_axes, True, "a tensor of more than 32 axes"),
        (_axes, False, "a tensor of more than 32 axes"),
    ],
)
def test_a_small_file_that_unpacks_to_much_is_refused(tmp_path, make, snappy, words):
    body, first = make(), b"\x00\x00" + num(len(header()[1])) + header()[1]
    whole = first + (body if body.endswith(b"\1\0\0\0") else body + block([]))
    stored = bytes(cramjam.snappy.compress_raw(whole)) if snappy else whole
    index = table_of([stored], [b"\xff" * 8], int(snappy))
    (tmp_path / "m.index").write_bytes(index)
    tracemalloc.start()
    try:
        with pytest.raises(CorruptFile, match=words):
            Bundle(tmp_path / "m")
        assert tracemalloc.get_traced_memory()[1] <= (64 << 20) + 8 * len(index)
    finally:
        tracemalloc.stop()


def test_a_large_honest_index_still_opens(tmp_path):
    write_bundle(tmp_path / "m", ((f"model/layer_{i:05d}/kernel", np.float32(i)) for i in range(20_000)))
    assert len(Bundle(tmp_path / "m").tensors) == 20_000
