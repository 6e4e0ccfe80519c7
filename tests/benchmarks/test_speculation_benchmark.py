"""The counts of benchmarks/speculation.py are those of an engine."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from hanmo.generate import GREEDY, Limits, Sampling, sample
from hanmo.generate.speculation import speculative

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "generate"))

from toy_engine import ToyDynamicEngine  # noqa: E402


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("speculation_under_test", ROOT / "benchmarks" / "speculation.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(top_k=5)])
@pytest.mark.parametrize("tokens", [2, 25, 60])
def test_a_replayed_text_takes_the_steps_that_it_took(script, sampling, tokens):
    engine, computed = ToyDynamicEngine(), []
    random_scores = engine.random_scores

    def scores(ids):
        computed.append(ids[-1])
        return random_scores(ids) + 6 * (np.arange(12) == (5 * ids[-1] + 1) % 12)

    engine.scores = scores
    text = script.Text("toy", [1, 2, 3], sampling)
    events = list(
        sample(speculative(engine), [text.prompt], seed=0, sampling=sampling, limits=Limits(max_tokens=tokens))
    )
    ids = [event.id for event in events[:-1]]
    assert script.replay(text, ids) == (len(engine.steps), len(computed) - 1)  # without the prompt's
    assert len(engine.steps) < tokens - 1 or tokens == 2
