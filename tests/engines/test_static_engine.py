"""The engine of fixed shapes against the plain one: every golden kind that writes, batches, orders, buckets, memory."""

import gc
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import hanmo.hub
from hanmo.engines.static_engine import BUCKET, StaticEngine, column_bucket, row_bucket
from hanmo.engines.torch_engine import TorchEngine
from hanmo.errors import CheckpointError, ConfigError
from hanmo.generate import GREEDY, Limits, Sampling
from hanmo.generate.beam import beam_search
from hanmo.generate.loop import End, Token, sample
from hanmo.model import Model

GOLDENS = Path(__file__).parent.parent / "data" / "goldens"
KIN = ("bert", "bert_headsize", "albert", "albert_unshared", "nezha", "roformer", "roformer_v2")
OWN = ("gpt2_ml_original", "gpt2_ml", "gpt2", "gpt", "gpt_nosegment", "gpt_shared_segment")
ANSWERS = ("t5_1.0", "t5_1.1", "mt5_1.1")
ALL = [(name, None) for name in OWN + ANSWERS] + [(name, mask) for name in KIN for mask in ("causal", "prefix")]
SOME = [("gpt2_ml", None), ("bert", "prefix"), ("nezha", "causal"), ("t5_1.1", None)]
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [20, 21, 22], [31, 32, 33, 34, 35]]
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
            model = hanmo.hub.load(GOLDENS / name / "model.ckpt", mask=mask, device=device).model
            kept[name, mask] = TorchEngine(model), StaticEngine(model)
        return kept[name, mask]

    return get


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
    config = replace(plain.model.config, encoder=replace(plain.model.config.encoder, score_residual=kind, depth=2))
    model = Model(config).initialize(1).eval().to(plain.model.token.weight.device)
    assert difference(TorchEngine(model), StaticEngine(model), [[2, 0, 2, 1], [1]]) < 1e-4
