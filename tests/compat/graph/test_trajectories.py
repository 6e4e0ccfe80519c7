"""Tiny models that are trained as a script trains them take the steps of bert4keras itself, which goldens recorded."""

from pathlib import Path

import pytest

from hanmo.compat.bert4keras._script import run_script

ROOT = Path(__file__).parents[3]
SCRIPT, GOLDENS = ROOT / "benchmarks/keras_trajectories.py", ROOT / "tests/data/goldens/keras"
CASES = """
    adam weight_decay_and_schedule averaged accumulated adafactor crf pointer unilm conditional_lm adversarial
    gradient_penalty
""".split()


@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_are_those_of_the_original(case, capsys):
    with pytest.raises(SystemExit) as ended:
        run_script(SCRIPT, [str(GOLDENS), case], keras=True)
    printed = capsys.readouterr().out
    assert ended.value.code == 0, printed
    assert printed.endswith("1 of 1 cases\n")


def test_every_recorded_case_is_compared():
    recorded = {path.stem for path in GOLDENS.glob("*.npz")} - {"layers", "optimizers"}
    assert recorded == set(CASES)
