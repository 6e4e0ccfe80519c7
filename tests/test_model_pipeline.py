"""What `hanmo.load` gives writes, streams, scores, encodes and fills; and says why it cannot."""

import json
import math
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hanmo
from hanmo.checkpoint.save import save
from hanmo.errors import CheckpointError, ConfigError, MissingFile, PromptError, TokenizerError
from hanmo.families import FAMILIES
from hanmo.generate.text import read_prompt
from hanmo.inference.torch_engine import TorchEngine
from hanmo.model import Model

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, *"今天气不错可以去跑步床前明月光疑是地上霜，。！？”", "hello", "##lo", "a", "b"]


def small(name: str, folder, *, vocab_size: int = len(WORDS), words=WORDS, **changes):
    """Save a small random model with a small vocabulary beside it, and load it again."""
    config = FAMILIES[name].tensorflow.config(
        {
            "vocab_size": vocab_size,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 40,
        }
    )
    model = Model(config).initialize(3)
    with torch.no_grad():  # a wide spread, so that choices are not ties
        for parameter in model.parameters():
            parameter.mul_(8) if parameter.ndim > 1 else None
    save(model, folder / "model.ckpt", form="tensorflow")
    (folder / "vocab.txt").write_text("\n".join(words), "utf-8")
    return hanmo.load(folder / "model.ckpt", **changes)


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    return small("gpt2_ml", tmp_path_factory.mktemp("gpt2_ml"))


def test_a_text_begins_with_its_prompt_and_a_seed_repeats_it(writer):
    first = writer.write("今天天气", seed=7, max_chars=12)
    assert first[0].startswith("今天天气") and 4 < len(first[0]) <= 17
    assert writer.write("今天天气", seed=7, max_chars=12) == first
    assert writer.write("今天天气", seed=8, max_chars=12) != first


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 4))
def test_streamed_pieces_joined_are_each_sample(writer, seed, n):
    texts = writer.write("床前", n=n, seed=seed, max_chars=15)
    assert ["床前" + "".join(writer.stream("床前", seed=seed, sample=i, max_chars=15)) for i in range(n)] == texts


@pytest.mark.parametrize("prompt", ["[CLS]床前，", "床前[SEP]明"])
def test_special_tokens_of_a_prompt_are_read_as_transformers_does(writer, prompt):
    from transformers import BertTokenizer

    peer = BertTokenizer.from_pretrained(writer.path.parent, do_lower_case=True)
    ids = peer(prompt, add_special_tokens=False)["input_ids"]
    assert read_prompt(writer.engine, writer.tokenizer, prompt, writer.generation_config()) == ids
    assert {2, 3} & set(ids)
    plain = read_prompt(writer.engine, writer.tokenizer, prompt, writer.generation_config(parse_special=False))
    assert plain == writer.tokenizer.encode(prompt, ends=False).ids != ids
    how = {"temperature": 0, "max_tokens": 5, "stop": None}
    with torch.inference_mode():
        row = list(ids)
        for _ in range(5):
            logits = writer.model(torch.tensor([row])).logits[0, -1]
            logits[[0, 1, 2, 4]] = -math.inf
            row.append(int(logits.argmax()))
            if row[-1] == 3:
                break
    [written] = writer.write_detailed(prompt, **how)
    assert list(written.ids) == [number for number in row[len(ids) :] if number != 3]
    assert writer.write(prompt, **how)[0] == prompt + written.text
    scored = writer.score(prompt, parse_special=True)
    assert scored.tokens == [writer.tokenizer.id_to_token(number) for number in ids[1:]]
    assert len(writer.score(prompt).tokens) == len(plain) - 1


def test_special_tokens_and_rows_without_a_word_are_never_written(tmp_path):
    writer = small("gpt2_ml", tmp_path, vocab_size=len(WORDS) + 7)
    for written in writer.write_detailed("今天", n=8, seed=1, top_k=100, stop=None, max_tokens=30):
        assert all(len(SPECIAL) <= i < len(WORDS) or i == 3 for i in written.ids)


def test_added_tokens_are_rows_with_a_word_and_are_written(tmp_path):
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<诗>": len(WORDS), "春眠": len(WORDS) + 1}), "utf-8")
    writer = small("gpt2_ml", tmp_path, vocab_size=len(WORDS) + 4)
    assert set(writer.generation_config().sampling.banned) == {0, 1, 2, 4, len(WORDS) + 2, len(WORDS) + 3}
    with torch.no_grad():
        writer.model.token.weight[len(WORDS) + 1] *= 20
    [written] = writer.write_detailed("今天春眠", temperature=0, max_tokens=3, stop=None)
    assert len(WORDS) + 1 in written.ids and "春眠" in written.text


def test_a_preset_draws_as_its_original_did(tmp_path):
    writer = small("gpt2_ml", tmp_path, vocab_size=len(WORDS) + 2)
    demo = writer.generation_config(preset="gpt2-ml-demo").sampling
    assert (demo.top_p, demo.crossing, demo.banned) == (0.95, "drop", (0, len(WORDS), len(WORDS) + 1))
    assert writer.generation_config(preset="article").sampling.top_k == 5
    assert set(range(len(SPECIAL))) - {3} <= set(writer.generation_config(preset="greedy").sampling.banned)
    greedy = [writer.write("今天", preset="greedy", seed=seed, max_chars=9) for seed in (1, 2)]
    assert greedy[0] == greedy[1]


def test_writing_ends_at_the_last_position_and_says_so(writer):
    (written,) = writer.write_detailed("今天", seed=1, stop=None, max_chars=999, top_k=1000, allow_unknown=True)
    assert (written.reason, len(written.ids)) in {("context", 38), ("end", len(written.ids))}


def test_a_prompt_that_is_too_long_names_both_lengths_or_is_cut(writer):
    with pytest.raises(PromptError, match=r"41 .*40"):
        writer.write("今" * 41)
    assert writer.write("今" * 41, keep_last=True, seed=1, max_tokens=3)[0].startswith("今" * 41)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"n": 0}, "n is 0"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 1.5}, r"top_p is 1\.5"),
        ({"temperature": -1.0}, r"temperature is -1\.0"),
        ({"beams": 0}, "beams is 0"),
        ({"beams": 10**6}, "beams is 1000000; expected a whole number from 1 to 1,024"),
        ({"beams": 2, "seed": 5}, "beams search for the likeliest text and draw nothing"),
        ({"beams": 2, "top_k": 5}, "beams search for the likeliest text and draw nothing"),
        ({"beams": 2, "top_k": 1}, "beams search for the likeliest text and draw nothing"),
        ({"beams": 2, "length_penalty": math.inf}, "length_penalty is inf; expected"),
        ({"length_penalty": 1.0}, r"length_penalty is 1\.0, which ranks the texts of a search; give beams=N too"),
        ({"preset": "greedy", "top_k": 3}, "preset is 'greedy', which settles how to draw"),
        ({"min_chars": -5}, "min_chars is -5; expected 0 or more"),
        ({"min_chars": 30, "max_chars": 20}, r"min_chars is 30; expected 0 or more, and no more than max_chars \(20\)"),
        ({"max_chars": 0}, "max_chars is 0"),
        ({"preset": "demo"}, "preset is 'demo'; expected one of greedy, gpt2-ml-demo, article"),
        ({"stop": "word"}, "stop is 'word'; expected 'sentence' or None"),
        ({"beams": 2, "n": 3}, "n is 3, beams is 2; a search gives at most as many texts"),
    ],
)
def test_settings_out_of_range_are_refused(writer, how, message):
    with pytest.raises(ConfigError, match=message):
        writer.write("今天", **how)


@pytest.mark.parametrize("text", ["", " \n", "\0今", "喵喵", "\ud800"])
def test_prompts_that_cannot_be_written_on_from_are_refused(writer, text):
    with pytest.raises(PromptError):
        writer.write(text)


def test_weights_that_are_not_numbers_are_one_clear_error(tmp_path):
    writer = small("gpt2_ml", tmp_path)
    with torch.no_grad():
        writer.model.token.weight.fill_(math.nan)
    with pytest.raises(CheckpointError, match="NaN"):
        writer.write("今天")


def test_beams_give_the_likeliest_first(writer):
    texts = writer.write_detailed("今天", beams=4, n=3, max_tokens=6, stop=None)
    assert len({written.ids for written in texts}) == 3
    assert texts[0].score >= texts[1].score >= texts[2].score
    assert [len(writer.write("今天", beams=hidden_size, n=hidden_size, max_tokens=6)) for hidden_size in (7, 8)] == [
        7,
        8,
    ]


def test_a_length_penalty_ranks_beams_by_their_means(writer):
    sums = writer.write_detailed("今天", beams=3, n=3, max_tokens=6, stop=None)
    means = writer.write_detailed("今天", beams=3, n=3, max_tokens=6, stop=None, length_penalty=1.0)
    shared = {written.ids: written.score for written in sums}.keys() & {written.ids for written in means}
    assert shared
    for written in means:
        prompt = writer.tokenizer.encode("今天", ends=False).ids
        ids = torch.tensor([[*prompt, *written.ids]])
        with torch.no_grad():
            logprobs = writer.model(ids).logits[0].log_softmax(-1)
        each = [logprobs[len(prompt) + place - 1, id].item() for place, id in enumerate(written.ids)]
        assert written.score == pytest.approx(sum(each) / len(each), rel=1e-4)


def test_a_list_of_texts_gives_a_list_for_each(writer):
    prompts = ["今天", "床前明月光"]
    assert writer.write(prompts, n=2, seed=3, max_chars=8) == [
        writer.write(prompt, n=2, seed=3, max_chars=8) for prompt in prompts
    ]
    assert writer.write_detailed(tuple(prompts), seed=3) == [writer.write_detailed(each, seed=3) for each in prompts]
    assert writer.score(prompts) == [writer.score(prompt) for prompt in prompts]
    assert writer.write([]) == writer.score([]) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is None; expected str"),
        (b"abc", "is bytes; expected str; decode bytes before"),
        (5, "is int; expected str"),
        (["今天", None], "text 1 of the list is None; expected str"),
        ([("今天", "天气")], "text 0 of the list is tuple; expected str"),
    ],
)
@pytest.mark.parametrize("method", ["write", "write_detailed", "stream", "score", "encode", "fill"])
def test_what_is_no_text_is_refused_by_name(tmp_path_factory, writer, method, text, message):
    if method in ("encode", "fill"):
        writer = small("bert", tmp_path_factory.mktemp("bert"))
    if method in ("stream", "fill") and isinstance(text, list):
        message = "is list; expected str"
    with pytest.raises(PromptError, match=message):
        getattr(writer, method)(text)


def test_every_predicted_token_has_its_probability(writer):
    for loaded in (writer, hanmo.load()):
        score = loaded.score("今天天气不错")
        assert len(score.tokens) == len(score.logprobs) > 0


def test_score_is_the_models_own_probability(writer):
    text = "今天天气不错"
    score = writer.score(text)
    ids = torch.tensor([writer.tokenizer.encode(text, ends=False).ids])
    with torch.no_grad():
        logprobs = writer.model(ids).logits.log_softmax(-1)
    expected = [logprobs[0, i, ids[0, i + 1]].item() for i in range(ids.shape[1] - 1)]
    np.testing.assert_allclose(score.logprobs, expected, atol=1e-5)
    assert score.tokens == list(text)[1:]
    assert score.bits_per_char == pytest.approx(-sum(expected) / math.log(2) / 5, rel=1e-5)


def test_a_text_longer_than_the_positions_is_scored_in_windows(writer):
    text = "今天天气不错可以去跑步" * 8
    score = writer.score(text)
    assert len(score.logprobs) == len(text) - 1 and all(p < 0 for p in score.logprobs)
    short = writer.score(text[:40])
    np.testing.assert_allclose(score.logprobs[:39], short.logprobs, atol=1e-5)


def test_unknown_characters_cost_what_telling_them_apart_does(writer):
    plain, told = writer.score("今天喵"), writer.score("今天喵", distinct_unknown=7)
    assert told.bits_per_char - plain.bits_per_char == pytest.approx(3 / 2)


def test_one_token_and_other_models_are_not_scored(writer, tmp_path):
    with pytest.raises(PromptError, match="one token; nothing predicts the first"):
        writer.score("今")
    with pytest.raises(CheckpointError, match="scores need a model that reads from left to right"):
        small("bert", tmp_path).score("今天")


def test_vectors_do_not_depend_on_their_neighbours(tmp_path):
    encoder = small("bert", tmp_path)
    texts = ["今天", "床前明月光，疑是地上霜。", "跑步"]
    for pool in ("mean", "first", "pooler"):
        together = encoder.encode(texts, pool=pool, batch=2)
        assert together.shape == (3, 16) and together.dtype == np.float32
        np.testing.assert_allclose(together, np.concatenate([encoder.encode([t], pool=pool) for t in texts]), atol=2e-5)
    assert encoder.encode([]).shape == (0, 16)
    np.testing.assert_allclose(encoder.encode(texts[0]), encoder.encode(texts[:1]))
    with pytest.raises(ConfigError, match="pool is 'max'; expected 'mean', 'first' or 'pooler'"):
        encoder.encode(texts, pool="max")


def test_a_model_without_a_pooler_says_so(writer):
    with pytest.raises(CheckpointError, match="has no pooler; use pool='mean' or 'first'"):
        writer.encode(["今天"], pool="pooler")


def test_masks_are_filled_with_the_likeliest(tmp_path, writer):
    encoder = small("bert", tmp_path)
    found = encoder.fill("今[MASK]天气[MASK]", k=4)
    assert [len(candidates) for candidates in found] == [4, 4]
    assert all(a.probability >= b.probability for c in found for a, b in pairwise(c))
    ids = torch.tensor([encoder.tokenizer.encode("今[MASK]天气[MASK]", special=True).ids])
    with torch.no_grad():
        best = encoder.model(ids).logits[0, 2].argmax().item()
    assert found[0][0].token == WORDS[best]
    with pytest.raises(PromptError, match=r"has no \[MASK\]"):
        encoder.fill("今天")
    assert len(encoder.fill("今[MASK]", k=1000)[0]) == len(WORDS)
    with pytest.raises(ConfigError, match="k is 0; expected a whole number of 1 or more"):
        encoder.fill("今[MASK]", k=0)
    with pytest.raises(PromptError, match="the text has 53 tokens with its marks, the model knows 40 positions"):
        encoder.fill("今" * 50 + "[MASK]")
    with pytest.raises(CheckpointError, match="filling needs a masked language model"):
        writer.fill("今[MASK]")
    encoder.tokenizer.special = replace(encoder.tokenizer.special, mask=WORDS.index("天"))
    with pytest.raises(PromptError, match="the text '今' has no 天; write one where a token is to be found"):
        encoder.fill("今")


@pytest.mark.parametrize("family", ["bert", "nezha", "roformer"])
def test_an_encoder_writes_with_a_prefix_mask(family, tmp_path):
    writer = small(family, tmp_path, mask="prefix", family=family)
    texts = writer.write("今天天气", n=2, seed=5, max_chars=6, top_k=100)
    assert texts == writer.write("今天天气", n=2, seed=5, max_chars=6, top_k=100)
    with pytest.raises(CheckpointError, match="does not write"):
        TorchEngine(small_again(tmp_path, family).model)


def small_again(folder, family):
    return hanmo.load(folder / "model.ckpt", family=family)


@pytest.mark.parametrize("family", ["t5.1.0", "t5.1.1"])
def test_an_encoder_decoder_answers(family, tmp_path):
    writer = small(family, tmp_path)
    texts = writer.write("今天天气", n=3, seed=5, max_tokens=6, top_k=100)
    assert texts == [writer.write_detailed("今天天气", n=3, seed=5, max_tokens=6, top_k=100)[i].text for i in range(3)]
    assert "".join(writer.stream("今天天气", seed=5, max_tokens=6, top_k=100)) == texts[0]


def test_a_vocabulary_with_more_words_than_rows_is_refused(tmp_path):
    with pytest.raises(TokenizerError, match=r"has 34 words, the model of .* 33 rows"):
        small("gpt2_ml", tmp_path, vocab_size=len(WORDS) - 1)


def test_a_vocabulary_of_far_fewer_words_than_rows_is_another_models(tmp_path):
    with pytest.raises(TokenizerError, match=r"has 34 words, the model of .* 163 rows; more than 128 spare rows"):
        small("gpt2_ml", tmp_path, vocab_size=len(WORDS) + 129)


def test_a_device_that_is_not_there_and_a_mask_for_a_writer_are_refused(tmp_path, writer):
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device is 'cuda', which torch cannot use here"):
            hanmo.load(writer.path, device="cuda")
    with pytest.raises(ConfigError, match="mask is 'prefix', but a gpt2_ml writes already; leave mask out"):
        hanmo.load(writer.path, mask="prefix")
    with pytest.raises(CheckpointError, match="was loaded to write"):
        small("bert", tmp_path, mask="prefix").encode(["今天"])


def test_without_a_vocabulary_the_model_loads_and_says_what_is_missing(tmp_path):
    small("gpt2_ml", tmp_path)
    (tmp_path / "vocab.txt").unlink()
    loaded = hanmo.load(tmp_path / "model.ckpt")
    with pytest.raises(MissingFile, match=r"there is no vocabulary beside .*; put its vocab\.txt"):
        loaded.write("今天")
    shutil.copy(__file__, tmp_path / "notes.md")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "vocab.txt").write_text("\n".join(WORDS), "utf-8")
    assert hanmo.load(tmp_path / "model.ckpt", tokenizer=tmp_path / "other" / "vocab.txt").write("今天", max_chars=5)


def test_engine_rows_of_different_lengths_equal_each_alone(writer):
    engine = TorchEngine(writer.model)
    prompts = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
    rows, logits = engine.prefill(prompts, room=3)
    rows.reorder([2, 0, 1, 1])
    after = rows.step([20, 21, 22, 23])
    for row, (source, new) in enumerate(zip([2, 0, 1, 1], [20, 21, 22, 23], strict=True)):
        alone, first = engine.prefill([prompts[source]], room=3)
        np.testing.assert_allclose(first[0], logits[source], atol=2e-5)
        np.testing.assert_allclose(alone.step([new])[0], after[row], atol=2e-5)


@pytest.mark.parametrize("form", ["safetensors", "tensorflow"])
def test_what_was_loaded_saves_itself_with_its_vocabulary(writer, tmp_path, form):
    again = hanmo.load(writer.save(tmp_path / "own" / "model.ckpt", form=form))
    assert again.write("今天", seed=2, max_chars=9) == writer.write("今天", seed=2, max_chars=9)


def test_a_config_survives_in_hanmos_own_folder(writer, tmp_path):
    save(writer.model, tmp_path / "own", tokenizer=[writer.path.parent / "vocab.txt"])
    again = hanmo.load(tmp_path / "own")
    assert again.config == replace(writer.config)
    assert json.loads((tmp_path / "own" / "hanmo.json").read_text("utf-8"))["family"] == "gpt2_ml"
    assert again.write("今天", seed=2, max_chars=9) == writer.write("今天", seed=2, max_chars=9)


def test_what_is_loaded_says_what_it_is_in_a_line_and_how_it_is_saved(writer, tmp_path):
    assert repr(writer) == f"<ModelPipeline of {writer.path}: gpt2_ml, 2 x 16, {len(WORDS)} ids>"
    with pytest.raises(ConfigError, match=r"model is a ModelPipeline; give loaded\.model"):
        hanmo.save(writer, tmp_path / "new")
    assert not (tmp_path / "new").exists()
