"""Moments from released checkpoints into AdaFactor."""

import pytest
import torch

from hanmo.errors import TensorMismatch
from hanmo.training.optim.adafactor import AdaFactor, load_slots


def gpt2_ml(kernels, grads, slots, *, lr=1e-2):
    """One update as gpt2-ml writes it, kernels [in, out], without weight decay."""
    for name, grad in grads.items():
        square = grad**2 + 1e-30
        if grad.ndim == 2:
            slots[name]["vr"] = 0.999 * slots[name]["vr"] + 0.001 * square.mean(1)
            slots[name]["vc"] = 0.999 * slots[name]["vc"] + 0.001 * square.mean(0)
            rows, columns = slots[name]["vr"] / slots[name]["vr"].mean(), slots[name]["vc"]
            update = grad * (rows + 1e-30).rsqrt()[:, None] * (columns + 1e-30).rsqrt()
        else:
            slots[name]["v"] = 0.999 * slots[name]["v"] + 0.001 * square
            update = grad * (slots[name]["v"] + 1e-30).rsqrt()
        kernels[name] -= lr * update / max(1.0, update.square().mean().sqrt().item())


def setup():
    torch.manual_seed(0)
    kernels = {"table": torch.randn(7, 4), "kernel": torch.randn(4, 6), "bias": torch.randn(6)}
    slots = {
        "table": {"vr": torch.rand(7), "vc": torch.rand(4)},
        "kernel": {"vr": torch.rand(4), "vc": torch.rand(6)},
        "bias": {"v": torch.rand(6)},
    }
    ours = {name: tensor.T.contiguous() if name == "kernel" else tensor for name, tensor in kernels.items()}
    parameters = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in ours.items()}
    groups = [{"params": list(parameters.values()), "weight_decay": 0.0}]
    return kernels, slots, parameters, AdaFactor(groups, lr=1e-2)


def test_training_goes_on_from_stored_moments_as_the_original_would():
    kernels, slots, parameters, optimizer = setup()
    load_slots(optimizer, slots, parameters=parameters, transposed={"kernel"}, step=100_000)
    for _ in range(3):
        grads = {name: torch.randn_like(tensor) for name, tensor in kernels.items()}
        gpt2_ml(kernels, grads, slots)
        for name, parameter in parameters.items():
            parameter.grad = grads[name].T if name == "kernel" else grads[name]
        optimizer.step()
    for name, parameter in parameters.items():
        found = parameter.T if name == "kernel" else parameter
        torch.testing.assert_close(found.detach(), kernels[name], rtol=0, atol=1e-6)
    moments = {name: optimizer.state[parameter] for name, parameter in parameters.items()}
    torch.testing.assert_close(moments["kernel"]["rows"].flatten(), slots["kernel"]["vc"], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(moments["kernel"]["columns"].flatten(), slots["kernel"]["vr"], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(moments["table"]["rows"].flatten(), slots["table"]["vr"], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(moments["table"]["columns"].flatten(), slots["table"]["vc"], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(moments["bias"]["v"], slots["bias"]["v"], rtol=1e-6, atol=1e-7)
    assert optimizer.state[parameters["bias"]]["step"] == 100_003


def test_other_names_are_refused_before_anything_changes():
    _, slots, parameters, optimizer = setup()
    slots["stranger"] = slots.pop("bias")
    message = r"1 without slots \['bias'\], 1 slots without parameter \['stranger'\]"
    with pytest.raises(TensorMismatch, match=message):
        load_slots(optimizer, slots, parameters=parameters)
    assert not optimizer.state


def test_other_shapes_are_refused_before_anything_changes():
    _, slots, parameters, optimizer = setup()
    with pytest.raises(
        TensorMismatch, match=r"slots of kernel are {'vr': \(4,\), 'vc': \(6,\)}; expected {'vr': \(6,\)"
    ):
        load_slots(optimizer, slots, parameters=parameters)
    assert optimizer.state[parameters["table"]]["rows"].sum() == 0
    slots["bias"] = slots.pop("kernel")
    slots["kernel"] = {"vr": torch.rand(4), "vc": torch.rand(6)}
    with pytest.raises(TensorMismatch, match=r"slots of bias are {'vr'.*expected {'v': \(6,\)}"):
        load_slots(optimizer, slots, parameters=parameters, transposed={"kernel"})
