"""Optimizers and their extensions write what bert4keras's did, after every step."""

import importlib.util
from pathlib import Path

import keras
import numpy as np
import pytest
import torch

from hanmo.compat.bert4keras.graph import optimizers

ROOT = Path(__file__).resolve().parents[3]
_spec = importlib.util.spec_from_file_location("optimizer_goldens", ROOT / "benchmarks" / "optimizer_goldens.py")
GOLDENS = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(GOLDENS)


def variable(name, value):
    scope, _, own = name.partition("/")
    with keras.name_scope(scope):
        return keras.Variable(value, name=own)


@pytest.fixture(scope="module")
def recorded():
    with np.load(ROOT / "tests" / "data" / "goldens" / "keras" / "optimizers.npz") as file:
        return dict(file)


@torch.no_grad()
@pytest.mark.parametrize("case", GOLDENS.CASES)
def test_weights_after_every_step_are_those_of_the_original(case, recorded):
    found = GOLDENS.run(
        optimizers,
        case,
        recorded,
        variable=variable,
        tensor=torch.from_numpy,
        value=lambda each: each.value.numpy(force=True),
    )
    assert {name for name in recorded if name.startswith(f"{case}/")} == set(found)
    for name, array in found.items():
        # Weights are near 1; each of 8 steps rounds to float32 a few times.
        np.testing.assert_allclose(array, recorded[name], rtol=2e-6, atol=2e-6, err_msg=name)


def test_every_extension_changes_the_weights(recorded):
    last = {case: recorded[f"{case}/first/kernel"][-1] for case in GOLDENS.CASES}
    assert all(not np.array_equal(last["adam"], last[case]) for case in ("decay", "layers", "parts", "lookahead"))


@torch.no_grad()
@pytest.mark.parametrize("base", ["SGD", "Adam", "RMSprop"])
def test_an_optimizer_of_keras_can_be_extended(base):
    plain, extended = (variable("a/kernel", np.ones(3, np.float32)) for _ in range(2))
    gradient = torch.tensor([1.0, -2.0, 3.0])
    getattr(keras.optimizers, base)(0.5).apply([gradient], [plain])
    decayed = optimizers.extend_with_weight_decay(getattr(keras.optimizers, base))(0.5, weight_decay_rate=0.1)
    decayed.apply([gradient], [extended])
    torch.testing.assert_close(extended.value, plain.value - 0.5 * 0.1, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_the_names_and_arguments_of_an_extension_are_kept():
    extend = optimizers.extend_with_piecewise_linear_lr
    scheduled = extend(optimizers.extend_with_weight_decay_v2(optimizers.Adam), name="AdamWR")
    made = scheduled(1e-3, beta_1=0.8, lr_schedule={10: 1}, weight_decay_rate=0.2)
    assert scheduled.__name__ == "AdamWR"
    assert keras.utils.get_custom_objects()["AdamWR"] is scheduled
    again = scheduled.from_config(made.get_config())
    assert (again.lr_schedule, again.weight_decay_rate, again.beta_1) == ({10: 1}, 0.2, 0.8)
    assert again.lr.value == np.float32(1e-3)


@torch.no_grad()
def test_the_learning_rate_can_be_changed_while_training():
    weight, optimizer = variable("a/kernel", np.zeros(1, np.float32)), optimizers.Adam(0.1)
    optimizer.apply([torch.ones(1)], [weight])
    optimizer.learning_rate = 0.0
    optimizer.apply([torch.ones(1)], [weight])
    # The corrected moments of a constant gradient of 1 are 1.
    torch.testing.assert_close(weight.value, torch.tensor([-0.1 / (1 + 1e-6)]), rtol=1e-6, atol=0)


@torch.no_grad()
def test_arguments_of_keras_2_are_taken():
    weight, optimizer = variable("a/kernel", np.zeros(1, np.float32)), optimizers.Lion(lr=1, decay=1.0)
    optimizer.apply([torch.ones(1)], [weight])
    optimizer.apply([torch.ones(1)], [weight])
    assert weight.value.tolist() == [-1.5]


@torch.no_grad()
def test_the_state_of_an_optimizer_survives_saving():
    gradients = torch.tensor([[1.0, -2.0], [0.5, 3.0], [-1.0, 1.0]])
    make = optimizers.extend_with_gradient_accumulation(optimizers.Adam)
    weights, optimizer = variable("a/kernel", np.ones(2, np.float32)), make(0.1)
    optimizer.apply([gradients[0]], [weights])
    copy, other = variable("a/kernel", weights.value.numpy(force=True)), make(0.1)
    other.build([copy])
    store = {}
    optimizer.save_own_variables(store)
    other.load_own_variables(store)
    for gradient in gradients[1:]:
        optimizer.apply([gradient], [weights])
        other.apply([gradient], [copy])
    assert weights.value.tolist() == copy.value.tolist() != [1.0, 1.0]
