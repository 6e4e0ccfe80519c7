"""Muon with AdamW: which parameter goes to which, and states that are restored, those of version 0.1 too."""

import copy

import pytest
import torch
from torch import nn

from hanmo.training.optim.muon import MuonWithAdamW

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"stack": nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(4, 4)])}), "out": nn.Linear(4, 3)})


def optimizer_of(module: nn.Module) -> MuonWithAdamW:
    return MuonWithAdamW(module.named_parameters(), lr=0.01)


def update(module: nn.Module, optimizer: MuonWithAdamW) -> None:
    for parameter in module.parameters():
        parameter.grad = torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape)
    optimizer.step()
    optimizer.zero_grad()


def in_two_parts(state: dict) -> dict:
    """Rewrite a state as version 0.1 saved it: Muon's, whose one matrix is number 0, and AdamW's from 0 on."""
    muon, *adamw = state["param_groups"]
    groups = [{**group, "params": [number - 1 for number in group["params"]]} for group in adamw]
    shifted = {number - 1: each for number, each in state["state"].items() if number}
    first = {"state": {0: state["state"][0]}, "param_groups": [muon]}
    return {"parts": [first, {"state": shifted, "param_groups": groups}]}


def test_matrices_in_blocks_go_to_muon_and_a_rate_reaches_both():
    module = network()
    optimizer = optimizer_of(module)
    before = copy.deepcopy(module.state_dict())
    update(module, optimizer)
    kept = {name: set(optimizer.state[parameter]) for name, parameter in module.named_parameters()}
    assert kept.pop("stack.blocks.0.weight") == {"momentum_buffer"}
    assert len(kept) == 3 and set(map(frozenset, kept.values())) == {frozenset({"step", "exp_avg", "exp_avg_sq"})}
    assert all(not torch.equal(before[name], parameter) for name, parameter in module.named_parameters())
    after = copy.deepcopy(module.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    update(module, optimizer)
    assert all(torch.equal(after[name], parameter) for name, parameter in module.named_parameters())


@pytest.mark.parametrize(
    "saved_by", [copy.deepcopy, lambda state: in_two_parts(copy.deepcopy(state))], ids=["now", "0.1"]
)
def test_a_restored_optimizer_goes_on_as_the_saved_one(saved_by):
    module, again = network(), network()
    optimizer = optimizer_of(module)
    update(module, optimizer)
    restored = optimizer_of(again)
    again.load_state_dict(module.state_dict())
    restored.load_state_dict(saved_by(optimizer.state_dict()))
    for _ in range(2):
        update(module, optimizer)
        update(again, restored)
    assert all(torch.equal(*pair) for pair in zip(module.parameters(), again.parameters(), strict=True))
