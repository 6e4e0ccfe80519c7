"""Parameter groups: decay by rule."""

import torch
from torch import nn

from hanmo.training.optim.schedule import parameter_groups


def small_model():
    model = nn.Module()
    model.embedding = nn.Embedding(5, 4)
    model.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(2))
    return model


def settings_by_name(model, **settings):
    groups = parameter_groups(model.named_parameters(), **settings)
    by_parameter = {p: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    return {name: by_parameter[p] for name, p in model.named_parameters() if p in by_parameter}


def test_norms_and_biases_do_not_decay():
    found = settings_by_name(small_model(), lr=1.0, weight_decay=0.1)
    assert len(found) == 9
    assert {name for name, (_, decay) in found.items() if decay == 0.1} == {
        "embedding.weight",
        "blocks.0.0.weight",
        "blocks.1.0.weight",
    }


def test_frozen_parameters_are_left_out_and_torch_takes_the_groups():
    model = small_model()
    model.embedding.requires_grad_(False)
    groups = parameter_groups(model.named_parameters(), lr=0.5, weight_decay=0.1)
    assert [len(group["params"]) for group in groups] == [2, 6]
    torch.optim.AdamW(groups)
