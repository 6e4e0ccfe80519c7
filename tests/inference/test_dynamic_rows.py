"""Rows that join and leave a running batch: each has the text that it has alone, on every engine."""

from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest
import torch
from opening import open_engine
from test_fused_quantized import of_family

import hanmo
from hanmo.families.gpt2_ml import gpt2_ml_config
from hanmo.generate import GREEDY, End, Limits, Sampling, sample
from hanmo.generate.dynamic import ExactRows, Piece, _JoinedRows, dynamic_rows
from hanmo.generate.scheduler import RowRequest, Scheduler
from hanmo.generate.speculation import SpeculativeEngine
from hanmo.inference.fused import support
from hanmo.inference.prefix_cache import PromptCache
from hanmo.inference.torch_engine import TorchEngine
from hanmo.model import Model

needs_kernel = pytest.mark.skipif(support.kernels("quantized") is None, reason="AVX2 is missing")
GOLDENS = Path(__file__).parents[1] / "data" / "goldens"
ENGINES = ["torch", "float32", pytest.param("int8", marks=needs_kernel), pytest.param("int4", marks=needs_kernel)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model = Model(gpt2_ml_config(vocab_size=301, num_layers=3, hidden_size=256, positions=160)).initialize(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    hanmo.save(model, folder)
    return folder


@pytest.fixture
def open_kind(folder, monkeypatch, tmp_path_factory):
    monkeypatch.setattr(support, "LEAST_BYTES", 0)

    def get(kind):
        if kind == "torch":
            return TorchEngine(hanmo.load(folder).model)
        return open_engine(folder, weights=kind, threads=2, folder=tmp_path_factory.getbasetemp() / "built")

    return get


def requests(count, longest):
    random = np.random.default_rng(5)
    settings = Sampling(top_k=20), GREEDY, Sampling(top_p=0.9, temperature=1.3), Sampling(no_repeat_ngram=2)
    for number in range(count):
        prompt = random.integers(1, 301, 1 + number * (longest - 1) // (count - 1)).tolist()
        limits = Limits(max_tokens=int(random.integers(1, 20)), end_ids=(7, 8, 9))
        yield RowRequest(prompt=prompt, seed=number, sampling=settings[number % 4], limits=limits)


@pytest.mark.parametrize(("count", "max_rows"), [(10, 4), pytest.param(32, 32, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ENGINES)
def test_a_row_has_the_text_that_it_has_alone(open_kind, kind, count, max_rows):
    engine = open_kind(kind)
    wanted = list(requests(count, 100))
    expected = [
        list(sample(engine, [each.prompt], seed=each.seed, sampling=each.sampling, limits=each.limits))
        for each in wanted
    ]
    scheduler, inboxes = Scheduler(open_kind(kind), max_rows=max_rows), [SimpleQueue() for _ in wanted]
    with scheduler._changed:  # so that as many as may run begin together
        for each, inbox in zip(wanted, inboxes, strict=True):
            scheduler.submit([each], inbox.put)
    scheduler.close(drain=True)
    found = [[inbox.get_nowait() for _ in range(inbox.qsize())] for inbox in inboxes]
    assert found == expected
    assert all(isinstance(events[-1], End) for events in found)


@needs_kernel
@pytest.mark.parametrize(("family", "mask"), [("t5.1.1", None), ("nezha", "prefix")])
def test_rows_whose_prompts_are_read_at_once_join_as_if_in_turn(tmp_path, monkeypatch, family, mask):
    monkeypatch.setattr(support, "LEAST_BYTES", 0)
    hanmo.save(Model(of_family(family)).initialize(3), tmp_path / "model")
    engine = open_engine(tmp_path / "model", mask=mask, threads=2, folder=tmp_path)
    assert isinstance(dynamic_rows(engine), ExactRows)
    found = []
    for _ in range(2):
        scheduler, inboxes = Scheduler(engine, max_rows=4, prompt_ids=16), [SimpleQueue() for _ in range(6)]
        with scheduler._changed:
            for number, (each, inbox) in enumerate(zip(requests(6, 40), inboxes, strict=True)):
                scored = mask == "prefix" and number % 2 == 1
                scheduler.submit([replace(each, history=mask is not None, prompt_logprobs=scored)], inbox.put)
        scheduler.close(drain=True)
        found.append([[inbox.get_nowait() for _ in range(inbox.qsize())] for inbox in inboxes])
        monkeypatch.setattr(engine, "dynamic_rows", lambda: None)
    assert found[0] == found[1]
    assert all(isinstance(events[-1], End) for events in found[0])


@pytest.mark.parametrize(
    ("kind", "name", "mask"),
    [
        *[(kind, name, None) for kind in ("torch", "float32") for name in ("gpt", "gpt2")],
        *[(kind, name, "causal") for kind in ("torch", "float32") for name in ("nezha", "roformer")],
        *[("torch", name, "prefix") for name in ("bert", "nezha")],
        *[("torch", name, None) for name in ("t5_1.0", "t5_1.1")],
    ],
)
def test_rows_of_every_kind_of_positions_join_one_cache(tmp_path_factory, kind, name, mask):
    if kind == "torch":
        engine = hanmo.load(GOLDENS / name / "model.ckpt", mask=mask).engine
    else:
        folder = tmp_path_factory.getbasetemp() / "built"
        engine = open_engine(GOLDENS / name / "model.ckpt", weights=kind, mask=mask, threads=1, folder=folder)
    rows = dynamic_rows(engine)
    assert isinstance(rows, _JoinedRows)
    random = np.random.default_rng(3)
    texts = [random.integers(1, engine.vocab_size, length).tolist() for length in (9, 4, 13, 2)]
    prompts, joins, leaves = (3, 1, 5, 1), (0, 0, 2, 4), (6, 3, 8, 1)  # ids, and steps after which rows come and go
    numbers, found = {}, [[] for _ in texts]
    for step in range(13):
        work = [
            Piece(number, texts[place][len(found[place]) + prompts[place] - 1 :][:1])
            for place, number in numbers.items()
        ]
        for place in range(4):
            if joins[place] == step:
                numbers[place] = rows.add(len(texts[place]))
                work.append(Piece(numbers[place], texts[place][: prompts[place]]))
        for place, logits in zip(list(numbers), rows.step(work), strict=True):
            found[place].append(logits[0])
            if len(found[place]) > leaves[place]:
                rows.free(numbers.pop(place))
    for text, length, logits in zip(texts, prompts, found, strict=True):
        alone, first = engine.prefill([text[:length]], room=10)
        expected = [first[0], *(alone.step([id])[0] for id in text[length : length + len(logits) - 1])]
        np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("kind", "name", "mask"),
    [("torch", "gpt2", None), ("float32", "gpt2", None), ("torch", "nezha", "prefix"), ("float32", "nezha", "prefix")],
)
def test_a_prompt_scored_in_pieces_has_the_logits_of_one_id_after_the_other(tmp_path_factory, kind, name, mask):
    path, folder = GOLDENS / name / "model.ckpt", tmp_path_factory.getbasetemp() / "built"
    if kind == "torch":
        engine = hanmo.load(path, mask=mask).engine
    else:
        engine = open_engine(path, weights=kind, mask=mask, threads=1, folder=folder)
    rows, ids = dynamic_rows(engine), np.random.default_rng(3).integers(1, engine.vocab_size, 9).tolist()
    number = rows.add(9)
    pieces = Piece(number, ids[:5], 5), Piece(number, ids[5:], 4)
    found = np.concatenate([rows.step([piece])[0] for piece in pieces])
    alone, first = engine.prefill([ids[:1]], room=10)
    expected = np.concatenate([first, *(alone.step([id]) for id in ids[1:])])
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    assert len(alone.extend(ids[:2])) == 2  # which a scored prompt is read by, in place of steps


class Steps:
    """Counts the steps of a fused decoder and the ids that they compute."""

    def __init__(self, engine, monkeypatch):
        self.count = self.ids = 0
        self._step = engine._fused.step
        monkeypatch.setattr(engine._fused, "step", self)

    def __call__(self, work):
        self.count += 1
        self.ids += sum(len(ids) for _, ids, _ in work)
        return self._step(work)


DRAFTING = (
    Sampling(temperature=0.1),
    Sampling(top_k=5, temperature=0.3, repetition_penalty=1.1),
    Sampling(top_k=20),
    Sampling(temperature=0.1, no_repeat_ngram=6),
)


@needs_kernel
@pytest.mark.parametrize(("seeds", "cached"), [(4, True), pytest.param(48, False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_drafts_change_no_text_of_one_row_and_save_steps(open_kind, kind, seeds, cached, monkeypatch):
    engine = open_kind(kind)
    steps, used = Steps(engine, monkeypatch), {True: 0, False: 0}
    for seed in range(seeds):
        prompt = np.random.default_rng(seed).integers(1, 301, (2, 7, 40, 20, 90)[seed % 5]).tolist()
        limits = Limits(max_tokens=50, min_tokens=seed, end_ids=(8, 9))
        texts = []
        for drafting in (True, False):
            row = PromptCache(engine) if cached else engine
            row = SpeculativeEngine(row) if drafting else row
            steps.count = 0
            given = {"seed": seed, "n": 1 + seed % 2, "sampling": DRAFTING[seed % 4], "limits": limits}
            texts.append(list(sample(row, [prompt], **given)))
            used[drafting] += steps.count
        assert texts[0] == texts[1]
    assert used[True] < 0.9 * used[False]  # half of the texts are two at once, which have no drafts


@needs_kernel
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_drafts_change_no_text_of_rows_of_a_batch_and_save_steps(open_kind, kind, monkeypatch):
    engine = open_kind(kind)
    steps, found, used = Steps(engine, monkeypatch), [], []
    for drafting in (True, False):
        steps.count, inboxes = 0, [SimpleQueue() for _ in range(6)]
        scheduler = Scheduler(engine, max_rows=2)
        for number, inbox in enumerate(inboxes):
            request = next(requests(2, 9))
            limits = Limits(max_tokens=40 + number, end_ids=(8, 9))
            how = {"seed": number, "sampling": DRAFTING[number % 4], "limits": limits, "speculate": drafting}
            scheduler.submit([replace(request, **how)], inbox.put)
        scheduler.close(drain=True)
        found.append([[inbox.get() for _ in range(inbox.qsize())] for inbox in inboxes])
        used.append(steps.count)
    assert found[0] == found[1]
    assert used[0] < 0.9 * used[1]


@needs_kernel
def test_a_cached_row_that_is_left_amid_a_draft_is_continued_as_any_other(open_kind):
    engine = open_kind("int8")
    cache, prompt = PromptCache(engine), [5, 6, 7] * 4
    events = sample(SpeculativeEngine(cache), [prompt], seed=1, sampling=GREEDY)
    ids = [next(events).id for _ in range(10)]
    events.close()
    del events
    following = [*prompt, *ids, 9, 8]
    (rows, logits), (others, expected) = (each.prefill([following], room=4) for each in (cache, engine))
    assert np.array_equal(logits, expected)
    assert np.array_equal(rows.step([5]), others.step([5]))
