"""Reading tensor bundles: what TensorFlow wrote, what is put together by hand, and every way of being wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from bundle_tools import bytes_field, entry, header, int_field, mask, slice_of, table, write_data, write_index
from crc32c import crc32c

from hanmo.checkpoint.source import Source, TensorInfo
from hanmo.checkpoint.tf.bundle import Bundle
from hanmo.checkpoint.tf.index import slice_key
from hanmo.errors import CheckpointError, CorruptFile, MissingFile

SIX = np.arange(6, dtype=np.float32)
CRC = mask(crc32c(SIX.tobytes()))
GOLDENS = Path(__file__).parent.parent / "data" / "goldens"
KINDS = sorted(path.parent.name for path in GOLDENS.glob("*/model.ckpt.index"))


def _open(tmp_path, *rows, data=None, **how):
    prefix = write_index(tmp_path / "model.ckpt", header(), *rows)
    if data is not None:
        write_data(prefix, data)
    return Bundle(prefix, **how)


def test_the_goldens_of_tensorflow_are_there():
    assert {"bert", "gpt2_ml_original", "t5_1.1"} <= set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_that_tensorflow_wrote_is_read(kind):
    prefix = GOLDENS / kind / "model.ckpt"
    stored = prefix.with_name("model.ckpt.data-00000-of-00001").read_bytes()
    with Bundle(prefix) as bundle:
        assert isinstance(bundle, Source)
        assert list(bundle.tensors) == sorted(bundle.tensors)
        assert b"".join(bundle.read(name).tobytes() for name in bundle.in_file_order) == stored
        assert all(bundle.read(name).shape == info.shape for name, info in bundle.tensors.items())
        assert sum(info.nbytes for info in bundle.tensors.values()) == len(stored)


@pytest.mark.parametrize(
    ("index", "rows", "parameters", "nbytes"),
    [
        ("mega-bert-tok-tf_model.ckpt-100000", 21_130, 1_393_944_576, 5_585_033_776),
        ("mega-clue-tok-tf_model.ckpt-220000", 8_021, 1_373_809_152, 5_504_439_644),
    ],
)
def test_the_published_indexes_are_listed_without_their_data(indexes, index, rows, parameters, nbytes):
    bundle = Bundle(indexes / index)
    assert len(bundle.tensors) == 1_835
    assert bundle.tensors["newslm/embeddings/word_embed"] == TensorInfo(
        "newslm/embeddings/word_embed", "float32", (rows, 1536), rows * 1536 * 4
    )
    assert bundle.tensors["global_step"] == TensorInfo("global_step", "int64", (), 8)
    assert sum(info.nbytes for info in bundle.tensors.values()) == nbytes
    own = [info for name, info in bundle.tensors.items() if "adafactor" not in name and name != "global_step"]
    assert (len(own), sum(info.nbytes for info in own) // 4) == (772, parameters)
    assert bundle.in_file_order[0] == "global_step"
    with pytest.raises(MissingFile, match=rf"{index}.data-00000-of-00001 is missing; .*download it again"):
        bundle.read("global_step")


def test_a_view_is_writable_and_never_changes_the_file(tmp_path):
    bundle = _open(tmp_path, (b"v", entry(crc=CRC)), data=SIX.tobytes())
    view = bundle.read("v")
    assert view.base is not None
    view += 1
    assert np.array_equal(view, SIX.reshape(2, 3) + 1)
    assert np.array_equal(Bundle(tmp_path / "model.ckpt").read("v"), SIX.reshape(2, 3))
    bundle.close()
    assert view[1, 2] == 6


def test_a_tensor_off_its_alignment_is_copied(tmp_path):
    bundle = _open(tmp_path, (b"v", entry(crc=CRC, offset=3)), data=b"abc" + SIX.tobytes())
    assert np.array_equal(bundle.read("v"), SIX.reshape(2, 3))
    assert bundle.read("v").flags.writeable and bundle.read("v").flags.aligned


def test_released_pages_are_read_again_when_touched(tmp_path):
    many = np.arange(100_000, dtype=np.float32)
    check = mask(crc32c(many.tobytes()))
    bundle = _open(tmp_path, (b"v", entry(crc=check, shape=(100_000,), size=400_000)), data=many.tobytes())
    bundle.release("v")
    view = bundle.read("v")
    bundle.release("v")
    assert np.array_equal(view, many)


def test_a_snappy_index_of_two_shards_reads(tmp_path):
    prefix = tmp_path / "x"
    rows = [(b"a", entry(crc=CRC, shard=1)), (b"b", entry(crc=CRC, offset=4))]
    write_index(prefix, header(shards=2), *rows, snappy=True)
    write_data(prefix, SIX.tobytes(), 1, 2)
    bundle = Bundle(prefix)
    assert np.array_equal(bundle.read("a"), SIX.reshape(2, 3))
    assert list(bundle.in_file_order) == ["b", "a"]
    with pytest.raises(MissingFile, match=r"x\.data-00000-of-00002 is missing"):
        bundle.read("b")


def _partitioned(cut=((0, 1), (1, 1)), **wrong):
    """A [2, 3] tensor in two slices of one row, in reverse order in the file."""
    slices = [[(start, length), (0, 3)] for start, length in cut]
    rows = [(b"v", entry(size=0, slices=tuple(slice_of(one) for one in slices)))]
    for i, one in enumerate(slices):
        half = mask(crc32c(SIX[3 * i : 3 * i + 3].tobytes()))
        claim = {"shape": (1, 3), "size": 12, "offset": 12 - 12 * i, "crc": half, **wrong}
        rows.append((slice_key(b"v", one), entry(**claim)))
    return sorted(rows)


def test_a_partitioned_variable_is_joined(tmp_path):
    bundle = _open(tmp_path, *_partitioned(), data=SIX[3:].tobytes() + SIX[:3].tobytes())
    assert bundle.tensors == {"v": TensorInfo("v", "float32", (2, 3), 24)}
    assert np.array_equal(bundle.read("v"), SIX.reshape(2, 3))
    bundle.release("v")


def test_a_damaged_slice_is_named(tmp_path):
    with pytest.raises(CorruptFile, match=r"tensor 'v' in .*data-00000-of-00001 is damaged: checksum is 0x"):
        _open(tmp_path, *_partitioned(), data=SIX.tobytes()).read("v")


def test_a_slice_that_is_whole_reads_in_any_rank(tmp_path):
    rows = [(b"v", entry(shape=(), size=0, slices=(slice_of([]),))), (slice_key(b"v", []), entry(shape=(), size=4))]
    bundle = _open(tmp_path, *sorted(rows), data=SIX[1:2].tobytes(), verify=False)
    assert bundle.read("v").shape == () and bundle.read("v") == 1


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (_partitioned()[:1], r"slice b'.*v.*' belongs to no tensor"),
        (_partitioned()[:1] + _partitioned()[2:], r"tensor 'v': its slice \[\(1, 1\), \(0, 3\)\] is not in the index"),
        (_partitioned(((0, 1), (0, 1)))[1:], r"tensor 'v': slices have a hole or overlap at 1"),
        (_partitioned(dtype=3), r"tensor 'v': its slice .* is of dtype 3 and shape \[1, 3\]; expected 1 and \[1, 3\]"),
        (_partitioned(shape=(1, 2), size=8), r"is of dtype 1 and shape \[1, 2\]; expected 1 and \[1, 3\]"),
        (_partitioned(offset=-4), r"tensor 'v': claims 12 bytes at offset -4"),
        (_partitioned(offset=0), r"tensors 'v' and 'v' overlap"),
    ],
)
def test_slices_that_cannot_be_are_refused(tmp_path, rows, words):
    with pytest.raises(CorruptFile, match=words):
        _open(tmp_path, *rows)


def test_what_cannot_be_joined_is_refused_by_name(tmp_path):
    strings = [(b"v", entry(dtype=7, slices=(slice_of([(0, None), (0, None)]),)))]
    strings.append((slice_key(b"v", [(0, None), (0, None)]), entry(dtype=7)))
    with pytest.raises(CheckpointError, match=r"model.ckpt.index: tensor 'v': slices of dtype string are not joined"):
        _open(tmp_path, *sorted(strings))
    both = [[(i, 1), (j, 1)] for i in (0, 1) for j in (0, 1)]
    with pytest.raises(CheckpointError, match=r"tensor 'v': the variable is cut along 2 axes \[0, 1\]"):
        _open(tmp_path, (b"v", entry(shape=(2, 2), slices=tuple(slice_of(one) for one in both))))


def test_a_dtype_without_numbers_is_listed_and_not_read(tmp_path):
    bundle = _open(tmp_path, (b"r", entry(dtype=20, shape=())), data=bytes(24))
    assert bundle.tensors["r"].dtype == "resource"
    with pytest.raises(CheckpointError, match=r"tensor 'r' of .* is of dtype resource, which holds no numbers"):
        bundle.read("r")


def test_an_unknown_name_is_a_key_error(tmp_path):
    with pytest.raises(KeyError, match="nowhere"):
        _open(tmp_path, (b"v", entry())).read("nowhere")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            (b"v", entry(size=1 << 62)),
            r"tensor 'v': claims 4,611,686,018,427,387,904 bytes, but float32\[2, 3\] takes 24",
        ),
        ((b"v", entry(size=-24)), "tensor 'v': claims -24 bytes at offset 0"),
        ((b"v", entry(offset=-1)), "tensor 'v': claims 24 bytes at offset -1"),
        ((b"v", entry(offset=(1 << 63) - 1)), "claims 24 bytes at offset 9,223,372,036,854,775,807"),
        ((b"v", entry(shape=(-2, 3))), "axis 0 claims a size of -2"),
        ((b"v", entry(shape=(1 << 40, 1 << 40), size=0)), r"claims the shape \[1099511627776, 1099511627776\]"),
        ((b"v", entry(shape=(0, 1 << 62), size=0)), r"claims the shape \[0, 4611686018427387904\], more than any"),
        ((b"v", entry(shape=(1,) * 33, size=4)), "a tensor of more than 32 axes"),
        ((b"v", entry(slices=(slice_of([(0, 1)] * 33),))), "a slice of more than 32 axes"),
        ((b"v", entry(shard=1)), "tensor 'v': claims shard 1; there are 1"),
        ((b"v", entry(shard=-1)), "tensor 'v': claims shard -1; there are 1"),
        ((b"v", entry(dtype=0)), "tensor 'v': dtype 0 is none of TensorFlow's"),
        ((b"v", entry(dtype=101)), "tensor 'v': dtype 101 is none"),
        ((b"\xff\xfe", entry()), r"tensor name b'\\xff\\xfe' is not UTF-8"),
        ((b"v", bytes_field(1, b"x")), "field holds 1 bytes where a number was expected"),
        ((b"v", int_field(2, 5)), "field holds the number 5 where a message was expected"),
        ((b"v", bytes_field(2, int_field(3, 1))), "a tensor of unknown rank"),
        ((b"v", b"\x08" + b"\xff" * 11), "varint at byte 1 of 12 is cut short or longer"),
    ],
)
def test_an_entry_that_cannot_be_is_refused(tmp_path, row, words):
    with pytest.raises(CorruptFile, match=rf"model.ckpt.index: .*{words}.*the index is damaged, download or copy"):
        _open(tmp_path, row)


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        ([header(shards=10**9)], CorruptFile, "header claims 1,000,000,000 shards; expected 1 to 99,999"),
        ([header(shards=0)], CorruptFile, "header claims 0 shards"),
        ([header(shards=-1)], CorruptFile, "header claims -1 shards"),
        ([header(order=1)], CheckpointError, "the checkpoint is big-endian; save it again"),
        ([header(minimum=2)], CheckpointError, "needs a reader of version 2; Hanmo knows version 1"),
        ([(b"v", entry())], CorruptFile, "the header, under the empty key, is missing"),
        ([header(), (b"a", entry()), (b"b", entry(offset=20))], CorruptFile, "'a' and 'b' overlap: .* 24, .* at 20"),
    ],
)
def test_a_header_or_layout_that_cannot_be_is_refused(tmp_path, rows, error, words):
    prefix = write_index(tmp_path / "model.ckpt", *rows)
    with pytest.raises(error, match=rf"model.ckpt.index: .*{words}"):
        Bundle(prefix)


def test_an_index_without_anything_is_refused(tmp_path):
    (tmp_path / "m.index").write_bytes(table())
    with pytest.raises(CorruptFile, match="the table is empty, not even the header"):
        Bundle(tmp_path / "m")
    with pytest.raises(MissingFile, match=r"other\.index is missing; a TensorFlow checkpoint cannot be read"):
        Bundle(tmp_path / "other")


def test_data_cut_short_is_refused_by_name(tmp_path):
    bundle = _open(tmp_path, (b"v", entry(crc=CRC)), (b"w", entry(offset=24)), data=SIX.tobytes() + bytes(23))
    with pytest.raises(CorruptFile, match=r"holds 47 bytes, but tensor 'w' needs 24 at 24: the file is cut short"):
        bundle.read("v")
    write_data(tmp_path / "model.ckpt", b"")
    with pytest.raises(CorruptFile, match="holds 0 bytes, but tensor 'v' needs 24 at 0"):
        Bundle(tmp_path / "model.ckpt").read("v")


@pytest.mark.parametrize("size", [6, 2_000_003])
def test_a_flipped_bit_is_found_and_named(tmp_path, size):
    values = np.arange(size, dtype=np.float32)
    check = mask(crc32c(values.tobytes()))
    raw = bytearray(values.tobytes())
    raw[len(raw) // 2] ^= 4
    rows = [(b"good", entry(crc=CRC, offset=4 * size)), (b"v", entry(crc=check, shape=(size,), size=4 * size))]
    bundle = _open(tmp_path, *rows, data=bytes(raw) + SIX.tobytes())
    with pytest.raises(CorruptFile, match=rf"tensor 'v' in .* is damaged: .* the index says {check:#010x}"):
        bundle.read("v")
    assert np.array_equal(bundle.read("good").ravel(), SIX)
    assert (Bundle(tmp_path / "model.ckpt", verify=False).read("v") != values).sum() == 1


def test_the_index_of_another_checkpoint_is_found_out(tmp_path):
    shutil.copy(GOLDENS / "bert" / "model.ckpt.index", tmp_path / "m.index")
    shutil.copy(GOLDENS / "t5_1.1" / "model.ckpt.data-00000-of-00001", tmp_path / "m.data-00000-of-00001")
    bundle = Bundle(tmp_path / "m")
    with pytest.raises(CorruptFile, match="is damaged: checksum is"):
        bundle.read(bundle.in_file_order[0])
