"""Every form loads again as the same model; nothing is left half written; what a form cannot say is refused or told."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hanmo.checkpoint import save as save_module
from hanmo.checkpoint.open import open_source
from hanmo.checkpoint.save import save
from hanmo.errors import CheckpointError, ConfigError, MissingFile
from hanmo.loading import load
from hanmo.model import Model

KINDS = {
    "albert": "albert",
    "albert_unshared": "albert_unshared",
    "bert": "bert",
    "bert_headsize": "bert",
    "electra": "electra",
    "gpt": "gpt",
    "gpt2": "gpt2",
    "gpt2_ml": "gpt2_ml",
    "gpt2_ml_original": "gpt2_ml",
    "gpt_nosegment": "gpt",
    "mt5_1.1": "mt5.1.1",
    "nezha": "nezha",
    "roformer": "roformer",
    "roformer_v2": "roformer_v2",
    "t5_1.0": "t5.1.0",
    "t5_1.1": "t5.1.1",
}


@pytest.fixture
def golden(data):
    """Load a golden as its family."""
    return lambda kind: load(data / "goldens" / kind / "model.ckpt", family=KINDS[kind])


def assert_same(one: Model, other: Model) -> None:
    first, second = dict(one.named_parameters()), dict(other.named_parameters())
    assert set(first) == set(second)
    for name in first:
        assert first[name].dtype == second[name].dtype, name
        assert torch.equal(first[name], second[name]), name


def with_stack(model: Model, **changes) -> Model:
    """Say another thing of a model's stack than it is; its parameters stay."""
    side = "decoder" if model.config.decoder else "encoder"
    model.config = replace(model.config, **{side: replace(model.config.main, **changes)})
    return model


def everything_under(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_our_own_loads_as_the_same_model(kind, golden, tmp_path):
    first = golden(kind)
    saved = save(first.model, tmp_path / "saved")
    assert everything_under(tmp_path) == ["saved", "saved/hanmo.json", "saved/model.safetensors"]
    second = load(saved.path)
    assert second.config == first.config
    assert_same(first.model, second.model)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensorflow_checkpoint_holds_the_original_s_bytes_and_loads_again(kind, golden, data, tmp_path):
    first = golden(kind)
    saved = save(first.model, tmp_path / "model.ckpt", form="tensorflow")
    assert saved.notes == []
    assert everything_under(tmp_path) == ["config.json", "model.ckpt.data-00000-of-00001", "model.ckpt.index"]
    with open_source(saved.path) as written, open_source(data / "goldens" / kind / "model.ckpt") as original:
        assert set(written.tensors) == set(original.tensors)
        for name in written.tensors:
            assert written.tensors[name].shape == original.tensors[name].shape
            assert written.read(name).tobytes() == original.read(name).tobytes(), name
    second = load(saved.path, family=KINDS[kind])
    assert second.config == first.config
    assert_same(first.model, second.model)


@pytest.mark.parametrize("kind", ["albert", "bert", "electra", "gpt2", "mt5_1.1", "nezha", "t5_1.0", "t5_1.1"])
def test_a_hugging_face_folder_loads_as_the_same_model(kind, golden, tmp_path):
    first = golden(kind)
    saved = save(first.model, tmp_path / "saved", form="huggingface")
    assert saved.notes == []
    second = load(saved.path)
    assert second.config == replace(first.config, generation=second.config.generation)
    assert_same(first.model, second.model)


def test_roformer_goes_to_hugging_face_without_the_head_that_it_lacks_there(golden, tmp_path):
    model = golden("roformer").model
    with pytest.raises(CheckpointError, match=r"pooler\.nsp\.weight has no name in that format \(2 such"):
        save(model, tmp_path / "saved", form="huggingface")
    model.pooler.nsp, model.config = None, replace(model.config, nsp=False)
    saved = save(model, tmp_path / "saved", form="huggingface")
    assert saved.notes == [
        "encoder.embedding_norm_eps is 1e-12 and becomes 1e-07, for that form has one eps for all norms",
        "head_norm_eps is 1e-12 and becomes 1e-07, for that form has one eps for all norms",
    ]
    assert_same(model, load(saved.path).model)


def test_a_form_that_a_family_does_not_have_is_refused_with_those_it_has(golden, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"roberta has no form .tensorflow.; its forms are safetensors, huggingface$"
    ):
        save(golden("bert").model, tmp_path / "saved", form="tensorflow", family="roberta")
    assert everything_under(tmp_path) == []


def test_gpt_goes_to_hugging_face_unless_it_has_what_is_not_there(golden, tmp_path):
    with pytest.raises(CheckpointError, match="feed_forward is 64; OpenAIGPT has 4 × n_embd, 128"):
        save(golden("gpt").model, tmp_path / "saved", form="huggingface")
    assert everything_under(tmp_path) == []


@pytest.mark.parametrize("form", ["tensorflow", "huggingface"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hierarchical": 0.4},
            r"encoder\.hierarchical is 0\.4, but that form would make it 0\.0; save as safetensors",
        ),
        ({"score_residual": "previous"}, r"encoder\.score_residual is 'previous'"),
        ({"norm_eps": 1e-3}, r"eps is (0\.001|1e-12), but that form would make it (0\.001|1e-12)"),
        ({"score_scale": 1.0}, r"encoder\.score_scale is 1\.0, but that form would make it None"),
    ],
)
def test_what_a_form_cannot_say_is_refused(form, changes, message, golden, tmp_path):
    model = with_stack(golden("bert").model, **changes)
    with pytest.raises(CheckpointError, match=message):
        save(model, tmp_path / "saved", form=form)
    assert everything_under(tmp_path) == []
    assert load(save(model, tmp_path / "saved").path).config == model.config


def test_head_sizes_that_hugging_face_derives_otherwise_are_refused(golden, tmp_path):
    with pytest.raises(CheckpointError, match=r"encoder\.head_dim is \d+, but that form would make it 8"):
        save(golden("bert_headsize").model, tmp_path / "saved", form="huggingface")
    model = with_stack(golden("bert").model, num_heads=5, head_dim=7, key_dim=7)
    with pytest.raises(CheckpointError, match="cannot hold this model: hidden_size is 32, num_attention_heads is 5"):
        save(model, tmp_path / "saved", form="huggingface")


def test_a_t5_decoder_alone_is_refused_by_hugging_face(golden, tmp_path):
    model = golden("t5_1.1").model
    model.encoder, model.config = None, replace(model.config, encoder=None)
    with pytest.raises(CheckpointError, match="form 'huggingface' cannot hold this model: encoder is missing"):
        save(model, tmp_path / "saved", form="huggingface")


def test_a_mask_that_a_form_does_not_say_is_noted(data, tmp_path):
    model = load(data / "goldens" / "bert" / "model.ckpt", mask="prefix").model
    saved = save(model, tmp_path / "model.ckpt", form="tensorflow")
    assert saved.notes == ["encoder.mask is 'prefix', which that form does not say; load it again with mask='prefix'"]
    assert load(saved.path, mask="prefix").config == model.config


def test_a_model_without_heads_is_written_as_such(golden, tmp_path):
    model = golden("bert").model
    model.output = model.pooler = None
    model.config = replace(model.config, output="none", pool="none", nsp=False)
    saved = save(model, tmp_path / "saved", form="huggingface")
    assert json.loads((saved.path / "config.json").read_text())["architectures"] == ["BertModel"]
    assert load(saved.path).config == replace(model.config, generation={"pad_token_id": 0})


@pytest.mark.parametrize("form", ["safetensors", "tensorflow", "huggingface"])
def test_dtype_and_shards(form, golden, tmp_path):
    model = golden("gpt2").model
    saved = save(model, tmp_path / "s" / "model", form=form, dtype=torch.bfloat16, max_shard_bytes=10_000)
    data = [path for path in (tmp_path / "s").rglob("model*") if ".data-" in path.name or "-of-" in path.name]
    assert len(data) > 3
    # Shards of TensorFlow begin anew once they hold so much; those of safetensors never hold more than asked for.
    assert max(path.stat().st_size for path in data) < 20_000
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert 2 * parameters <= sum(path.stat().st_size for path in data) < 2.3 * parameters
    again = load(saved.path).model
    for (name, one), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert other.dtype == torch.bfloat16, name
        assert torch.equal(one.to(torch.bfloat16), other), name
    assert_same(again, load(save(again, tmp_path / "again", form=form).path).model)
    if form == "huggingface":
        assert json.loads((saved.path / "config.json").read_text())["dtype"] == "bfloat16"


def test_parts_of_several_dtypes_need_one_to_be_joined(golden, tmp_path):
    model = golden("gpt2").model
    model.main.blocks[0].attention.key.bfloat16()
    with pytest.raises(CheckpointError, match="of bfloat16 and float32; pass the dtype to save them in"):
        save(model, tmp_path / "saved", form="huggingface")
    assert everything_under(tmp_path) == []
    assert_same(model, load(save(model, tmp_path / "saved").path).model)


class Interrupt(BaseException):
    """What a person's Ctrl-C is like."""


@pytest.mark.parametrize("form", ["safetensors", "tensorflow", "huggingface"])
@pytest.mark.parametrize("there", [False, True])
def test_interrupted_it_leaves_nothing_half_written(form, there, golden, tmp_path):
    model, path = golden("gpt2").model, tmp_path / "s" / "model"
    if there:
        save(model, path, form=form)
    before = {
        name: (tmp_path / name).read_bytes() for name in everything_under(tmp_path) if (tmp_path / name).is_file()
    }
    pieces = []

    def stop(count: int) -> None:
        pieces.append(count)
        if len(pieces) == 20:
            raise Interrupt

    with torch.no_grad():
        model.token.weight.zero_()
    with pytest.raises(Interrupt):
        save(model, path, form=form, overwrite=True, progress=stop)
    after = {name: (tmp_path / name).read_bytes() for name in everything_under(tmp_path) if (tmp_path / name).is_file()}
    assert after == before


def test_progress_is_told_of_every_byte(golden, tmp_path):
    model, pieces = golden("gpt2_ml").model, []
    save(model, tmp_path / "saved", progress=pieces.append)
    assert sum(pieces) == 4 * sum(parameter.numel() for parameter in model.parameters())


def test_pieces_of_any_size_give_the_same_file(golden, tmp_path, monkeypatch):
    model, pieces = golden("gpt2").model, []
    whole = save(model, tmp_path / "whole", form="huggingface").path / "model.safetensors"
    monkeypatch.setattr(save_module, "PIECE", 1000)
    parts = save(model, tmp_path / "parts", form="huggingface", progress=pieces.append).path / "model.safetensors"
    assert max(pieces) <= 1000 and len(pieces) > 100
    assert whole.read_bytes() == parts.read_bytes()


@pytest.mark.parametrize("form", ["safetensors", "tensorflow", "huggingface"])
def test_what_is_there_is_replaced_only_when_told(form, golden, tmp_path):
    first, second = golden("gpt2").model, golden("gpt2").model
    with torch.no_grad():
        second.token.weight.add_(1)
    path = tmp_path / "s" / "model"
    save(first, path, form=form, max_shard_bytes=10_000)
    with pytest.raises(CheckpointError, match=r"(exists|not empty).*overwrite=True"):
        save(second, path, form=form)
    assert_same(load(path).model, first)
    save(second, path, form=form, overwrite=True)
    assert_same(load(path).model, second)
    assert len([name for name in everything_under(tmp_path) if "-of-" in name]) == (form == "tensorflow")


def test_a_model_may_be_saved_over_the_file_it_is_a_view_of(golden, tmp_path):
    save(golden("bert").model, tmp_path / "saved")
    model = load(tmp_path / "saved").model
    with torch.no_grad():
        model.token.weight.add_(1)
    save(model, tmp_path / "saved", overwrite=True)
    assert_same(load(tmp_path / "saved").model, model)
    assert_same(load(tmp_path / "saved").model.main, golden("bert").model.main)


def test_tokenizer_files_come_along(golden, tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n", "utf-8")
    model = golden("bert").model
    for form in ("safetensors", "tensorflow", "huggingface"):
        path = tmp_path / form / "model"
        save(model, path, form=form, tokenizer=[tmp_path / "vocab.txt"])
        folder = path.parent if form == "tensorflow" else path
        assert (folder / "vocab.txt").read_text("utf-8") == "[PAD]\n[UNK]\n"
    with pytest.raises(MissingFile, match=r"no tokenizer file at .*spiece\.model"):
        save(model, tmp_path / "other", tokenizer=[tmp_path / "spiece.model"])
    with pytest.raises(CheckpointError, match=r"vocab\.txt exists; give a prefix in another folder"):
        save(model, tmp_path / "model", form="tensorflow", tokenizer=[tmp_path / "tensorflow" / "vocab.txt"])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be copied along"):
        save(model, tmp_path / "other", form="huggingface", tokenizer=[tmp_path / "config.json"])
    assert not (tmp_path / "other").exists()


def test_unknown_words_and_empty_models_are_refused(golden, tmp_path):
    model = golden("gpt2").model
    with pytest.raises(ConfigError, match="form is 'onnx'; known are safetensors, tensorflow, huggingface"):
        save(model, tmp_path / "saved", form="onnx")
    with pytest.raises(ConfigError, match="family is 'gpt3'; known are bert"):
        save(model, tmp_path / "saved", form="tensorflow", family="gpt3")
    with pytest.raises(CheckpointError, match="has no name in that format"):
        save(model, tmp_path / "saved", form="tensorflow", family="bert")
    with torch.device("meta"):
        empty = Model(model.config)
    with pytest.raises(CheckpointError, match=r"token\.weight is not filled; load or initialize"):
        save(empty, tmp_path / "saved")
    assert everything_under(tmp_path) == []


_MEASURE = """
import sys, torch
from pathlib import Path
from hanmo.families import FAMILIES
from hanmo.model import Model
from hanmo.checkpoint.save import save

sizes = {"vocab_size": 4000, "n_positions": 64, "n_embd": 1024, "n_layer": 4, "n_head": 16}
with torch.device("meta"):
    model = Model(FAMILIES["gpt2"].huggingface.config(sizes))
model.to_empty(device="cpu")
for parameter in model.parameters():
    parameter.data.fill_(1)
weights = 4 * sum(parameter.numel() for parameter in model.parameters())

def resident(word):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(word))

Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
save(model, sys.argv[1], form="huggingface")
print(weights, resident("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are read from Linux's /proc")
def test_the_weights_are_never_in_memory_twice(tmp_path):
    command = [sys.executable, "-c", _MEASURE, str(tmp_path / "saved")]
    weights, more = map(int, subprocess.run(command, capture_output=True, check=True, text=True).stdout.split())
    assert weights > 200_000_000
    # The largest tensor is three joined matrices of 12.6 MB together, and a piece of it turned.
    assert more < 64 << 20
