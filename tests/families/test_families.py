"""Every table of names covers its models whole, every config.json reads back, and what Hanmo cannot read is refused."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from importlib import import_module
from pkgutil import iter_modules

import pytest
import torch

from hanmo import families
from hanmo.config import ModelConfig
from hanmo.errors import ConfigError
from hanmo.families import FAMILIES, Family, Names, tables
from hanmo.families.keys import activation, read
from hanmo.model import Model

BERT = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 20,
    "type_vocab_size": 2,
}
NARROW = BERT | {"embedding_size": 16}
OPENAI = {"n_vocab": 50, "n_ctx": 20, "n_embd": 32, "n_head": 4, "n_layer": 3}
T5 = {"vocab_size": 50, "d_model": 32, "d_kv": 6, "d_ff": 48, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4}
CONFIGS = {
    ("bert", "tensorflow"): BERT,
    ("bert", "huggingface"): BERT,
    ("albert", "tensorflow"): NARROW,
    ("albert", "huggingface"): NARROW,
    ("albert_unshared", "tensorflow"): NARROW,
    ("albert_unshared", "huggingface"): NARROW,
    ("electra", "tensorflow"): NARROW,
    ("electra", "huggingface"): NARROW,
    ("nezha", "tensorflow"): BERT,
    ("nezha", "huggingface"): BERT,
    ("roformer", "tensorflow"): BERT,
    ("roformer", "huggingface"): NARROW,
    ("roformer_v2", "tensorflow"): BERT,
    ("roformer_v2", "huggingface"): BERT,
    ("gpt", "tensorflow"): BERT,
    ("gpt", "huggingface"): OPENAI,
    ("gpt2", "tensorflow"): BERT,
    ("gpt2", "huggingface"): OPENAI | {"tie_word_embeddings": False},
    ("gpt2_openai", "tensorflow"): OPENAI,
    ("gpt2_ml", "tensorflow"): BERT,
    ("gpt2_ml", "huggingface"): BERT,
    ("gpt2_ml", "republished"): BERT,
    ("t5.1.0", "tensorflow"): BERT | {"attention_head_size": 6},
    ("t5.1.0", "huggingface"): T5,
    ("t5.1.1", "tensorflow"): BERT,
    ("t5.1.1", "huggingface"): T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ("mt5.1.1", "tensorflow"): BERT,
    ("mt5.1.1", "huggingface"): T5,
    ("roberta", "huggingface"): BERT,
    ("xlm_roberta", "huggingface"): BERT,
    ("camembert", "huggingface"): BERT,
}


def names_of(family: str, form: str) -> Names:
    names = getattr(FAMILIES[family], form)
    assert names is not None
    return names


def made(family: str, form: str, **changes: object) -> ModelConfig:
    return names_of(family, form).config(CONFIGS[family, form] | changes)


def test_every_table_is_a_case_and_every_family_of_the_folder_is_listed():
    assert {(family, form) for family, form, _ in tables()} == set(CONFIGS)
    modules = [import_module(f"hanmo.families.{each.name}") for each in iter_modules(families.__path__)]
    found = [each for module in modules for each in vars(module).values() if isinstance(each, Family)]
    assert sorted(each.name for each in found) == sorted(FAMILIES) == sorted({family for family, _ in CONFIGS})
    assert all(FAMILIES[each.name] is each for each in found)


@pytest.mark.parametrize(("family", "form"), CONFIGS)
def test_a_table_names_every_parameter_once_and_no_foreign_tensor_twice(family, form):
    config = made(family, form)
    with torch.device("meta"):
        parameters = [name for name, _ in Model(config).named_parameters()]
    rows = names_of(family, form).rows(config)
    ours = Counter(name for row in rows for name in row.ours)
    assert [name for name in parameters if ours[name] != 1] == []
    theirs = Counter(row.theirs for row in rows)
    assert [name for name, count in theirs.items() if count > 1] == []


@pytest.mark.parametrize(("family", "form"), CONFIGS)
def test_a_configuration_reads_back_as_it_was_written(family, form):
    names, config = names_of(family, form), made(family, form)
    again = names.config(json.loads(json.dumps(names.original(config))))
    assert again == config


# OpenAI's hparams.json says no activation.
@pytest.mark.parametrize(("family", "form"), [case for case in CONFIGS if case[0] != "gpt2_openai"])
@pytest.mark.parametrize("name", ["gelu_erf", "gelu_tanh", "relu", "silu"])
def test_an_activation_reads_back_as_it_was_written(family, form, name):
    names, config = names_of(family, form), made(family, form)
    sides = {
        side: replace(stack, activation=name) for side in ("encoder", "decoder") if (stack := getattr(config, side))
    }
    again = names.config(json.loads(json.dumps(names.original(replace(config, **sides)))))
    assert again.main.activation == name


@pytest.mark.parametrize(("family", "form"), CONFIGS)
def test_the_tensors_that_tell_heads_sizes_and_repeats_stand_in_the_table(family, form):
    names, config = names_of(family, form), made(family, form)
    theirs = {row.theirs for row in names.rows(config)}
    sizes = names.sizes
    told = {sizes.token, sizes.query, sizes.feed_forward, sizes.heads, *names.marks, *names.repeats.values()}
    # A table is written for the model at hand: NEZHA's has no absolute positions, though BERT's sizes name them.
    told |= {name for name in (sizes.position, sizes.segment) if config.main.position == "learned"}
    absent = {"", *(["gpt/embeddings/token_type_embeddings"] if not config.main.segments else [])}
    assert told - theirs - absent == set()
    assert set(names.heads.values()) - theirs <= {"lm_head.weight"}
    assert any(name.startswith(sizes.layer.format(0)) for name in theirs)


# Our field → what each format's own default is, where its config.json says nothing.
@pytest.mark.parametrize(
    ("family", "form", "expected"),
    [
        ("bert", "tensorflow", ("gelu_tanh", 1e-12)),
        ("bert", "huggingface", ("gelu_erf", 1e-12)),
        ("albert", "tensorflow", ("gelu_tanh", 1e-12)),
        ("albert", "huggingface", ("gelu_tanh", 1e-12)),
        ("electra", "tensorflow", ("gelu_erf", 1e-12)),
        ("electra", "huggingface", ("gelu_erf", 1e-12)),
        ("nezha", "tensorflow", ("gelu_tanh", 1e-12)),
        ("roformer", "tensorflow", ("gelu_erf", 1e-7)),
        ("roformer", "huggingface", ("gelu_erf", 1e-12)),
        ("gpt", "tensorflow", ("gelu_tanh", 1e-5)),
        ("gpt2", "tensorflow", ("gelu_tanh", 1e-5)),
        ("gpt2", "huggingface", ("gelu_tanh", 1e-5)),
        ("gpt2_openai", "tensorflow", ("gelu_tanh", 1e-5)),
        ("gpt2_ml", "tensorflow", ("gelu_erf", 1e-5)),
        ("t5.1.0", "tensorflow", ("relu", 1e-6)),
        ("t5.1.0", "huggingface", ("relu", 1e-6)),
        ("t5.1.1", "tensorflow", ("gelu_tanh", 1e-6)),
        ("mt5.1.1", "huggingface", ("gelu_tanh", 1e-6)),
    ],
)
def test_activation_and_eps_where_the_configuration_is_silent(family, form, expected):
    stack = made(family, form).main
    assert (stack.activation, stack.norm_eps) == expected


def test_t5_scales_its_output_by_what_hugging_face_s_config_says():
    names = names_of("t5.1.1", "huggingface")
    gated = T5 | {"feed_forward_proj": "gated-gelu"}
    for says, scaled in (
        ({}, True),
        ({"tie_word_embeddings": False}, False),
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, False),
        ({"tie_word_embeddings": True, "scale_decoder_outputs": True}, True),
    ):
        config = names.config(gated | says)
        assert (config.tied, config.logit_scale) == ((True, 32**-0.5) if scaled else (False, 1.0))
    mt5 = names_of("mt5.1.1", "huggingface").config(T5 | {"tie_word_embeddings": True})
    assert (mt5.tied, mt5.logit_scale) == (False, 1.0)


def test_gelu_means_what_each_family_says_and_all_other_names_mean_one_thing():
    assert {activation({"hidden_act": "gelu"}, gelu) for gelu in ("gelu_erf", "gelu_tanh")} == {"gelu_erf", "gelu_tanh"}
    for name in ("gelu_erf", "gelu_tanh", "relu", "silu", "tanh", "linear"):
        assert activation({"hidden_act": name}, "gelu_erf") == activation({"hidden_act": name}, "gelu_tanh") == name
    assert activation({"hidden_act": "gelu_new"}, "gelu_erf") == "gelu_tanh"
    assert activation({"hidden_act": "gelu_python"}, "gelu_tanh") == "gelu_erf"
    assert activation({"hidden_act": "swish"}, "gelu_erf") == "silu"
    assert activation({"hidden_act": "relu2"}, "gelu_erf") == "squared_relu"


def test_a_name_that_frameworks_do_not_agree_on_is_refused():
    with pytest.raises(ConfigError, match="hidden_act is 'leaky_relu'"):  # it leaks 0.2 in TensorFlow, 0.01 in torch
        activation({"hidden_act": "leaky_relu"}, "gelu_erf")


@pytest.mark.parametrize(
    ("family", "form", "changes", "message"),
    [
        ("bert", "tensorflow", {"hidden_act": "gelu_quick"}, "hidden_act is 'gelu_quick' in config.json; known are"),
        ("bert", "tensorflow", {"vocab_size": None}, "vocab_size is missing in config.json; expected int"),
        ("bert", "tensorflow", {"vocab_size": "50"}, "vocab_size is '50' in config.json; expected int"),
        ("bert", "tensorflow", {"num_attention_heads": 5}, "hidden_size is 32, num_attention_heads is 5"),
        ("bert", "tensorflow", {"num_attention_heads": 0}, "hidden_size is 32, num_attention_heads is 0"),
        (
            "bert",
            "huggingface",
            {"position_embedding_type": "relative_key"},
            "position_embedding_type is 'relative_key'",
        ),
        ("bert", "huggingface", {"add_cross_attention": True}, "add_cross_attention is true"),
        ("albert", "tensorflow", {"inner_group_num": 2}, "inner_group_num is 2 in config.json"),
        ("albert", "huggingface", {"num_hidden_groups": 3}, "num_hidden_groups is 3 in config.json"),
        ("albert", "huggingface", {"embedding_size": 32}, "embedding_size and hidden_size are both 32"),
        ("roformer", "huggingface", {"rotary_value": True}, "rotary_value is true in config.json"),
        ("gpt2", "huggingface", {"n_head": 0}, "n_embd is 32, n_head is 0 in config.json"),
        ("gpt2", "huggingface", {"scale_attn_weights": False}, "scale_attn_weights is False in config.json"),
        ("gpt2", "huggingface", {"add_cross_attention": True}, "add_cross_attention is True in config.json"),
        ("gpt2_openai", "tensorflow", {"n_ctx": None}, "n_ctx is missing in config.json"),
        ("t5.1.1", "tensorflow", {"hidden_act": ["gelu", "relu"]}, r"hidden_act is \['gelu', 'relu'\] in config.json"),
        ("t5.1.1", "huggingface", {"feed_forward_proj": "gated-mish"}, "feed_forward_proj is 'mish' in config.json"),
        ("t5.1.1", "huggingface", {"feed_forward_proj": ["gelu"]}, r"feed_forward_proj is \['gelu'\] in config.json"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_refused_by_its_field(family, form, changes, message):
    with pytest.raises(ConfigError, match=message):
        made(family, form, **changes)


@pytest.mark.parametrize("family", ["bert", "albert", "electra", "roformer"])
def test_an_untied_mlm_head_is_refused(family):
    names = names_of(family, "huggingface")
    config = replace(made(family, "huggingface", tie_word_embeddings=False), output="mlm")
    with pytest.raises(ConfigError, match="tie_word_embeddings is false"):
        names.rows(config)
    assert names.rows(replace(config, output="none"))


def test_hugging_face_has_no_t5_that_is_a_decoder_alone():
    config = replace(made("t5.1.1", "huggingface"), encoder=None)
    with pytest.raises(ConfigError, match="encoder is missing; Hugging Face has no T5 that is a decoder alone"):
        names_of("t5.1.1", "huggingface").original(config)


def test_numbers_may_be_whole_where_a_fraction_is_expected():
    assert read({"rate": 1}, "rate", float) == 1.0
    assert type(read({"rate": 1}, "rate", float)) is float


@pytest.mark.parametrize("family", [family for family in FAMILIES.values() if family.writes_as], ids=lambda f: f.name)
def test_a_family_that_is_written_in_another_s_names_has_that_other(family: Family):
    other = FAMILIES[family.writes_as].huggingface
    assert family.huggingface is None and other is not None
    config = made(family.name, "tensorflow")
    ours = {name for row in other.rows(config) for name in row.ours}
    with torch.device("meta"):
        assert {name for name, _ in Model(config).named_parameters()} <= ours


def test_families_are_data_and_need_no_torch():
    code = "import sys, hanmo.families; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
