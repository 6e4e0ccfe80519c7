"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import stat

import pytest

from hanmo.errors import CheckpointError
from hanmo.weights.write import Staged, atomic_folder, atomic_path


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
