import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hanmo.engines import store
from hanmo.engines.openvino_engine import open_engine
from hanmo.errors import MissingFile

GOLDENS = Path(__file__).parent.parent / "data" / "goldens"
OPTIONS = {"weights": "int8"}


@pytest.fixture
def checkpoint(tmp_path):
    return shutil.copytree(GOLDENS / "gpt2_ml", tmp_path / "model") / "model.ckpt"


def test_the_folder_follows_the_platform(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert store.default_folder() == tmp_path / "hanmo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert store.default_folder() == Path.home() / ".cache" / "hanmo"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert store.default_folder() == Path.home() / "Library" / "Caches" / "hanmo"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    assert store.default_folder() == tmp_path / "hanmo"


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
    with pytest.raises(MissingFile, match=r"no checkpoint at .*nothing\.ckpt; give a TensorFlow prefix"):
        store.built_path(tmp_path, tmp_path / "nothing.ckpt", OPTIONS)
    with pytest.raises(MissingFile, match=r"no checkpoint at .*model\.ckpt: the folder .*gone is not there"):
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


PROGRAM = """
import sys, time
from pathlib import Path
from hanmo.engines.openvino_engine import open_engine
def progress(nbytes):
    print(nbytes, flush=True)
    time.sleep(0.02)
open_engine(Path(sys.argv[1]), weights="int4", folder=Path(sys.argv[2]), progress=progress)
"""


CHANCE = random.Random(7)


@pytest.mark.parametrize(
    ("tensors", "later"), [(1, 0.01), *((CHANCE.randint(1, 30), CHANCE.uniform(0, 0.03)) for _ in range(5))]
)
def test_a_build_that_is_killed_leaves_nothing_that_is_used(tmp_path, checkpoint, tensors, later):
    folder = tmp_path / "built"
    program = [sys.executable, "-c", PROGRAM, str(checkpoint), str(folder)]
    with subprocess.Popen(program, stdout=subprocess.PIPE) as running:
        for _ in range(tensors):
            assert running.stdout.readline().strip().isdigit()
        time.sleep(later)
        running.send_signal(signal.SIGKILL)
    assert running.returncode == -signal.SIGKILL
    left = store.entries(folder)
    assert [each.finished for each in left] == [False]
    engine = open_engine(checkpoint, weights="int4", folder=folder)
    whole = [each for each in store.entries(folder) if each.finished]
    assert len(whole) == 1 and engine.prefill([[5, 6]], room=2)[1].shape == (1, 120)
    other = tmp_path / "other"
    open_engine(checkpoint, weights="int4", folder=other)
    assert whole[0].path.read_bytes() == store.entries(other)[0].path.read_bytes()
