"""Adapters start as nothing, learn alone, merge into the weights and come back from their file."""

import json
import struct

import pytest
import torch
from safetensors.torch import save_file

import hanmo
from hanmo.errors import CheckpointError, ConfigError, CorruptFile, MissingFile, TensorMismatch
from hanmo.families import FAMILIES
from hanmo.model import Model
from hanmo.training.lora import AdaptedLinear, add_lora, load_lora, merge_lora, save_lora
from hanmo.training.loss import next_token_loss

IDS = torch.randint(1, 50, (2, 9), generator=torch.Generator().manual_seed(0))


def small(dtype: torch.dtype = torch.float32, **changes) -> Model:
    data = {"vocab_size": 50, "num_hidden_layers": 2, "hidden_size": 16, "max_position_embeddings": 12} | changes
    data |= {"num_attention_heads": 2, "intermediate_size": 64, "hidden_act": "gelu", "hidden_dropout_prob": 0.0}
    config = FAMILIES["gpt2_ml"].tensorflow.config(data)
    return Model(config).initialize(0).to(dtype)


def trained(model: Model, **options) -> Model:
    """Adapters after a few steps, and only they."""
    add_lora(model, **options)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.05)
    for _ in range(10):
        next_token_loss(model, IDS).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_with_new_adapters_computes_what_it_did(dtype):
    model = small(dtype)
    before = model(IDS).logits
    names = add_lora(model, 4)
    assert len(names) == 2 * 6
    assert torch.equal(model(IDS).logits, before)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_reach_the_adapters_and_nothing_else(dtype, recompute):
    model = small(dtype)
    model.main.recompute = recompute
    add_lora(model, 4)
    for module in model.modules():
        if isinstance(module, AdaptedLinear):
            torch.nn.init.ones_(module.up)
    next_token_loss(model, IDS).backward()
    found = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert found == {name for name, _ in model.named_parameters() if name.endswith((".down", ".up"))}
    assert len(found) == 24
    assert {p.dtype for name, p in model.named_parameters() if name in found} == {torch.float32}


def test_training_changes_adapters_and_lowers_the_loss_with_weights_untouched():
    model = small()
    before = {name: p.clone() for name, p in model.named_parameters()}
    first = next_token_loss(model, IDS).item()
    trained(model, rank=4)
    assert next_token_loss(model, IDS).item() < first - 0.05
    kept = dict(model.named_parameters())
    assert all(torch.equal(kept[name], tensor) for name, tensor in before.items())


def test_merged_weights_compute_what_adapters_did_and_save_as_an_ordinary_folder(tmp_path):
    model = trained(small(), rank=4)
    logits = model(IDS).logits
    merge_lora(model)
    torch.testing.assert_close(model(IDS).logits, logits, rtol=0, atol=1e-6)
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in small().named_parameters()}
    assert all(p.requires_grad for p in model.parameters())
    assert not any(isinstance(module, AdaptedLinear) for module in model.modules())
    hanmo.save(model, tmp_path / "folder")
    assert torch.equal(hanmo.load(tmp_path / "folder").model(IDS).logits, model(IDS).logits)


def test_merging_into_bfloat16_rounds_the_exact_sum_once():
    model = trained(small(torch.bfloat16), rank=4)
    layer = model.main.blocks[0].attention.query
    exact = layer.weight.double() + layer.scale * layer.up.double() @ layer.down.double()
    merge_lora(model)
    found = model.main.blocks[0].attention.query.weight
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-6)
    assert (found == exact.bfloat16()).float().mean() > 0.99


def test_adapters_come_back_from_their_file_and_learn_on(tmp_path):
    model = trained(small(), rank=4, alpha=12, dropout=0.1, targets=["attention.query", "decoder.blocks.1"]).eval()
    path = save_lora(model, tmp_path / "adapters.safetensors")
    again = small().eval()
    names = load_lora(again, path)
    assert len(names) == 1 + 6
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    layer = again.main.blocks[1].attention.query
    assert (layer.rank, layer.scale, layer.dropout) == (4, 3.0, 0.1)
    assert sum(p.requires_grad for p in again.parameters()) == 2 * 7
    assert path.stat().st_size < 20_000


def test_adapters_stand_beside_cross_attention_and_gates():
    data = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    config = FAMILIES["t5.1.1"].tensorflow.config(data | {"intermediate_size": 32})
    model = Model(config).initialize(0)
    names = add_lora(model, 2)
    assert len(names) == 2 * (4 + 3) + 2 * (4 + 4 + 3)
    assert {name.rpartition(".")[2] for name in names} == {"query", "key", "value", "output", "input", "gate"}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rank": 0}, "rank=0"),
        ({"alpha": 0.0}, "alpha=0.0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        (
            {"targets": ["attention.querry"]},
            "'attention.querry' fits no linear layer.*decoder.blocks.0.attention.query",
        ),
    ],
)
def test_options_that_cannot_be_are_refused_with_the_model_as_it_was(options, match):
    model = small()
    with pytest.raises(ConfigError, match=match):
        add_lora(model, **options)
    assert all(p.requires_grad for p in model.parameters())
    assert not any(isinstance(module, AdaptedLinear) for module in model.modules())


def test_adapters_are_neither_added_twice_nor_merged_or_saved_where_there_are_none(tmp_path):
    model = small()
    with pytest.raises(ConfigError, match="has no adapters"):
        merge_lora(model)
    with pytest.raises(ConfigError, match="has no adapters"):
        save_lora(model, tmp_path / "x.safetensors")
    add_lora(model)
    with pytest.raises(ConfigError, match="has adapters"):
        add_lora(model)


def test_a_file_of_another_network_or_of_no_adapters_is_refused(tmp_path):
    path = save_lora(trained(small(), rank=4), tmp_path / "adapters.safetensors")
    wide = small(hidden_size=32)
    with pytest.raises(TensorMismatch, match=r"attention.key.down is \(4, 16\), expected \(4, 32\)"):
        load_lora(wide, path)
    with pytest.raises(TensorMismatch, match=r"decoder.blocks.1.attention.key.down is \(4, 16\), expected \(4, 0\)"):
        load_lora(small(num_hidden_layers=1), path)
    assert all(p.requires_grad for p in wide.parameters())
    with pytest.raises(MissingFile, match=r"nothing\.safetensors"):
        load_lora(small(), tmp_path / "nothing.safetensors")
    save_file({"x": torch.zeros(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match=r"plain\.safetensors is no file of adapters: its metadata lacks.*'rank'"):
        load_lora(small(), tmp_path / "plain.safetensors")
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    with pytest.raises(CorruptFile, match=r"adapters\.safetensors"):
        load_lora(small(), path)


@pytest.mark.parametrize(("key", "value"), [("rank", "four"), ("targets", "[")])
def test_garbled_metadata_is_refused(tmp_path, key, value):
    path = save_lora(trained(small(), rank=4), tmp_path / "adapters.safetensors")
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"][key] = value
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    with pytest.raises(CheckpointError, match="lacks or garbles"):
        load_lora(small(), path)
