"""A model that goes on from what it computed last gives what computing everything again gives."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hanmo.compat.bert4keras import _prefix
from hanmo.compat.bert4keras.layers import Input
from hanmo.compat.bert4keras.models import build_transformer_model
from hanmo.errors import ConfigError, PromptError

GOLDENS = Path(__file__).parent.parent / "data" / "goldens"
# name → folder, arguments; every kind of position, mask and context that can write.
KINDS = {
    "gpt2_ml": ("gpt2_ml", {"model": "gpt2_ml"}),
    "gpt2": ("gpt2", {"model": "gpt2"}),
    "gpt": ("gpt", {"model": "gpt"}),
    "gpt_shared_segment": ("gpt_shared_segment", {"model": "gpt", "shared_segment_embeddings": True}),
    "bert lm": ("bert", {"application": "lm"}),
    "bert unilm": ("bert", {"application": "unilm"}),
    "bert positions": ("bert", {"application": "lm", "custom_position_ids": True}),
    "bert condition": ("bert", {"application": "lm", "layer_norm_cond": Input(shape=(6,), name="cond")}),
    "bert realformer": ("bert", {"application": "unilm", "residual_attention_scores": True}),
    "albert lm": ("albert", {"model": "albert", "application": "lm"}),
    "nezha unilm": ("nezha", {"model": "nezha", "application": "unilm"}),
    "roformer lm": ("roformer", {"model": "roformer", "application": "lm"}),
    "t5": ("t5_1.1", {"model": "t5.1.1"}),
    "t5 decoder": ("t5_1.1", {"model": "t5.1.1_decoder"}),
    "mt5": ("mt5_1.1", {"model": "mt5.1.1"}),
}


def build(kind):
    folder, arguments = KINDS[kind]
    config, checkpoint = GOLDENS / folder / "config.json", GOLDENS / folder / "model.ckpt"
    return build_transformer_model(str(config), str(checkpoint), **arguments)


built = cache(build)


def inputs_of(model, tokens, rng):
    """Make inputs around the tokens [rows, n]: the second segment begins somewhere, the context has few kinds."""
    rows, count = tokens.shape
    arrays = []
    for name in model.input_names:
        if name == "Input-Segment":
            arrays.append((np.arange(count)[None] >= rng.integers(1, count + 1, (rows, 1))).astype(int))
        elif name == "Input-Position":
            arrays.append(np.tile(np.arange(count) + rng.integers(0, 2), (rows, 1)))
        elif name == "Encoder-Input-Token":
            arrays.append(np.array([[5, 6, 0, 7], [9, 8, 7, 6]])[rng.integers(0, 2, rows)])
        elif name == "Input-Context":
            memories = np.random.default_rng(3).normal(size=(2, 5, model.network.main.config.hidden_size))
            arrays.append(memories[rng.integers(0, 2, rows)])
        elif name == "cond":
            arrays.append(np.random.default_rng(4).normal(size=(2, 6))[rng.integers(0, 2, rows)])
        else:
            arrays.append(tokens)
    return arrays


def recomputed(model, arrays):
    helper, model.prefix = model.prefix, None
    try:
        return model.predict(arrays)
    finally:
        model.prefix = helper


def change(tokens, rng, vocab):
    """Change tokens as scripts do, or as only a test would: longer, fewer, more, other places, other middles."""
    rows, count = tokens.shape
    match rng.choice(["longer", "longer", "longer", "rows", "middle", "shorter", "same", "other"]):
        case "longer":
            new = rng.integers(0, vocab, (rows, rng.integers(1, 4)))
            return np.concatenate([tokens, new * rng.integers(0, 2, new.shape)], 1)[:, :40]
        case "rows":
            return tokens[rng.integers(0, rows, rng.integers(1, 5))]
        case "middle":
            changed = tokens.copy()
            changed[rng.integers(0, rows), rng.integers(0, count)] = rng.integers(0, vocab)
            return changed
        case "shorter":
            return tokens[:, : rng.integers(1, count + 1)]
        case "other":
            return rng.integers(0, vocab, (rng.integers(1, 4), rng.integers(1, 9)))
    return tokens


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_whatever_is_asked_in_turn_equals_computing_it_again(kind, seed):
    model, rng = built(kind), np.random.default_rng(seed)  # which has seen the texts of the other seeds
    vocab = model.network.config.vocab_size
    tokens = rng.integers(0, vocab, (1, 4))
    arrays = inputs_of(model, tokens, rng)
    asked = []
    for _ in range(8):
        expected = recomputed(model, arrays)
        if rng.integers(0, 3):
            asked.append((model.predict(arrays), expected))
        else:
            asked.append((model.predict_last(arrays), expected[:, -1]))
        if rng.integers(0, 4) == 0:  # a script may write into what it got
            asked[-1][0][...] = 7
            asked.pop()
        tokens = change(tokens, rng, vocab)
        arrays = inputs_of(model, tokens, np.random.default_rng(seed) if rng.integers(0, 3) else rng)
    for result, expected in asked:  # at the end: what came later must not have changed what came before
        assert result.shape == expected.shape and result.dtype == np.float32
        np.testing.assert_allclose(result, expected, rtol=0, atol=2e-5)


def counting(model):
    """Count the tokens that go through the network's blocks."""
    seen = []
    block = model.network.main.blocks[0]
    block.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape[0] * given[0].shape[1]))
    return seen


@pytest.mark.parametrize("last", [False, True])
def test_only_new_tokens_are_computed(last):
    model = build("gpt2_ml")
    seen = counting(model)
    predict = model.predict_last if last else model.predict
    tokens = np.array([[3, 4, 5, 6]])
    predict(tokens)
    tokens = np.repeat(np.concatenate([tokens, [[7]]], 1), 3, 0)  # one row becomes three
    predict(tokens)
    tokens = np.concatenate([tokens, [[8], [9], [10]]], 1)
    predict(tokens)
    tokens = np.concatenate([tokens[[2, 0, 2]], [[1], [2], [3]]], 1)  # beams change places
    predict(tokens)
    tokens = np.concatenate([tokens[1:], [[0], [11]]], 1)  # one has ended
    predict(tokens)
    assert seen == [4, 3, 3, 3, 2]


def test_a_unilm_prompt_is_kept_once_and_its_answer_grows():
    model = build("bert unilm")
    seen = counting(model)
    tokens, segments = np.array([[3, 4, 5]]), np.array([[0, 0, 0]])
    model.predict([tokens, segments])
    for _ in range(3):
        tokens, segments = np.concatenate([tokens, [[7]]], 1), np.concatenate([segments, [[1]]], 1)
        model.predict([tokens, segments])
    segments[0, 3] = 0  # now the prompt sees a token more
    model.predict([tokens, segments])
    assert seen == [3, 1, 1, 1, 6]


def test_one_encoded_text_is_taken_as_long_as_it_is_the_same():
    model = build("t5 decoder")
    seen = counting(model)
    memory = np.random.default_rng(0).normal(size=(1, 3, model.network.main.config.hidden_size)).astype(np.float32)
    model.predict([memory, np.array([[1, 2]])])
    model.predict([np.repeat(memory, 2, 0), np.array([[1, 2, 3], [1, 2, 4]])])
    memory[0, 0, 0] += 1
    model.predict([memory, np.array([[1, 2, 3]])])
    assert seen == [2, 2, 3]


def test_a_call_that_failed_leaves_nothing_behind(monkeypatch):
    model, rng = build("t5 decoder"), np.random.default_rng(0)
    one, two = (rng.normal(size=(1, 3, model.network.main.config.hidden_size)).astype(np.float32) for _ in range(2))
    tokens = np.array([[1, 2, 3]])
    model.predict([one, tokens])
    with monkeypatch.context() as patch:
        patch.setattr(type(model.network), "forward", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.predict([two, tokens])
    for memory in (two, one, two):
        np.testing.assert_allclose(
            model.predict([memory, tokens]), recomputed(model, [memory, tokens]), rtol=0, atol=2e-5
        )


def test_changed_weights_are_noticed():
    model = build("gpt2_ml")
    tokens = np.array([[3, 4, 5]])
    model.predict(tokens)
    layer = model.get_layer("Embedding-Token")
    layer.set_weights([layer.get_weights()[0] * 2])
    np.testing.assert_allclose(model.predict(tokens), recomputed(model, tokens), rtol=0, atol=2e-5)


def test_a_forked_process_leaves_what_its_parent_keeps(monkeypatch):
    model = build("gpt2_ml")
    kept = model.predict(np.array([[3, 4, 5]]))
    monkeypatch.setattr("os.getpid", lambda: -1)
    seen = counting(model)
    model.predict(np.array([[3, 4, 6]]))
    assert seen == [3]
    np.testing.assert_allclose(kept, recomputed(model, np.array([[3, 4, 5]])), rtol=0, atol=2e-5)


def test_models_that_see_later_tokens_are_not_helped():
    config, checkpoint = str(GOLDENS / "bert" / "config.json"), str(GOLDENS / "bert" / "model.ckpt")
    assert build_transformer_model(config, checkpoint).prefix is None
    assert build_transformer_model(config, checkpoint, with_mlm=True).prefix is None
    assert build_transformer_model(config, checkpoint, application="unilm", with_pool=True).prefix is None


def test_no_more_is_kept_than_may_be():
    model = build("gpt2_ml")
    seen = counting(model)
    tokens = np.array([[3, 4, 5]])
    model.prefix.most_bytes = 0
    for _ in range(2):
        np.testing.assert_allclose(model.predict(tokens), recomputed(model, tokens), rtol=0, atol=2e-5)
    assert seen == [3] * 4


def test_many_rows_go_through_the_network_in_batches():
    model = build("gpt2_ml")
    seen = counting(model)
    tokens = np.random.default_rng(0).integers(1, 100, (5, 4))
    assert model.predict(tokens, batch_size=2).shape == (5, 4, model.network.config.vocab_size)
    assert seen == [8, 8, 4]
    model.predict_on_batch(tokens)
    assert seen == [8, 8, 4, 20]


def test_views_are_copies_where_memory_cannot_be_mapped(monkeypatch):
    monkeypatch.delattr("os.memfd_create", raising=False)
    pages = _prefix.Pages(1, 4, 2)
    pages.write(0, np.ones((1, 2, 2)))
    view = pages.view(2)
    view[...] = 5
    assert (pages.view(2) == 1).all() and not np.shares_memory(view, pages.array)


def test_views_beyond_a_number_are_copies_so_that_descriptors_last():
    pages = _prefix.Pages(1, 4, 2)
    pages.write(0, np.ones((1, 2, 2)))
    views = [pages.view(2) for _ in range(100)]
    for i, view in enumerate(views):
        view[...] = i
    assert [view.min() for view in views] == [view.max() for view in views] == list(range(100))
    assert (pages.view(2) == 1).all()


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        (np.zeros((1, 0), int), PromptError, r"\(1, 0\), without a token"),
        (np.array([3, 4]), ConfigError, r"the shape \(2,\); expected \[rows, tokens\]"),
        (np.array([[3, 4000]]), ConfigError, "holds the id 4000; the model knows 0 … 119"),
        (np.array([[-3, 4]]), ConfigError, "holds the id -3"),
    ],
)
def test_inputs_that_cannot_be_ids_are_refused(given, error, says):
    with pytest.raises(error, match=says):
        build("gpt2_ml").predict(given)


def test_tokens_and_segments_must_be_as_many():
    with pytest.raises(ConfigError, match=r"Input-Token \(1, 3\), Input-Segment \(1, 2\)"):
        build("bert lm").predict([np.zeros((1, 3)), np.zeros((1, 2))])
