"""A ready configuration reads a file in any names; parts may be left out whole, and nothing else is."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from hanmo.checkpoint.safetensors import Safetensors, write_safetensors
from hanmo.checkpoint.save import save
from hanmo.checkpoint.tf.bundle import Bundle
from hanmo.checkpoint.tf.writer import write_bundle
from hanmo.config import ModelConfig
from hanmo.errors import ConfigError, TensorMismatch
from hanmo.loading import load


@pytest.fixture
def folder(data, tmp_path):
    """Write a golden's model as a folder without its configuration, which comes beside the path."""

    def make(kind: str, form: str):
        loaded = load(data / "goldens" / kind)
        path = save(loaded.model, tmp_path / "saved" / "model", form=form).path
        for name in ("config.json", "hanmo.json"):
            for place in (path, path.parent):
                (place / name).unlink(missing_ok=True)
        return path, loaded.config

    return make


def same_weights(path, config: ModelConfig, kind: str, data) -> None:
    ours, golden = load(path, config=config).model.state_dict(), load(data / "goldens" / kind).model.state_dict()
    assert 0 < len(ours) <= len(golden)
    for name, tensor in ours.items():
        assert torch.equal(tensor, golden[name]), name


@pytest.mark.parametrize("kind", ["bert", "t5_1.1", "electra", "gpt2"])
@pytest.mark.parametrize("form", ["safetensors", "tensorflow", "huggingface"])
def test_a_ready_configuration_reads_any_names(folder, data, kind, form):
    path, config = folder(kind, form)
    same_weights(path, config, kind, data)


def test_a_ready_configuration_reads_names_without_their_prefix(folder, data):
    path, config = folder("bert", "huggingface")
    with Safetensors(path / "model.safetensors") as source:
        items = [(name.removeprefix("bert."), np.array(source.read(name))) for name in source.tensors]
    bare = path.parent / "bare.safetensors"
    write_safetensors(bare, [item for item in items if not item[0].startswith("cls.")])
    same_weights(bare, replace(config, output="none", nsp=False), "bert", data)


@pytest.mark.parametrize("form", ["safetensors", "tensorflow", "huggingface"])
def test_heads_and_whole_stacks_may_be_left_out(folder, data, form):
    path, config = folder("bert", form)
    same_weights(path, replace(config, output="none", pool="none", nsp=False), "bert", data)
    same_weights(path, replace(config, nsp=False), "bert", data)


@pytest.mark.parametrize("form", ["tensorflow", "huggingface"])
def test_the_encoder_of_a_t5_loads_alone(folder, data, form):
    path, config = folder("t5_1.1", form)
    same_weights(path, replace(config, decoder=None, output="none"), "t5_1.1", data)
    report = load(path, config=replace(config, decoder=None, output="none")).report
    assert set(report.dropped.values()) == {"a part that this model was built without"}


def test_the_decoder_of_a_t5_loads_alone(folder, data):
    path, config = folder("t5_1.1", "tensorflow")
    same_weights(path, replace(config, encoder=None), "t5_1.1", data)


@pytest.mark.parametrize("form", ["tensorflow", "huggingface"])
@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"bias": False}, "dense.bias"),
        ({"embedding_norm": False}, "embeddings.LayerNorm"),
        ({"num_layers": 2}, "layer.2"),
    ],
)
def test_nothing_inside_a_stack_is_left_out(folder, form, changes, name):
    path, config = folder("bert", form)
    with pytest.raises(TensorMismatch, match=rf"holds .*{name}.*, which this model has no place for"):
        load(path, config=replace(config, encoder=replace(config.encoder, **changes)))


def test_a_parameter_that_the_names_do_not_know_is_refused(folder):
    path, config = folder("gpt2", "tensorflow")
    with pytest.raises(TensorMismatch, match=r"the model has decoder\.embedding\.segment\.weight, which checkpoints"):
        load(path, config=replace(config, decoder=replace(config.decoder, segments=2)))


def test_our_own_names_are_held_against_the_configuration(folder):
    path, config = folder("bert", "safetensors")
    with pytest.raises(ConfigError, match="vocab_size is 100; the checkpoint holds 120; give the configuration"):
        load(path, config=replace(config, vocab_size=100))
    encoder = replace(config.encoder, segments=0)
    with pytest.raises(
        TensorMismatch, match=r"holds encoder.embedding.segment.weight, which this model has no place for"
    ):
        load(path, config=replace(config, encoder=encoder))
    with Safetensors(path / "model.safetensors") as source:
        items = [(name, source.read(name)) for name in source.tensors if name != "output.bias"]
        write_safetensors(path.parent / "cut.safetensors", items)
    with pytest.raises(TensorMismatch, match=r"cut.safetensors lacks output.bias, which this model needs"):
        load(path.parent / "cut.safetensors", config=config)


def test_an_unknown_family_in_a_configuration_is_refused(folder):
    path, config = folder("bert", "tensorflow")
    with pytest.raises(ConfigError, match="family is 'llama'; known are bert"):
        load(path, config=replace(config, family="llama"))


def test_a_checkpoint_of_several_shards_or_off_its_alignment_loads_the_same(data, tmp_path):
    golden = data / "goldens" / "gpt2_ml_original"
    expected = load(golden).model.state_dict()
    (tmp_path / "config.json").write_bytes((golden / "config.json").read_bytes())
    with Bundle(golden / "model.ckpt") as source:
        items = [(name, source.read(name)) for name in source.in_file_order]
        write_bundle(tmp_path / "sharded.ckpt", items, max_shard_bytes=30_000)
        whole = write_safetensors(tmp_path / "whole.safetensors", items).read_bytes()
    header = int.from_bytes(whole[:8], "little")
    odd = (header + 1).to_bytes(8, "little") + whole[8 : 8 + header] + b" " + whole[8 + header :]
    (tmp_path / "odd.safetensors").write_bytes(odd)
    assert len(list(tmp_path.glob("sharded.ckpt.data-*"))) > 2
    for name in ("sharded.ckpt", "odd.safetensors"):
        for dtype in (torch.float32, torch.bfloat16):
            found = load(tmp_path / name, dtype=dtype).model.state_dict()
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name].to(dtype)) for name in found)


def test_loading_never_imports_torch_s_compiler(data, tmp_path):
    # It takes longer than reading a gigabyte, and making an embedding on "meta" would import it.
    face = save(load(data / "goldens" / "gpt2").model, tmp_path / "face", form="huggingface").path
    code = (
        "import sys, hanmo.loading; [hanmo.loading.load(path) for path in sys.argv[1:]];"
        "print('torch._dynamo' in sys.modules)"
    )
    command = [sys.executable, "-c", code, data / "goldens" / "t5_1.1", data / "goldens" / "bert", face]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "False\n"


def test_a_family_that_the_configuration_contradicts_is_refused():
    for how in ({}, {"config": load().config}):
        with pytest.raises(ConfigError, match="family is 'foo', the configuration's is 'gpt2_ml'; leave family out"):
            load(family="foo", **how)
    assert load(family="gpt2_ml").config.family == "gpt2_ml"
