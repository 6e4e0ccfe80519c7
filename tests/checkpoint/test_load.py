"""Filling a model is strict both ways, makes no second copy, and says what to mend."""

import json
import shutil

import numpy as np
import pytest
import torch

import hanmo.loading
from hanmo.checkpoint.save import save
from hanmo.checkpoint.tf.bundle import Bundle
from hanmo.checkpoint.tf.writer import write_bundle
from hanmo.checkpoint.vocabulary_edit import Average, VocabularyEdit
from hanmo.errors import CheckpointError, ConfigError, MissingFile, TensorMismatch


@pytest.fixture
def copy(data, tmp_path):
    """Copy a golden, with tensors changed by a function of its dict, into a folder of its own."""

    def make(kind: str, change=lambda tensors: None, **config):
        folder = data / "goldens" / kind
        with Bundle(folder / "model.ckpt") as source:
            tensors = {name: np.array(source.read(name)) for name in source.tensors}
        change(tensors)
        write_bundle(tmp_path / "model.ckpt", sorted(tensors.items()))
        told = json.loads((folder / "config.json").read_text("utf-8")) | config
        (tmp_path / "config.json").write_text(json.dumps(told), "utf-8")
        return tmp_path / "model.ckpt"

    return make


def test_weights_are_views_of_the_file_and_writing_them_leaves_it_alone(copy):
    path = copy("gpt2_ml_original")
    model = hanmo.loading.load(path).model
    before = model.token.weight.detach().clone()
    assert not model.decoder.blocks[0].attention.query.weight.is_contiguous()  # a transposed view, not a copy
    with torch.no_grad():
        model.token.weight.zero_()
    torch.testing.assert_close(hanmo.loading.load(path).model.token.weight, before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_on_the_way_in(copy, dtype):
    path = copy("gpt2_ml_original")
    exact, model = hanmo.loading.load(path).model, hanmo.loading.load(path, dtype=dtype).model
    for (name, parameter), other in zip(model.named_parameters(), exact.parameters(), strict=True):
        assert parameter.dtype == dtype, name
        torch.testing.assert_close(parameter, other.to(dtype), rtol=0, atol=0)


def test_a_dtype_may_be_named_and_others_are_refused_with_those_there_are(copy, tmp_path):
    path = copy("gpt2_ml_original")
    model = hanmo.loading.load(path, dtype="bfloat16").model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    saved = save(model, tmp_path / "half", dtype="float16").path
    assert hanmo.loading.load(saved).model.token.weight.dtype == torch.float16
    for wrong in ("bf16", "int8", torch.int8, 16):
        with pytest.raises(ConfigError, match=rf"dtype is {wrong!r}; expected one of float32, bfloat16, float16"):
            hanmo.loading.load(path, dtype=wrong)
    with pytest.raises(ConfigError, match=r"dtype is 'bf16'; expected one of .*, int8"):
        save(model, tmp_path / "other", dtype="bf16")


def test_optimizer_slots_are_left_with_their_reason(copy):
    def add(tensors):
        tensors["newslm/layer00/query_layer/kernel/adafactor_vr"] = np.zeros(3, np.float32)
        tensors["global_step"] = np.array(7, np.int64)

    report = hanmo.loading.load(copy("gpt2_ml_original", add)).report
    assert report.used == 52
    assert report.dropped == {
        "global_step": "the training step",
        "newslm/layer00/query_layer/kernel/adafactor_vr": "AdaFactor's state",
    }


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("bert/pooler/dense/kernel/Momentum", "the state of SGD with momentum"),
        ("bert/pooler/dense/kernel/AdamW_1", "the optimizer's state"),
        ("bert/pooler/dense/kernel/AdamWeightDecayOptimizer", "the optimizer's state"),
        ("bert/pooler/dense/kernel/lamb_v", "LAMB's state"),
        ("bert/pooler/dense/kernel/ExponentialMovingAverage", "a moving average of the weights"),
        ("output_weights", "a head of fine-tuning"),
        ("output_bias", "a head of fine-tuning"),
        ("cls/squad/output_weights", "a head of fine-tuning"),
        ("end_logits/dense_0/kernel", "a head of fine-tuning"),
        ("classifier.out_proj.weight", "a head of fine-tuning"),
        ("qa_outputs.bias", "a head of fine-tuning"),
    ],
)
def test_what_fine_tuning_left_is_dropped_with_its_reason(copy, name, reason):
    loaded = hanmo.loading.load(copy("bert", lambda tensors: tensors.update({name: np.ones((2, 32), np.float32)})))
    assert loaded.report.dropped == {name: reason}
    assert loaded.config == hanmo.loading.load(copy("bert")).config


def test_the_encoder_of_a_fine_tuned_checkpoint_needs_no_heads(copy):
    def tune(tensors):
        for name in [name for name in tensors if name.startswith("cls/")]:
            del tensors[name]
        tensors["output_weights"] = np.ones((2, 32), np.float32)

    loaded = hanmo.loading.load(copy("bert", tune))
    assert (loaded.config.output, loaded.config.pool, loaded.config.nsp) == ("none", "tanh", False)


@pytest.mark.parametrize("name", ["classifier_weights", "my_head.weight", "cls/other/output_weights", "w/Momentumm"])
def test_what_is_not_known_with_a_reason_is_still_an_error(copy, name):
    with pytest.raises(TensorMismatch, match=f"holds {name}, which this model has no place for"):
        hanmo.loading.load(copy("bert", lambda tensors: tensors.update({name: np.ones(2, np.float32)})))


@pytest.mark.parametrize("kind", ["albert", "bert", "nezha", "roformer"])
def test_tensorflow_s_names_may_lack_the_model_s_scope(copy, kind):
    def strip(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("bert/")] = tensors.pop(name)

    whole, stripped = hanmo.loading.load(copy(kind)), hanmo.loading.load(copy(kind, strip))
    assert stripped.config == whole.config
    assert stripped.report.dropped == {}
    for one, other in zip(whole.model.parameters(), stripped.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_missing_tensor_is_named_with_its_neighbours(copy):
    path = copy("gpt2_ml_original", lambda tensors: tensors.pop("newslm/layer01/query_layer/bias"))
    with pytest.raises(
        TensorMismatch, match=r"lacks newslm/layer01/query_layer/bias, which this model needs; the nearest"
    ) as e:
        hanmo.loading.load(path)
    assert "newslm/layer00/query_layer/bias" in str(e.value)


def test_an_unexpected_tensor_is_named(copy):
    path = copy("gpt2_ml_original", lambda tensors: tensors.update({"newslm/layer01/gate": np.zeros(2, np.float32)}))
    with pytest.raises(
        TensorMismatch, match="holds newslm/layer01/gate, which this model has no place for; the nearest"
    ):
        hanmo.loading.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 8021}, "config.json says vocab_size is 8,021; the checkpoint holds 120"),
        ({"intermediate_size": 64}, "config.json says intermediate_size is 64; the checkpoint holds 128"),
        ({"num_hidden_layers": 2}, "config.json says num_hidden_layers is 2; the checkpoint holds 3"),
        ({"max_position_embeddings": 50}, "config.json says max_position_embeddings is 50; the checkpoint holds 48"),
    ],
)
def test_a_config_of_another_checkpoint_names_the_field_and_the_right_value(copy, change, message):
    with pytest.raises(ConfigError, match=message):
        hanmo.loading.load(copy("gpt2_ml_original", **change))


def test_a_tensor_of_another_shape_names_itself_and_both_shapes(copy):
    path = copy(
        "gpt2_ml_original", lambda tensors: tensors.update({"newslm/layer02/output/bias": np.zeros(5, np.float32)})
    )
    with pytest.raises(
        ConfigError, match=r"newslm/layer02/output/bias in .* is \[5\]; the configuration makes it \[32\]"
    ):
        hanmo.loading.load(path)


def test_spare_rows_of_the_embedding_are_kept(copy):
    def pad(tensors):
        word = tensors["newslm/embeddings/word_embed"]
        tensors["newslm/embeddings/word_embed"] = np.concatenate((word, np.ones((2, 32), np.float32)))

    loaded = hanmo.loading.load(copy("gpt2_ml_original", pad))
    assert loaded.config.vocab_size == 122 and loaded.model.token.weight.shape == (122, 32)


def test_without_config_json_the_error_says_where_to_get_one(copy):
    path = copy("gpt2_ml_original")
    path.with_name("config.json").unlink()
    with pytest.raises(MissingFile, match=r"no config.json beside .*heads: 1.*'hanmo inspect' prints"):
        hanmo.loading.load(path)


def test_an_unknown_family_and_foreign_names_are_refused(copy, tmp_path):
    path = copy("gpt2_ml_original")
    with pytest.raises(ConfigError, match="family is 'gpt3'; known are bert, albert"):
        hanmo.loading.load(path, family="gpt3")
    with pytest.raises(CheckpointError, match="does not have the names of 'bert'"):
        hanmo.loading.load(path, family="bert")
    write_bundle(tmp_path / "other", [("a/b", np.zeros(2, np.float32))])
    with pytest.raises(CheckpointError, match="does not have the names of any family that Hanmo knows; it holds a/b"):
        hanmo.loading.load(tmp_path / "other")


def test_a_config_that_is_not_json_is_named(copy):
    path = copy("gpt2_ml_original")
    path.with_name("config.json").write_text("{", "utf-8")
    with pytest.raises(ConfigError, match=r"config.json is not JSON: Expecting"):
        hanmo.loading.load(path)
    path.with_name("config.json").write_text("[1]", "utf-8")
    with pytest.raises(ConfigError, match=r"config.json holds a list; expected a JSON object"):
        hanmo.loading.load(path)
    with pytest.raises(MissingFile, match=r"no configuration at .*nothing.json"):
        hanmo.loading.load(path, config=path.with_name("nothing.json"))


def test_vocabulary_edits_keep_and_average_rows(copy):
    path = copy("bert")
    whole = hanmo.loading.load(path).model
    edit = VocabularyEdit([5, 3, 0], [Average([0, 1]), Average([0, 2], [1, 3])])
    loaded = hanmo.loading.load(path, edit=edit)
    assert loaded.config.vocab_size == 5
    rows = whole.token.weight[[5, 3, 0]]
    expected = torch.stack((*rows, (rows[0] + rows[1]) / 2, (rows[0] + 3 * rows[2]) / 4))
    torch.testing.assert_close(loaded.model.token.weight, expected)
    assert loaded.model.output.bias.shape == (5,)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (VocabularyEdit([120]), "keep names row 120; the vocabulary has rows 0 to 119"),
        (VocabularyEdit([1], [Average([1])]), "add names row 1; the vocabulary has rows 0 to 0"),
        (VocabularyEdit(None, [Average([1, 2], [1.0])]), "add has 2 ids and 1 weights"),
        (VocabularyEdit(None, [Average([1, 2], [1.0, -1.0])]), "weights that do not sum to 0"),
    ],
)
def test_vocabulary_edits_that_cannot_be_are_refused(copy, edit, message):
    with pytest.raises(ConfigError, match=message):
        hanmo.loading.load(copy("bert"), edit=edit)


def test_a_bert_writes_with_a_prefix_or_causal_mask(copy):
    path = copy("bert")
    assert not hanmo.loading.load(path).config.can_generate
    assert hanmo.loading.load(path, mask="prefix").config.can_generate
    assert hanmo.loading.load(path, mask="causal").config.main.mask == "causal"


def test_heads_that_the_file_lacks_are_left_out(copy):
    def strip(tensors):
        for name in [name for name in tensors if name.startswith("cls/")]:
            del tensors[name]

    config = hanmo.loading.load(copy("bert", strip)).config
    assert (config.output, config.pool, config.nsp) == ("none", "tanh", False)


def test_a_shard_that_is_gone_is_named(copy):
    path = copy("gpt2_ml_original")
    shutil.move(path.with_name("model.ckpt.data-00000-of-00001"), path.with_name("elsewhere"))
    with pytest.raises(MissingFile, match=r"model\.ckpt\.data-00000-of-00001"):
        hanmo.loading.load(path)
