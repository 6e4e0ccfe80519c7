import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from opening import open_engine

from hanmo import load
from hanmo.errors import MissingFile
from hanmo.inference import store

GOLDENS = Path(__file__).parent.parent / "data" / "goldens"
OPTIONS = {"weights": "int8"}


@pytest.fixture
def checkpoint(tmp_path):
    return shutil.copytree(GOLDENS / "gpt2_ml", tmp_path / "model") / "model.ckpt"


def test_a_checkpoint_that_changes_gets_another_file(tmp_path, checkpoint):
    first = store.built_path(tmp_path, checkpoint, OPTIONS)
    assert store.built_path(tmp_path, checkpoint, OPTIONS) == first
    assert store.built_path(tmp_path, checkpoint.with_name("model.ckpt.index"), OPTIONS) == first
    assert store.built_path(tmp_path, checkpoint, {"weights": "int4"}) != first
    data = checkpoint.with_name("model.ckpt.data-00000-of-00001")
    (checkpoint.parent / "notes.txt").write_text("not the checkpoint's")
    assert store.built_path(tmp_path, checkpoint, OPTIONS) == first
    os.utime(data, ns=(1, 1))
    second = store.built_path(tmp_path, checkpoint, OPTIONS)
    (checkpoint.parent / "config.json").write_text("{}")
    assert len({first, second, store.built_path(tmp_path, checkpoint, OPTIONS)}) == 3


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(
        MissingFile, match=r"no checkpoint at .*nothing\.ckpt: there is no such file, .* give a TensorFlow prefix"
    ):
        store.built_path(tmp_path, tmp_path / "nothing.ckpt", OPTIONS)
    with pytest.raises(MissingFile, match=r"no checkpoint at .*gone.model\.ckpt: there is no such file"):
        store.built_path(tmp_path, tmp_path / "gone" / "model.ckpt", OPTIONS)


def test_what_is_built_is_listed_and_cleared_and_nothing_else(tmp_path, checkpoint):
    folder = tmp_path / "built"
    assert store.entries(folder) == [] and store.clear(folder) == 0
    open_engine(checkpoint, weights="float32", folder=folder)
    (folder / ".x.safetensors.0123.partial").write_bytes(b"12345")
    (folder / "letter.txt").write_text("mine")
    found = store.entries(folder)
    assert [each.finished for each in found] == [False, True] and found[0].nbytes == 5
    assert store.clear(folder) == sum(each.nbytes for each in found) > 50_000
    assert [path.name for path in folder.iterdir()] == ["letter.txt"]


def logits(checkpoint, folder):
    engine = open_engine(checkpoint, weights="float32", folder=folder)
    return engine.prefill([[5, 6, 7]], room=2)[1]


def expected(checkpoint):
    with torch.inference_mode():
        return load(checkpoint).model(torch.tensor([[5, 6, 7]])).logits[:, -1].numpy()


@pytest.mark.parametrize("name", ["mega.json", "hparams.json", "my_config_small.json", "config.json"])
def test_a_configuration_that_changes_changes_the_engine(tmp_path, checkpoint, name):
    config = checkpoint.with_name("config.json").rename(checkpoint.with_name(name))
    before = logits(checkpoint, tmp_path / "built")
    said = json.loads(config.read_text("utf-8"))
    status = config.stat()
    config.write_text(json.dumps(said | {"num_attention_heads": said["num_attention_heads"] // 2}), "utf-8")
    os.utime(config, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = logits(checkpoint, tmp_path / "built")
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, expected(checkpoint), atol=1e-4)


@pytest.mark.parametrize("how", ["written over", "copied there", "moved there"])
def test_other_weights_of_the_same_size_and_time_are_not_taken_for_the_old_ones(tmp_path, checkpoint, how):
    loaded, model = load(checkpoint), tmp_path / "own"
    loaded.save(model)
    loaded.model.decoder.blocks[0].attention.query.weight.data.mul_(-1)
    loaded.save(tmp_path / "other")
    path, other = (folder / "model.safetensors" for folder in (model, tmp_path / "other"))
    before, status = logits(model, tmp_path / "built"), path.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    if how == "written over":
        path.write_bytes(other.read_bytes())
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif how == "copied there":
        shutil.copy2(other, path)
    else:
        other.rename(path)
    assert path.stat().st_size == status.st_size and path.stat().st_mtime_ns == status.st_mtime_ns
    after = logits(model, tmp_path / "built")
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, expected(model), atol=1e-4)


def flip(data, start, step):
    data = bytearray(data)
    for place in range(start, len(data), step):
        data[place] ^= 0x55
    return bytes(data)


def without(word):
    def change(data):
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        header["__metadata__"].pop(word)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda data: flip(data, 9000, 1000),
        lambda data: flip(data, len(data) - 1, 1),
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        without("config"),
        without("source"),
        without("weights"),
    ],
)
@pytest.mark.parametrize("noted", [True, False])
def test_a_kept_file_that_is_damaged_is_built_again(tmp_path, checkpoint, change, noted):
    right = logits(checkpoint, tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(change(whole))
    if not noted:
        path.with_suffix(".json").write_bytes(b"{")
    np.testing.assert_array_equal(logits(checkpoint, tmp_path), right)
    assert path.read_bytes() == whole and len(list(tmp_path.glob("*.safetensors"))) == 1


def test_a_link_in_the_place_of_a_kept_file_is_replaced_and_what_it_leads_to_stays(tmp_path, checkpoint):
    logits(checkpoint, tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    (tmp_path / "victim").write_text("precious")
    path.unlink()
    path.symlink_to(tmp_path / "victim")
    logits(checkpoint, tmp_path)
    assert (tmp_path / "victim").read_text() == "precious" and not path.is_symlink()


def test_a_kept_file_is_summed_up_when_it_was_touched_and_not_otherwise(tmp_path, checkpoint, monkeypatch):
    logits(checkpoint, tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    sums = []
    right = store._checksum
    monkeypatch.setattr(store, "_checksum", lambda path: sums.append(path) or right(path))
    assert store.is_whole(path) and sums == []
    path.touch()
    assert store.is_whole(path) and sums == [path]
    assert store.is_whole(path) and sums == [path]
    path.with_suffix(".json").unlink()
    assert not store.is_whole(path)
