"""The runner of bert4keras's examples: what it replaces in a script, and what it reads in its output."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = """\
Epoch 1/2
12/12 - 3s - 275ms/step - loss: 1.5840 - accuracy: 0.25
Epoch 2/2
12/12 - 3s - 275ms/step - loss: 1.3040 - accuracy: 0.40 - val_loss: 9.0
Epoch 1/1
3/3 - 1s - 1s/step - head_loss: 11.7 - loss: 3e-01
"""


@pytest.fixture
def runner(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import old_scripts

    yield old_scripts
    for name in ("old_scripts", "old_scripts_data"):
        sys.modules.pop(name, None)


def test_the_first_and_the_last_loss_of_every_fit_are_read(runner):
    assert runner.losses_of(OUTPUT) == [(1.584, 1.304), (0.3, 0.3)]


@pytest.mark.parametrize(
    ("code", "losses", "verdict"),
    [
        (0, [(2.0, 1.9)], "falls"),
        (0, [(2.0, 1.9), (2.0, 1.99)], "does not fall"),
        (0, [], "does not fall"),
        (1, [(2.0, 1.0)], "fails"),
        (-9, [], "stopped at the limit"),
    ],
)
def test_a_training_script_passes_if_every_loss_falls(runner, code, losses, verdict):
    assert runner.judge(code, False, True, losses, "") == verdict


def test_a_package_that_a_script_needs_is_named(runner):
    assert runner.judge(1, False, True, [], "ModuleNotFoundError: No module named 'cchess'") == (
        "needs the package cchess"
    )


def test_paths_and_sizes_are_replaced(runner):
    text = "batch_size = 32\nx = '/root/a'\nmodel.fit(epochs=50, steps_per_epoch=1000)\nmaxlen = 128\n"
    assert runner.replaced(text, Path("/data"), {"maxlen = 128": "maxlen = 24"}) == (
        "batch_size = 8\nx = '/data/a'\nmodel.fit(epochs=4, steps_per_epoch=12)\nmaxlen = 24\n"
    )
