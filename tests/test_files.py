import os
import socket
import sys
from pathlib import Path

import pytest

from hanmo.errors import ConfigError, CorruptFile, DataError, MemoryPlanError, MissingFile, TokenizerError
from hanmo.files import cache_folder, errors_as, open_file, parse_json, read_bytes, read_json


def test_a_file_is_read_whole(tmp_path):
    (tmp_path / "a").write_bytes(b"1\0\n")
    assert read_bytes(tmp_path / "a") == b"1\0\n"


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for path in (tmp_path / "fifo", tmp_path / "zero", tmp_path / "socket", tmp_path):
            with pytest.raises(DataError, match=rf"{path} is a folder, a FIFO or a device; expected a regular file"):
                open_file(path, error=DataError)
    with pytest.raises(MissingFile, match="none is missing"):
        open_file(tmp_path / "none")


def test_a_file_that_is_too_large_is_refused_unread(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CorruptFile, match="sparse has 1,099,511,627,776 bytes; expected at most 268,435,456"):
        read_bytes(tmp_path / "sparse")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "is not JSON: Expecting"),
        (b"[1]", "holds a list; expected a JSON object"),
        (b"[" * 100_000, "is not JSON: it is nested too deeply"),
        (b'{"a":' * 100_000, "is not JSON: it is nested too deeply"),
        (b"9" * 5000, "is not JSON: Exceeds the limit"),
        ('{"a": 1}'.encode("utf-16"), "is not JSON: it is not UTF-8 at byte 0"),
        (b'{"a": "\\ud800"}', "is not JSON: it holds half of a surrogate pair"),
        (b'{"a": {"b": 1, "c": 2, "b": 3}}', "holds 'b' twice"),
    ],
)
def test_what_is_no_json_object_is_refused(tmp_path, text, message):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(ConfigError, match=rf"a\.json {message}.*; mend it"):
        read_json(tmp_path / "a.json", error=ConfigError, unique=True, advice="; mend it")


def test_json_may_have_a_byte_order_mark_and_whole_surrogate_pairs():
    assert parse_json(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00"}', "it") == {"a": "😀"}
    assert parse_json(b"[1]", "it", kind=list) == [1]


@pytest.mark.parametrize("count", [1_000, 200_000])
def test_a_key_given_twice_is_found_in_linear_time(count):
    text = "{" + "".join(f'"a{i}":0,' for i in range(count)) + '"z":0,"z":0}'
    with pytest.raises(CorruptFile, match="it holds 'z' twice"):  # by count for each key it would take minutes
        parse_json(text, "it", unique=True)


class Panic(BaseException):
    pass


@pytest.mark.parametrize("error", [Exception("no. More"), Panic("no"), ValueError("no"), OSError(22, "no")])
def test_what_a_library_raises_becomes_ours(error):
    with pytest.raises(TokenizerError, match=r"^a is broken: (\[Errno 22\] )?no; mend it$"):
        with errors_as(TokenizerError, "a is broken", advice="; mend it"):
            raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), PermissionError(13, "no"), ConfigError("x")])
def test_what_is_not_about_the_contents_passes(error):
    with pytest.raises(type(error)), errors_as(TokenizerError, "a is broken"):
        raise error


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_memory_that_ran_out_is_said_so(error):
    with pytest.raises(MemoryPlanError, match="a is broken: it takes more memory than there is"):
        with errors_as(CorruptFile, "a is broken"):
            raise error


def test_the_cache_folder_follows_the_platform(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "hanmo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "hanmo"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == Path.home() / "Library" / "Caches" / "hanmo"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    assert cache_folder() == tmp_path / "hanmo"
