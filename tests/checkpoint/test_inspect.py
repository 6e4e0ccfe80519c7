"""What is at a path is said completely: checkpoints, files, the config.json that is needed, what does not fit."""

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from hanmo.checkpoint import recognise as recognition
from hanmo.checkpoint.inspect import inspect
from hanmo.checkpoint.open import find_checkpoints
from hanmo.checkpoint.safetensors import write_safetensors
from hanmo.checkpoint.tf.bundle import Bundle
from hanmo.checkpoint.tf.writer import write_bundle
from hanmo.errors import CheckpointError, CorruptFile, MissingFile

KEYS = {"family", "parameters", "vocab_rows", "dtype", "released", "path", "format", "names", "sizes", "config"}


@pytest.fixture
def golden(data, tmp_path):
    """Copy a golden's checkpoint, with its config.json or another, into a folder of its own."""

    def make(kind="gpt2_ml", **config):
        folder = tmp_path / kind
        folder.mkdir()
        for file in (data / "goldens" / kind).glob("model.ckpt.*"):
            shutil.copy(file, folder)
        told = json.loads((data / "goldens" / kind / "config.json").read_text("utf-8")) | config
        (folder / "config.json").write_text(json.dumps(told), "utf-8")
        return folder

    return make


def test_everything_that_json_shows_can_be_written_as_json(golden):
    one = inspect(golden())
    told = json.loads(json.dumps(one.as_dict()))
    assert set(told) >= KEYS
    assert (told["family"], told["parameters"], told["vocab_rows"], told["dtype"]) == ("gpt2_ml", 31072, 120, "float32")
    assert told["released"] is None and told["problems"] == []
    assert told["files"][0]["bytes"] == told["files"][0]["expected_bytes"] >= 4 * 31072
    assert told["sizes"] == {
        "num_layers": 3,
        "hidden_size": 32,
        "num_heads": 4,
        "head_dim": 8,
        "feed_forward": 64,
        "context": 48,
    }


def test_mega_json_that_does_not_fit_is_named_and_mended(tmp_path, shared, indexes):
    shutil.copy(shared / "vocab" / "configs" / "mega.json", tmp_path)
    index = indexes / "mega-bert-tok-tf_model.ckpt-100000.index"
    shutil.copy(index, tmp_path / "model.ckpt-100000.index")
    one = inspect(tmp_path)
    assert one.problems == ["config.json says vocab_size is 8,021; the checkpoint holds 21,130"]
    assert one.config["vocab_size"] == 21130 and one.config["intermediate_size"] == 6144
    assert one.config_file == tmp_path / "mega.json"
    (tmp_path / "mega.json").write_text(json.dumps(one.config))
    assert inspect(tmp_path).problems == []


def test_the_config_that_shapes_call_for_is_ready_to_save(golden):
    folder = golden(kind="t5_1.1")
    (folder / "config.json").unlink()
    one = inspect(folder)
    assert one.config_file is None
    (folder / "config.json").write_text(json.dumps(one.config))
    again = inspect(folder)
    assert again.problems == [] and again.config == one.config and not again.found.derived
    assert one.found.notes == []  # T5 tells its heads by its table of positions


def test_a_broken_config_is_a_problem_and_the_shapes_still_speak(golden):
    folder = golden()
    for text, message in (("", "is not JSON"), ('{"vocab_size": "many"}', "expected int")):
        (folder / "config.json").write_text(text)
        one = inspect(folder)
        assert message in one.problems[0] and str(folder / "config.json") in one.problems[0]
        assert (one.found.family, one.config["num_hidden_layers"]) == ("gpt2_ml", 3)


def test_optimizer_slots_are_counted_apart(indexes):
    one = inspect(indexes / "mega-clue-tok-tf_model.ckpt-220000.index")
    assert one.as_dict()["optimizer_slots"] == {"AdaFactor's state": 1062}
    assert one.found.left["the training step"] == 1


def test_an_index_alone_says_how_large_its_data_is(data, indexes):
    one = inspect(indexes / "mega-bert-tok-tf_model.ckpt-100000")
    assert one.notes == ["only the index is here; the data has 5,585,033,776 bytes"]
    assert (one.files[0].bytes, one.files[0].expected) == (None, 5_585_033_776)
    assert one.problems == []


def test_data_that_is_cut_short_or_missing_is_a_problem(golden):
    folder = golden()
    with Bundle(folder / "model.ckpt") as source:
        tensors = [(name, np.array(source.read(name))) for name in source.tensors]
    for file in folder.glob("model.ckpt*"):
        file.unlink()
    write_bundle(folder / "model.ckpt", tensors, max_shard_bytes=60_000)
    assert inspect(folder).problems == []
    first, second, *_ = sorted(folder.glob("model.ckpt.data-*"))
    with first.open("r+b") as file:
        file.truncate(100)
    second.unlink()
    cut, gone = inspect(folder).problems
    assert "has 100 bytes of" in cut and cut.startswith(first.name) and "cut short" in cut
    assert gone.startswith(f"{second.name} is not here")


def test_vocab_txt_is_counted_by_newlines_alone(golden):
    folder = golden()
    (folder / "vocab.txt").write_bytes("一\u2028\n二\n三".encode())
    one = inspect(folder)
    assert one.vocabulary == (folder / "vocab.txt", 3) and one.problems == []
    (folder / "vocab.txt").write_bytes(b"x\n" * 121)
    assert inspect(folder).problems == ["vocab.txt has 121 words, the embedding 120 rows"]
    (folder / "vocab.txt").write_bytes(b"")
    assert inspect(folder).vocabulary == (folder / "vocab.txt", 0)


def test_what_is_missing_or_unexpected_is_a_problem(golden):
    folder = golden()
    with Bundle(folder / "model.ckpt") as source:
        tensors = {name: np.array(source.read(name)) for name in source.tensors}
    del tensors["newslm/layer02/output/bias"]
    tensors["newslm/extra"] = np.zeros(2, np.float32)
    write_bundle(folder / "model.ckpt", sorted(tensors.items()))
    assert inspect(folder).problems == [
        "tensors of the model that are missing: 1, first newslm/layer02/output/bias",
        "tensors that fit no gpt2_ml: 1, first newslm/extra",
    ]


def test_sums_are_computed_on_request_with_progress(golden):
    folder = golden()
    data = (folder / "model.ckpt.data-00000-of-00001").read_bytes()
    assert inspect(folder).files[0].sha256 is None
    seen = []
    one = inspect(folder, sha256=True, progress=lambda done, total: seen.append((done, total)))
    assert one.files[0].sha256 == hashlib.sha256(data).hexdigest()
    assert seen[-1] == (len(data), len(data))


def test_a_released_file_is_known_by_its_sum_and_a_changed_one_too(golden, monkeypatch):
    folder = golden()
    data = folder / "model.ckpt.data-00000-of-00001"
    right = hashlib.sha256(data.read_bytes()).hexdigest()
    known = next(iter(recognition.RELEASED.values()))
    monkeypatch.setattr(recognition, "RELEASED", {("gpt2_ml", 120, 3, 32): replace(known, sha256=right)})
    assert inspect(folder, sha256=True).problems == []
    raw = bytearray(data.read_bytes())
    raw[50] ^= 1
    data.write_bytes(raw)
    (problem,) = inspect(folder, sha256=True).problems
    assert f"the released file's is {right}" in problem and "damaged on the way, or trained further" in problem


def test_a_sum_of_data_that_is_not_there_is_refused(data, indexes):
    with pytest.raises(MissingFile, match=r"data-00000-of-00001 is not here, so it has no SHA256; leave sha256 out"):
        inspect(indexes / "mega-bert-tok-tf_model.ckpt-100000", sha256=True)


def test_a_folder_lists_checkpoints_and_nothing_else(tmp_path):
    assert find_checkpoints(tmp_path) == [tmp_path]
    for name in ("b.index", "b.data-00000-of-00001", "a.safetensors", "training_args.bin", "optimizer.pt", "vocab.txt"):
        (tmp_path / name).touch()
    assert find_checkpoints(tmp_path) == [tmp_path / "a.safetensors", tmp_path / "b.index"]
    for name in ("model.safetensors.index.json", "model-00001-of-00002.safetensors"):
        (tmp_path / name).touch()
    assert [path.name for path in find_checkpoints(tmp_path)] == [
        "model.safetensors.index.json",
        "a.safetensors",
        "b.index",
    ]
    assert find_checkpoints(tmp_path / "b.index") == [tmp_path / "b.index"]


def test_sharded_safetensors_are_one_checkpoint_of_several_files(golden):
    folder = golden()
    with Bundle(folder / "model.ckpt") as source:
        tensors = [(name, np.array(source.read(name))) for name in source.tensors]
    for file in folder.glob("model.ckpt*"):
        file.unlink()
    write_safetensors(folder / "model.safetensors", tensors, max_shard_bytes=50_000)
    (path,) = find_checkpoints(folder)
    one = inspect(path)
    assert (one.format, one.found.format, one.found.family) == ("safetensors", "tensorflow", "gpt2_ml")
    assert len(one.files) == len(list(folder.glob("*.safetensors"))) > 1
    assert all(file.bytes > 0 for file in one.files)


def test_a_torch_file_is_one_of_format_torch(golden):
    torch = pytest.importorskip("torch")
    folder = golden()
    with Bundle(folder / "model.ckpt") as source:
        tensors = {name: torch.from_numpy(np.array(source.read(name))) for name in source.tensors}
    torch.save(tensors, folder / "pytorch_model.bin")
    assert inspect(folder / "pytorch_model.bin").format == "torch"


def test_a_hanmo_folder_is_read_by_its_hanmo_json(golden, tmp_path):
    import hanmo

    folder = golden()
    hanmo.save(hanmo.load(folder).model, tmp_path / "own")
    one = inspect(tmp_path / "own")
    assert (one.found.family, one.found.format, one.format) == ("gpt2_ml", "hanmo", "safetensors")
    assert (one.found.parameters, one.problems, one.config_file.name) == (31072, [], "hanmo.json")
    (tmp_path / "own" / "hanmo.json").unlink()
    with pytest.raises(MissingFile, match=r"has Hanmo's own names but no hanmo\.json beside it"):
        inspect(tmp_path / "own")


def test_a_damaged_index_is_refused(golden):
    folder = golden()
    raw = bytearray((folder / "model.ckpt.index").read_bytes())
    raw[100] ^= 255
    (folder / "model.ckpt.index").write_bytes(raw)
    with pytest.raises(CorruptFile, match=r"model\.ckpt\.index"):
        inspect(folder / "model.ckpt")


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CheckpointError, match=r"notes\.txt is not a checkpoint that Hanmo can read"):
        inspect(tmp_path / "notes.txt")
