"""What is at a path, and which reader it needs."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from torch_tools import write_torch

from hanmo.checkpoint.open import ADAPTERS, Sharded, locate, open_source
from hanmo.checkpoint.safetensors import Safetensors, write_safetensors
from hanmo.checkpoint.source import STORAGE, MappedFile, storage_bytes
from hanmo.checkpoint.tf.bundle import Bundle
from hanmo.checkpoint.tf.writer import write_bundle
from hanmo.checkpoint.torch_files import TorchFile
from hanmo.errors import CheckpointError, CorruptFile, MissingFile

ITEMS = [("a", np.arange(3)), ("b", np.ones(2, np.float32))]


@pytest.mark.parametrize("name", ["model.ckpt", "model.ckpt.index", "model.ckpt.data-00000-of-00001", ""])
def test_a_bundle_is_found_by_any_of_its_names(tmp_path, name):
    write_bundle(tmp_path / "model.ckpt", ITEMS)
    with open_source(tmp_path / name) as source:
        assert isinstance(source, Bundle)
        assert source.path == tmp_path / "model.ckpt"
        assert source.read("a").tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("write", "name", "limit", "reader"),
    [
        (write_safetensors, "model.safetensors", None, Safetensors),
        (write_safetensors, "model.safetensors", 1, Sharded),
        (write_torch, "pytorch_model.bin", None, TorchFile),
        (write_torch, "pytorch_model.bin", 1, Sharded),
        (write_torch, "any.pt", None, TorchFile),
        (write_torch, "any.pth", None, TorchFile),
    ],
)
def test_files_and_their_folders_are_recognised(tmp_path, write, name, limit, reader):
    opened = write(tmp_path / name, ITEMS, max_shard_bytes=limit)
    for path in (opened, tmp_path, str(tmp_path)):
        with open_source(path) as source:
            assert isinstance(source, reader)
            assert source.path == opened
            assert [source.read(key).tolist() for key in "ab"] == [[0, 1, 2], [1, 1]]


def test_what_is_at_a_path_is_said_without_opening_it(tmp_path):
    write_bundle(tmp_path / "tf" / "model.ckpt", ITEMS, max_shard_bytes=1)
    index = write_safetensors(tmp_path / "hf" / "model.safetensors", ITEMS, max_shard_bytes=1)
    (tmp_path / "hf" / "config.json").write_text("{}")
    (tmp_path / "run" / "best-5").mkdir(parents=True)
    write_torch(tmp_path / "run" / "best-5" / "any.pt", ITEMS)
    (tmp_path / "run" / "best-5" / "hanmo.json").write_text("{}")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / ADAPTERS).touch()
    tf, hf, run, lora = (locate(tmp_path / name) for name in ("tf", "hf", "run", "lora"))
    assert [found.format for found in (tf, hf, run, lora)] == ["tensorflow", "safetensors", "torch", "adapters"]
    assert (tf.path, hf.path, run.path.name) == (tmp_path / "tf" / "model.ckpt", index, "any.pt")
    ends = [".data-00000-of-00002", ".data-00001-of-00002", ".index"]
    assert [path.name for path in tf.files] == [f"model.ckpt{end}" for end in ends]
    assert [path.name for path in hf.data_files] == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert set(hf.files) == {*hf.data_files, index} and run.files == [run.path]
    assert (tf.config, hf.config, hf.own_config) == (None, tmp_path / "hf" / "config.json", None)
    assert run.own_config == run.folder / "hanmo.json"
    assert locate(tf) is tf
    with pytest.raises(CheckpointError, match="holds LoRA adapters, not a complete model"):
        open_source(tmp_path / "lora")


def test_verification_can_be_left_out(tmp_path):
    write_bundle(tmp_path / "m", ITEMS)
    data = tmp_path / "m.data-00000-of-00001"
    data.write_bytes(b"\x07" + data.read_bytes()[1:])
    assert open_source(tmp_path / "m", verify=False).read("a").tolist() == [7, 1, 2]
    with pytest.raises(CorruptFile, match=r"tensor 'a' in .* is damaged"):
        open_source(tmp_path / "m").read("a")


@pytest.mark.parametrize("name", ["bert-base-chinese", "imcaspar/gpt2-ml", "uer/gpt2-chinese-cluecorpussmall"])
def test_a_models_public_name_is_told_where_such_files_come_from(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFile, match=rf"no checkpoint at {name}: .*'hf download {name} --local-dir FOLDER'"):
        open_source(name)
    for path in ("model.ckpt-100000", "gpt2/model.ckpt", "model.safetensors"):
        with pytest.raises(MissingFile, match=r"and no .*\.index beside it"):
            open_source(path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).mkdir()
    with pytest.raises(MissingFile, match=r"it holds no file ending in"):
        open_source(name)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(
        MissingFile, match=r"no checkpoint at .*model\.ckpt: there is no such file, and no model\.ckpt\.index"
    ):
        open_source(tmp_path / "model.ckpt")
    with pytest.raises(MissingFile, match=r"no checkpoint in .*: it holds no file ending in \.safetensors"):
        open_source(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CheckpointError, match=r"notes\.txt is not a checkpoint that Hanmo can read"):
        open_source(tmp_path / "notes.txt")
    for name in ("a.index", "b.index"):
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=r"holds 2 checkpoints \(a\.index, b\.index\); give the path of one"):
        open_source(tmp_path)


def test_tensorflow_s_file_checkpoint_names_the_newest(tmp_path):
    for step in (5, 10):
        write_bundle(tmp_path / f"model.ckpt-{step}", [("a", np.full(1, step))])
    with pytest.raises(CheckpointError, match=r"holds 2 checkpoints"):
        open_source(tmp_path)
    for told in ("model.ckpt-10", "/elsewhere/model.ckpt-10", r"C:\\run\\model.ckpt-10"):
        text = f'model_checkpoint_path: "{told}"\nall_model_checkpoint_paths: "model.ckpt-5"\n'
        (tmp_path / "checkpoint").write_text(text, "utf-8")
        with open_source(tmp_path) as source:
            assert source.path == tmp_path / "model.ckpt-10"
            assert source.read("a").tolist() == [10]
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-15"', "utf-8")
    with pytest.raises(CheckpointError, match=r"holds 2 checkpoints"):
        open_source(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "epoch=1.ckpt", "model.ckpt.index"])
def test_a_pointer_of_git_lfs_is_called_one(tmp_path, name):
    oid = "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"
    (tmp_path / name).write_text(f"version https://git-lfs.github.com/spec/v1\n{oid}\nsize 411577189\n", "utf-8")
    with pytest.raises(CorruptFile, match=r"is a git-lfs pointer of 134 bytes, .* fetch it by 'git lfs pull'"):
        open_source(tmp_path)


def test_bytes_outside_a_file_are_refused(tmp_path):
    (tmp_path / "f").write_bytes(bytes(10))
    file = MappedFile(tmp_path / "f")
    for offset, nbytes in ((0, 11), (-1, 2), (11, 0), (3, -1)):
        with pytest.raises(CorruptFile, match=rf"f holds 10 bytes, but {nbytes:,} bytes at {offset:,} were asked for"):
            file.raw(offset, nbytes)


def test_bytes_of_a_tensor_are_counted_by_its_storage():
    assert storage_bytes("bfloat16", (3, 5)) == 30
    assert storage_bytes("complex128", ()) == 16
    assert storage_bytes("float8_e5m2", (0, 7)) == 0
    assert all(np.dtype(name) for name in STORAGE.values())


def test_reading_a_bundle_or_safetensors_does_not_import_torch(tmp_path):
    write_bundle(tmp_path / "m", ITEMS)
    write_safetensors(tmp_path / "m.safetensors", ITEMS)
    code = (
        "import sys; from hanmo.checkpoint.open import ADAPTERS, locate, open_source\n"
        "for path in sys.argv[1:]: print(open_source(path).read('a').sum())\n"
        "print('torch' in sys.modules)"
    )
    paths = [str(tmp_path / name) for name in ("m", "m.safetensors")]
    ran = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["3", "3", "False"]
