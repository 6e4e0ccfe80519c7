"""Writing tensor bundles: the bytes of TensorFlow's own saver, round trips, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hanmo.checkpoint.source import STORAGE, TensorInfo
from hanmo.checkpoint.tf.bundle import Bundle
from hanmo.checkpoint.tf.index import DTYPES
from hanmo.checkpoint.tf.writer import write_bundle
from hanmo.errors import CheckpointError

GOLDENS = Path(__file__).parent.parent / "data" / "goldens"
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40)
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
KNOWN = sorted(dtype for dtype in DTYPES.values() if dtype in STORAGE)


@pytest.mark.parametrize("kind", sorted(path.parent.name for path in GOLDENS.glob("*/model.ckpt.index")))
def test_the_files_are_those_of_tensorflow_byte_for_byte(kind, tmp_path):
    theirs = GOLDENS / kind / "model.ckpt"
    with Bundle(theirs) as bundle:
        write_bundle(tmp_path / "ours", ((name, bundle.read(name)) for name in bundle.in_file_order))
    for end in (".index", ".data-00000-of-00001"):
        assert (tmp_path / f"ours{end}").read_bytes() == theirs.with_name(f"model.ckpt{end}").read_bytes()


@st.composite
def _tensors(draw):
    """Names in the order drawn, each with (dtype name, array of its storage)."""
    found = {}
    for name in draw(st.lists(NAMES, unique=True, max_size=8)):
        dtype = draw(st.sampled_from(KNOWN))
        found[name] = dtype, draw(arrays.arrays(STORAGE[dtype], draw(SHAPES)))
    return found


def _items(tensors):
    for name, (dtype, array) in tensors.items():
        if dtype == STORAGE[dtype]:
            yield name, array
        else:
            halves = [array.tobytes()[: array.nbytes // 2], array.tobytes()[array.nbytes // 2 :]]
            yield name, (TensorInfo(name, dtype, array.shape, array.nbytes), halves)


@settings(max_examples=60, deadline=None)
@given(_tensors(), st.sampled_from([None, 1, 40]), st.sampled_from([1, 200, 262_144]))
def test_what_is_written_reads_back(tmp_path_factory, tensors, max_shard_bytes, block_size):
    prefix = tmp_path_factory.mktemp("bundle") / "名.ckpt"
    write_bundle(prefix, _items(tensors), max_shard_bytes=max_shard_bytes, block_size=block_size)
    with Bundle(prefix) as bundle:
        assert list(bundle.tensors) == sorted(tensors, key=str.encode)
        for name, (dtype, array) in tensors.items():
            assert bundle.tensors[name] == TensorInfo(name, dtype, array.shape, array.nbytes)
            read = bundle.read(name)
            assert (read.dtype, read.shape) == (array.dtype, array.shape)
            assert read.tobytes() == array.tobytes()
            assert read.flags.writeable


def test_every_number_dtype_of_tensorflow_is_covered():
    assert len(KNOWN) == 19


def test_names_are_sorted_by_bytes_and_long_ones_kept(tmp_path):
    names = ["b", "a/b", "a", "a0", "Z", "é", "名", "a" * 60_000, "\x01", "a/b/c" * 100]
    write_bundle(tmp_path / "m", [(name, np.float32(i)) for i, name in enumerate(names)], block_size=64)
    bundle = Bundle(tmp_path / "m")
    assert list(bundle.tensors) == sorted(names, key=str.encode)
    assert list(bundle.in_file_order) == names
    assert [float(bundle.read(name)) for name in names] == list(range(10))


def test_several_blocks_and_shards_read_back(tmp_path):
    values = {f"layer{i:04d}/kernel": np.full((3, 5), i, np.int16) for i in range(3_000)}
    write_bundle(tmp_path / "m", values.items(), max_shard_bytes=30_000, block_size=4_096)
    assert len(list(tmp_path.glob("m.data-*-of-00003"))) == 3
    bundle = Bundle(tmp_path / "m")
    assert all(np.array_equal(bundle.read(name), value) for name, value in values.items())


def test_tensors_are_aligned_so_that_they_can_be_mapped(tmp_path):
    write_bundle(tmp_path / "m", [("a", np.bool_(True)), ("b", np.arange(3.0)), ("c", np.array(7, ">i4"))])
    bundle = Bundle(tmp_path / "m")
    assert np.array_equal(bundle.read("b"), np.arange(3.0))
    assert bundle.read("b").base is not None
    assert bundle.read("c") == 7 and bundle.read("c").dtype == np.int32


def _half_written():
    yield "a", np.zeros(100_000)
    raise KeyboardInterrupt


def test_interrupted_it_leaves_what_was_there(tmp_path):
    write_bundle(tmp_path / "m", [("v", np.float32(1))])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        write_bundle(tmp_path / "m", _half_written())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([("v", np.zeros(2)), ("v", np.zeros(2))], "tensor 'v' is given twice"),
        ([("", np.zeros(2))], "tensor name '' of 0 bytes cannot be used in a bundle"),
        ([("\0v", np.zeros(2))], r"tensor name '\\x00v' of 2 bytes"),
        ([("n" * 60_001, np.zeros(2))], "of 60,001 bytes cannot be used"),
        ([("v", np.zeros(2, "M8[s]"))], r"tensor 'v' is of NumPy dtype datetime64\[s\], which checkpoints do not hold"),
        ([("v", (TensorInfo("v", "float8_e8m0fnu", (2,), 2), [b"ab"]))], "of dtype float8_e8m0fnu, which a bundle"),
        ([("v", (TensorInfo("v", "resource", (), 0), []))], "of dtype resource, which a bundle cannot hold"),
        ([("v", (TensorInfo("v", "int8", (2,), 2), [b"a"]))], "'v' was given 1 bytes; 2 were announced"),
        ([("v", (TensorInfo("v", "int8", (2,), 2), [b"ab", b"c"]))], "'v' was given 3 bytes; 2 were announced"),
        ([("v", (TensorInfo("v", "int8", (2,), 3), [b"abc"]))], r"'v' claims 3 bytes; int8\[2\] takes 2"),
    ],
)
def test_what_a_bundle_cannot_hold_is_refused_and_nothing_is_left(tmp_path, items, words):
    with pytest.raises(CheckpointError, match=words):
        write_bundle(tmp_path / "m", items)
    assert list(tmp_path.iterdir()) == []


def test_more_shards_than_the_names_count_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("hanmo.checkpoint.tf.writer.MAX_SHARDS", 2)
    with pytest.raises(CheckpointError, match="3 shards; a bundle has at most 2: raise max_shard_bytes"):
        write_bundle(tmp_path / "m", [(name, np.zeros(9)) for name in "abc"], max_shard_bytes=1)
    assert list(tmp_path.iterdir()) == []
