"""Steps of single rows past OpenVINO: their arithmetic, their company with OpenVINO's cache, their threads."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from opening import open_engine
from rounding import assert_near
from test_model import config_of

import hanmo
from hanmo.config import Sublayer
from hanmo.families.gpt2_ml import gpt2_ml_config
from hanmo.inference.fused import packing, quantized, support, thread_pool
from hanmo.inference.fused.quantized_row import FusedRow
from hanmo.inference.prefix_cache import PromptCache
from hanmo.model import Model

kernels = support.kernels("quantized")
pytestmark = pytest.mark.skipif(kernels is None, reason="AVX2 is missing")

OTHERS = (
    {"activation": "silu"},
    {"score_residual": "previous"},
    {"head_dim": 24, "key_dim": 24},
)
PROMPT = [5, 17, 99, 250, 3, 42, 42]


def gpt2_ml():
    return gpt2_ml_config(vocab_size=301, num_layers=3, hidden_size=256, positions=160)


def like_gpt2():
    """Norms before each part and at the end, GELU by tanh, no norm of the embedding, an output of its own."""
    config = gpt2_ml()
    order = (Sublayer("attention", pre=True, post=False), Sublayer("feed_forward", pre=True, post=False))
    stack = replace(config.decoder, order=order, final_norm=True, embedding_norm=False, activation="gelu_tanh")
    return replace(config, decoder=stack, tied=False)


def like_gpt():
    """Norms behind each part, ReLU, one layer for all."""
    config = gpt2_ml()
    order = (Sublayer("attention", pre=False, post=True), Sublayer("feed_forward", pre=False, post=True))
    stack = replace(config.decoder, order=order, activation="relu", shared_layers=True)
    return replace(config, decoder=stack)


def narrow():
    """A hidden size in groups of 32, as the package's model has, and an intermediate size in groups of 128."""
    return gpt2_ml_config(vocab_size=301, num_layers=3, hidden_size=192, positions=160)


def narrow_inside():
    """A hidden size in groups of 128, and an intermediate size in groups of 32."""
    return replace(gpt2_ml(), decoder=replace(gpt2_ml().decoder, feed_forward=352))


KINDS = {"gpt2_ml": gpt2_ml, "gpt2": like_gpt2, "gpt": like_gpt, "narrow": narrow, "narrow_inside": narrow_inside}


def of_family(family, **changes):
    config = config_of(family)
    sizes = {"hidden_size": 256, "embedding_size": 256, "num_heads": 8, "head_dim": 32, "key_dim": 32}
    sizes |= {"feed_forward": 384, **changes}
    stacks = {
        side: stack and replace(stack, **sizes) for side in ("encoder", "decoder") for stack in [getattr(config, side)]
    }
    return replace(config, vocab_size=301, **stacks)


FAMILIES = {
    "bert": (of_family("bert", positions=160), "prefix"),
    "roberta": (of_family("bert", positions=162, position_offset=2), "causal"),
    "sinusoidal": (of_family("bert", position="sinusoidal", positions=None), "causal"),
    "hierarchical": (of_family("bert", positions=20, hierarchical=0.4), "causal"),
    "nezha": (of_family("nezha", relative_clip=20), "prefix"),
    "roformer": (of_family("roformer"), "prefix"),
    "roformer_v2": (of_family("roformer_v2"), "prefix"),
    "t5.1.0": (of_family("t5.1.0"), None),
    "t5.1.1": (of_family("t5.1.1"), None),
}
EMBEDDED = "sinusoidal", "hierarchical"  # whose blocks are those of the one before


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    configs = {name: make() for name, make in KINDS.items()} | {name: config for name, (config, _) in FAMILIES.items()}
    for name, config in configs.items():
        model = Model(config).initialize(3)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        hanmo.save(model, folder / name)
    return folder


@pytest.fixture
def opened(models, monkeypatch, tmp_path_factory):
    monkeypatch.setattr(support, "LEAST_BYTES", 0)
    cache = tmp_path_factory.getbasetemp() / "built"

    def get(name="gpt2_ml", weights="int8", threads=2):
        mask = FAMILIES[name][1] if name in FAMILIES else None
        engine = open_engine(models / name, weights=weights, mask=mask, threads=threads, folder=cache)
        assert engine._fused is not None
        return engine

    return get


def written(engine, tokens, ids):
    """Give the logits after the prompt and after each id, and the rows."""
    rows, logits = engine.prefill([PROMPT], room=len(ids))
    return np.array([logits[0], *(rows.step([id])[0] for id in ids[:tokens])]), rows


def without_steps(engine):
    engine._fused = None
    return engine


def compiled(engine):
    """Say whether OpenVINO's graph was needed."""
    return engine._compiled is not None


IDS = [int(id) for id in np.random.default_rng(0).integers(1, 301, 100)]


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("name", KINDS)
def test_logits_are_near_those_of_openvino_over_a_whole_text(opened, name, weights):
    ours, rows = written(opened(name, weights), 80, IDS)
    theirs, _ = written(without_steps(opened(name, weights)), 80, IDS)
    assert rows._fused is not None and rows.length == 87 and not compiled(opened(name, weights))
    assert_near(ours, theirs, KINDS[name](), weights)
    assert not np.array_equal(ours[1:], theirs[1:])  # it was not OpenVINO that made them


@pytest.mark.parametrize(
    ("name", "weights"),
    [(name, kind) for name in FAMILIES for kind in ("int8", "int4") if kind == "int8" or name not in EMBEDDED],
)
def test_every_family_is_near_openvino_and_the_same_alone_and_in_a_batch(opened, name, weights):
    engine = opened(name, weights)
    ours, rows = written(engine, 40, IDS)
    theirs, _ = written(without_steps(opened(name, weights)), 40, IDS)
    assert rows._fused is not None and not compiled(engine)
    assert_near(ours, theirs, engine.config, weights)
    assert not np.array_equal(ours[1:], theirs[1:])  # it was not OpenVINO that made them
    if not engine.config.is_encoder_decoder:
        together, logits = engine.prefill([PROMPT, PROMPT[:3]], room=2)
        np.testing.assert_array_equal(logits[0], ours[0])
        np.testing.assert_array_equal(together.step([IDS[0], 5])[0], ours[1])
        first, changed = engine.logits(PROMPT)[0], engine.logits([*PROMPT[:-1], 9])[0]
        assert np.array_equal(first, changed) == (FAMILIES[name][1] == "causal")


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 7, 16, 37])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group", [128, 32])
def test_a_product_is_that_of_the_rounded_numbers(group, bits, tokens):
    random, inputs = np.random.default_rng(bits), 3 * group
    x = random.standard_normal((tokens, inputs)).astype(np.float32)
    x[:, group + 2] = 40  # its group has a scale of its own
    padded = -(-tokens // 16) * 16
    numbers, scales = np.zeros(padded * (inputs + packing.BETWEEN), np.int8), np.zeros(padded * 3, np.float32)
    shift = np.zeros(padded * 3, np.int32)
    for token in range(tokens):
        kernels._quantize(x[token], np.int64(inputs), bits, token, numbers, scales, shift)
    own = scales[: tokens * 3].reshape(tokens, 3, 1)
    rounded = (np.rint(x.reshape(tokens, 3, group) / own) * own).reshape(tokens, inputs)
    assert np.abs(rounded - x).max() <= scales.max() / 2 * 1.001
    bias = random.standard_normal(48).astype(np.float32)
    if bits == 8:
        levels = random.integers(-127, 128, (48, inputs), dtype=np.int8)
        rows = random.random((48, 1)).astype(np.float32)
        wide, kept = levels * rows, packing.pack_int8(levels)
    else:
        levels = random.integers(-8, 8, (48, inputs))
        rows = random.random((48, 3)).astype(np.float32)
        wide = (levels.reshape(48, 3, group) * rows[..., None]).reshape(48, inputs)
        halves = (levels & 15).astype(np.uint8)
        kept = packing.pack_int4(halves[:, 0::2] | halves[:, 1::2] << 4)
    factors, scratch = packing.pack_scales(rows), np.zeros(16384 + inputs * 16, np.uint8)
    matrix = (bits, kept.ctypes.data, factors.ctypes.data, bias.ctypes.data)
    out = np.zeros((padded, 60), np.float32)
    for first, last in ((0, 1), (1, 3)):
        given = numbers, scales, shift, inputs, out.ctypes.data, 240, tokens, False, scratch
        kernels._product(matrix, first, last, *given)
    expected = rounded @ wide.astype(np.float64).T + bias
    assert np.abs(out[:tokens, :48] - expected).max() < 1e-5 * np.abs(expected).max()
    assert not out[tokens:].any() and not out[:, 48:].any()


@pytest.mark.parametrize("rows", [32, 45])
def test_what_is_packed_is_unpacked_to_the_same(rows):
    random = np.random.default_rng(rows)
    for kind, pack, unpack in (
        (np.int8, packing.pack_int8, packing.unpack_int8),
        (np.uint8, packing.pack_int4, packing.unpack_int4),
    ):
        matrix = random.integers(0, 256, (rows, 64)).astype(kind)
        assert np.array_equal(unpack(pack(matrix), rows), matrix)
    scales = random.random((rows, 3)).astype(np.float32)
    assert np.array_equal(packing.unpack_scales(packing.pack_scales(scales), rows), scales)


def test_the_functions_are_exact_to_what_they_say():
    from hanmo.inference.fused import functions

    numbers = np.linspace(-12, 12, 501, dtype=np.float32)
    activated = np.stack([numbers] * 3)
    for kind in range(3):
        functions.activate(activated[kind], kind)
    for number, by_erf, by_tanh, relu in zip(numbers, *activated, strict=True):
        assert functions.exp(number) == pytest.approx(math.exp(number), rel=5e-7)
        inner = math.sqrt(2 / math.pi) * (number + 0.044715 * float(number) ** 3)
        assert by_erf == pytest.approx(number * (1 + math.erf(number / math.sqrt(2))) / 2, abs=2e-6)
        assert by_tanh == pytest.approx(number * (1 + math.tanh(inner)) / 2, abs=2e-6)
        assert relu == max(number, 0)
    assert functions.exp(np.float32(-200)) < 1e-37


def with_threads(engine, threads):
    engine._fused = quantized.QuantizedStack(engine._weights, engine.config, threads)
    return engine


@pytest.mark.parametrize(
    ("name", "weights"), [*((name, "int8") for name in (*KINDS, *FAMILIES)), ("gpt2_ml", "int4"), ("narrow", "int4")]
)
def test_neither_threads_nor_the_division_of_norms_among_them_change_a_bit(opened, monkeypatch, name, weights):
    expected = written(opened(name, weights, threads=1), 10, IDS)[0]
    assert np.array_equal(written(with_threads(opened(name, weights), 3), 10, IDS)[0], expected)
    monkeypatch.setattr(quantized, "MOST_UNDIVIDED", 0)  # also of one token among three threads
    assert np.array_equal(written(with_threads(opened(name, weights), 3), 10, IDS)[0], expected)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_prompt_longer_than_a_step_is_divided(opened, monkeypatch, weights):
    prompt = [*IDS, *IDS[:50]]
    whole = opened(weights=weights).prefill([prompt], room=4)
    monkeypatch.setattr(quantized, "MOST_TOKENS", 40)
    parts = opened(weights=weights).prefill([prompt], room=4)
    assert np.array_equal(parts[1], whole[1]) and np.array_equal(parts[0].step([3]), whole[0].step([3]))


@pytest.mark.skipif(kernels is None or support.instructions() in (None, "avx2"), reason="AVX-512 is missing")
def test_loops_use_vectors_of_512_bits():
    from hanmo.inference.fused import functions

    numbers = np.ones(64, np.float32)
    functions.activate(numbers, 1)
    assert any("zmm" in code for code in functions.activate.inspect_asm().values())


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_prompts_of_any_length_never_need_openvino(opened, weights):
    engine = opened(weights=weights)
    rows, logits = engine.prefill([[*IDS, *IDS[:50]]], room=4)
    after = rows.step([3])
    assert not compiled(engine)
    theirs, expected = without_steps(opened(weights=weights)).prefill([[*IDS, *IDS[:50]]], room=4)
    assert_near(logits, expected, engine.config, weights)
    assert_near(after, theirs.step([3]), engine.config, weights)


def test_a_row_may_be_cut_to_nothing_and_written_again(opened):
    rows, logits = opened().prefill([PROMPT], room=4)
    rows.run(np.array([IDS[:40]]))
    rows.cut(0)
    assert np.array_equal(rows.run(np.array([PROMPT]))[:, -1], logits)


def test_padded_tokens_behind_others_are_read_by_openvino(opened):
    def story(engine):
        rows, _ = engine.prefill([PROMPT], room=20)
        mask = np.array([[True, False, True, True]])
        found = [rows.run(np.array([IDS[:4]]), mask=mask, keep=1)[:, -1], rows.step([11])]
        return np.concatenate(found)

    assert_near(story(opened()), story(without_steps(opened())), gpt2_ml(), "int8")


def test_all_logits_of_a_short_text_are_those_of_its_steps(opened):
    engine = opened()
    alone = [engine.prefill([PROMPT[: end + 1]], room=1)[1][0] for end in range(len(PROMPT))]
    assert np.array_equal(engine.logits(PROMPT), alone)


def test_rows_are_copied_cut_and_reordered(opened):
    def story(engine):
        _, rows = written(engine, 20, IDS)
        found = [rows.run(np.array([IDS[:81]]))[:, -1], rows.step([11])]
        rows.cut(rows.length - 3)
        found += [rows.step([12])]
        other = rows.copy(0, 15)
        found += [other.step([13]), rows.step([14])]
        rows.reorder([0, 0])
        found += [rows.step([15, 16])[:1]]
        rows.reorder([1])
        found += [rows.step([17]), rows.step([18])]
        assert rows.length == len(PROMPT) + 20 + 81 + 1 - 3 + 2 + 1 + 2
        return np.concatenate(found)

    ours, theirs = story(opened()), story(without_steps(opened()))
    assert_near(ours, theirs, gpt2_ml(), "int8")


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("name", ["gpt2_ml", "narrow"])
def test_a_rows_logits_depend_on_its_ids_alone(opened, name, weights):
    """However its prompt is divided, in whatever company, and while others join and leave."""
    decoder = opened(name, weights)._fused
    random = np.random.default_rng(2)
    texts = [random.integers(1, 301, length).tolist() for length in (1, 3, 16, 17, 40, 75, 90)]

    def alone(ids):
        row = FusedRow(decoder.stack)
        return np.concatenate([decoder.step([(row, [id], 1)]) for id in ids])

    expected = [alone(ids) for ids in texts]
    assert not np.array_equal(expected[1][0], expected[2][0])
    rows = [FusedRow(decoder.stack) for _ in texts]
    found = [[] for _ in texts]
    while any(row.length < len(ids) for row, ids in zip(rows, texts, strict=True)):
        work, places = [], []
        for place, (row, ids) in enumerate(zip(rows, texts, strict=True)):
            size = int(random.integers(0, 20))
            if piece := ids[row.length : row.length + size]:
                work.append((row, piece, len(piece)))
                places += [place] * len(piece)
        for place, logits in zip(places, decoder.step(work), strict=True):
            found[place].append(logits)
        place = int(random.integers(0, len(rows)))
        rows[place] = rows[place].copy(rows[place].length)
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_text_after_a_cached_prefix_is_that_after_a_prompt_read_anew(opened, weights):
    engine = opened(weights=weights)
    cache = PromptCache(engine)
    written(cache, 30, IDS)
    prompt = [*PROMPT, *IDS[:30], 9, 8, 7]
    (ours, logits), (theirs, expected) = (each.prefill([prompt], room=4) for each in (cache, engine))
    assert ours._kept.rows.length == len(prompt) and cache._kept == []  # the kept text was continued
    assert np.array_equal(logits, expected)
    assert np.array_equal(ours.step([5]), theirs.step([5]))


@pytest.mark.parametrize("length", [5, 100])
def test_a_prompt_beside_others_is_read_and_continued_as_alone(opened, length):
    engine = opened()
    prompts = [IDS[:length], IDS[1:4], IDS[:length], [9]]
    together, logits = engine.prefill(prompts, room=8)
    after = [logits, together.step([1, 2, 3, 4])]
    together.reorder([2, 2, 0])
    after.append(together.step([5, 6, 5]))
    for row, ids in ((0, [3, 5]), (1, [3, 6]), (2, [1, 5])):
        rows, first = engine.prefill([IDS[:length]], room=8)
        assert np.array_equal(first[0], after[0][0])
        assert np.array_equal(rows.step(ids[:1])[0], after[1][2 if row < 2 else 0])
        assert np.array_equal(rows.step(ids[1:])[0], after[2][row])


def test_two_rows_written_by_turns_do_not_disturb_one_another(opened):
    engine = opened()
    alone = written(engine, 10, IDS)[0][1:]
    one, other = engine.prefill([PROMPT], room=10)[0], engine.prefill([PROMPT[:3]], room=10)[0]
    found = []
    for id in IDS[:10]:
        found.append(one.step([id])[0])
        other.step([id + 1 if id < 300 else 1])
    assert np.array_equal(found, alone)


def test_an_interrupted_step_leaves_no_thread_waiting(opened):
    engine = opened()
    expected = written(engine, 3, IDS)[0]
    kernel, asked = engine._fused._kernel, []

    def interrupted(thread, *rest):
        if thread == 0 and not asked:
            asked.append(thread)
            raise KeyboardInterrupt
        kernel(thread, *rest)

    engine._fused._kernel = interrupted
    with pytest.raises(KeyboardInterrupt):
        written(engine, 1, IDS)
    assert asked
    assert np.array_equal(written(engine, 3, IDS)[0], expected)  # would wait for ever if a thread did


@pytest.mark.parametrize("put", [False, True])
def test_a_job_that_is_interrupted_while_threads_get_it_is_given_up(put):
    ours, done = thread_pool.ThreadPool(3), []
    queue = ours._queues[1]

    class Interrupted:
        def put(self, job):
            ours._queues[1] = queue
            if put:
                queue.put(job)
            raise KeyboardInterrupt

    ours._queues[1] = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        ours.run(done.append)
    assert sorted(done) == [1, 2][: 1 + put]
    done.clear()
    ours.run(done.append)
    assert sorted(done) == [0, 1, 2]


def test_a_thread_that_fails_hands_its_error_on_and_works_again():
    ours, given_up = thread_pool.ThreadPool(3), []

    def job(number):
        if number == 2:
            raise MemoryError("no room")

    for _ in range(2):
        with pytest.raises(MemoryError, match="no room"):
            ours.run(job, lambda: given_up.append(1))
    done = []
    ours.run(done.append)
    assert sorted(done) == [0, 1, 2] and len(given_up) == 2


@pytest.mark.parametrize(("change", "value"), [("machine", "aarch64"), ("instructions", None)])
def test_elsewhere_the_libraries_do_it(monkeypatch, change, value):
    support.kernels.cache_clear()
    monkeypatch.setattr(support.platform if change == "machine" else support, change, lambda: value)
    assert support.kernels("quantized") is None
    monkeypatch.undo()
    support.kernels.cache_clear()
    assert support.kernels("quantized") is not None


def test_small_models_and_other_kinds_are_left_to_openvino(models, opened, monkeypatch, tmp_path):
    assert open_engine(models / "gpt2_ml", weights="float32", folder=tmp_path)._fused is None
    weights, config = opened()._weights, opened().config
    assert weights.packed
    for change in OTHERS:
        assert not quantized.supported(weights, replace(config, decoder=replace(config.decoder, **change)))
    monkeypatch.undo()
    assert not quantized.supported(weights, config)  # too small
    small = open_engine(models / "gpt2_ml", weights="int8", folder=tmp_path)
    assert small._fused is None and not small._weights.packed


def test_the_documented_families_have_the_fused_steps():
    text = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text("utf-8")
    rows = re.findall(r"\| (`.*) \| (yes|no) \| (yes|no) \| (yes|no) \|", text)
    found = {family: said for families, *said in rows for family in re.findall(r"`(.*?)`", families)}
    assert len(found) == 14
    for family, said in found.items():
        stack = of_family("gpt2" if family == "gpt2_openai" else family).main
        has = [support.has_fused_step(stack, kernel) for kernel in ("float32", "quantized", "cuda")]
        assert said == ["yes" if each else "no" for each in has], family
