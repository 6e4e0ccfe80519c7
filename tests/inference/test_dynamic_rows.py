"""Rows that join and leave a running batch: each has the text that it has alone, on every engine."""

from queue import SimpleQueue

import numpy as np
import pytest
import torch
from opening import open_engine

import hanmo
from hanmo.families.gpt2_ml import gpt2_ml_config
from hanmo.generate import GREEDY, End, Limits, Sampling, sample
from hanmo.generate.scheduler import RowRequest, Scheduler
from hanmo.inference.fused import quantized, support
from hanmo.inference.torch_engine import TorchEngine
from hanmo.model import Model

needs_vnni = pytest.mark.skipif(not support._has_vnni(), reason="AVX-512 VNNI is missing")
ENGINES = ["torch", "float32", pytest.param("int8", marks=needs_vnni), pytest.param("int4", marks=needs_vnni)]


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
    monkeypatch.setattr(quantized, "LEAST_BYTES", 0)

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


@pytest.mark.parametrize("kind", ENGINES)
def test_a_row_has_the_text_that_it_has_alone(open_kind, kind):
    engine = open_kind(kind)
    wanted = list(requests(10, 100))
    expected = [
        list(sample(engine, [each.prompt], seed=each.seed, sampling=each.sampling, limits=each.limits))
        for each in wanted
    ]
    scheduler, inboxes = Scheduler(open_kind(kind), max_rows=4), [SimpleQueue() for _ in wanted]
    for each, inbox in zip(wanted, inboxes, strict=True):
        scheduler.submit([each], inbox.put)
    scheduler.close(drain=True)
    found = [[inbox.get_nowait() for _ in range(inbox.qsize())] for inbox in inboxes]
    assert found == expected
    assert all(isinstance(events[-1], End) for events in found)
