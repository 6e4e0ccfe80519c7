"""Schedules against their definitions and torch's scheduler."""

import math
from functools import partial

import pytest
import torch

from hanmo.errors import ConfigError
from hanmo.training.optim.schedule import warmup_cosine, warmup_linear


def test_warmup_linear_is_the_originals_formula():
    found = [warmup_linear(step, warmup=3, total=10) for step in range(12)]
    assert found == pytest.approx([0, 1 / 3, 2 / 3, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0, 0])
    assert warmup_linear(0, warmup=0, total=10) == 1


def test_warmup_cosine_rises_to_one_and_sinks_to_its_floor():
    schedule = partial(warmup_cosine, warmup=2, total=10, floor=0.2)
    assert [schedule(step) for step in (0, 1, 2, 6, 10, 99)] == pytest.approx([0, 0.5, 1, 0.6, 0.2, 0.2])
    assert schedule(4) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)
    assert warmup_cosine(5, warmup=5, total=5) == 1  # nothing left to sink along


@pytest.mark.parametrize("schedule", [warmup_linear, warmup_cosine])
@pytest.mark.parametrize(("warmup", "total"), [(11, 10), (-1, 10), (0, 0)])
def test_impossible_lengths_are_refused(schedule, warmup, total):
    with pytest.raises(ConfigError, match=f"warmup={warmup}, total={total}; expected 0 <= warmup <= total"):
        schedule(0, warmup=warmup, total=total)


def test_impossible_floor_is_refused():
    with pytest.raises(ConfigError, match=r"floor of the cosine schedule is 1\.5; expected 0 to 1"):
        warmup_cosine(0, warmup=0, total=1, floor=1.5)


def test_schedules_go_into_torchs_scheduler():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=4.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(warmup_linear, warmup=2, total=4))
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0, 2, 2, 1, 0])
