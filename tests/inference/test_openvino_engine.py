"""The OpenVINO engine against the torch engine: every golden kind, every kind of weights, batches, orders, samples."""

from pathlib import Path

import numpy as np
import pytest
from opening import open_engine
from rounding import assert_near

import hanmo.loading
from hanmo.config import ModelConfig
from hanmo.errors import CheckpointError, ConfigError, MissingFile
from hanmo.generate import GREEDY, Limits, Sampling
from hanmo.generate.loop import Token, sample
from hanmo.inference.openvino.engine import OpenVinoEngine
from hanmo.inference.torch_engine import TorchEngine

GOLDENS = Path(__file__).parent.parent / "data" / "goldens"
KIN = ("bert", "bert_headsize", "albert", "albert_unshared", "nezha", "roformer", "roformer_v2")
OWN = ("gpt2_ml_original", "gpt2_ml", "gpt2", "gpt", "gpt_nosegment", "gpt_shared_segment")
CAUSAL = [(name, None) for name in OWN]
CAUSAL += [(name, "causal") for name in KIN]
PREFIX = [(name, "prefix") for name in KIN]
SEQ2SEQ = [(name, None) for name in ("t5_1.0", "t5_1.1", "mt5_1.1")]
SOME = [("gpt2_ml", None), ("bert", "prefix"), ("nezha", "causal"), ("t5_1.1", None)]
ALL = CAUSAL + PREFIX + SEQ2SEQ
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [20, 21, 22], [31, 32, 33, 34, 35]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("built")


@pytest.fixture(scope="module")
def ours(folder):
    kept = {}

    def get(name, mask, weights="float32"):
        key = name, mask, weights
        if key not in kept:
            path = GOLDENS / name / "model.ckpt"
            kept[key] = open_engine(path, weights=weights, mask=mask, folder=folder, threads=1)
        return kept[key]

    return get


@pytest.fixture(scope="module")
def theirs():
    kept = {}

    def get(name, mask):
        if (name, mask) not in kept:
            kept[name, mask] = TorchEngine(hanmo.loading.load(GOLDENS / name / "model.ckpt", mask=mask).model)
        return kept[name, mask]

    return get


def written(engine, prompts, *, n=1, sampling=GREEDY, seed=7, tokens=16):
    texts = [[] for _ in range(len(prompts) * n)]
    limits = Limits(max_tokens=tokens)
    for event in sample(engine, prompts, n=n, seed=seed, sampling=sampling, limits=limits):
        if isinstance(event, Token):
            texts[event.row].append(event.id)
    return texts


def both(one, other, prompts=PROMPTS):
    """Run both through a prefill, steps and a reordering, and give the logits of each."""
    (rows, logits), (reference, expected) = one.prefill(prompts, room=9), other.prefill(prompts, room=9)
    found = [(logits, expected)]
    for _ in range(3):
        ids = expected.argmax(-1)
        logits, expected = rows.step(ids), reference.step(ids)
        found.append((logits, expected))
    for order in ([2, 0, 2, 1], [3, 1], [0]):
        rows.reorder(order)
        reference.reorder(order)
    found.append((rows.step([13]), reference.step([13])))
    assert all(a.shape == b.shape and a.dtype == np.float32 for a, b in found)
    return tuple(np.concatenate(logits) for logits in zip(*found, strict=True))


def test_the_battery_has_every_golden_kind_that_writes():
    assert len(CAUSAL) == 13 and len(ALL) == 23


@pytest.mark.parametrize(("name", "mask"), ALL)
def test_float32_logits_equal_torch_in_batches_steps_and_reordered_rows(ours, theirs, name, mask):
    found, expected = both(ours(name, mask), theirs(name, mask))
    assert abs(found - expected).max() < 1e-4


@pytest.mark.parametrize(("name", "mask"), ALL)
def test_greedy_text_in_float32_equals_torch(ours, theirs, name, mask):
    texts = written(ours(name, mask), PROMPTS)
    assert texts == written(theirs(name, mask), PROMPTS)
    assert all(len(text) == 16 for text in texts)


@pytest.mark.parametrize("weights", ["bfloat16", "int8", "int4"])
@pytest.mark.parametrize(("name", "mask"), SOME)
def test_rounded_weights_stay_near_float32(ours, theirs, name, mask, weights):
    engine = ours(name, mask, weights)
    found, expected = both(engine, theirs(name, mask))
    assert abs(found - expected).max() > 1e-4
    assert_near(found, expected, engine.config, weights, to_float32=True)


@pytest.mark.parametrize(("name", "mask"), [*SOME, ("roformer", "causal")])
def test_a_batch_of_prompts_equals_each_alone(ours, name, mask):
    engine = ours(name, mask)
    together = written(engine, PROMPTS, n=2, sampling=Sampling(top_k=8))
    alone = [text for prompt in PROMPTS for text in written(engine, [prompt], n=2, sampling=Sampling(top_k=8))]
    assert together == alone
    assert len({tuple(text) for text in together}) > 3


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@pytest.mark.parametrize(("name", "mask"), SOME)
def test_prompts_of_one_length_together_are_near_each_alone(ours, name, mask, weights):
    engine = ours(name, mask, weights)
    prompts = [prompt[:3] for prompt in PROMPTS]
    rows, together = engine.prefill(prompts, room=4)
    together, alone = [together, rows.step([9, 9, 9])], []
    for prompt in prompts:
        rows, logits = engine.prefill([prompt], room=4)
        alone.append([logits[0], rows.step([9])[0]])
    assert_near(np.stack(together, 1), alone, engine.config, weights)


def test_rows_of_two_prefills_do_not_disturb_one_another(ours):
    engine = ours("gpt2_ml", None)
    alone = written(engine, [PROMPTS[0]])[0]
    first, logits = engine.prefill([PROMPTS[0]], room=16)
    found = []
    for _ in range(16):
        found.append(int(logits.argmax()))
        engine.prefill([PROMPTS[1]], room=4)[0].step([9])
        logits = first.step(found[-1:])
    assert found == alone


def test_logits_of_a_whole_text_equal_those_of_its_steps(ours):
    engine, text = ours("gpt2_ml", None), PROMPTS[0]
    whole = engine.logits(text)
    rows, logits = engine.prefill([text[:1]], room=9)
    steps = [logits, *(rows.step([id]) for id in text[1:])]
    assert whole.shape == (len(text), engine.vocab_size)
    np.testing.assert_allclose(whole, np.concatenate(steps), rtol=0, atol=1e-5)


def test_the_engine_says_what_it_can_hold(ours):
    assert (ours("gpt2_ml", None).vocab_size, ours("gpt2_ml", None).max_positions) == (120, 48)
    assert ours("t5_1.1", None).max_positions is None
    texts = written(ours("gpt2_ml", None), [PROMPTS[0]], tokens=60)
    assert len(texts[0]) == 48 - len(PROMPTS[0])


def test_masks_share_one_file(folder, ours):
    ours("bert", "causal")
    before = set(folder.iterdir())
    ours("bert", "prefix")
    assert set(folder.iterdir()) == before


def test_a_model_that_does_not_write_is_refused(folder):
    with pytest.raises(
        CheckpointError, match="does not write: it has no output onto its vocabulary, or sees both ways"
    ):
        open_engine(GOLDENS / "bert" / "model.ckpt", weights="float32", folder=folder)


def test_unknown_weights_are_refused_naming_them(folder):
    with pytest.raises(ConfigError, match="weights is 'int3'; expected one of float32, bfloat16, int8, int4"):
        open_engine(GOLDENS / "gpt2_ml" / "model.ckpt", weights="int3", folder=folder)


def test_conditional_norms_are_refused_naming_their_width(ours):
    weights = ours("gpt2_ml", None)._weights
    text = weights.config.to_json().replace('"condition": 0', '"condition": 16')
    changed = type(weights)(weights.path)
    changed.config = ModelConfig.from_json(text)
    with pytest.raises(ConfigError, match="condition is 16; the OpenVINO engine has no conditional norms"):
        OpenVinoEngine(changed)


def test_a_configuration_may_be_given_and_must_be_there(folder, ours):
    path = GOLDENS / "gpt2_ml" / "model.ckpt"
    given = ours("gpt2_ml", None).config
    expected = written(ours("gpt2_ml", None), PROMPTS)
    for config in (given, GOLDENS / "gpt2_ml" / "config.json"):
        assert written(open_engine(path, weights="float32", config=config, folder=folder), PROMPTS) == expected
    with pytest.raises(MissingFile, match=r"no configuration at .*gone\.json; give the config\.json"):
        open_engine(path, config=GOLDENS / "gone.json", folder=folder)
