"""Parameter groups: rates by name and num_layers, decay by rule."""

import pytest
import torch
from torch import nn

from hanmo.errors import ConfigError
from hanmo.training.optim.schedule import depth_multipliers, parameter_groups


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


def test_decay_may_follow_ones_own_rule():
    found = settings_by_name(small_model(), lr=1.0, weight_decay=0.1, decays=lambda name, _: "blocks.1" in name)
    assert {name for name, (_, decay) in found.items() if decay} == {name for name in found if "blocks.1." in name}


def test_rates_shrink_with_depth_and_all_fitting_factors_count():
    multipliers = depth_multipliers("blocks", 2, factor=0.5) | {"embedding": 0.1, ".bias": 2.0}
    found = settings_by_name(small_model(), lr=1.0, multipliers=multipliers)
    assert {name: rate for name, (rate, _) in found.items() if name.endswith("0.weight") or "emb" in name} == {
        "embedding.weight": 0.1,
        "blocks.0.0.weight": 0.25,
        "blocks.1.0.weight": 0.5,
    }
    assert found["blocks.0.0.bias"] == (0.5, 0.0)


def test_frozen_parameters_are_left_out_and_torch_takes_the_groups():
    model = small_model()
    model.embedding.requires_grad_(False)
    groups = parameter_groups(model.named_parameters(), lr=0.5, weight_decay=0.1)
    assert [len(group["params"]) for group in groups] == [2, 6]
    torch.optim.AdamW(groups)


def test_multiplier_that_fits_nothing_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"multipliers for \['encoder'\] fit no trainable parameter"):
        parameter_groups(small_model().named_parameters(), lr=1.0, multipliers={"encoder": 2.0})


@pytest.mark.parametrize(("num_layers", "factor"), [(0, 0.5), (2, 0.0)])
def test_impossible_depth_multipliers_are_refused(num_layers, factor):
    with pytest.raises(ConfigError, match=f"depth={num_layers}, factor={factor}; expected num_layers >= 1"):
        depth_multipliers("blocks", num_layers, factor=factor)
