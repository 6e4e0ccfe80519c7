"""Files of torch.save, read without running them."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch_tools import write_torch

from hanmo.checkpoint.open import open_source
from hanmo.checkpoint.source import STORAGE, Source, TensorInfo
from hanmo.checkpoint.torch_files import TorchFile
from hanmo.errors import CheckpointError, CorruptFile, HanmoError, MissingFile

KNOWN = sorted(dtype for dtype in STORAGE if isinstance(getattr(torch, dtype, None), torch.dtype))


@st.composite
def _tensors(draw):
    found = {}
    for name in draw(st.lists(st.text(st.characters(codec="utf-8"), max_size=20), unique=True, max_size=6)):
        dtype = draw(st.sampled_from(KNOWN))
        array = draw(arrays.arrays(STORAGE[dtype], draw(st.lists(st.integers(0, 4), max_size=4).map(tuple))))
        found[name] = TensorInfo(name, dtype, array.shape, array.nbytes), [array]
    return found


@settings(max_examples=40, deadline=None)
@given(_tensors(), st.sampled_from([None, 1, 50]))
def test_what_is_written_reads_back(tmp_path_factory, tensors, max_shard_bytes):
    path = tmp_path_factory.mktemp("torch") / "pytorch_model.bin"
    with open_source(write_torch(path, tensors.items(), max_shard_bytes=max_shard_bytes)) as source:
        assert isinstance(source, Source)
        assert list(source.tensors) == sorted(tensors) == sorted(source.in_file_order)
        for name, (info, (array,)) in tensors.items():
            assert source.tensors[name] == info
            read = source.read(name)
            assert (read.dtype, read.shape, read.tobytes()) == (array.dtype, array.shape, array.tobytes())
            assert read.flags.writeable
            source.release(name)


@pytest.mark.parametrize(
    "keys", [(), ("state_dict",), ("model_state_dict",), ("model",), ("module",), ("model", "module")]
)
def test_tensors_are_found_where_people_put_them(tmp_path, keys):
    value = {"v": torch.nn.Parameter(torch.arange(3.0)), "half": torch.ones(2, dtype=torch.bfloat16)}
    for key in keys[::-1]:
        value = {key: value, "epoch": 3}
    torch.save(value, tmp_path / "m.pt")
    with TorchFile(tmp_path / "m.pt") as source:
        assert list(source.tensors) == ["half", "v"]
        assert source.read("v").tolist() == [0, 1, 2]
        assert source.read("half").tolist() == [0x3F80, 0x3F80]


def test_files_of_old_torch_read_too(tmp_path):
    torch.save({"v": torch.arange(4)}, tmp_path / "m.bin", _use_new_zipfile_serialization=False)
    assert TorchFile(tmp_path / "m.bin").read("v").tolist() == [0, 1, 2, 3]


def test_transposed_and_shared_tensors_keep_their_values(tmp_path):
    base = torch.arange(6.0).reshape(2, 3)
    torch.save({"t": base.T, "row": base[1], "again": base}, tmp_path / "m.bin")
    source = TorchFile(tmp_path / "m.bin")
    assert source.read("t").tolist() == [[0, 3], [1, 4], [2, 5]]
    assert source.read("row").tolist() == [3, 4, 5]
    assert source.read("again").base is not None


def test_writing_into_a_tensor_leaves_the_file(tmp_path):
    path = write_torch(tmp_path / "m.bin", [("v", np.zeros(4))])
    before = path.read_bytes()
    view = TorchFile(path).read("v")
    view += 1
    assert path.read_bytes() == before


class _Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("form", ["zip", "old", "pickle"])
def test_a_pickle_with_code_is_refused_and_never_run(tmp_path, form):
    path, mark = tmp_path / "pytorch_model.bin", tmp_path / "it-ran"
    value = {"v": torch.zeros(2), "evil": _Evil(mark)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(_Evil(mark)))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=form == "zip")
    assert b"mkdir" in path.read_bytes()
    with pytest.raises(
        CorruptFile, match=r"pytorch_model.bin is refused: .* could run code .*or better as safetensors"
    ):
        open_source(path)
    assert not mark.exists()


@pytest.mark.parametrize("data", [b"", b"garbage" * 20, b"PK\x03\x04" + bytes(100), bytes(100)])
def test_bytes_that_are_no_torch_file_are_refused(tmp_path, data):
    (tmp_path / "m.bin").write_bytes(data)
    with pytest.raises(CorruptFile, match=r"m\.bin is (refused|not a complete file of torch\.save)"):
        TorchFile(tmp_path / "m.bin")


def test_a_file_cut_short_is_refused(tmp_path):
    path = write_torch(tmp_path / "m.bin", [("v", np.zeros(400))])
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CorruptFile, match=r"m\.bin is not a complete file of torch\.save: .*download or copy it again"):
        TorchFile(path)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6), st.booleans()
)
def test_mutated_files_raise_only_our_errors(tmp_path_factory, edits, zipped):
    path = tmp_path_factory.mktemp("torch") / "m.bin"
    torch.save({"v": torch.zeros(3), "w": torch.ones(2, 2)}, path, _use_new_zipfile_serialization=zipped)
    data = bytearray(path.read_bytes())
    for place, byte in edits:
        data[int(place * len(data))] = byte
    path.write_bytes(data)
    try:
        with TorchFile(path) as source:
            assert all(source.read(name).nbytes == info.nbytes for name, info in source.tensors.items())
    except HanmoError as error:
        assert "m.bin" in str(error)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([torch.zeros(1)], "holds a list; expected tensors by name"),
        ({"v": 3}, "holds a int under 'v'; expected tensors by name, at the top or under one of state_dict"),
        ({3: torch.zeros(1)}, "holds a Tensor under 3"),
        ({"v": torch.zeros(2).to_sparse()}, r"tensor 'v' of .* is torch.sparse_coo float32 on cpu; expected a dense"),
        ({"v": torch.zeros(2, device="meta")}, r"tensor 'v' of .* is torch.strided float32 on meta"),
    ],
)  # fmt: skip
def test_contents_that_are_no_tensors_by_name_are_refused(tmp_path, value, words):
    torch.save(value, tmp_path / "m.bin")
    with pytest.raises(CheckpointError, match=words):
        TorchFile(tmp_path / "m.bin")


def test_a_folder_is_named_as_one(tmp_path):
    with pytest.raises(CorruptFile, match="is a folder, a FIFO or a device"):
        TorchFile(tmp_path)


def rezipped(path, method):
    """Write the same records again with Python's zipfile, which aligns nothing."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in records.items():
            archive.writestr(name, data)


def test_compressed_records_are_refused_and_stored_ones_read(tmp_path):
    path = write_torch(tmp_path / "m.bin", [("v", np.arange(400.0))])
    rezipped(path, zipfile.ZIP_STORED)
    assert TorchFile(path).read("v").tolist() == list(range(400))
    rezipped(path, zipfile.ZIP_DEFLATED)
    for verify in (True, False):
        with pytest.raises(CorruptFile, match=r"m\.bin holds compressed records, which torch\.save never writes; load"):
            open_source(path, verify=verify)


def test_a_small_archive_does_not_unpack_to_a_large_one(tmp_path):
    path = write_torch(tmp_path / "m.bin", [("v", np.zeros(4))])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", bytes(1 << 26))
    tracemalloc.start()
    with pytest.raises(CorruptFile, match="compressed records"):
        TorchFile(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


def test_a_flipped_byte_is_found_by_its_checksum(tmp_path):
    path = write_torch(tmp_path / "m.bin", [("v", np.arange(400.0))])
    data = bytearray(path.read_bytes())
    data[data.index(np.float64(200).tobytes()) + 6] ^= 1
    path.write_bytes(data)
    with open_source(path) as source:  # what a file holds is listed without reading it all
        with pytest.raises(CorruptFile, match=r"m\.bin is damaged: Bad CRC-32 for file '.*data/0'; download it again"):
            source.read("v")
    with open_source(path, verify=False) as source:
        assert source.read("v")[200] != 200


def test_a_file_written_without_checksums_is_read(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = write_torch(tmp_path / "m.bin", [("v", np.arange(4.0))])
    finally:
        torch.serialization.set_crc32_options(before)
    assert TorchFile(path).read("v").tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_tensor_that_repeats_a_number_without_end_is_refused(tmp_path, zipped):
    torch.save({"small": torch.ones(1).expand(1000)}, tmp_path / "m.bin", _use_new_zipfile_serialization=zipped)
    assert TorchFile(tmp_path / "m.bin").read("small").tolist() == [1] * 1000
    large = {"v": torch.zeros(1).expand(1 << 35), "w": torch.zeros(2)}
    torch.save(large, tmp_path / "m.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CorruptFile, match=r"'v' of .* claims the shape \[34359738368\] but repeats .* 4 bytes"):
        TorchFile(tmp_path / "m.bin")


def test_numbers_that_do_not_fit_into_memory_are_said_to(tmp_path):
    program = f"""
import resource, sys, torch
from pathlib import Path
from hanmo.errors import MemoryPlanError
from hanmo.checkpoint.torch_files import TorchFile
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (64 << 20),) * 2)
try:
    TorchFile(Path({str(tmp_path / "m.bin")!r}))
except MemoryPlanError as error:
    sys.exit(0 if "m.bin" in str(error) and "more memory than there is" in str(error) else str(error))
sys.exit("it was read")
"""
    torch.save({"v": torch.zeros(1 << 25)}, tmp_path / "m.bin", _use_new_zipfile_serialization=False)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_missing_files_are_named(tmp_path):
    with pytest.raises(MissingFile, match=r"none\.bin is missing"):
        TorchFile(tmp_path / "none.bin")
    index = write_torch(tmp_path / "m.bin", [(name, np.zeros(2)) for name in "ab"], max_shard_bytes=1)
    (tmp_path / "m-00001-of-00002.bin").unlink()
    with pytest.raises(MissingFile, match=r"m-00001-of-00002\.bin is missing; m\.bin\.index\.json lists 2 files"):
        open_source(index)
