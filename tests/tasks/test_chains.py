"""A row of a CRF or MEMM costs the same wherever its padding is; padding alone costs nothing."""

import itertools
import math

import pytest
import torch

from hanmo.compat.bert4keras.task_layers import ConditionalRandomField
from hanmo.errors import TensorMismatch
from hanmo.tasks.chains import crf_losses, memm_losses

MASKS = {
    "right": [True, True, True, False, False, False],
    "left": [False, False, False, True, True, True],
    "holes": [True, False, True, False, False, True],
}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def losses(head: str, *arguments: torch.Tensor) -> torch.Tensor:
    return crf_losses(*arguments) if head == "crf" else memm_losses(*arguments).sum(1)


@pytest.mark.parametrize("head", ["crf", "memm"])
@pytest.mark.parametrize("where", MASKS)
def test_padding_changes_nothing_wherever_it_is(head, where):
    scores, labels, transitions = draw(1, 3, 4), torch.tensor([[2, 0, 3]]), draw(4, 4, seed=1)
    alone = losses(head, scores, labels, transitions, torch.ones(1, 3, dtype=torch.bool))
    mask = torch.tensor([MASKS[where]])
    padded, right = draw(1, 6, 4, seed=2), torch.full((1, 6), -1)
    padded[mask], right[mask] = scores[0], labels[0]
    assert torch.allclose(losses(head, padded, right, transitions, mask), alone, atol=1e-12)


@pytest.mark.parametrize("head", ["crf", "memm"])
def test_a_row_of_padding_costs_nothing_and_has_no_gradient(head):
    scores, transitions = draw(2, 4, 3).requires_grad_(), draw(3, 3, seed=1).requires_grad_()
    found = losses(head, scores, torch.full((2, 4), -1), transitions, torch.zeros(2, 4, dtype=torch.bool))
    assert found.tolist() == [0, 0]
    found.sum().backward()
    assert float(scores.grad.abs().max()) == float(transitions.grad.abs().max()) == 0


def test_the_crf_counts_every_sequence_of_labels():
    scores, transitions = draw(1, 4, 3), draw(3, 3, seed=1)
    mask = torch.ones(1, 4, dtype=torch.bool)
    paths = list(itertools.product(range(3), repeat=4))
    each = torch.stack([crf_losses(scores, torch.tensor([path]), transitions, mask)[0] for path in paths])
    assert float(torch.exp(-each).sum()) == pytest.approx(1, abs=1e-12)


def test_the_layer_of_bert4keras_keeps_its_quirks():
    layer, labels = ConditionalRandomField(4).double(), torch.tensor([[0, 1, 2, 3, 0, 1]])
    scores = draw(1, 6, 4)
    for name, mask in MASKS.items():
        found = layer.sparse_loss(labels, layer(scores, torch.tensor([mask])))
        right = crf_losses(scores, labels, layer.trans, torch.tensor([mask]))
        assert torch.allclose(found, right) == (name == "right")
    nothing = layer.sparse_loss(labels, layer(scores, torch.zeros(1, 6, dtype=torch.bool)))
    assert nothing.tolist() == pytest.approx([math.log(4)], abs=1e-12)
    with pytest.raises(TensorMismatch, match="the scores have 1 position; expected 2 or more"):
        layer.sparse_loss(labels[:, :1], scores[:, :1])
