"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hanmo.checkpoint.staged import Staged, atomic_folder, atomic_path, clear_abandoned
from hanmo.errors import CheckpointError


def test_a_file_appears_when_its_block_ends(tmp_path):
    final = tmp_path / "new" / "file"
    with atomic_path(final) as made:
        assert made.parent == final.parent
        made.write_text("whole")
        assert not final.exists()
    assert final.read_text() == "whole"
    assert list(final.parent.iterdir()) == [final]


def test_a_file_stays_as_it_was_when_its_block_raises(tmp_path):
    final = tmp_path / "file"
    final.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(final) as made:
        made.write_text("half")
        raise ZeroDivisionError
    assert final.read_text() == "old"
    assert list(tmp_path.iterdir()) == [final]


def test_files_appear_in_the_order_they_are_placed(tmp_path, monkeypatch):
    order = []
    with Staged() as staged:
        for name in ("data", "index"):
            made = staged.new(tmp_path / name)
            made.write_text(name)
            staged.place(made, tmp_path / name)
        kind = type(made)
        monkeypatch.setattr(kind, "replace", lambda self, final: order.append(final.name))
    monkeypatch.undo()
    assert order == ["data", "index"]


def test_a_file_has_the_rights_that_any_new_file_has(tmp_path):
    (tmp_path / "plain").touch()
    with atomic_path(tmp_path / "ours") as made:
        made.touch()
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_folder_appears_when_its_block_ends(tmp_path):
    with atomic_folder(tmp_path / "out") as made:
        (made / "deep").mkdir()
        (made / "deep" / "file").write_text("x")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "deep" / "file").read_text() == "x"
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_an_empty_folder_is_taken_and_a_full_one_only_when_allowed(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with atomic_folder(out) as made:
        (made / "a.json").touch()
    with pytest.raises(CheckpointError, match=r"the folder .*out is not empty"), atomic_folder(out):
        pass
    with atomic_folder(out, overwrite=True) as made:
        (made / "b.json").touch()
    assert [path.name for path in out.iterdir()] == ["b.json"]
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_stays_as_it_was_when_its_block_raises(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.json").touch()
    with pytest.raises(KeyboardInterrupt), atomic_folder(out, overwrite=True) as made:
        (made / "b.json").touch()
        raise KeyboardInterrupt
    assert [path.name for path in out.iterdir()] == ["a.json"]
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_with_anything_else_in_it_is_never_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    with (
        pytest.raises(CheckpointError, match=r"out holds thesis\.txt, which is no part of a checkpoint; give another"),
        atomic_folder(tmp_path / "out", overwrite=True),
    ):
        pass
    assert (tmp_path / "out" / "thesis.txt").is_file()


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "out").touch()
    with (
        pytest.raises(CheckpointError, match="out is a file; give the path of a new folder"),
        atomic_folder(tmp_path / "out"),
    ):
        pass


KILLED = """
import sys, time
from pathlib import Path
from hanmo.checkpoint.staged import atomic_folder, atomic_path
folder = Path(sys.argv[1])
with atomic_path(folder / "file") as made, atomic_folder(folder / "out") as filled:
    made.write_text("half")
    (filled / "a.json").write_text("half")
    print("written", flush=True)
    time.sleep(600)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="locks of POSIX")
def test_the_next_good_write_deletes_what_a_killed_process_left_and_nothing_that_a_living_one_writes(tmp_path):
    (tmp_path / ".other.0123456789ab.partial").touch()
    (tmp_path / ".file.0123456789ab.old").touch()

    def write():
        with atomic_path(tmp_path / "file") as made:
            made.write_text("whole")
        with atomic_folder(tmp_path / "out", overwrite=True) as filled:
            (filled / "a.json").write_text("whole")

    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True) as living:
        assert living.stdout.readline() == "written\n"
        write()
        assert len(names(tmp_path)) == 5 and ".file.0123456789ab.old" not in names(tmp_path)
        living.kill()
    assert len(names(tmp_path)) == 5
    write()
    assert names(tmp_path) == [".other.0123456789ab.partial", "file", "out"]
    assert (tmp_path / "file").read_text() == (tmp_path / "out" / "a.json").read_text() == "whole"
    clear_abandoned(tmp_path)
    assert names(tmp_path) == ["file", "out"]


@pytest.mark.parametrize("make", [atomic_path, atomic_folder])
def test_folders_that_were_made_for_nothing_are_deleted(tmp_path, make):
    with pytest.raises(ZeroDivisionError), make(tmp_path / "a" / "b" / "c"):
        raise ZeroDivisionError
    assert names(tmp_path) == []
    (tmp_path / "a").mkdir()
    with pytest.raises(ZeroDivisionError), make(tmp_path / "a" / "b" / "c"):
        (tmp_path / "a" / "mine").touch()
        raise ZeroDivisionError
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["mine"]


def fill_disk(path):
    with open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")


def fill_disk_deeper(path):
    with atomic_path(path / "x") as made:
        fill_disk(made)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize(
    ("make", "write", "message"),
    [
        (atomic_path, fill_disk, "No space left on device: '{}/new'"),
        (atomic_folder, fill_disk_deeper, "No space left on device: '{}/new/x'"),
        (atomic_folder, lambda made: (made / "y").read_text(), "No such file or directory: '{}/new/y'"),
        (atomic_path, lambda made: Path("mine").read_text(), "No such file or directory: 'mine'"),
        (atomic_path, lambda made: (made.touch(), made.with_name("new").mkdir()), "Is a directory: '{}/new'"),
    ],
)
def test_errors_of_the_system_name_the_file_that_was_asked_for(tmp_path, make, write, message):
    with pytest.raises(OSError, match=re.escape(message.format(tmp_path)) + "$"), make(tmp_path / "new") as made:
        write(made)
    assert names(tmp_path) == ["new"] * message.startswith("Is a")
