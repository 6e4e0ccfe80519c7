"""AdaFactor over two processes (FSDP2, gloo) against one process."""

import socket

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint.state_dict as distributed_state
import torch.multiprocessing
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from hanmo.errors import ConfigError
from hanmo.training.distributed import is_sharded, local, shard_place, sum_over_shards, zeros
from hanmo.training.optim.adafactor import AdaFactor
from hanmo.training.optim.in_backward import UpdateInBackward

RECIPES = ("bert4keras", "gpt2-ml")


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(130, 131), nn.LayerNorm(131), nn.Linear(131, 3, bias=False))


def steps_of(model, optimizer):
    """Four updates from the same gradients, cut as the parameters are."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        for parameter in model.parameters():
            grad = torch.randn(parameter.shape, generator=generator)
            if isinstance(parameter, DTensor):
                grad = distribute_tensor(grad, parameter.device_mesh, parameter.placements)
            parameter.grad = grad
        optimizer.step()


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def states(model, optimizer):
    return [{key: whole(value) for key, value in optimizer.state[p].items()} for p in model.parameters()]


def sharded_run(recipe):
    model = small_model()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = AdaFactor(model.parameters(), recipe, lr=0.01)
    steps_of(model, optimizer)
    table = next(model.parameters())
    again = AdaFactor(model.parameters(), recipe)
    saved = distributed_state.get_optimizer_state_dict(model, optimizer)
    distributed_state.set_optimizer_state_dict(model, again, saved)
    with pytest.raises(ConfigError) as refused:
        UpdateInBackward(optimizer)
    return {
        "weights": {name: whole(parameter).detach() for name, parameter in model.named_parameters()},
        "state": states(model, optimizer),
        "restored": states(model, again),
        "here": (local(optimizer.state[table]["rows"]).shape[0], local(optimizer.state[table]["columns"]).shape[1]),
        "place": shard_place(table),
        "refusal": str(refused.value),
    }


def worker(rank, port, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        torch.save({recipe: sharded_run(recipe) for recipe in RECIPES}, folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of two processes found, by recipe."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    folder = tmp_path_factory.mktemp("shards")
    torch.multiprocessing.spawn(worker, (port, folder), nprocs=2)
    results = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    return {recipe: [result[recipe] for result in results] for recipe in RECIPES}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_two_processes_update_as_one(found, recipe):
    model = small_model()
    optimizer = AdaFactor(model.parameters(), recipe, lr=0.01)
    steps_of(model, optimizer)
    for result in found[recipe]:
        torch.testing.assert_close(result["weights"], dict(model.state_dict()), rtol=0, atol=1e-6)
        torch.testing.assert_close(result["state"], states(model, optimizer), rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_moments_are_cut_as_the_parameter_is(found, recipe):
    assert [result["here"] for result in found[recipe]] == [(66, 130), (65, 130)]
    assert [result["place"] for result in found[recipe]] == [(0,), (1,)]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_state_goes_through_distributed_checkpoints_state_dict(found, recipe):
    for result in found[recipe]:
        assert len(result["restored"]) == 5
        torch.testing.assert_close(result["restored"], result["state"], rtol=0, atol=0)


@pytest.mark.slow
def test_what_needs_whole_parameters_is_refused(found):
    for result in found["gpt2-ml"]:
        assert "shape (131, 130) is cut over processes; update in backward takes whole ones" in result["refusal"]


def test_plain_tensor_is_its_own_only_shard():
    tensor = torch.ones(3, 4, dtype=torch.bfloat16).T
    assert local(tensor) is tensor and not is_sharded(tensor) and shard_place(tensor) == ()
    assert sum_over_shards(tensor, torch.tensor(2.0)) == 2
    assert zeros(tensor).stride() == tensor.stride() and zeros(tensor).dtype == torch.float32
    assert zeros(tensor, reduced=(1,)).shape == (4, 1)
