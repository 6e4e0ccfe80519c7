"""A checkpoint is known by its names and shapes, and config.json is measured by them."""

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hanmo.checkpoint.open import find_config, read_config
from hanmo.checkpoint.recognise import RELEASED, recognise, recognise_own, rename
from hanmo.checkpoint.source import TensorInfo, storage_bytes
from hanmo.checkpoint.tf.bundle import Bundle
from hanmo.errors import CheckpointError, ConfigError
from hanmo.families import FAMILIES
from hanmo.files import read_json

KINDS = {
    "albert": "albert",
    "albert_unshared": "albert",
    "bert": "bert",
    "bert_headsize": "bert",
    "electra": "electra",
    "gpt": "gpt",
    "gpt2": "gpt2",
    "gpt2_ml": "gpt2_ml",
    "gpt2_ml_original": "gpt2_ml",
    "gpt_nosegment": "gpt",
    "gpt_shared_segment": "gpt",
    "mt5_1.1": "mt5.1.1",
    "nezha": "nezha",
    "roformer": "roformer",
    "roformer_v2": "roformer_v2",
    "t5_1.0": "t5.1.0",
    "t5_1.1": "t5.1.1",
}
INDEXES = {
    "mega-bert-tok-tf_model.ckpt-100000": (21130, 1_393_944_576, "15 GB corpus"),
    "mega-clue-tok-tf_model.ckpt-220000": (8021, 1_373_809_152, "30 GB corpus"),
}


@dataclass
class Listed:
    """A source that can only list."""

    shapes: dict[str, tuple[int, ...]]
    path: Path = Path("somewhere/model.ckpt")
    tensors: dict[str, TensorInfo] = field(init=False)

    def __post_init__(self):
        self.tensors = {
            name: TensorInfo(name, "float32", shape, storage_bytes("float32", shape))
            for name, shape in self.shapes.items()
        }


def listed(path: Path, **changes) -> Listed:
    with Bundle(path) as source:
        shapes = {name: info.shape for name, info in source.tensors.items()} | changes
    return Listed({name: shape for name, shape in shapes.items() if shape is not None}, path)


@pytest.mark.parametrize("name", INDEXES)
def test_the_released_indexes_are_named_without_a_config(name, indexes):
    rows, parameters, corpus = INDEXES[name]
    with Bundle(indexes / name) as source:
        found = recognise(source)
    assert (found.family, found.format, found.candidates) == ("gpt2_ml", "tensorflow", ["gpt2_ml"])
    assert (found.sizes["vocab_size"], found.parameters, found.dtype) == (rows, parameters, "float32")
    assert corpus in found.released
    assert found.left == {"AdaFactor's state": 1062, "the training step": 1}
    assert (found.own, found.missing, found.unexpected, found.mismatches) == (772, [], [], [])
    stack = found.config.main
    assert (stack.num_layers, stack.hidden_size, stack.num_heads, stack.feed_forward, stack.positions) == (
        48,
        1536,
        24,
        6144,
        1024,
    )
    assert (stack.dropout, found.config.initializer) == (0.1, 0.014142135623731)
    assert found.derived and found.notes == []  # the heads of a released model are known, not guessed


@pytest.mark.parametrize("name", INDEXES)
def test_the_released_indexes_fit_the_republished_config(name, indexes):
    folder = indexes
    config = read_json(folder / (name.rpartition("_")[0] + "_mega.json"))
    with Bundle(folder / name) as source:
        found = recognise(source, config=config)
    assert (found.config.main.num_heads, found.config.vocab_size) == (24, INDEXES[name][0])
    assert (found.mismatches, found.fixes, found.derived) == ([], {}, False)


def test_the_published_mega_json_does_not_fit_the_15_gb_file(indexes):
    config = {"vocab_size": 8021, "hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 48}
    config |= {"num_attention_heads": 24, "max_position_embeddings": 1024, "hidden_act": "gelu"}
    with Bundle(indexes / "mega-bert-tok-tf_model.ckpt-100000") as source:
        found = recognise(source, config=config)
    assert found.mismatches == ["config.json says vocab_size is 8,021; the checkpoint holds 21,130"]
    assert found.fixes == {"vocab_size": 21130}
    assert "15 GB" in found.released


def test_the_sums_of_the_released_files_are_known():
    assert [one.sha256[:8] for one in RELEASED.values()] == ["4a6e5124", "e698cc97"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_recognised_with_its_own_config_and_without(data, kind):
    folder = data / "goldens" / kind
    with Bundle(folder / "model.ckpt") as source:
        bare, told = recognise(source), recognise(source, config=read_config(folder))
    assert bare.family == told.family == KINDS[kind]
    assert (told.mismatches, told.missing, told.unexpected) == ([], [], [])
    assert (bare.missing, bare.unexpected) == ([], [])
    assert bare.parameters == told.parameters > 0
    measured, meant = bare.config.main, told.config.main
    assert (
        (measured.hidden_size, measured.feed_forward)
        == (meant.hidden_size, meant.feed_forward)
        == (32, measured.feed_forward)
    )
    if not measured.shared_layers:
        assert measured.num_layers == meant.num_layers == 3


def test_nezha_and_roformer_share_names_and_the_vocabulary_tells_them_apart(data):
    path = data / "goldens" / "nezha" / "model.ckpt"
    assert recognise(listed(path)).candidates == ["nezha", "roformer"]
    assert recognise(listed(path), family="roformer").family == "roformer"
    for rows, family in ((21128, "nezha"), (50000, "roformer"), (12000, "roformer")):
        found = recognise(listed(path, **{"bert/embeddings/word_embeddings": (rows, 32)}))
        assert found.family == family
        assert "the same names fit nezha and roformer" in found.notes[-1]


def test_a_nezha_has_no_narrow_embedding(data):
    found = recognise(listed(data / "goldens" / "roformer" / "model.ckpt"))
    assert (found.candidates, found.notes) == (["roformer"], ["heads: 1, assuming the usual 64 features a head"])


def test_a_config_names_the_family_where_names_fit_several(data):
    path = data / "goldens" / "nezha" / "model.ckpt"
    config = read_config(path.parent)
    told = recognise(listed(path), config=config | {"model_type": "roformer"})
    assert (told.family, told.notes) == ("roformer", [])
    assert recognise(listed(path), config=config | {"use_relative_position": True}).family == "nezha"


@pytest.mark.parametrize("kind", ["data2vec-text", "ernie", "megatron-bert", ["bert"]])
def test_an_unknown_model_type_is_refused_by_name_unless_the_family_is_named(data, kind):
    path = data / "goldens" / "bert" / "model.ckpt"
    config = read_config(path.parent) | {"model_type": kind}
    with pytest.raises(
        ConfigError, match=rf"model_type is {re.escape(repr(kind))} .* known are albert, .*, xlm-roberta"
    ):
        recognise(listed(path), config=config)
    assert recognise(listed(path), config=config, family="bert").family == "bert"


def test_a_model_type_of_another_family_than_the_names_is_refused(data):
    names = FAMILIES["bert"].huggingface
    config = read_config(data / "goldens" / "bert")
    shapes = {row.theirs: (32, 32) for row in names.rows(names.config(config))}
    message = r"model_type is 'roberta', but the names in .* begin with 'bert\.', as those of a bert do"
    with pytest.raises(ConfigError, match=message):
        recognise(Listed(shapes), config=config | {"model_type": "roberta"})
    swapped = {name.replace("bert.", "roberta.", 1): shape for name, shape in shapes.items()}
    with pytest.raises(ConfigError, match=r"model_type is 'bert', but the names in .* begin with 'roberta\.'"):
        recognise(Listed(swapped), config=config | {"model_type": "bert"})
    assert recognise(Listed(swapped), config=config | {"model_type": "roberta"}).family == "roberta"


@pytest.mark.parametrize(("key", "name"), [("type_vocab_size", "token_type"), ("max_position_embeddings", "position")])
def test_a_table_of_one_row_is_measured_as_one_row(data, key, name):
    path = data / "goldens" / "bert" / "model.ckpt"
    source = listed(path, **{f"bert/embeddings/{name}_embeddings": (1, 32)})
    found = recognise(source, config=read_config(path.parent) | {key: 1})
    assert (found.mismatches, found.fixes) == ([], {})
    derived = recognise(source).config.main
    assert (derived.segments if key == "type_vocab_size" else derived.positions) == 1


def test_each_field_that_does_not_fit_is_named_with_both_values(data):
    folder = data / "goldens" / "bert"
    right = read_config(folder)
    cases = {
        "hidden_size": (64, 32),
        "num_hidden_layers": (4, 3),
        "intermediate_size": (99, 64),
        "max_position_embeddings": (50, 48),
        "type_vocab_size": (3, 2),
        "vocab_size": (121, 120),
    }
    for key, (says, holds) in cases.items():
        wrong = right | {key: says} | ({"attention_head_size": 8} if key == "hidden_size" else {})
        found = recognise(listed(folder / "model.ckpt"), config=wrong)
        assert f"config.json says {key} is {says}; the checkpoint holds {holds}" in found.mismatches
        assert found.fixes[key] == holds
    found = recognise(listed(folder / "model.ckpt"), config=right | {"attention_head_size": 5})
    assert found.mismatches == ["config.json says num_attention_heads × head size is 20; the checkpoint holds 32"]
    assert recognise(listed(folder / "model.ckpt"), config=right | found.fixes).mismatches == []


def test_spare_rows_are_noted_and_kept(data):
    path = data / "goldens" / "gpt2_ml" / "model.ckpt"
    config = read_config(path.parent)
    found = recognise(listed(path), config=config | {"vocab_size": 118})
    assert found.notes == ["the embedding has 120 rows for 118 words: 2 are spare"]
    assert (found.config.vocab_size, found.mismatches) == (120, [])


def test_segments_that_the_file_has_no_table_for_do_not_fit(data):
    folder = data / "goldens" / "bert_shared_segment"
    config = read_config(folder)
    found = recognise(listed(folder / "model.ckpt"), config=config)
    assert found.mismatches == [
        "config.json says type_vocab_size is 2, but the checkpoint has no bert/embeddings/token_type_embeddings: "
        "set it to 0, or shared_segment_embeddings to true"
    ]
    for mended in (config | found.fixes, config | {"shared_segment_embeddings": True}):
        assert recognise(listed(folder / "model.ckpt"), config=mended).mismatches == []


def test_a_mended_config_fits(data):
    path = data / "goldens" / "t5_1.1" / "model.ckpt"
    found = recognise(listed(path), config=read_config(path.parent) | {"num_hidden_layers": 2, "vocab_size": 500})
    assert found.mismatches == [
        "config.json says vocab_size is 500; the checkpoint holds 120",
        "config.json says num_hidden_layers is 2; the checkpoint holds 3",
        "config.json says num_decoder_layers is 2; the checkpoint holds 3",
    ]


def test_what_is_missing_or_unexpected_is_listed(data):
    path = data / "goldens" / "gpt2_ml" / "model.ckpt"
    found = recognise(listed(path, **{"newslm/layer01/output/bias": None, "newslm/layer01/extra": (3,)}))
    assert found.missing == ["newslm/layer01/output/bias"]
    assert found.unexpected == ["newslm/layer01/extra"]
    found = recognise(listed(path, **{"newslm/layer07/output/bias": (32,)}))
    assert found.sizes["num_layers"] == 4 and found.unexpected == ["newslm/layer07/output/bias"]
    assert len(found.missing) == 16


def test_shared_layers_cannot_tell_how_often_they_run(data):
    found = recognise(listed(data / "goldens" / "albert" / "model.ckpt"))
    assert found.notes[0] == "heads: 1, assuming the usual 64 features a head"
    assert found.notes[1].startswith("depth: 1 in the file, shared")


def test_hugging_face_names_are_recognised_with_and_without_the_prefix():
    shapes = {"embeddings.word_embeddings.weight": (120, 128), "embeddings.position_embeddings.weight": (64, 128)}
    shapes |= {"embeddings.token_type_embeddings.weight": (2, 128)}
    for name in ("query", "key", "value"):
        shapes[f"encoder.layer.0.attention.self.{name}.weight"] = (128, 128)
    shapes["encoder.layer.0.intermediate.dense.weight"] = (512, 128)
    shapes["pooler.dense.weight"] = (128, 128)
    for prefix in ("", "bert."):
        found = recognise(Listed({prefix + name: shape for name, shape in shapes.items()}))
        assert (found.family, found.format, found.sizes["feed_forward"]) == ("bert", "huggingface", 512)
        assert (found.config.pool, found.config.nsp, found.config.output) == ("tanh", False, "none")
        assert found.config.main.num_heads == 2


def test_the_derived_config_of_a_hugging_face_t5_is_gated_and_untied_as_its_tensors_are():
    shapes = {"shared.weight": (120, 32), "lm_head.weight": (120, 32), "decoder.final_layer_norm.weight": (32,)}
    for i in range(2):
        shapes[f"encoder.block.{i}.layer.0.SelfAttention.q.weight"] = (64, 32)
        shapes[f"encoder.block.{i}.layer.1.DenseReluDense.wi_0.weight"] = (48, 32)
    shapes["decoder.block.0.layer.0.SelfAttention.q.weight"] = (64, 32)
    found = recognise(Listed(shapes))
    assert (found.family, found.candidates) == ("t5.1.1", ["t5.1.1", "mt5.1.1"])
    assert (found.config.encoder.num_layers, found.config.decoder.num_layers) == (2, 1)
    assert found.config.main.gated and not found.config.tied
    assert recognise(Listed(shapes), config={"model_type": "mt5"} | found.names.original(found.config)).family


def test_rows_are_spelled_as_the_file_does():
    names = FAMILIES["bert"].huggingface
    rows = names.rows(names.config({"vocab_size": 9, "hidden_size": 8, "num_attention_heads": 2} | SMALL))
    old = rename(rows, {"bert.embeddings.LayerNorm.gamma": 0}, "bert.")
    assert any(row.theirs == "bert.embeddings.LayerNorm.gamma" for row in old)
    bare = rename(rows, {"embeddings.LayerNorm.weight": 0}, "bert.")
    assert any(row.theirs == "embeddings.LayerNorm.weight" for row in bare)
    assert not any(row.theirs.startswith("bert.") for row in bare)


SMALL = {"num_hidden_layers": 1, "intermediate_size": 16}


def test_our_own_names_are_held_against_hanmo_json(data):
    folder = data / "goldens" / "gpt2_ml"
    with Bundle(folder / "model.ckpt") as source:
        config = recognise(source, config=read_config(folder)).config
    shapes = {"token.weight": (130, 32), "decoder.blocks.0.attention.query.weight": (32, 32)}
    found = recognise_own(Listed(shapes), config)
    assert (found.family, found.format, found.parameters) == ("gpt2_ml", "hanmo", 130 * 32 + 32 * 32)
    assert found.mismatches == [
        "the configuration says vocab_size is 120; the checkpoint holds 130",
        "the configuration says num_layers is 3; the checkpoint holds 1",
    ]


def test_names_of_no_family_are_refused_with_the_first_few():
    with pytest.raises(CheckpointError, match=r"does not have the names of any family .* it holds a/kernel, b/kernel"):
        recognise(Listed({"a/kernel": (2, 2), "b/kernel": (2, 2)}))
    with pytest.raises(CheckpointError, match="it holds no tensors at all"):
        recognise(Listed({}))


def test_an_unknown_or_wrong_family_is_refused(data):
    path = data / "goldens" / "bert" / "model.ckpt"
    with pytest.raises(ConfigError, match="family is 'brt'; known are bert, albert"):
        recognise(listed(path), family="brt")
    with pytest.raises(CheckpointError, match="does not have the names of 'gpt2_ml'"):
        recognise(listed(path), family="gpt2_ml")


@pytest.mark.parametrize("shape", [(), (7,), (2, 2, 3), (0, 5)])
def test_an_embedding_that_is_no_matrix_is_refused(data, shape):
    path = data / "goldens" / "bert" / "model.ckpt"
    with pytest.raises(CheckpointError, match=r"word_embeddings is of the shape .* expected a matrix"):
        recognise(listed(path, **{"bert/embeddings/word_embeddings": shape}))


def test_a_layer_with_an_absurd_number_is_unexpected_and_nothing_worse(data):
    path = data / "goldens" / "bert" / "model.ckpt"
    name = f"bert/encoder/layer_{'9' * 5000}/output/dense/bias"
    assert recognise(listed(path, **{name: (32,)})).unexpected == [name]


def test_a_config_is_found_under_its_many_names(tmp_path):
    assert find_config(tmp_path) is None and read_config(tmp_path) is None
    names = ["my_config_x.json", "mega.json", "hparams.json", "albert_config.json", "bert_config.json", "config.json"]
    for name in names:
        (tmp_path / name).write_text(json.dumps({"from": name}))
        assert read_config(tmp_path) == {"from": name}


def test_two_configs_of_unknown_names_are_none(tmp_path):
    for name in ("a_config.json", "b_config.json"):
        (tmp_path / name).write_text("{}")
    assert find_config(tmp_path) is None


@pytest.mark.parametrize("key", ["vocab_size", "type_vocab_size", "hidden_dropout_prob", "initializer_range"])
@pytest.mark.parametrize("value", ["many", [3], {}, -1, 1e300])
def test_a_value_of_the_wrong_kind_is_an_error_of_ours_or_none(data, key, value):
    folder = data / "goldens" / "bert"
    try:
        found = recognise(listed(folder / "model.ckpt"), config=read_config(folder) | {key: value})
    except ConfigError as error:
        assert str(error)
    else:
        assert found.mismatches or key in ("hidden_dropout_prob", "initializer_range")


def test_a_value_of_the_wrong_kind_is_named(data):
    folder = data / "goldens" / "bert"
    config = read_config(folder) | {"hidden_dropout_prob": "half"}
    with pytest.raises(ConfigError, match=r"hidden_dropout_prob is 'half' in config\.json; expected float"):
        recognise(listed(folder / "model.ckpt"), config=config)


def test_the_index_alone_is_enough(data, tmp_path):
    shutil.copy(data / "goldens" / "bert" / "model.ckpt.index", tmp_path)
    with Bundle(tmp_path / "model.ckpt") as source:
        assert recognise(source).family == "bert"
