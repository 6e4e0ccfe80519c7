"""Configurations: JSON both ways, and one clear error for each thing that cannot be right."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from hanmo.config import ModelConfig, StackConfig, Sublayer
from hanmo.errors import ConfigError
from hanmo.families import FAMILIES

GOLDENS = Path(__file__).parent / "data" / "goldens"
BERT = json.loads((GOLDENS / "bert" / "config.json").read_text("utf-8"))


def stack(**changes) -> StackConfig:
    values = {
        "num_layers": 2,
        "hidden_size": 8,
        "num_heads": 2,
        "head_dim": 4,
        "key_dim": 4,
        "feed_forward": 16,
        "order": (Sublayer("attention", post=True), Sublayer("feed_forward", post=True)),
        "positions": 10,
        "embedding_size": 8,
    }
    return StackConfig(**values | changes)


def model(**changes) -> ModelConfig:
    return ModelConfig(**{"family": "bert", "vocab_size": 5, "encoder": stack()} | changes)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"gpt2_openai"}))
def test_every_family_survives_json(family):
    names = FAMILIES[family].tensorflow or FAMILIES[family].huggingface
    config = names.config(BERT)
    assert ModelConfig.from_json(config.to_json()) == config
    again = names.config(names.original(config))
    assert again == replace(config, initializer=again.initializer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, "num_layers is 0; expected 1 or more"),
        ({"segments": -1}, "segments is -1; expected 0 or more"),
        ({"buckets": 1}, "buckets is 1; expected 2 or more"),
        ({"dropout": 1.0}, "dropout is 1.0; expected a number from 0 up to 1"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0; expected a small number above 0"),
        ({"mask": "none"}, "mask is 'none'; expected one of full, causal, prefix"),
        ({"activation": "gelu"}, "activation is 'gelu'; expected one of gelu_erf, gelu_tanh"),
        ({"order": ()}, "order is empty; expected at least one sublayer"),
        ({"position_offset": 2, "positions": 2}, "positions is 2; expected 3 or more"),
        ({"position_offset": 2, "hierarchical": 0.4}, "hierarchical and position_offset are both set"),
        ({"position_offset": 2, "position": "none"}, "position_offset is set but position is 'none'"),
        ({"positions": None}, "positions is missing; learned positions need their number"),
        ({"position": "none", "hierarchical": 0.4}, "hierarchical is set but position is 'none'"),
        ({"position": "rotary", "key_dim": 3}, "key_dim is 3; rotary positions need an even number"),
        ({"position": "relative", "key_dim": 2}, "key_dim is 2, head_dim is 4; relative positions need them equal"),
        ({"position": "buckets", "buckets": 3}, "buckets is 3, bucket_distance is 128; expected at least 4 buckets"),
        ({"position": "buckets", "bucket_distance": 16}, "bucket_distance is 16; expected .* more than half of them"),
        ({"mask": "prefix"}, "mask is 'prefix' but segments is 0"),
    ],
)
def test_a_stack_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        stack(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": None}, "neither encoder nor decoder is given"),
        ({"nsp": True}, "nsp is set but pool is 'none'"),
        ({"decoder": stack(embedding_size=4)}, "embedding_size is 8 in the encoder and 4 in the decoder"),
    ],
)
def test_a_model_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        model(**changes)


def test_an_unknown_kind_of_sublayer_is_refused():
    with pytest.raises(ConfigError, match="kind is 'mlp'; expected one of attention, cross, feed_forward"):
        Sublayer("mlp")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(colour=1), "the model has the unknown key 'colour'; known are family, vocab_size"),
        (lambda d: d.pop("vocab_size"), "the model is not complete: .*'vocab_size'"),
        (lambda d: d.update(vocab_size="5"), r"vocab_size is '5'; expected int \(in the model\)"),
        (lambda d: d.update(vocab_size=True), r"vocab_size is 'True'; expected int \(in the model\)"),
        (
            lambda d: d["encoder"].update(dropout=float("nan")),
            r"dropout is 'nan'; expected float \(in encoder of the model\)",
        ),
        (lambda d: d["encoder"].update(order="x"), "order of encoder of the model is 'x'; expected a list"),
        (lambda d: d.update(encoder=3), "encoder of the model is int; expected a JSON object"),
    ],
)
def test_json_that_is_not_a_configuration_is_refused(change, message):
    data = json.loads(json.dumps(asdict(model())))
    change(data)
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_json(json.dumps(data))


def test_text_that_is_not_json_is_refused():
    with pytest.raises(ConfigError, match="the model's configuration is not JSON: Expecting property name"):
        ModelConfig.from_json("{")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"num_attention_heads": 5},
            "hidden_size is 32, num_attention_heads is 5 in config.json; expected heads that divide it",
        ),
        ({"hidden_size": None}, "hidden_size is missing in config.json; expected int"),
        ({"hidden_size": "32"}, "hidden_size is '32' in config.json; expected int"),
        ({"hidden_act": "gelo"}, "hidden_act is 'gelo' in config.json; known are gelu"),
    ],
)
def test_an_original_config_that_cannot_be_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        FAMILIES["bert"].tensorflow.config(BERT | change)


def test_what_the_originals_do_differs_from_bert4keras_where_the_facts_say_so():
    def first(family: str) -> StackConfig:
        return FAMILIES[family].tensorflow.config(BERT).main

    assert [first(f).activation for f in ("bert", "albert", "nezha", "gpt", "gpt2", "t5.1.1")] == ["gelu_tanh"] * 6
    assert [first(f).activation for f in ("electra", "roformer", "gpt2_ml")] == ["gelu_erf"] * 3
    assert [first(f).norm_eps for f in ("bert", "albert", "nezha", "electra")] == [1e-12] * 4
    assert [first(f).norm_eps for f in ("gpt2_ml", "gpt2", "t5.1.0", "roformer")] == [1e-5, 1e-5, 1e-6, 1e-7]
    t5 = {f: FAMILIES[f].tensorflow.config(BERT) for f in ("t5.1.0", "t5.1.1", "mt5.1.1")}
    assert [config.logit_scale for config in t5.values()] == [32**-0.5, 1.0, 1.0]
    assert not any(config.main.cross_positions for config in t5.values())
    assert first("gpt2_ml").attention_dropout == 0 and BERT["attention_probs_dropout_prob"] == 0.1


def test_the_keys_of_version_0_1_are_read_and_still_name_the_same_values():
    config = model(decoder=stack(mask="causal"), encoder=None, output="lm")
    data = json.loads(config.to_json())
    data["vocab"] = data.pop("vocab_size")
    for old, new in {"depth": "num_layers", "width": "hidden_size", "heads": "num_heads"}.items():
        data["decoder"][old] = data["decoder"].pop(new)
    data["decoder"]["embedding_width"] = data["decoder"].pop("embedding_size")
    again = ModelConfig.from_json(json.dumps(data))
    assert again == config
    assert (again.vocab, again.main.depth, again.main.width) == (config.vocab_size, again.main.num_layers, 8)
    assert (again.main.heads, again.main.embedding_width) == (again.main.num_heads, again.main.embedding_size)
