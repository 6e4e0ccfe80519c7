"""Training in mixed precision on a CPU has float32's losses up to rounding, learns as much, and resumes exactly."""

import math

import numpy as np
import pytest
import torch
from rounding import SIGMAS, relative_error

from hanmo.families.gpt2_ml import gpt2_ml_config
from hanmo.model import Model
from hanmo.training import Settings, fit
from hanmo.training.loss import next_token_loss
from hanmo.training.step import Updates

CONFIG = gpt2_ml_config(vocab_size=64, num_layers=2, hidden_size=64, positions=32, dropout=0.0)
STEPS = 40


def batches():
    """Rows that count up from anywhere."""
    starts = np.random.default_rng(0).integers(1, 30, size=(STEPS, 16, 1))
    return list(starts + np.arange(33))


def settings(precision, **options):
    return Settings(**{"steps": STEPS, "lr": 3e-3, "warmup": 5, "precision": precision, "log_every": 1, **options})


def mean_loss(model):
    with torch.no_grad():
        return float(sum(next_token_loss(model, torch.tensor(ids)) for ids in batches()) / STEPS)


def test_each_loss_is_that_of_float32_up_to_the_rounding_of_the_logits():
    """-log p moves by at most twice the largest error of a logit."""
    model = Model(CONFIG).initialize(0)
    updates = Updates(model, settings("mixed").for_loop(), next_token_loss)
    differences = []
    for step, numbers in enumerate(batches()[:20]):
        ids = torch.tensor(numbers)
        with torch.no_grad():
            exact, logits = float(next_token_loss(model, ids)), model(ids[:, :-1]).logits
        updates.make(ids, step, STEPS)
        error = SIGMAS * relative_error(CONFIG, "bfloat16", to_float32=True) * float(logits.square().mean().sqrt())
        differences.append(abs(float(updates.sum) - exact) / (2 * error))
        updates.sum.zero_()
    assert 0 < max(differences) < 1


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("adafactor-gpt2-ml", "muon")]


@pytest.mark.parametrize("optimizer", ["adamw", *SLOW])
def test_it_learns_as_much_as_float32(tmp_path, optimizer):
    before, after = mean_loss(Model(CONFIG).initialize(0)), {}
    for precision in ("float32", "mixed"):
        model = Model(CONFIG).initialize(0)
        fit(model, batches(), out=tmp_path / precision, settings=settings(precision, optimizer=optimizer))
        after[precision] = mean_loss(model)
    assert after["float32"] < 0.8 * before
    assert math.isclose(before - after["mixed"], before - after["float32"], rel_tol=0.02)


def test_a_resumed_run_has_the_weights_of_an_uninterrupted_one(tmp_path):
    ends = []
    for name, parts in (("whole", [STEPS]), ("parts", [STEPS // 2, STEPS])):
        for steps in parts:
            model = Model(CONFIG).initialize(0)
            args = settings("mixed", steps=steps, schedule="constant", save_every=STEPS // 2)
            fit(model, batches(), out=tmp_path / name, settings=args, resume=True)
        ends.append(model)
    assert all(torch.equal(one, other) for one, other in zip(*(end.parameters() for end in ends), strict=True))
