"""The engine of fixed shapes against the plain one: every golden kind that writes, batches, orders, buckets, memory."""

import copy
import gc
import os
import weakref
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import hanmo.loading
from hanmo.errors import CheckpointError, ConfigError
from hanmo.generate import GREEDY, Limits, Sampling
from hanmo.generate.beam import beam_search
from hanmo.generate.draw import choose
from hanmo.generate.dynamic import ExactRows, SharedRows, is_dynamic
from hanmo.generate.loop import End, Token, sample
from hanmo.generate.scheduler import RowRequest, Scheduler
from hanmo.inference.cuda.blocks import Int8Linear, quantized
from hanmo.inference.cuda.engine import StaticEngine
from hanmo.inference.cuda.slots import BUCKET, column_bucket, row_bucket
from hanmo.inference.torch_engine import TorchEngine
from hanmo.model import Model
from hanmo.nn.activation import activate

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is first imported, by whomever

GOLDENS = Path(__file__).parent.parent / "data" / "goldens"
KIN = ("bert", "bert_headsize", "albert", "albert_unshared", "nezha", "roformer", "roformer_v2")
OWN = ("gpt2_ml_original", "gpt2_ml", "gpt2", "gpt", "gpt_nosegment", "gpt_shared_segment")
SEQ2SEQ = ("t5_1.0", "t5_1.1", "mt5_1.1")
ALL = [(name, None) for name in OWN + SEQ2SEQ] + [(name, mask) for name in KIN for mask in ("causal", "prefix")]
SOME = [("gpt2_ml", None), ("bert", "prefix"), ("nezha", "causal"), ("t5_1.1", None)]
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [20, 21, 22], [31, 32, 33, 34, 35]]
ENGINES = (TorchEngine, StaticEngine)
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and finds none")
    ),
]


@pytest.fixture(scope="module", params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(scope="module")
def engines(device):
    """Give both engines over one model, the plain one first."""
    kept = {}

    def get(name, mask=None):
        if (name, mask) not in kept:
            model = hanmo.loading.load(GOLDENS / name / "model.ckpt", mask=mask, device=device).model
            kept[name, mask] = TorchEngine(model), StaticEngine(model)
        return kept[name, mask]

    return get


@pytest.fixture
def kernels(device):
    """Give the kernels: on a GPU as they are, elsewhere by Triton's interpreter, which knows no bfloat16 products."""
    if device == "cpu" and torch.cuda.is_available():
        pytest.skip("Triton either compiles or interprets in one process; there is a GPU to compile for")
    pytest.importorskip("triton", reason="Triton is not installed; torch brings it where there is a GPU")
    from hanmo.inference.cuda import kernels

    return SimpleNamespace(module=kernels, place=device, dtype=torch.float16 if device == "cpu" else torch.bfloat16)


def written(engine, prompts, *, n=1, sampling=GREEDY, seed=7, tokens=16):
    texts = [[] for _ in range(len(prompts) * n)]
    for event in sample(engine, prompts, n=n, seed=seed, sampling=sampling, limits=Limits(max_tokens=tokens)):
        if isinstance(event, Token):
            texts[event.row].append(event.id)
    return texts


def difference(plain, static, orders, prompts=PROMPTS, steps=3):
    """Run both through a prefill, steps and reorderings, and give the largest difference of the logits."""
    (reference, expected), (rows, logits) = plain.prefill(prompts, room=30), static.prefill(prompts, room=30)
    expected = torch.as_tensor(expected)
    found = [(logits, expected)]
    for order in (None, *orders):
        if order is not None:
            reference.reorder(order)
            rows.reorder(order)
            expected = expected[order]
        for _ in range(steps):
            ids = expected.argmax(-1)
            expected, logits = torch.as_tensor(reference.step(ids.tolist())), rows.step(ids)
            found.append((logits, expected))
    assert all(a.shape == b.shape and a.dtype == torch.float32 for a, b in found)
    return max(float((a - b).abs().max()) for a, b in found)


def test_the_battery_has_every_golden_kind_that_writes():
    assert len(ALL) == 23


@pytest.mark.parametrize(("name", "mask"), ALL)
def test_logits_equal_the_plain_engine_through_steps_and_reordered_rows(engines, name, mask):
    assert difference(*engines(name, mask), [[2, 0, 2, 1], [3, 1], [1, 0], [1]]) < 1e-4


@pytest.mark.parametrize(("name", "mask"), ALL)
def test_text_equals_the_plain_engine(engines, name, mask):
    plain, static = engines(name, mask)
    for sampling in (GREEDY, Sampling(top_k=8)):
        texts = written(static, PROMPTS, n=2, sampling=sampling)
        assert texts == written(plain, PROMPTS, n=2, sampling=sampling)
        assert all(len(text) == 16 for text in texts)


@pytest.mark.parametrize("kind", ["previous", "cumulative"])
def test_residual_scores_equal_the_plain_engine(engines, kind):
    plain, _ = engines("bert", "causal")
    config = replace(plain.model.config, encoder=replace(plain.model.config.encoder, score_residual=kind, num_layers=2))
    model = Model(config).initialize(1).eval().to(plain.model.token.weight.device)
    assert difference(TorchEngine(model), StaticEngine(model), [[2, 0, 2, 1], [1]]) < 1e-4


def test_a_batch_of_prompts_equals_each_alone(engines):
    for name, mask in SOME:
        engine = engines(name, mask)[1]
        together = written(engine, PROMPTS, n=2, sampling=Sampling(top_k=8))
        alone = [text for prompt in PROMPTS for text in written(engine, [prompt], n=2, sampling=Sampling(top_k=8))]
        assert together == alone
        assert len({tuple(text) for text in together}) > 3


def test_rows_may_become_more_than_there_is_memory_for(engines):
    for name, mask in SOME:
        assert difference(*engines(name, mask), [[2, 0, 2, 1, 1, 0, 2], [6, 3, 3], [2, 1, 0]]) < 1e-4


def test_beams_equal_the_plain_engine(engines):
    for name, mask in SOME:
        plain, static = engines(name, mask)
        found = [
            beam_search(engine, PROMPTS[0], 3, limits=Limits(max_tokens=9, end_ids=(4, 5)))
            for engine in (plain, static)
        ]
        assert [beam.ids for beam in found[0]] == [beam.ids for beam in found[1]]
        assert len(found[0]) == 3


@pytest.mark.parametrize(
    "limits", [Limits(max_tokens=30, end_ids=tuple(range(40))), Limits(max_tokens=30, min_tokens=8, end_ids=(7, 9))]
)
def test_rows_that_stop_one_by_one_leave_the_others_as_they_are(engines, limits):
    plain, static = engines("gpt2_ml")
    sampling = Sampling(repetition_penalty=1.3, no_repeat_ngram=3, banned=(1,))

    def events(engine):
        return list(sample(engine, PROMPTS, n=4, seed=3, sampling=sampling, limits=limits, stop=stop))

    def stop(row, id):
        return "odd" if (row + id) % 11 == 0 else None

    found = events(static)
    assert found == events(plain)
    ends = [place for place, event in enumerate(found) if isinstance(event, End)]
    assert len(ends) == 12 and len({found[place].reason for place in ends}) > 1 and ends[0] < len(found) // 2


def test_a_text_may_fill_every_position_beside_a_longer_prompt(engines):
    plain, static = engines("gpt2_ml")
    prompts = [list(range(5, 45)), [9, 8], [7] * 48]
    found = [written(engine, prompts, sampling=Sampling(top_k=8), tokens=None) for engine in (plain, static)]
    assert found[0] == found[1]
    assert [len(text) for text in found[1]] == [8, 46, 0]


def test_a_text_goes_on_through_buckets(device):
    config = hanmo.loading.load(GOLDENS / "gpt2_ml" / "model.ckpt").config
    config = replace(config, decoder=replace(config.decoder, positions=BUCKET * 3))
    model = Model(config).initialize(5).eval().to(device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8) if parameter.ndim > 1 else None
    prompts = [list(range(3, 3 + BUCKET - 20)), [9] * 60]
    texts = [written(engine(model), prompts, tokens=200, sampling=Sampling(top_k=8)) for engine in ENGINES]
    assert texts[0] == texts[1]
    assert [len(text) for text in texts[1]] == [200, 200]


def test_memory_is_lent_once_at_a_time_and_used_again_clean(engines):
    plain, static = engines("gpt2_ml")
    expected = [written(plain, [prompt])[0] for prompt in PROMPTS]
    first, logits = static.prefill(PROMPTS[:1], room=16)
    found = []
    for _ in range(16):
        found.append(int(logits.argmax()))
        other = static.prefill([PROMPTS[1]], room=4)[0]
        other.step([9])
        logits = first.step(found[-1:])
        assert other._slots is not first._slots
        del other
    assert found == expected[0]
    slots = first._slots
    with torch.inference_mode():
        slots.keys[0].fill_(float("nan"))
    del first
    gc.collect()
    assert slots in static._free
    static._free[:] = [slots]
    rows, _ = static.prefill([PROMPTS[1]], room=4)
    rows.step([9])
    assert rows._slots is slots
    del rows
    assert written(static, [PROMPTS[1]])[0] == expected[1]


def test_more_than_there_is_room_for_is_refused_naming_it(engines):
    rows, _ = engines("gpt2_ml")[1].prefill([PROMPTS[1]], room=2)
    rows.step([5])
    rows.step([5])
    with pytest.raises(ValueError, match="the rows have room for 5 tokens; prefill them with a larger room"):
        rows.step([5])


def test_scores_that_are_not_numbers_and_rules_that_leave_nothing_are_reported(engines):
    plain, static = engines("gpt2_ml")
    model = Model(plain.model.config).initialize(5).eval().to(static.device)
    with pytest.raises(ConfigError, match="the rules leave none of 120 ids to choose from"):
        written(StaticEngine(model), PROMPTS, sampling=Sampling(banned=tuple(range(120))))
    with torch.no_grad():
        model.token.weight[17] = float("nan")
    with pytest.raises(CheckpointError, match="1 of the model's 120 scores for the next id are NaN or infinite"):
        written(StaticEngine(model), PROMPTS)


class Operations(TorchDispatchMode):
    """Collect the names of torch's operations."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, given=(), more=None):
        self.names.add(function.__name__)
        return function(*given, **(more or {}))


def test_choosing_an_id_neither_reads_nor_writes_a_number_from_the_processor(device):
    waiting = {"_local_scalar_dense.default", "lift_fresh.default", "copy_.default", "item.default"}
    logits = torch.randn(3, 50, device=device)
    numbers = torch.rand(3, dtype=torch.float64, device=device)
    sampling = Sampling(top_k=5, top_p=0.9, temperature=0.8, banned=(1, 2), allowed=tuple(range(40)))
    choose(sampling.apply(logits, [[]] * 3), numbers)  # the masks of ids are made once
    with Operations() as found:
        choose(sampling.apply(logits, [[]] * 3), numbers)
    assert len(found.names) > 20 and not found.names & waiting
    with Operations() as other:
        choose(logits, [0.5] * 3)
    assert other.names & waiting


def test_a_model_that_does_not_write_is_refused(device):
    with pytest.raises(CheckpointError, match="this model does not write"):
        StaticEngine(hanmo.loading.load(GOLDENS / "bert" / "model.ckpt", device=device).model)


def test_rows_and_columns_are_rounded_up_to_few_shapes():
    assert [row_bucket(rows) for rows in (1, 2, 3, 5, 8, 33)] == [1, 2, 4, 8, 8, 64]
    assert [column_bucket(n) for n in (1, 128, 129, 600, 1024, 1025, 2049)] == [128, 128, 256, 1024, 1024, 2048, 3072]


def test_what_was_loaded_writes_with_it_on_a_gpu_and_keeps_it(device, monkeypatch, tmp_path):
    monkeypatch.setattr("hanmo.model_pipeline.QUEUED", (device,))
    loaded = hanmo.loading.load(GOLDENS / "gpt2_ml" / "model.ckpt", device=device)
    engine = loaded.engine
    assert type(engine) is StaticEngine and loaded.engine is engine
    loaded.model = quantized(loaded.model)
    smaller = loaded.engine
    assert smaller is not engine and smaller.model is loaded.model
    assert written(smaller, PROMPTS) and loaded.engine is smaller
    with pytest.raises(CheckpointError, match=r"the weights of .*model\.ckpt.* are held as int8, .*load it again"):
        loaded.save(tmp_path / "saved")
    loaded.model.to(torch.float64)
    assert loaded.engine is not smaller


def test_int8_weights_stay_near_the_plain_engine_and_leave_the_model_as_it_is(engines):
    for name, mask in SOME:
        plain, _ = engines(name, mask)
        before = {key: value.clone() for key, value in plain.model.state_dict().items()}
        small = quantized(plain.model)
        layers = [layer for layer in small.modules() if isinstance(layer, Int8Linear)]
        assert len(layers) > 10 and not any(type(layer) is nn.Linear for layer in small.modules())
        assert small.token.weight is plain.model.token.weight
        # Whole numbers times scales are the same model in float32, whatever computes it.
        assert difference(TorchEngine(small), StaticEngine(small), [[2, 0, 2, 1], [1]]) < 1e-4
        logits = torch.as_tensor(plain.prefill(PROMPTS, room=1)[1])
        off = StaticEngine(small).prefill(PROMPTS, room=1)[1] - logits
        assert 1e-4 < off.abs().max() < 0.06 * logits.abs().max()
        assert all(torch.equal(value, before[key]) for key, value in plain.model.state_dict().items())


@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize(("name", "mask"), [("gpt2_ml", None), ("gpt2", None), ("bert", "causal"), ("t5_1.1", None)])
def test_bfloat16_steps_stay_near_those_of_float32(engines, name, mask, quantize):
    plain, _ = engines(name, mask)
    model = copy.deepcopy(plain.model).to(torch.bfloat16)
    model = quantized(model) if quantize else model
    largest = float(abs(torch.as_tensor(plain.prefill(PROMPTS, room=1)[1])).max())
    off = difference(plain, StaticEngine(model), [[2, 0, 2, 1], [1]])
    assert 1e-4 < off < 0.08 * largest


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # the interpreter's sigmoid, far below 0
@pytest.mark.parametrize("rows", [1, 3, 20])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("whole", [False, True])
def test_the_kernel_of_linear_layers_computes_the_formula(kernels, rows, count, whole):
    place, dtype = kernels.place, kernels.dtype
    generator = torch.Generator().manual_seed(rows)
    inputs, outputs = 200, 37
    x = torch.randn(rows, inputs, generator=generator).to(place, dtype)
    weights = [torch.randint(-127, 128, (outputs, inputs), generator=generator, dtype=torch.int8) for _ in range(count)]
    weights = [each.to(place) if whole else (each / 400).to(place, dtype) for each in weights]
    scales = [torch.rand(outputs, generator=generator).to(place) / 400 for _ in weights] if whole else None
    biases = [torch.randn(outputs, generator=generator).to(place, dtype) for _ in weights]
    residual = torch.randn(rows, outputs, generator=generator).to(place, dtype)
    for activation in kernels.module.ACTIVATIONS:
        added = residual if count == 1 else None
        found = kernels.module.linear(x, weights, scales, biases, activation=activation, residual=added)
        for each in range(count):
            y = x.float() @ weights[each].float().T
            y = activate((y * scales[each] if whole else y) + biases[each].float(), activation)
            y = y + added.float() if added is not None else y
            torch.testing.assert_close(found[each].float(), y, rtol=0.01, atol=0.03)
    bare = kernels.module.linear(x, weights[:1], None, None)[0]
    torch.testing.assert_close(bare.float(), x.float() @ weights[0].float().T, rtol=0.01, atol=0.03)


@pytest.mark.parametrize(
    ("centered", "weight", "bias"), [(True, True, True), (False, True, False), (True, False, False)]
)
def test_the_kernel_of_norms_computes_the_formula(kernels, centered, weight, bias):
    generator = torch.Generator().manual_seed(0)
    x, scale, shift = (torch.randn(*shape, generator=generator) for shape in ((3, 200), (200,), (200,)))
    x, scale, shift = (tensor.to(kernels.place, kernels.dtype) for tensor in (x + 1, scale, shift))
    given = scale if weight else None, shift if bias else None
    found = kernels.module.norm(x, *given, epsilon=1e-5, centered=centered)
    wide = [None if tensor is None else tensor.float() for tensor in given]
    if centered:
        expected = torch.nn.functional.layer_norm(x.float(), (200,), *wide, 1e-5)
    else:
        expected = torch.nn.functional.rms_norm(x.float(), (200,), wide[0], 1e-5)
    torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=0.02)


@pytest.mark.parametrize("d", [64, 24])
def test_the_kernel_of_attention_writes_a_key_at_each_rows_slot_and_sees_those_before_it(kernels, d):
    rows, heads, slots = 3, 2, (150, 0, 64)
    keys, values = (torch.randn(4, heads, 256, d).to(kernels.place)[:rows] for _ in "kv")
    query, key, value = (torch.randn(rows, heads * d).to(kernels.place) for _ in "qkv")
    expected_keys, expected_values = keys.clone(), values.clone()
    for row, slot in enumerate(slots):
        expected_keys[row, :, slot], expected_values[row, :, slot] = key[row].view(heads, d), value[row].view(heads, d)
    slot = torch.tensor(slots, device=kernels.place)
    found = kernels.module.attend(query, key, value, keys, values, slot, scale=d**-0.5)
    assert torch.equal(keys, expected_keys) and torch.equal(values, expected_values)
    columns = torch.arange(256, device=kernels.place)
    mask = (columns <= slot[:, None])[:, None, None]
    query = query.view(rows, heads, 1, d)
    expected = torch.nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
    torch.testing.assert_close(found, expected.flatten(1), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # the interpreter's sigmoid, far below 0
@pytest.mark.parametrize("quantize", [False, True])
def test_steps_by_the_kernels_stay_near_those_of_float32(kernels, engines, monkeypatch, quantize):
    plain, _ = engines("gpt2_ml")
    model = copy.deepcopy(plain.model).to(kernels.dtype)
    model = quantized(model) if quantize else model
    launched = []
    attend = kernels.module.attend
    monkeypatch.setattr(
        kernels.module, "attend", lambda *given, **more: (launched.append(1), attend(*given, **more))[1]
    )
    monkeypatch.setattr("hanmo.inference.cuda.blocks._kernels", lambda x: kernels.module)
    largest = float(abs(torch.as_tensor(plain.prefill(PROMPTS, room=1)[1])).max())
    assert 1e-4 < difference(plain, StaticEngine(model), [[2, 0, 2, 1]], steps=2) < 0.08 * largest
    assert len(launched) > 0


class Texts:
    """Random texts as rows that join and leave, and their logits against the plain engine's."""

    def __init__(self, plain, static):
        self.plain, self.rows = plain, static.dynamic_rows()
        static._free.clear()
        self.random = np.random.default_rng(3)
        self.texts, self.found, self.prompts = {}, {}, {}

    def read(self, *lengths, room=20, keep=1, pieces=1):
        """Let prompts join in one step while the others go on; returns their numbers."""
        joined = []
        for length in lengths:
            number = self.rows.add(length + room)
            self.texts[number] = self.random.integers(5, 100, length).tolist()
            self.found[number], self.prompts[number] = [], length
            joined.append(number)
        running = [number for number in self.texts if number not in joined]
        for piece in range(pieces):
            last = piece == pieces - 1
            work = [self.next(number) for number in running]
            for number in joined:
                ids = self.texts[number][piece * self.prompts[number] // pieces :][: self.prompts[number] // pieces]
                work.append((number, ids, keep if last or keep > 1 else 0))
            self.step(work)
        return joined

    def next(self, number):
        self.texts[number].append(int(self.random.integers(5, 100)))
        return number, self.texts[number][-1:], 1

    def steps(self, count=1):
        for _ in range(count):
            self.step([self.next(number) for number in self.texts])

    def step(self, work):
        for (number, _, keep), logits in zip(work, self.rows.step(work), strict=True):
            assert logits.shape == (keep, self.plain.vocab_size)
            self.found[number] += logits.clone().unbind()

    def fork(self, number, count):
        for new in self.rows.fork(number, count):
            self.texts[new], self.found[new] = list(self.texts[number]), list(self.found[number])
            self.prompts[new] = self.prompts[number]

    def leave(self, number, *, least=0, within=1e-4):
        """Free a row and compare its logits with those of its text alone."""
        self.rows.free(number)
        text, found = self.texts.pop(number), self.found.pop(number)
        first = len(text) - len(found) + 1
        alone, logits = self.plain.prefill([text[:first]], room=40)
        expected = [logits, *(alone.step([id]) for id in text[first:])]
        assert len(found) == len(expected) > least
        for ours, theirs in zip(found, expected, strict=True):
            assert float((ours - torch.as_tensor(theirs)[0]).abs().max()) < within


@pytest.mark.parametrize(("name", "mask"), ALL)
def test_rows_of_every_kind_join_and_leave_and_have_the_logits_that_they_have_alone(engines, name, mask):
    texts = Texts(*engines(name, mask))
    first, second = texts.read(7, 3)
    texts.steps(2)
    (third,) = texts.read(12, pieces=3)
    texts.fork(third, 3)
    texts.steps(2)
    texts.leave(first, least=4)
    (fourth,) = texts.read(1)
    texts.steps()
    texts.leave(second, least=6)
    for number in list(texts.texts)[1:-1]:
        texts.leave(number)
    texts.steps(3)
    for number in list(texts.texts):
        texts.leave(number, least=3)
    slots = texts.rows._slots
    assert fourth != first and slots.rows == 8
    assert set(slots.graphs) == ({(8, 128), (2, 128)} if slots.slot.is_cuda else set())
    (last,) = texts.read(5)
    texts.steps()
    texts.leave(last, least=1)


@pytest.mark.parametrize("quantize", [False, True])
def test_rows_that_join_in_bfloat16_stay_near_those_of_float32(engines, quantize):
    for name, mask in SOME:
        plain, _ = engines(name, mask)
        model = copy.deepcopy(plain.model).to(torch.bfloat16)
        texts = Texts(plain, StaticEngine(quantized(model) if quantize else model))
        within = 0.08 * float(abs(torch.as_tensor(plain.prefill(PROMPTS, room=1)[1])).max())
        first, _ = texts.read(7, 3)
        texts.steps(2)
        (third,) = texts.read(30)
        texts.fork(third, 2)
        texts.steps(2)
        texts.leave(first, least=4, within=within)
        texts.steps()
        for number in list(texts.texts):
            texts.leave(number, least=3, within=within)


def test_the_logits_of_a_whole_prompt_of_a_row_that_joins_are_those_of_its_ids(engines):
    for name, mask in SOME[:3]:
        texts = Texts(*engines(name, mask))
        (first,) = texts.read(4)
        (scored,) = texts.read(8, keep=4, pieces=2)
        texts.steps()
        texts.leave(scored, least=8)
        texts.leave(first, least=3)


@torch.inference_mode()
def spoil(slots, row):
    for kept in (*slots.keys, *slots.values):
        kept[row] = float("nan")


def test_rows_that_join_move_to_larger_memory_and_what_a_row_left_there_spoils_no_other(engines):
    for name, mask in SOME:
        texts = Texts(*engines(name, mask))
        (first,) = texts.read(5)
        texts.steps()
        small = texts.rows._slots
        (second,) = texts.read(9, room=150)
        texts.steps()
        large = texts.rows._slots
        assert (small.rows, small.capacity, large.rows, large.capacity) == (1, 128, 2, 256)
        texts.leave(second, least=1)
        spoil(large, 1)
        (third,) = texts.read(6)  # where the second was
        texts.steps()
        texts.leave(first, least=4)
        spoil(large, 0)
        texts.steps()  # moves to where the first was
        assert texts.rows._slots is large and texts.rows._rows[third].place == 0
        texts.leave(third, least=2)


def test_memory_without_rows_is_freed_before_more_is_allocated(engines, monkeypatch):
    plain, static = engines("gpt2_ml")
    texts, freed, acquire = Texts(plain, static), [], static.acquire
    (first,) = texts.read(5)
    texts.steps()
    texts.leave(first, least=1)
    slots = weakref.ref(texts.rows._slots)
    monkeypatch.setattr(static, "acquire", lambda *sizes: (freed.append(slots() is None), acquire(*sizes))[1])
    texts.read(3, 3)
    assert freed == [True]


def test_memory_of_rows_that_join_is_as_large_as_was_promised(engines):
    static = engines("gpt2_ml")[1]
    rows = static.dynamic_rows()
    assert isinstance(rows, SharedRows) and not isinstance(rows, ExactRows) and not is_dynamic(static)
    assert [rows.size(*each) for each in [(1, 5), (3, 129), (9, 700)]] == [128, 4 * 256, 16 * 1024]
    assert engines("t5_1.1")[1].dynamic_rows().size(3, 129) == 2 * 4 * 256
    texts = Texts(*engines("t5_1.1"))
    for lengths, room in [((3, 4, 5), 20), ((200,), 20), ((3,), 300), ((2, 2), 3)]:
        numbers = texts.read(*lengths, room=room)
        slots, promised = texts.rows._slots, texts.rows.size(len(lengths), max(lengths) + room)
        largest = max(promised, 4 * 128 * 2, 512 * 2)
        assert slots.rows * (slots.capacity + slots.memory_capacity) <= largest
        texts.steps()
        for number in numbers:
            texts.leave(number, least=1)


def test_as_many_rows_run_as_their_rounded_memory_allows(engines):
    static = engines("gpt2_ml")[1]
    static._free.clear()
    scheduler, inbox = Scheduler(static, cache_ids=600), SimpleQueue()
    scheduler.submit(
        [RowRequest(prompt=PROMPTS[0], seed=7, limits=Limits(max_tokens=3), sample=n) for n in range(7)], inbox.put
    )
    scheduler.check_fits(4, 30)
    with pytest.raises(
        ConfigError,
        match=r"5 x 30 tokens \(rounded up to 1024\), prompt and text, do not fit the caches, which have room for 600",
    ):
        scheduler.check_fits(5, 30)
    scheduler.close(drain=True)
    ended = [event.row for event in (inbox.get_nowait() for _ in range(inbox.qsize())) if isinstance(event, End)]
    assert sorted(ended) == list(range(7)) and scheduler._batch._rows._slots.rows == 4


def test_a_scheduler_gives_texts_of_several_prompts_as_alone(engines):
    for name, mask in SOME:
        plain, static = engines(name, mask)
        inboxes, history = [SimpleQueue() for _ in range(9)], not plain.model.config.is_encoder_decoder
        wanted = [
            RowRequest(
                prompt=PROMPTS[number % 3],
                seed=number,
                sampling=(Sampling(top_k=8), GREEDY, Sampling(no_repeat_ngram=2))[number % 3],
                limits=Limits(max_tokens=2 + number, end_ids=(7, 9)),
                history=history,
            )
            for number in range(9)
        ]
        scheduler = Scheduler(static, max_rows=5, prompt_ids=8)
        with scheduler._changed:  # so that they begin together
            for each, inbox in zip(wanted, inboxes, strict=True):
                scheduler.submit([each, replace(each, sample=1)], inbox.put)
        scheduler.close(drain=True)
        assert scheduler.stats.steps < 9 * 7
        for each, inbox in zip(wanted, inboxes, strict=True):
            found = [inbox.get_nowait() for _ in range(inbox.qsize())]
            expected = sample(
                plain, [each.prompt], seed=each.seed, n=2, sampling=each.sampling, limits=each.limits, history=history
            )
            assert sorted(found, key=lambda event: event.row) == sorted(expected, key=lambda event: event.row)
