"""A prompt that was read before is not read again, and what is written behind it is what it would be without."""

import gc
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from opening import open_engine
from rounding import assert_near

from hanmo.generate import GREEDY, Limits, Sampling
from hanmo.generate.beam import beam_search
from hanmo.generate.loop import Token, sample
from hanmo.inference.openvino.rows import OpenVinoRows
from hanmo.inference.prefix_cache import PromptCache
from hanmo.pipeline import open_writer

GOLDENS = Path(__file__).parent.parent / "data" / "goldens"
PROMPT = [5, 6, 7, 8, 9, 10, 11, 12]
OTHER = [20, 21, 22, 23, 24]
LIMITS = Limits(max_tokens=6)


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    folder, kept = tmp_path_factory.mktemp("built"), {}

    def get(name="gpt2_ml", mask=None, weights="float32"):
        if (name, mask, weights) not in kept:
            path = GOLDENS / name / "model.ckpt"
            kept[name, mask, weights] = open_engine(path, weights=weights, mask=mask, folder=folder, threads=1)
        return kept[name, mask, weights]

    return get


@pytest.fixture
def read(monkeypatch):
    """List how many tokens go through the engine at a time."""
    found, run = [], OpenVinoRows.run

    def counted(rows, ids, **given):
        found.append(ids.size)
        return run(rows, ids, **given)

    monkeypatch.setattr(OpenVinoRows, "run", counted)
    return found


def written(engine, prompts, *, n=1, sampling=GREEDY, seed=7):
    texts = [[] for _ in range(len(prompts) * n)]
    for event in sample(engine, prompts, n=n, seed=seed, sampling=sampling, limits=LIMITS):
        if isinstance(event, Token):
            texts[event.row].append(event.id)
    return texts


def prefilled(read):
    """Take what was read at a time since the last call, steps of one token left out."""
    found = [count for count in read if count > 1]
    read.clear()
    return found


@pytest.mark.parametrize(
    ("name", "mask"), [("gpt2_ml", None), ("gpt2", None), ("nezha", "causal"), ("roformer", "causal"), ("gpt", None)]
)
def test_whatever_is_written_in_turn_equals_what_the_engine_writes(engines, name, mask):
    engine = engines(name, mask)
    cached_engine, rng = PromptCache(engine), np.random.default_rng(0)
    texts = [PROMPT]
    for number in range(24):
        base = texts[rng.integers(len(texts))]
        prompt = [*base[: rng.integers(1, len(base) + 1)], *rng.integers(1, 100, rng.integers(0, 4)).tolist()][:30]
        how = {"n": int(rng.integers(1, 4)), "sampling": Sampling(top_k=5), "seed": number}
        found = written(cached_engine, [prompt], **how)
        assert found == written(engine, [prompt], **how)
        texts.append(prompt + found[0])


def test_only_what_is_new_in_a_prompt_is_read(engines, read):
    cached_engine = PromptCache(engines())
    first = written(cached_engine, [PROMPT])[0]
    assert prefilled(read) == [8]
    written(cached_engine, [PROMPT + first[:3] + OTHER])  # goes on from what was written too
    assert prefilled(read) == [5]
    written(cached_engine, [PROMPT[:4] + OTHER])  # leaves a kept text in its middle
    assert prefilled(read) == [5]
    written(cached_engine, [OTHER])
    assert prefilled(read) == [5]
    written(cached_engine, [PROMPT], n=3)  # was read whole before
    assert prefilled(read) == [3] * 5


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8", "int4"])
def test_a_prompt_that_is_read_again_gets_the_very_logits(engines, weights):
    cached_engine = PromptCache(engines(weights=weights))
    rows, logits = cached_engine.prefill([PROMPT], room=9)
    rows.reorder([0, 0])
    steps = rows.step([1, 2])
    del rows
    written(cached_engine, [PROMPT + OTHER])
    rows, again = cached_engine.prefill([PROMPT], room=9)
    rows.reorder([0, 0])
    np.testing.assert_array_equal(again, logits)
    np.testing.assert_array_equal(rows.step([1, 2]), steps)


@pytest.fixture
def few_objects():
    """Let the garbage collector look only at what is made from here on."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8", "int4"])
def test_a_longer_prompt_gets_logits_near_those_of_reading_it_whole(engines, weights, few_objects):
    engine = engines(weights=weights)
    cached_engine = PromptCache(engine)
    for prompt in (PROMPT, PROMPT + OTHER, PROMPT[:5] + OTHER, PROMPT[:5]):
        _, logits = cached_engine.prefill([prompt], room=9)
        gc.collect()
        whole = engine.prefill([prompt], room=9)[1]
        if weights == "float32":
            assert abs(logits - whole).max() <= 1e-6 * abs(whole).max()
        else:
            assert_near(logits, whole, engine.config, weights)


def test_a_text_that_is_being_written_is_not_touched(engines):
    engine = engines()
    cached_engine = PromptCache(engine)
    alone = [written(engine, [prompt])[0] for prompt in (PROMPT, PROMPT, PROMPT + OTHER)]
    live = [cached_engine.prefill([prompt], room=9) for prompt in (PROMPT, PROMPT, PROMPT + OTHER)]
    found = [[int(logits.argmax())] for _, logits in live]
    for _ in range(5):
        for (rows, _), text in zip(live, found, strict=True):
            text.append(int(rows.step(text[-1:]).argmax()))
    assert found == alone
    assert cached_engine.nbytes == 0


def test_threads_that_write_at_once_write_what_they_would_alone(engines):
    engine = engines()
    cached_engine = PromptCache(engine)
    prompts = [PROMPT, PROMPT + OTHER, PROMPT[:4], OTHER, PROMPT + OTHER + OTHER] * 6
    alone = [written(engine, [prompt]) for prompt in prompts]
    barrier = threading.Barrier(3)
    with ThreadPoolExecutor(3, initializer=barrier.wait) as pool:
        assert list(pool.map(lambda prompt: written(cached_engine, [prompt]), prompts)) == alone


def test_the_last_few_texts_are_kept_in_bounded_memory(engines, read):
    engine = engines()
    cached_engine = PromptCache(engine, most=2)
    for first in range(30, 35):
        written(cached_engine, [[first, *OTHER]])
    assert 0 < cached_engine.nbytes <= 2 * (11 * engine.token_bytes + 4 * engine.vocab_size)
    prefilled(read)
    written(cached_engine, [[33, *OTHER, 1, 2]])  # now one of the last two, though written before 34
    written(cached_engine, [[33, *OTHER, 3, 4]])
    written(cached_engine, [[34, *OTHER, 1, 2]])
    assert prefilled(read) == [2, 2, 8]
    small = PromptCache(engine, most_bytes=11 * engine.token_bytes)
    written(small, [[30, *OTHER]])
    assert small.nbytes == 0


def test_batches_masks_of_a_prefix_and_encoders_are_left_to_the_engine(engines, read):
    unilm, t5 = engines("bert", "prefix"), engines("t5_1.1")
    for engine, prompts in ((engines(), [PROMPT, OTHER]), (unilm, [PROMPT]), (t5, [PROMPT])):
        cached_engine = PromptCache(engine)
        expected = written(engine, prompts)
        for _ in range(2):
            assert written(cached_engine, prompts) == expected
        assert cached_engine.nbytes == 0


def test_an_interrupted_step_leaves_nothing_that_is_taken_up(engines, monkeypatch):
    cached_engine = PromptCache(engines())
    rows, _ = cached_engine.prefill([PROMPT], room=9)
    with monkeypatch.context() as patch:
        patch.setattr(OpenVinoRows, "step", lambda rows, ids: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            rows.step([1])
    del rows
    assert cached_engine.nbytes == 0


def test_beams_take_up_what_was_read_and_find_the_same(engines, read):
    engine = engines()
    cached_engine = PromptCache(engine)
    written(cached_engine, [PROMPT])
    prefilled(read)
    found = beam_search(cached_engine, PROMPT + OTHER, 3, limits=LIMITS)
    assert read[0] == 5
    assert [beam.ids for beam in found] == [beam.ids for beam in beam_search(engine, PROMPT + OTHER, 3, limits=LIMITS)]


def test_a_writer_remembers_its_prompts_and_its_engine_alone_does_not(tmp_path, monkeypatch, read):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "built"))
    for name in ("model.ckpt.index", "model.ckpt.data-00000-of-00001", "config.json"):
        shutil.copy(GOLDENS / "gpt2_ml" / name, tmp_path / name)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(ord("一"), ord("一") + 115))]
    (tmp_path / "vocab.txt").write_text("\n".join(words), "utf-8")
    writer = open_writer(tmp_path / "model.ckpt", weights="float32", threads=1)
    how = {"seed": 3, "stop": None, "max_chars": 5}
    first = writer.write("一丁丂七", **how)
    assert prefilled(read) == [4]
    assert writer.write("一丁丂七", **how) == first
    assert "".join(writer.stream("一丁丂七丄丅", **how))
    assert prefilled(read) == [2]
    for _ in range(2):
        writer.engine.prefill([PROMPT], room=1)
    assert prefilled(read) == [8, 8]
