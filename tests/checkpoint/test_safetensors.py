"""Safetensors files: beside the original library, round trips, and headers that lie."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hanmo.checkpoint.open import open_source
from hanmo.checkpoint.safetensors import Safetensors, write_safetensors
from hanmo.checkpoint.source import STORAGE, Source, TensorInfo
from hanmo.errors import CheckpointError, CorruptFile, HanmoError, MissingFile

KNOWN = sorted(set(STORAGE) - {"complex128", "float8_e4m3fnuz", "float8_e5m2fnuz"})
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@st.composite
def _tensors(draw):
    found = {}
    for name in draw(st.lists(st.text(max_size=20).filter("__metadata__".__ne__), unique=True, max_size=8)):
        dtype = draw(st.sampled_from(KNOWN))
        array = draw(arrays.arrays(STORAGE[dtype], draw(SHAPES)))
        found[name] = TensorInfo(name, dtype, array.shape, array.nbytes), [array]
    return found


@settings(max_examples=60, deadline=None)
@given(_tensors(), st.sampled_from([None, 1, 50]), st.dictionaries(st.text('ab"\n名'), st.text("cd\\ é"), max_size=3))
def test_what_is_written_reads_back(tmp_path_factory, tensors, max_shard_bytes, metadata):
    path = tmp_path_factory.mktemp("st") / "model.safetensors"
    opened = write_safetensors(path, tensors.items(), metadata=metadata, max_shard_bytes=max_shard_bytes)
    with open_source(opened) as source:
        assert isinstance(source, Source)
        assert list(source.tensors) == sorted(tensors) == sorted(source.in_file_order)
        for name, (info, (array,)) in tensors.items():
            assert source.tensors[name] == info
            read = source.read(name)
            assert (read.dtype, read.shape, read.tobytes()) == (array.dtype, array.shape, array.tobytes())
            assert read.flags.writeable and read.flags.aligned
            source.release(name)
        if isinstance(source, Safetensors):
            assert source.metadata == metadata


def test_the_original_library_reads_ours(tmp_path):
    values = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array(True), "c": np.arange(3, dtype=np.int64)}
    path = write_safetensors(tmp_path / "m.safetensors", values.items(), metadata={"format": "pt"})
    read = safetensors.numpy.load_file(path)
    assert sorted(read) == ["a", "b", "c"]
    assert all(np.array_equal(read[name], value) for name, value in values.items())
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt"}
    assert int.from_bytes(path.read_bytes()[:8], "little") % 64 == 56


def test_ours_reads_the_original_librarys(tmp_path):
    values = {
        "b": np.arange(6, dtype=np.float16).reshape(2, 3),
        "a": np.array(3, np.int8),
        "empty": np.zeros((0, 4), np.uint32),
    }
    safetensors.numpy.save_file(values, tmp_path / "m.safetensors", {"who": "they"})
    with Safetensors(tmp_path / "m.safetensors") as source:
        assert source.metadata == {"who": "they"}
        assert {name: source.read(name).tolist() for name in source.tensors} == {
            "a": 3, "b": [[0, 1, 2], [3, 4, 5]], "empty": []
        }  # fmt: skip


def test_a_checkpoint_is_rewritten_lazily_in_shards(tmp_path):
    values = {f"v{i}": np.full(10, i, np.float32) for i in range(7)}
    one = write_safetensors(tmp_path / "one.safetensors", values.items())
    with open_source(one) as source:
        items = ((name, source.read(name)) for name in source.in_file_order)
        many = write_safetensors(tmp_path / "many.safetensors", items, max_shard_bytes=90)
    assert many.name == "many.safetensors.index.json"
    index = json.loads(many.read_text())
    assert index["metadata"] == {"total_size": 280}
    assert sorted(set(index["weight_map"].values())) == [f"many-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)]
    with open_source(many) as source:
        assert all(np.array_equal(source.read(name), value) for name, value in values.items())


def test_writing_into_a_tensor_leaves_the_file(tmp_path):
    path = write_safetensors(tmp_path / "m.safetensors", [("v", np.zeros(4))])
    before = path.read_bytes()
    view = Safetensors(path).read("v")
    view += 1
    assert path.read_bytes() == before and view.tolist() == [1, 1, 1, 1]


def _file(tmp_path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def _claim(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


CLAIM = json.dumps(_claim())


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        (b"[]", b"", "invalid JSON in header"),
        (b"{]", b"", "invalid JSON in header"),
        (b'{"\xff":1}', b"", "invalid UTF-8 in header"),
        (b'{"a":' * 100_000, b"", "invalid JSON in header: recursion limit exceeded"),
        (b'{"a":' + b"9" * 5_000 + b"}", b"", "invalid JSON in header"),
        (b'{"a":1,"a":2}', b"", "invalid JSON in header"),
        (f'{{"v":{CLAIM},"v":{CLAIM}}}'.encode(), bytes(8), "holds 'v' twice"),
        ({"__metadata__": {"a": 1}}, b"", "expected a string"),
        ({"__metadata__": []}, b"", "expected a map"),
        ({"v": 5}, b"", "expected struct TensorInfo"),
        ({"v": {"dtype": "F32"}}, b"", "missing field `shape`"),
        ({"v": _claim(7)}, bytes(8), "invalid type: integer `7`"),
        ({"v": _claim(shape=(-2,))}, bytes(8), "invalid value: integer `-2`"),
        ({"v": _claim(shape=(2.0,))}, bytes(8), r"invalid type: floating point `2\.0`"),
        ({"v": _claim(shape=(True, 2))}, bytes(8), "invalid type: boolean `true`"),
        ({"v": _claim(shape=(1 << 40, 1 << 40))}, bytes(8), "overflow computing buffer size"),
        ({"v": _claim(shape=(1,) * 33, offsets=(0, 4))}, bytes(4), r"tensor 'v' claims the shape \[1, 1"),
        ({"v": _claim(shape=(0, 1 << 62), offsets=(0, 0))}, b"", r"tensor 'v' claims the shape \[0, 46116860"),
        ({"v": _claim(offsets=(0, 9))}, bytes(8), "invalid shape, data type, or offset for tensor"),
        ({"v": _claim(offsets=(8, 0))}, bytes(8), "invalid offset for tensor `v`"),
        ({"v": _claim(offsets=(-8, 0))}, bytes(8), "invalid value: integer `-8`"),
        ({"v": _claim(offsets=(0, 8, 8))}, bytes(8), "invalid length 3, expected 2 elements"),
        ({"v": _claim(offsets=(0, 4))}, bytes(8), "invalid shape, data type, or offset for tensor"),
        ({"v": _claim(), "w": _claim(offsets=(4, 12))}, bytes(12), "invalid offset for tensor `w`"),
        ({"v": _claim(), "w": _claim(offsets=(9, 17))}, bytes(17), "invalid offset for tensor `w`"),
        ({"v": _claim()}, bytes(11), "incomplete metadata, file not fully covered"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, header, data, words):
    with pytest.raises(CorruptFile, match=rf"m.safetensors.*{words}.*; download or copy it again"):
        Safetensors(_file(tmp_path, header, data))


def test_dtypes_of_the_future_are_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"tensor 'v' is of dtype 'F4'; known are \['BOOL'"):
        Safetensors(_file(tmp_path, {"v": _claim("F4", shape=(16,))}, bytes(8)))


@pytest.mark.parametrize("length", [0, 1, 3, 100_000_001, 1 << 62, (1 << 64) - 1])
def test_a_header_of_impossible_length_is_refused(tmp_path, length):
    with pytest.raises(CorruptFile, match=r"m.safetensors is no valid safetensors file: .*header.*copy it again"):
        Safetensors(_file(tmp_path, b"{}", length=length))


def test_files_that_are_empty_or_missing_are_refused(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(b"")
    with pytest.raises(CorruptFile, match=r"m.safetensors is no valid safetensors file: .*header too small"):
        Safetensors(tmp_path / "m.safetensors")
    with pytest.raises(MissingFile, match=r"none\.safetensors is missing"):
        Safetensors(tmp_path / "none.safetensors")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_mutated_header_raises_only_our_errors(tmp_path_factory, edits):
    path = tmp_path_factory.mktemp("st") / "m.safetensors"
    write_safetensors(path, [("v", np.zeros((2, 3))), ("w", np.zeros(3, np.int8))], metadata={"a": "b"})
    data = bytearray(path.read_bytes())
    for place, byte in edits:
        data[int(place * len(data))] = byte
    path.write_bytes(data)
    try:
        source = Safetensors(path)
    except HanmoError as error:
        assert "m.safetensors" in str(error)
    else:
        assert sum(source.read(name).nbytes for name in source.tensors) == 51


@pytest.mark.parametrize(
    ("items", "words"),
    [
        (
            [("v", np.zeros(1)), ("v", np.zeros(1))],
            "tensor 'v' is given twice, or has a name that safetensors",
        ),
        (
            [("__metadata__", np.zeros(1))],
            "tensor '__metadata__' is given twice, or has a name",
        ),
        ([("v", np.zeros(1, np.complex128))], "tensor 'v' is of dtype complex128, which safetensors cannot hold"),
        ([("v", np.array([b"x"]))], r"tensor 'v' is of NumPy dtype \|S1, which checkpoints do not hold"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_and_nothing_is_left(tmp_path, items, words):
    with pytest.raises(CheckpointError, match=words):
        write_safetensors(tmp_path / "m.safetensors", items)
    assert list(tmp_path.iterdir()) == []
