"""Update in backward: equal to the plain way, gradients never held, and clear about what it cannot do."""

import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hanmo.errors import ConfigError
from hanmo.training.optim.adafactor import AdaFactor
from hanmo.training.optim.in_backward import UpdateInBackward
from hanmo.training.optim.schedule import parameter_groups, warmup_linear

VOCAB, WIDTH = 60, 16


class Small(nn.Module):
    """Words in, words out through the same table; the two blocks share their norm; one parameter is never used."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)
        self.idle = nn.Parameter(torch.ones(3))
        self.to(dtype)

    def forward(self, ids, *, recompute=False):
        def block(x, layer):
            return self.norm(x + torch.tanh(layer(x)))

        x = self.table(ids)
        for layer in self.blocks:
            x = checkpoint(block, x, layer, use_reentrant=False) if recompute else block(x, layer)
        logits = x @ self.table.weight.T
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


OPTIMIZERS = {
    "bert4keras": lambda groups: AdaFactor(groups, "bert4keras", lr=0.05),
    "gpt2-ml": lambda groups: AdaFactor(groups, "gpt2-ml", lr=0.01),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.01, foreach=False),
    "adamw foreach": lambda groups: torch.optim.AdamW(groups, lr=0.01, foreach=True),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
}


def train(make, *, in_backward, steps=20, dtype=torch.float32, recompute=False, halt=None):
    """Losses, model and optimizer; at step `halt` all is made anew from state dicts."""
    model = Small(dtype)
    groups = partial(parameter_groups, lr=0.02, weight_decay=0.1)
    optimizer = make(groups(model.named_parameters()))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_linear(step + 1, warmup=3, total=30))
    updates = UpdateInBackward(optimizer) if in_backward else None
    batches = torch.randint(VOCAB, (steps, 4, 12), generator=torch.Generator().manual_seed(1))
    losses = []
    for step, ids in enumerate(batches):
        if step == halt:
            saved = model.state_dict(), optimizer.state_dict(), scheduler.state_dict()
            model = Small(dtype)
            optimizer = make(groups(model.named_parameters()))
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
            for part, state in zip((model, optimizer, scheduler), saved, strict=True):
                part.load_state_dict(state)
            scheduler.lr_lambdas = [lambda step: warmup_linear(step + 1, warmup=3, total=30)] * 2
            updates = UpdateInBackward(optimizer)
        loss = model(ids, recompute=recompute)
        loss.backward()
        if updates is None:
            optimizer.step()
            optimizer.zero_grad()
        else:
            assert all(parameter.grad is None for parameter in model.parameters())
            applied = updates.finish()
            assert (applied.updated, applied.overflowed) == (len(list(model.parameters())) - 1, 0)
        scheduler.step()
        losses.append(loss.item())
    return torch.tensor(losses), model, optimizer


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_update_in_backward_equals_the_plain_way(name, recompute):
    plain, model, optimizer = train(OPTIMIZERS[name], in_backward=False)
    losses, other, twin = train(OPTIMIZERS[name], in_backward=True, recompute=recompute)
    assert plain[-1] < plain[0] - 0.05
    torch.testing.assert_close(losses, plain, rtol=0, atol=1e-6)
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=1e-6)
    assert twin.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    torch.testing.assert_close(twin.state_dict()["state"], optimizer.state_dict()["state"], rtol=1e-4, atol=1e-6)


def test_bfloat16_is_rounded_alike_in_both_ways():
    """The noise belongs to parameter and step, not to the order of updates."""
    plain, model, _ = train(OPTIMIZERS["gpt2-ml"], in_backward=False, dtype=torch.bfloat16)
    losses, other, _ = train(OPTIMIZERS["gpt2-ml"], in_backward=True, dtype=torch.bfloat16)
    assert torch.equal(losses, plain)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumed_run_is_bit_for_bit_the_uninterrupted_one(dtype):
    whole, model, _ = train(OPTIMIZERS["gpt2-ml"], in_backward=True, dtype=dtype)
    resumed, other, _ = train(OPTIMIZERS["gpt2-ml"], in_backward=True, dtype=dtype, halt=7)
    assert torch.equal(whole, resumed)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), other.parameters(), strict=True))


def test_tied_table_is_updated_once_with_its_whole_gradient():
    model = Small()
    ids = torch.randint(VOCAB, (4, 12))
    model(ids).backward()
    whole = model.table.weight.grad.clone()
    before = model.table.weight.detach().clone()
    model.zero_grad()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    steps = []
    optimizer.register_step_post_hook(lambda *_: steps.append(optimizer.param_groups[0]["params"][0]))
    UpdateInBackward(optimizer)
    model(ids).backward()
    assert sum(parameter is model.table.weight for parameter in steps) == 1
    assert torch.equal(model.table.weight, before - whole)


@pytest.mark.parametrize("plain", [True, False])
def test_gradients_of_one_parameter_at_a_time_exist(plain):
    model, most = Small(), 0

    def count(*_):
        nonlocal most
        most = max(most, sum(parameter.grad is not None for parameter in model.parameters()))

    class Counting(AdaFactor):
        def update_one(self, parameter, group, *, guarded=False):
            count()
            return super().update_one(parameter, group, guarded=guarded)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1) if plain else Counting(model.parameters())
    optimizer.register_step_pre_hook(count)
    UpdateInBackward(optimizer)
    model(torch.randint(VOCAB, (4, 12))).backward()
    assert most == 1


def test_norm_is_that_of_the_whole_gradient():
    model = Small()
    ids = torch.randint(VOCAB, (4, 12))
    model(ids).backward()
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).item()
    model.zero_grad()
    updates = UpdateInBackward(AdaFactor(model.parameters()))
    model(ids).backward()
    assert updates.finish().norm == pytest.approx(norm, rel=1e-5)
    assert updates.finish().updated == 0


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_overflow_is_counted_and_poisons_nothing(bad):
    first, second = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(2))
    optimizer = AdaFactor([first, second], "bert4keras")
    updates = UpdateInBackward(optimizer)
    (first.sum() * bad + second.sum()).backward()
    applied = updates.finish()
    assert (applied.updated, applied.overflowed) == (2, 1)
    assert applied.norm == pytest.approx(2**0.5)
    assert torch.equal(first, torch.ones(3, 2)) and not torch.equal(second, torch.ones(2))
    assert all(torch.isfinite(value).all() for value in optimizer.state[first].values() if torch.is_tensor(value))


def test_learning_rate_changes_through_the_optimizer():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    UpdateInBackward(optimizer)
    optimizer.param_groups[0]["lr"] = 0.25
    parameter.sum().backward()
    assert parameter.item() == -0.25


def test_frozen_parameters_are_left_alone():
    frozen, trained = nn.Parameter(torch.ones(2), requires_grad=False), nn.Parameter(torch.ones(2))
    updates = UpdateInBackward(torch.optim.SGD([frozen, trained], lr=1.0))
    (frozen * trained).sum().backward()
    assert updates.finish().updated == 1
    assert torch.equal(frozen, torch.ones(2)) and torch.equal(trained, torch.zeros(2))


def test_scheduler_sees_the_steps_and_does_not_warn():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = AdaFactor([parameter])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    updates = UpdateInBackward(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parameter.sum().backward()
        updates.finish()
        scheduler.step()


def test_accumulation_is_refused_with_its_cost():
    with pytest.raises(ConfigError, match=r"accumulate=4 cannot be had .* whole gradients, 4,000 bytes \(0\.00 GiB\)"):
        UpdateInBackward(
            AdaFactor([nn.Parameter(torch.ones(10, 100)), nn.Parameter(torch.ones(5), requires_grad=False)]),
            accumulate=4,
        )


def test_clipping_over_all_gradients_is_refused_with_its_cost():
    with pytest.raises(ConfigError, match=r"clip_norm=1\.0 over all gradients .* whole gradients, 4,000 bytes"):
        UpdateInBackward(AdaFactor([nn.Parameter(torch.ones(10, 100))]), clip_norm=1.0)


def test_second_backward_before_finish_is_refused_with_the_cost():
    parameter = nn.Parameter(torch.ones(10, 100))
    UpdateInBackward(AdaFactor([parameter]))
    parameter.sum().backward()
    with pytest.raises(ConfigError, match=r"shape \(10, 100\) got a second gradient before finish\(\).*4,000 bytes"):
        parameter.sum().backward()
