"""Compiled kernels are kept where they can be and read by the next process."""

import logging
import sys

import pytest

import hanmo.kernels
from hanmo.kernels import cache

TINY = """
from hanmo.kernels.locator import kernel

@kernel("int64(int64)")
def step(x):
    return x + 1
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load a kernel of one line as a new process would, and tell whether Numba found it compiled."""
    (tmp_path / "tiny_kernel.py").write_text(TINY)
    monkeypatch.setattr(hanmo.kernels, "__path__", [*hanmo.kernels.__path__, str(tmp_path)])
    monkeypatch.setattr(cache, "places", lambda: [tmp_path / "first", tmp_path / "second"])

    def load(processor="here"):
        sys.modules.pop("hanmo.kernels.tiny_kernel", None)
        step = cache.load("hanmo.kernels.tiny_kernel", processor).step
        assert step(1) == 2
        return sum(step.stats.cache_hits.values()) == 1

    yield load
    sys.modules.pop("hanmo.kernels.tiny_kernel", None)


def only(folder):
    (found,) = folder.iterdir()
    return found


def test_a_kernel_is_compiled_once_and_says_so(load, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert not load()
    assert caplog.messages == ["compiling kernels for this processor (10 to 30 s, once)"]
    before = [(path, path.stat().st_mtime_ns) for path in sorted((tmp_path / "first").rglob("*"))]
    assert load()
    assert len(caplog.messages) == 1
    assert [(path, path.stat().st_mtime_ns) for path in sorted((tmp_path / "first").rglob("*"))] == before
    assert not (tmp_path / "second").exists()


def test_each_processor_has_its_own(load, tmp_path):
    assert [load("one"), load("other"), load("one"), load("other")] == [False, False, True, True]
    (tmp_path / "first").rename(tmp_path / "compiled")
    assert sorted(each.processor for each in cache.entries(tmp_path)) == ["one", "other"]
    assert all(each.kernel == "tiny" and each.nbytes > 0 for each in cache.entries(tmp_path))


def test_where_the_package_cannot_be_written_to_the_cache_folder_keeps_it(load, tmp_path):
    (tmp_path / "first").write_text("no folder can be made here")
    assert not load()
    assert load()
    assert only(tmp_path / "second").is_dir()


def test_what_was_compiled_with_the_package_is_read_before_the_cache_folder(load, tmp_path):
    load()
    (tmp_path / "first").rename(tmp_path / "second")
    load()
    assert not (tmp_path / "first").exists()


def test_where_nothing_can_be_written_it_is_compiled_and_the_reason_given(load, tmp_path, caplog):
    for name in ("first", "second"):
        (tmp_path / name).write_text("no folder can be made here")
    assert not load()
    (message,) = caplog.messages
    assert f"neither {tmp_path} nor {tmp_path} can be written to; set XDG_CACHE_HOME" in message
    assert not load()


def test_a_full_disk_is_no_error(load, tmp_path, monkeypatch):
    def full(self, sig, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numba.core.caching.Cache.save_overload", full)
    assert not load()
    assert not any((tmp_path / name).exists() for name in ("first", "second"))


@pytest.mark.parametrize("damage", [b"", b"not what Numba wrote"])
def test_a_damaged_file_is_made_anew(load, tmp_path, damage):
    load()
    code = next(only(tmp_path / "first").glob("*.nbc"))
    whole = code.read_bytes()
    code.write_bytes(damage)
    assert not load()
    assert len(code.read_bytes()) == len(whole)
    assert load()


def test_all_that_is_kept_is_cleared(load, tmp_path):
    load()
    (tmp_path / "first").rename(tmp_path / "compiled")
    total = sum(path.stat().st_size for path in (tmp_path / "compiled").rglob("*") if path.is_file())
    assert cache.clear(tmp_path) == total > 0
    assert cache.entries(tmp_path) == [] and cache.clear(tmp_path) == 0
