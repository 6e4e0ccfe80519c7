"""Tables of names work both ways: what comes in goes out again, bit for bit."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import exported

from hanmo.checkpoint.names import (
    HOW,
    MADE,
    PIECE,
    check_repeats,
    export_row,
    foreign_shape,
    import_row,
    rows_of,
)
from hanmo.checkpoint.open import open_source
from hanmo.checkpoint.safetensors import write_safetensors
from hanmo.checkpoint.tf.writer import write_bundle
from hanmo.config import ModelConfig
from hanmo.errors import CheckpointError, TensorMismatch
from hanmo.families import FAMILIES, Row
from hanmo.loading import load
from hanmo.model import Model

# Golden → (family to ask for, what its config.json does not say).
GOLDENS: dict[str, tuple[str, dict[str, object]]] = {
    "albert": ("albert", {}),
    "albert_unshared": ("albert_unshared", {}),
    "bert": ("bert", {}),
    "bert_headsize": ("bert", {}),
    "bert_shared_segment": ("bert", {"shared_segment_embeddings": True}),
    "electra": ("electra", {}),
    "gpt": ("gpt", {}),
    "gpt2": ("gpt2", {}),
    "gpt2_ml": ("gpt2_ml", {}),
    "gpt2_ml_original": ("gpt2_ml", {}),
    "gpt_nosegment": ("gpt", {}),
    "gpt_shared_segment": ("gpt", {"shared_segment_embeddings": True}),
    "mt5_1.1": ("mt5.1.1", {}),
    "nezha": ("nezha", {}),
    "roformer": ("roformer", {}),
    "roformer_v2": ("roformer_v2", {}),
    "t5_1.0": ("t5.1.0", {}),
    "t5_1.1": ("t5.1.1", {}),
}


def golden(kind: str, data: Path, folder: Path):
    """Load a golden's checkpoint as its family."""
    family, extra = GOLDENS[kind]
    source = data / "goldens" / kind
    told = json.loads((source / "config.json").read_text("utf-8")) | extra
    (folder / "config.json").write_text(json.dumps(told), "utf-8")
    return load(source / "model.ckpt", config=folder / "config.json", family=family)


def arrays_of(model: Model, family: str) -> dict[str, np.ndarray]:
    names = FAMILIES[family].tensorflow
    return {
        name: tensor.contiguous().numpy()
        for name, tensor in exported(dict(model.named_parameters()), names.rows(model.config)).items()
    }


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


@pytest.mark.parametrize("kind", GOLDENS)
def test_every_tensor_of_a_golden_comes_back_bit_for_bit(kind, data, tmp_path):
    loaded = golden(kind, data, tmp_path)
    out = arrays_of(loaded.model, GOLDENS[kind][0])
    assert loaded.report.dropped == {}
    with open_source(data / "goldens" / kind / "model.ckpt") as source:
        assert set(out) == set(source.tensors)
        for name in source.tensors:
            assert same_bits(out[name], source.read(name)), name


def test_every_golden_with_a_checkpoint_is_a_case(data):
    found = {path.parent.name for path in (data / "goldens").glob("*/model.ckpt.index")}
    assert found == set(GOLDENS)
    assert len(found) == 18


def test_every_family_with_tensorflow_names_is_covered():
    assert {family for family, _ in GOLDENS.values()} | {"gpt2_openai"} == {
        name for name, family in FAMILIES.items() if family.tensorflow is not None
    }


def test_openai_s_layout_comes_back_bit_for_bit(tmp_path):
    hidden_size, num_layers, vocab = 24, 3, 50
    shapes = {
        "model/wte": (vocab, hidden_size),
        "model/wpe": (16, hidden_size),
        "model/ln_f/g": (hidden_size,),
        "model/ln_f/b": (hidden_size,),
    }
    for i in range(num_layers):
        for name, n in (("attn/c_attn", 3), ("attn/c_proj", 1), ("mlp/c_fc", 4)):
            shapes |= {
                f"model/h{i}/{name}/w": (1, hidden_size, n * hidden_size),
                f"model/h{i}/{name}/b": (n * hidden_size,),
            }
        shapes |= {
            f"model/h{i}/mlp/c_proj/w": (1, 4 * hidden_size, hidden_size),
            f"model/h{i}/mlp/c_proj/b": (hidden_size,),
        }
        shapes |= {f"model/h{i}/{norm}/{part}": (hidden_size,) for norm in ("ln_1", "ln_2") for part in "gb"}
    random = np.random.default_rng(0)
    tensors = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    write_bundle(tmp_path / "model.ckpt", tensors.items())
    (tmp_path / "hparams.json").write_text(
        json.dumps({"n_vocab": vocab, "n_ctx": 16, "n_embd": hidden_size, "n_head": 4, "n_layer": num_layers})
    )
    loaded = load(tmp_path / "model.ckpt")
    assert loaded.config.family == "gpt2_openai" and loaded.report.dropped == {}
    out = arrays_of(loaded.model, "gpt2_openai")
    assert set(out) == set(tensors) and len(tensors) == 40
    assert all(same_bits(out[name], tensors[name]) for name in tensors)
    q = loaded.model.main.blocks[1].attention.query.weight
    assert torch.equal(q, torch.from_numpy(tensors["model/h1/attn/c_attn/w"][0, :, :hidden_size]).T)


# how → shapes of ours.
SHAPES = {
    "same": [(5, 3)],
    "transpose": [(5, 3)],
    "copy_same": [(5,), (5,), (5,)],
    "copy_transpose": [(5, 3), (5, 3)],
    "split": [(4,), (4,), (4,)],
    "split_transpose": [(4, 6), (4, 6), (4, 6)],
    "convolution": [(4, 6)],
    "split_convolution": [(4, 6), (4, 6), (4, 6)],
}


@pytest.mark.parametrize("how", HOW)
def test_a_way_and_its_inverse_give_the_same_bits(how):
    shapes = SHAPES[how]
    torch.manual_seed(0)
    ours = [torch.randn(shape) for shape in shapes]
    if how.startswith("copy"):
        ours = [ours[0]] * len(ours)
    row = Row(tuple(f"p{i}" for i in range(len(ours))), "foreign", how)
    foreign = export_row(row, ours)
    assert tuple(foreign.shape) == foreign_shape(row, [tensor.shape for tensor in ours])
    foreign = foreign.contiguous()
    again = import_row(row, foreign)
    assert len(again) == len(ours)
    for one, other in zip(again, ours, strict=True):
        assert torch.equal(one, other)
        assert one.untyped_storage().data_ptr() == foreign.untyped_storage().data_ptr(), "copied on the way in"


def test_every_way_is_tested():
    assert set(SHAPES) == set(HOW) and len(HOW) == 8


def test_blocks_trained_apart_do_not_go_back_into_one(data, tmp_path):
    model = golden("albert_unshared", data, tmp_path).model
    with torch.no_grad():
        model.main.blocks[2].attention.key.bias[3] += 1
    with pytest.raises(CheckpointError, match="blocks that came from one shared block differ now"):
        arrays_of(model, "albert_unshared")


def test_a_parameter_without_a_name_is_not_lost_in_silence(data, tmp_path):
    model = golden("bert", data, tmp_path).model
    rows = [row for row in FAMILIES["bert"].tensorflow.rows(model.config) if "pooler/dense" not in row.theirs]
    with pytest.raises(
        CheckpointError, match=r"pooler\.dense\.weight has no name in that format \(2 such parameters\)"
    ):
        exported(dict(model.named_parameters()), rows)


def test_rows_of_parts_that_are_not_there_are_passed_over():
    rows = [Row(("a", "b"), "both", "split"), Row(("a",), "one"), Row(("c",), "none")]
    assert [row.theirs for row in rows_of({"a": torch.ones(1)}, rows)] == ["one"]


def test_the_table_made_for_roformer_holds_sines_and_then_cosines(data):
    told = json.loads((data / "goldens" / "roformer" / "config.json").read_text("utf-8"))
    config: ModelConfig = FAMILIES["roformer"].tensorflow.config(told)
    table = MADE["sines_then_cosines"](config)
    hidden_size = config.main.head_dim
    assert table.shape == (48, hidden_size)
    assert torch.equal(table[0], torch.cat((torch.zeros(hidden_size // 2), torch.ones(hidden_size // 2))))
    angle = torch.tensor([3 * 10000 ** (-2 * i / hidden_size) for i in range(hidden_size // 2)], dtype=torch.float64)
    torch.testing.assert_close(table[3].double(), torch.cat((angle.sin(), angle.cos())), rtol=0, atol=1e-7)
    assert {how for family in FAMILIES.values() if family.huggingface for how in family.huggingface.made.values()} == (
        set(MADE)
    )


@pytest.fixture
def repeated(tmp_path):
    """Write a file that holds one tensor of several pieces twice, with one number changed at a place, or none."""

    def make(place: int | None):
        one = np.arange(PIECE // 2, dtype=np.float32).reshape(2, -1)  # two pieces
        other = one.copy()
        if place is not None:
            other.flat[place] += 1
        return write_safetensors(tmp_path / "model.safetensors", [("head", other), ("embedding", one)])

    return make


def test_a_repeat_with_the_same_bits_passes(repeated):
    with open_source(repeated(None)) as source:
        check_repeats(source, {"head": "embedding", "not there": "embedding", "embedding": "not there"})


@pytest.mark.parametrize("place", [0, PIECE // 4 - 1, PIECE // 4, -1])
def test_a_repeat_with_one_other_number_is_refused(repeated, place):
    with open_source(repeated(place)) as source, pytest.raises(TensorMismatch, match="holds head beside embedding"):
        check_repeats(source, {"head": "embedding"})


def test_a_repeat_of_another_shape_is_refused(tmp_path):
    path = write_safetensors(tmp_path / "model.safetensors", [("head", np.ones(3)), ("embedding", np.ones((3, 1)))])
    with open_source(path) as source, pytest.raises(TensorMismatch, match="but they differ"):
        check_repeats(source, {"head": "embedding"})
