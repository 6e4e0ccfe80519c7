"""Other projects' names are read as the families' own: equal parameters and outputs; the rest stays an error."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import exported

from hanmo.checkpoint.inspect import inspect
from hanmo.checkpoint.open import open_source
from hanmo.checkpoint.renamed import Renamed
from hanmo.checkpoint.safetensors import write_safetensors
from hanmo.checkpoint.tf.bundle import Bundle
from hanmo.checkpoint.tf.writer import write_bundle
from hanmo.config import ModelConfig
from hanmo.errors import CheckpointError, ConfigError, TensorMismatch
from hanmo.families import FAMILIES
from hanmo.loading import load
from hanmo.model_pipeline import ModelPipeline

Tensors = dict[str, torch.Tensor]
IDS = torch.tensor([[5, 17, 3, 99, 42], [1, 2, 3, 4, 5]])
SEGMENTS = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 0, 1]])


@pytest.fixture
def golden(data):
    """Load a golden."""
    return lambda kind: load(data / "goldens" / kind / "model.ckpt")


def in_hugging_face_s_names(
    loaded: ModelPipeline, family: str = "", form: str = "huggingface"
) -> tuple[Tensors, dict[str, Any]]:
    """Give the tensors under the names of a family's torch table, and its config.json."""
    names = FAMILIES[family or loaded.config.family].names(form)
    assert names is not None
    state = dict(loaded.model.named_parameters())
    return exported(state, names.rows(loaded.config)), names.original(loaded.config)


def keep(folder: Path, tensors: Tensors, config: dict[str, Any], name: str = "pytorch_model.bin") -> Path:
    torch.save({name: tensor.detach().clone() for name, tensor in tensors.items()}, folder / name)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


def renamed(tensors: Tensors, *pairs: tuple[str, str]) -> Tensors:
    """Rename by regular expressions, one after the other."""
    new: Tensors = {}
    for name, tensor in tensors.items():
        for pattern, to in pairs:
            name = re.sub(pattern, to, name)
        new[name] = tensor
    return new


def assert_equal(one: ModelPipeline, other: ModelPipeline, tolerance: float = 0.0) -> None:
    """Compare parameters, where tolerance is 0, and outputs on two texts."""
    if not tolerance:
        first, second = dict(one.model.named_parameters()), dict(other.model.named_parameters())
        assert set(first) == set(second)
        for name in first:
            assert torch.equal(first[name], second[name]), name
    segments = SEGMENTS if one.config.main.segments else None
    with torch.inference_mode():
        here, there = one.model(IDS, segments=segments), other.model(IDS, segments=segments)
    for field in ("hidden", "logits", "pooled", "nsp"):
        mine, theirs = getattr(here, field), getattr(there, field)
        assert (mine is None) == (theirs is None), field
        if mine is not None:
            assert mine.abs().max() > 0.1
            assert (mine - theirs).abs().max() <= tolerance, field


def uer_bert(tensors: Tensors, *, old: bool) -> Tensors:
    """Invert scripts/convert_bert_from_uer_to_huggingface.py of dbiir/UER-py, or TencentPretrain's for new names."""
    segments = tensors["bert.embeddings.token_type_embeddings.weight"]
    tensors["bert.embeddings.token_type_embeddings.weight"] = torch.cat((torch.full_like(segments[:1], 7), segments))
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    word, pos, seg = (
        ("word_embedding", "position_embedding", "segment_embedding")
        if old
        else ("word.embedding", "pos.embedding", "seg.embedding")
    )
    mlm, norm, sp = ("mlm_linear", "layer_norm", "nsp_linear") if old else ("mlm.linear", "mlm.layer_norm", "sp.linear")
    return renamed(
        tensors,
        (r"LayerNorm\.weight", "LayerNorm.gamma"),
        (r"LayerNorm\.bias", "LayerNorm.beta"),
        (r"bert\.embeddings\.word_embeddings", f"embedding.{word}"),
        (r"bert\.embeddings\.position_embeddings", f"embedding.{pos}"),
        (r"bert\.embeddings\.token_type_embeddings", f"embedding.{seg}"),
        (r"bert\.embeddings\.LayerNorm", "embedding.layer_norm"),
        (r"bert\.pooler\.dense", f"target.{sp}_1"),
        (r"cls\.seq_relationship", f"target.{sp}_2"),
        (r"cls\.predictions\.transform\.dense", f"target.{mlm}_1"),
        (r"cls\.predictions\.transform\.LayerNorm", f"target.{norm}"),
        (r"cls\.predictions\.decoder", f"target.{mlm}_2"),
        (r"cls\.predictions\.bias", f"target.{mlm}_2.bias"),
        (r"bert\.encoder\.layer", "encoder.transformer"),
        (r"attention\.self\.query", "self_attn.linear_layers.0"),
        (r"attention\.self\.key", "self_attn.linear_layers.1"),
        (r"attention\.self\.value", "self_attn.linear_layers.2"),
        (r"attention\.output\.dense", "self_attn.final_linear"),
        (r"attention\.output\.LayerNorm", "layer_norm_1"),
        (r"intermediate\.dense", "feed_forward.linear_1"),
        (r"output\.dense", "feed_forward.linear_2"),
        (r"output\.LayerNorm", "layer_norm_2"),
    )


UER_BERT = {"hidden_size": 32, "feedforward_size": 64, "layers_num": 3, "heads_num": 4, "max_seq_length": 512}


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("words", ["uer", "bert"])
def test_uer_s_bert_is_read_with_either_config_json(old, words, golden, tmp_path):
    first = golden("bert")
    tensors, config = in_hugging_face_s_names(first)
    if words == "uer":
        config = UER_BERT | {"emb_size": 32, "hidden_act": "gelu_fast", "dropout": 0.1, "embedding": "word_pos_seg"}
    second = load(keep(tmp_path, uer_bert(tensors, old=old), config))
    assert_equal(first, second)
    assert second.config.main.dropout == second.config.main.attention_dropout == 0.1
    assert list(second.report.dropped) == ["cls.predictions.decoder.weight"]
    assert "the names are UER-py's" in inspect(tmp_path).notes
    assert inspect(tmp_path).problems == []


def test_uer_s_text_classifier_keeps_its_pooler(golden, tmp_path):
    first = golden("bert")
    tensors, config = in_hugging_face_s_names(first)
    tensors = {name: tensor for name, tensor in uer_bert(tensors, old=False).items() if "target" not in name}
    pooler = first.model.pooler.dense
    tensors |= {"output_layer_1.weight": pooler.weight, "output_layer_1.bias": pooler.bias}
    tensors |= {"output_layer_2.weight": torch.ones(5, 32), "output_layer_2.bias": torch.ones(5)}
    second = load(keep(tmp_path, tensors, config))
    assert second.report.dropped == dict.fromkeys(("classifier.bias", "classifier.weight"), "a head of fine-tuning")
    with torch.inference_mode():
        assert torch.equal(first.model(IDS).pooled, second.model(IDS).pooled)


@pytest.mark.parametrize("words", ["uer", "gpt2"])
def test_uer_s_gpt_2_is_read_with_either_config_json(words, golden, tmp_path):
    first = golden("gpt2")
    tensors, config = in_hugging_face_s_names(first)
    new: Tensors = {}
    for name, tensor in tensors.items():  # as scripts/convert_gpt2_from_huggingface_to_tencentpretrain.py does
        turned = tensor.T if tensor.ndim > 1 and ".h." in name else tensor
        parts = turned.chunk(3) if "c_attn" in name else [turned]
        for number, part in enumerate(parts):
            new[name.replace("attn.c_attn", f"self_attn.linear_layers.{number}")] = part
    new["target.lm.output_layer.weight"] = tensors["transformer.wte.weight"]
    new = renamed(
        new,
        (r"transformer\.wte", "embedding.word.embedding"),
        (r"transformer\.wpe", "embedding.pos.embedding"),
        (r"transformer\.ln_f\.", "encoder.layer_norm."),
        (r"transformer\.h\.", "encoder.transformer."),
        (r"attn\.c_proj", "self_attn.final_linear"),
        (r"ln_([12])", r"layer_norm_\1"),
        (r"mlp\.c_fc", "feed_forward.linear_1"),
        (r"mlp\.c_proj", "feed_forward.linear_2"),
        (r"(layer_norm\w*)\.weight", r"\1.gamma"),
        (r"(layer_norm\w*)\.bias", r"\1.beta"),
    )
    if words == "uer":
        config = UER_BERT | {"hidden_act": "gelu_fast", "dropout": 0.1}
    second = load(keep(tmp_path, new, config))
    assert replace(second.config, generation={}) == first.config
    assert_equal(first, second)
    new["target.lm.output_layer.weight"] = new["target.lm.output_layer.weight"] + 1
    with pytest.raises(TensorMismatch, match=r"holds lm_head\.weight beside transformer\.wte\.weight"):
        load(keep(tmp_path, new, config))


@pytest.mark.parametrize(
    ("attention", "feed_forward"), [("layerNorm1", "layerNorm2"), ("attnLayerNorm", "ffnLayerNorm")]
)
@pytest.mark.parametrize("kind", ["bert", "nezha"])
def test_bert4torch_s_names_are_read(kind, attention, feed_forward, golden, tmp_path):
    first = golden(kind)
    tensors, config = in_hugging_face_s_names(first)
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"]
    new = renamed(  # as variable_mapping of bert4torch/models/bert.py has them
        tensors,
        (r"^(bert|nezha)\.", ""),
        (r"token_type_embeddings", "segment_embeddings"),
        (r"embeddings\.LayerNorm", "embeddings.layerNorm"),
        (r"encoder\.layer", "encoderLayer"),
        (r"attention\.self\.([qkv])\w+", r"multiHeadAttention.\1"),
        (r"attention\.output\.dense", "multiHeadAttention.o"),
        (r"attention\.output\.LayerNorm", attention),
        (r"intermediate\.dense", "feedForward.intermediateDense"),
        (r"output\.dense", "feedForward.outputDense"),
        (r"output\.LayerNorm", feed_forward),
        (r"pooler\.dense", "pooler"),
        (r"cls\.seq_relationship", "nsp"),
        (r"cls\.predictions\.transform\.dense", "mlmDense"),
        (r"cls\.predictions\.transform\.LayerNorm", "mlmLayerNorm"),
        (r"cls\.predictions\.decoder", "mlmDecoder"),
        (r"cls\.predictions\.bias", "mlmBias"),
    )
    if kind == "nezha":  # a buffer that bert4torch saves
        table = "encoderLayer.0.multiHeadAttention.relative_positions_encoding.position_embeddings"
        new[table] = torch.ones(4, 4, 8)
    assert_equal(first, load(keep(tmp_path, new, config)))
    wrapped = {f"bert.{name}": tensor for name, tensor in new.items()} | {"fc.weight": torch.ones(2, 32)}
    assert_equal(first, load(keep(tmp_path, wrapped, config)))


def factorized(path: Path, folder: Path, **config: object) -> None:
    """Write what modeling.py of brightmart/albert_zh would, for an ALBERT whose embedding is such a product."""
    with Bundle(path) as source:
        tensors = {name: torch.from_numpy(np.array(source.read(name))) for name in source.tensors}
    generator = torch.Generator().manual_seed(0)
    for name in list(tensors):  # this original has no mapping behind the norm, and positions as wide as the network
        if "embedding_hidden_mapping_in" in name:
            del tensors[name]
        elif name.startswith("bert/embeddings/") or name.startswith("cls/predictions/transform/"):
            shape = [32 if size == 16 else size for size in tensors[name].shape]
            tensors[name] = torch.randn(shape, generator=generator)
    tensors["bert/embeddings/word_embeddings"] = torch.randn((120, 16), generator=generator)
    tensors["bert/embeddings/word_embeddings_2"] = torch.randn((16, 32), generator=generator)
    group = "bert/encoder/transformer/group_0/inner_group_0"
    tensors = renamed(
        tensors,
        (f"^{group}/attention_1/", "bert/encoder/layer_shared/attention/"),
        (f"^{group}/LayerNorm/", "bert/encoder/layer_shared/attention/output/LayerNorm/"),
        (f"^{group}/LayerNorm_1/", "bert/encoder/layer_shared/output/LayerNorm/"),
        (f"^{group}/ffn_1/intermediate/output/", "bert/encoder/layer_shared/output/"),
        (f"^{group}/ffn_1/intermediate/", "bert/encoder/layer_shared/intermediate/"),
    )
    tensors["bert/embeddings/word_embeddings_2/adam_m"] = torch.ones(16, 32)
    write_bundle(folder / "model.ckpt", sorted((name, np.asarray(tensor)) for name, tensor in tensors.items()))
    told = json.loads(path.with_name("config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(told | {"embedding_size": 16} | config), "utf-8")


def test_albert_zh_s_own_names_are_read_with_the_product_of_both_embeddings(data, golden, tmp_path):
    factorized(data / "goldens" / "albert" / "model.ckpt", tmp_path)
    loaded = load(tmp_path)
    assert (loaded.config.family, loaded.config.main.embedding_size, loaded.config.main.num_layers) == ("albert", 32, 3)
    assert list(loaded.report.dropped.values()) == ["Adam's state"]
    with Bundle(tmp_path / "model.ckpt") as source:
        shown = {name: torch.from_numpy(np.array(source.read(name))) for name in source.tensors}
    word, project = (shown[f"bert/embeddings/word_embeddings{end}"] for end in ("", "_2"))
    assert torch.allclose(loaded.model.token.weight, word @ project, atol=1e-5)
    whole = golden("albert").model
    for name, parameter in loaded.model.main.blocks.named_parameters():
        assert torch.equal(parameter, whole.main.blocks.get_parameter(name)), name
    # Position, segment and norm come after the mapping, and the MLM head goes through both matrices back.
    with torch.inference_mode():
        hidden = word[IDS] @ project + shown["bert/embeddings/position_embeddings"][: IDS.shape[1]]
        hidden = hidden + shown["bert/embeddings/token_type_embeddings"][SEGMENTS]
        scale, shift = (shown[f"bert/embeddings/LayerNorm/{name}"] for name in ("gamma", "beta"))
        hidden = torch.nn.functional.layer_norm(hidden, (32,), scale, shift, 1e-12)
        embedded = loaded.model.main.embedding(loaded.model.token(IDS), torch.arange(5)[None], SEGMENTS)
        assert torch.allclose(embedded, hidden, atol=1e-5)
        output = loaded.model(IDS, segments=SEGMENTS)
        parts = {name.removeprefix("cls/predictions/"): tensor for name, tensor in shown.items()}
        x = output.hidden @ parts["transform/dense/kernel"] + parts["transform/dense/bias"]
        x = torch.nn.functional.gelu(x, approximate="tanh")
        scale, shift = (parts[f"transform/LayerNorm/{name}"] for name in ("gamma", "beta"))
        x = torch.nn.functional.layer_norm(x, (32,), scale, shift, 1e-12) @ project.T @ word.T + parts["output_bias"]
        assert torch.allclose(output.logits, x, rtol=1e-5, atol=1e-3)  # of sums of 512 products of normal numbers


def test_albert_zh_s_other_order_of_norms_is_refused(data, tmp_path):
    factorized(data / "goldens" / "albert" / "model.ckpt", tmp_path, ln_type="preln")
    with pytest.raises(ConfigError, match=r"ln_type is 'preln' in config\.json; Hanmo reads albert_zh with 'postln'"):
        load(tmp_path)


def test_gpt2_ml_as_gpt2_ml_torch_converts_it(golden, tmp_path):
    first = golden("gpt2_ml_original")
    tensors, config = in_hugging_face_s_names(first, form="republished")
    tensors = renamed(tensors, (r"^transformer\.", ""))  # its convert.py saves the bare network
    tensors["h.0.attn.bias"], tensors["h.0.attn.masked_bias"] = torch.ones(1, 1, 48, 48), torch.tensor(-1e4)
    words = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}
    words |= {"n_positions": "max_position_embeddings", "activation_function": "hidden_act"}
    told = {new: config[old] for new, old in words.items()} | {"vocab_size": 120, "model_type": "gpt2"}
    second = load(keep(tmp_path, tensors, told))
    assert second.config.family == "gpt2_ml"
    assert_equal(first, second)


@pytest.mark.parametrize("prefix", ["nezha.", "bert.", ""])
def test_nezha_in_hugging_face_s_names(prefix, golden, tmp_path):
    first = golden("nezha")
    tensors, config = in_hugging_face_s_names(first)
    assert config["hidden_act"] == "gelu_new" and config["max_relative_position"] == 64
    if prefix == "bert.":  # as lonePatient/NeZha_Chinese_PyTorch configures it
        config |= {"model_type": "bert", "use_relative_position": True}
    new = renamed(tensors, (r"^nezha\.", prefix))
    new[f"{prefix}encoder.layer.0.attention.self.relative_positions_encoding.positions_encoding"] = torch.ones(4, 4, 8)
    second = load(keep(tmp_path, new, config))
    assert second.config.family == "nezha"
    assert_equal(first, second)
    assert set(second.report.dropped.values()) == {"the table of relative positions, which is fixed"}


@pytest.mark.parametrize(("told", "pool"), [({}, "linear"), ({"pooler_activation": "tanh"}, "tanh")])
def test_roformer_sim_s_pooler_in_hugging_face_s_names(told, pool, golden, tmp_path):
    first = golden("roformer")
    first.model.pooler.nsp = None
    tensors, config = in_hugging_face_s_names(first)
    del config["pooler_activation"]
    second = load(keep(tmp_path, tensors, config | told))
    assert second.config.pool == pool and not second.config.nsp
    with torch.inference_mode():
        output = second.model(IDS)
        expected = first.model.pooler.dense(output.hidden[:, 0])
    assert torch.equal(output.pooled, expected if pool == "linear" else expected.tanh())


Rename = Callable[[str], str]
WRAPPED: dict[str, tuple[str, Rename]] = {
    "DataParallel": ("bert", lambda name: f"module.{name}"),
    "Lightning": ("bert", lambda name: f"model.{name}"),
    "compiled in DataParallel": ("bert", lambda name: f"module._orig_mod.{name}"),
    "a bare encoder": ("bert", lambda name: f"encoder.{name.removeprefix('bert.')}"),
    "a wrapper in DataParallel": (
        "bert",
        lambda name: f"module.encoder.{name[5:]}" if name.startswith("bert.") else f"module.{name}",
    ),
    "ALBERT as self.bert": ("albert", lambda name: name.replace("albert.", "bert.", 1)),
    "GPT-2": ("gpt2", lambda name: f"model.{name}"),
    "T5": ("t5_1.1", lambda name: f"module.{name}"),
}


@pytest.mark.parametrize("how", WRAPPED)
def test_modules_around_the_network_are_taken_off_its_names(how, golden, tmp_path):
    kind, rename = WRAPPED[how]
    first = golden(kind)
    tensors, config = in_hugging_face_s_names(first)
    second = load(keep(tmp_path, {rename(name): tensor for name, tensor in tensors.items()}, config))
    assert replace(second.config, generation={}) == first.config
    for name, parameter in second.model.named_parameters():
        assert torch.equal(parameter, first.model.get_parameter(name)), name
    with open_source(tmp_path) as source:
        assert isinstance(source, Renamed) and source.naming is None


def test_a_checkpoint_of_lightning_is_read_without_running_code(golden, tmp_path):
    first = golden("bert")
    tensors, config = in_hugging_face_s_names(first)
    state = {f"model.{name}": tensor.detach() for name, tensor in tensors.items()} | {"model.fc.bias": torch.ones(2)}
    kept = {"state_dict": state, "epoch": 3, "optimizer_states": [{"state": {0: {"step": 1}}}], "callbacks": {}}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    torch.save(kept, tmp_path / "epoch=3.ckpt")
    second = load(tmp_path)
    assert second.report.dropped == {"fc.bias": "a head of fine-tuning"}
    assert_equal(first, second)
    assert inspect(tmp_path / "epoch=3.ckpt").format == "torch"
    torch.save(kept | {"hyper_parameters": ModelConfig}, tmp_path / "epoch=3.ckpt")
    with pytest.raises(CheckpointError, match="is refused"):
        load(tmp_path / "epoch=3.ckpt")


def test_two_networks_in_one_file_are_refused_by_their_names(golden, tmp_path):
    tensors, config = in_hugging_face_s_names(golden("bert"))
    both = {f"{side}.{name}": tensor for side in ("model", "encoder") for name, tensor in tensors.items()}
    with pytest.raises(CheckpointError, match=r"holds 2 networks, under 'encoder\.bert\.' and 'model\.bert\.'"):
        load(keep(tmp_path, both, config))


def test_unknown_modules_around_a_network_are_not_taken_off(golden, tmp_path):
    tensors, config = in_hugging_face_s_names(golden("bert"))
    with pytest.raises(CheckpointError, match="does not have the names of any family"):
        load(keep(tmp_path, {f"teacher.{name}": tensor for name, tensor in tensors.items()}, config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({"embedding.word_embedding.weight": torch.ones(2, 2)}), "expected 1 such tensor"),
        (lambda t: t.update({"embedding.seg.embedding.weight": torch.ones(3)}), r"\[3\]; they cannot make bert\.emb"),
        (lambda t: t.update({"target.other.weight": torch.ones(3)}), r"holds target\.other\.weight, which this model"),
    ],
)
def test_what_does_not_fit_a_project_s_names_is_an_error(change, message, golden, tmp_path):
    tensors, config = in_hugging_face_s_names(golden("bert"))
    tensors = uer_bert(tensors, old=False)
    change(tensors)
    with pytest.raises(CheckpointError, match=message):
        load(keep(tmp_path, tensors, config))


def test_what_keras_numbers_is_refused_with_what_to_do(tmp_path):
    name = "layer_with_weights-0/embeddings/.ATTRIBUTES/VARIABLE_VALUE"
    write_bundle(tmp_path / "model", [(name, np.ones((3, 4), np.float32))])
    with pytest.raises(CheckpointError, match=r"Keras's save_weights.*by bert4keras's save_weights_as_checkpoint"):
        load(tmp_path / "model")


def test_tensors_are_released_and_listed_in_file_order(golden, tmp_path):
    tensors, _ = in_hugging_face_s_names(golden("gpt2"))
    items = sorted((f"model.{name}", tensor.detach().contiguous().numpy()) for name, tensor in tensors.items())
    write_safetensors(tmp_path / "model.safetensors", items)
    with open_source(tmp_path) as source:
        names = {name.removeprefix("transformer."): name for name in tensors}
        assert set(source.in_file_order) == set(source.tensors) == set(names)
        for name in source.in_file_order:
            assert np.array_equal(source.read(name), tensors[names[name]].detach().numpy())
            source.release(name)
