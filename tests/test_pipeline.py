"""The arguments of writing: seen where they are used, checked by name, with the model's own defaults."""

import inspect
import json
import re
import typing

import pytest
from test_model_pipeline import small

import hanmo
from hanmo.errors import ConfigError
from hanmo.generate.options import Options
from hanmo.pipeline import SMALL, Pipeline


@pytest.fixture
def folder(tmp_path):
    small("gpt2_ml", tmp_path)
    return tmp_path


def drawing(folder, **options):
    sampling = hanmo.load(folder / "model.ckpt").generation_config(**options).sampling
    names = ("temperature", "top_k", "top_p", "repetition_penalty", "no_repeat_ngram")
    return tuple(getattr(sampling, name) for name in names)


@pytest.mark.parametrize("method", [Pipeline.write, Pipeline.write_detailed, Pipeline.stream])
def test_the_signature_names_every_option_with_its_default(method):
    shown = inspect.signature(method).parameters
    for name, told in inspect.signature(Pipeline.generation_config).parameters.items():
        if name != "self":
            assert shown[name].default == told.default and shown[name].kind is inspect.Parameter.KEYWORD_ONLY
    assert "seed" in shown and "max_chars" in shown and "options" not in shown


def test_editors_are_told_the_same_options():
    told = inspect.signature(Pipeline.generation_config).parameters.keys() - {"self"}
    assert typing.get_type_hints(Options).keys() == told


@pytest.mark.parametrize("method", ["write", "write_detailed", "stream"])
@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("topk", "did you mean top_k?"),
        ("max_length", "did you mean max_tokens or max_chars?"),
        ("max_new_tokens", "did you mean max_tokens?"),
        ("num_beams", "did you mean beams?"),
        ("zzz", "it has .*top_k, top_p"),
    ],
)
def test_an_unknown_argument_names_the_function_and_what_was_meant(folder, method, name, hint):
    if method == "stream" and name == "num_beams":
        hint = ""
    with pytest.raises(TypeError, match=rf"^{method}\(\) has no argument '{name}'; {hint}"):
        getattr(hanmo.load(folder / "model.ckpt"), method)("今天", **{name: 5})


def test_a_models_own_settings_are_defaults_that_arguments_replace(folder):
    assert drawing(folder) == (1.0, 5, None, 1.0, None)
    told = {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05, "no_repeat_ngram_size": 3}
    (folder / "generation_config.json").write_text(json.dumps(told | {"eos_token_id": 3, "do_sample": True}), "utf-8")
    assert drawing(folder) == (0.7, 20, 0.8, 1.05, 3)
    assert drawing(folder, temperature=1.0, repetition_penalty=1.0, no_repeat_ngram=0) == (1.0, 20, 0.8, 1.0, None)
    assert drawing(folder, top_p=0.5) == (0.7, None, 0.5, 1.05, 3)
    assert drawing(folder, top_k=2) == (0.7, 2, None, 1.05, 3)
    assert drawing(folder, preset="article") == (1.0, 5, None, 1.0, None)
    (folder / "generation_config.json").write_text('{"top_k": 0, "top_p": null, "no_repeat_ngram_size": 0}', "utf-8")
    assert drawing(folder) == (1.0, 5, None, 1.0, None)


def test_ids_that_a_model_bans_are_never_written(folder):
    (folder / "generation_config.json").write_text('{"bad_words_ids": [[7], [9]]}', "utf-8")
    loaded = hanmo.load(folder / "model.ckpt")
    for options in ({}, {"preset": "greedy"}, {"top_p": 0.9}):
        assert loaded.generation_config(**options).sampling.banned[-2:] == (7, 9)
    assert not {7, 9} & set(loaded.write_detailed("今天", seed=0, max_tokens=30, temperature=9.0, top_k=1000)[0].ids)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"top_p": 1.5}', "top_p is 1.5; expected above 0 and at most 1"),
        ('{"repetition_penalty": "high"}', "repetition_penalty is 'high'"),
        ("[]", "expected a JSON object"),
        ('{"bad_words_ids": [[7], [8, 9]]}', "bad_words_ids is [[7], [8, 9]]; expected lists of one id each"),
        ('{"bad_words_ids": 7}', "bad_words_ids is 7; expected lists of one id each"),
    ],
)
def test_settings_of_a_model_that_cannot_be_right_name_their_file(folder, text, message):
    (folder / "generation_config.json").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=rf"generation_config\.json.*{re.escape(message)}"):
        drawing(folder)


@pytest.mark.slow
def test_the_small_model_repeats_itself_less_by_its_own_defaults():
    told = {"top_k": 20, "repetition_penalty": 1.1}
    assert json.loads((SMALL / "generation_config.json").read_text("utf-8")) == told
    writer = hanmo.load()

    def repeated(**options: float) -> float:
        """Return the share of 4-grams that their text has had before."""
        found = writer.write_detailed("床前明月光", n=8, seed=0, stop=None, max_chars=80, **options)
        runs = [[written.ids[at : at + 4] for at in range(len(written.ids) - 3)] for written in found]
        assert sum(map(len, runs)) > 100
        return sum(len(each) - len(set(each)) for each in runs) / sum(map(len, runs))

    assert repeated() < repeated(top_k=5, repetition_penalty=1.0) / 2
