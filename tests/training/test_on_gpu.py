"""AdaFactor and update in backward on a GPU: the CPU's updates, and never a wait for the device."""

import pytest
import torch

from hanmo.training.optim.adafactor import RECIPES, AdaFactor
from hanmo.training.optim.averages import ExponentialMovingAverage
from hanmo.training.optim.in_backward import UpdateInBackward

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="looked for a CUDA device; there is none"),
    # torch's compiler and its watch over waits warn of themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
]

SHAPES = [(300, 200), (6000, 4000), (17,), ()]


def start_on(device, dtype):
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(device, dtype)) for shape in SHAPES]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name", RECIPES)
def test_gpu_updates_as_the_cpu_does(name, compiled):
    results = []
    for device in ("cpu", "cuda"):
        parameters = start_on(device, torch.float32)
        optimizer = AdaFactor(parameters, name, lr=0.01, compile=compiled)
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(device)
            optimizer.step()
        results.append([parameter.detach().cpu() for parameter in parameters])
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name", RECIPES)
def test_update_in_backward_never_waits_for_the_device(name, dtype, compiled):
    parameters = start_on("cuda", dtype)
    updates = UpdateInBackward(AdaFactor(parameters, name, compile=compiled))
    factor = torch.tensor(torch.inf, device="cuda")
    sum(parameter.sum() for parameter in parameters).backward()
    assert updates.finish().overflowed == 0
    before = [parameter.detach().clone() for parameter in parameters]
    loss = sum((parameter * parameter).sum() for parameter in parameters[1:]) + (parameters[0] * factor).sum()
    try:
        torch.cuda.set_sync_debug_mode("error")
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    applied = updates.finish()
    assert (applied.updated, applied.overflowed) == (4, 1)
    assert not torch.equal(parameters[1], before[1])
    assert all(torch.isfinite(parameter).all() for parameter in parameters)


@pytest.mark.parametrize("compiled", [True, False])
def test_noise_on_the_gpu_is_the_cpus_and_unbiased(compiled):
    results = []
    for device in ("cpu", "cuda"):
        parameter = torch.nn.Parameter(torch.ones(1 << 17, dtype=torch.bfloat16, device=device))
        parameter.grad = torch.ones_like(parameter)
        AdaFactor([parameter], lr=1e-3, compile=compiled).step()
        results.append(parameter.detach().cpu())
    assert (results[0] != results[1]).float().mean() < 1e-4  # a value on the edge may fall to either side
    spread = (1 / 256) * (0.25 / 2**17) ** 0.5
    assert results[1].float().mean().item() == pytest.approx(1 - 1e-3 - 1e-3 * 0.01, abs=5 * spread)


def test_averages_may_lie_on_the_cpu():
    parameter = torch.nn.Parameter(torch.ones(3, device="cuda"))
    average = ExponentialMovingAverage([parameter], momentum=0.5, device="cpu")
    average.update()
    parameter.data.fill_(4)
    average.update()
    with average.applied():
        assert parameter.tolist() == pytest.approx([3, 3, 3])
    assert parameter.tolist() == [4, 4, 4]
