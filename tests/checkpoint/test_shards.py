"""Sharded checkpoints: the index json and the files it names."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hanmo.checkpoint.open import open_source
from hanmo.checkpoint.safetensors import write_safetensors
from hanmo.errors import CorruptFile, MissingFile


@pytest.fixture
def index(tmp_path):
    items = [(name, np.arange(3, dtype=np.float32)) for name in "abc"]
    return write_safetensors(tmp_path / "m.safetensors", items, max_shard_bytes=12)


def _change(index, **changes):
    content = json.loads(index.read_text())
    content["weight_map"].update(changes)
    index.write_text(json.dumps({**content, "weight_map": {k: v for k, v in content["weight_map"].items() if v}}))


def test_a_missing_shard_is_named(index):
    (index.parent / "m-00002-of-00003.safetensors").unlink()
    with pytest.raises(MissingFile, match=r"m-00002-of-00003\.safetensors is missing; .*index\.json lists 3 files"):
        open_source(index)


def test_a_damaged_shard_is_named(index):
    (index.parent / "m-00002-of-00003.safetensors").write_bytes(b"short")
    with pytest.raises(CorruptFile, match=r"m-00002-of-00003\.safetensors is no valid safetensors file: .*too small"):
        open_source(index)


def test_an_index_that_does_not_fit_its_files_is_refused(index):
    _change(index, d="m-00001-of-00003.safetensors")
    with pytest.raises(CorruptFile, match=r"says that 'd' is in m-00001-of-00003\.safetensors, which does not hold"):
        open_source(index)
    _change(index, d=None, b="m-00001-of-00003.safetensors")
    with pytest.raises(CorruptFile, match=r"says that 'b' is in m-00001-of-00003\.safetensors, which does not hold"):
        open_source(index)
    _change(index, b=None, c="m-00003-of-00003.safetensors", a="m-00002-of-00003.safetensors")
    with pytest.raises(CorruptFile, match=r"00002-of-00003\.safetensors holds 'b', for which .* names None"):
        open_source(index)


@pytest.mark.parametrize("file", ["../m.safetensors", "/etc/passwd", "..", "a/b", "a\\b", "", 5, "\0", "x" * 300])
def test_a_shard_outside_the_folder_is_refused(index, file):
    content = json.loads(index.read_text())
    content["weight_map"]["a"] = file
    index.write_text(json.dumps(content))
    with pytest.raises(CorruptFile, match=r"for 'a'; expected a file name in the same folder"):
        open_source(index)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "holds a list; expected a JSON object"),
        ("{", "is not JSON"),
        ("{}", 'has no object "weight_map"'),
        ('{"weight_map": 3}', 'has no object "weight_map"'),
        ('{"weight_map": {"a": "x", "a": "y"}}', "holds 'a' twice"),
    ],
)
def test_an_index_that_is_none_is_refused(index, text, words):
    index.write_text(text)
    with pytest.raises(CorruptFile, match=rf"m.safetensors.index.json {words}"):
        open_source(index)


def test_an_index_of_a_size_without_reason_is_refused(index, monkeypatch):
    monkeypatch.setattr("hanmo.checkpoint.open._MAX_INDEX", 10)
    with pytest.raises(CorruptFile, match=r"m\.safetensors\.index\.json has \d+ bytes; expected at most 10 "):
        open_source(index)


def test_reading_in_file_order_goes_file_by_file(index):
    with open_source(index) as source:
        assert list(source.in_file_order) == ["a", "b", "c"]
        assert [source.read(name).tolist() for name in source.in_file_order] == [[0, 1, 2]] * 3


def test_interrupted_it_leaves_nothing(tmp_path):
    def items():
        yield "a", np.zeros(4)
        yield "b", np.zeros(4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_safetensors(tmp_path / "m.safetensors", items(), max_shard_bytes=8)
    assert list(tmp_path.iterdir()) == []
