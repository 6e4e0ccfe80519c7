"""Losses and results of pointers; the numbers of the original are in test_goldens.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_tasks import model_folder

from hanmo.compat.bert4keras.task_layers import sparse_multilabel_categorical_crossentropy
from hanmo.errors import ConfigError
from hanmo.loading import load
from hanmo.tasks.config import TaskConfig
from hanmo.tasks.network import build
from hanmo.tasks.pointer import (
    POINTERS,
    best_pairs,
    decode_triples,
    multilabel_loss,
    pair_array,
    pointer_loss,
    sparse_multilabel_loss,
)
from hanmo.tasks.rows import Row
from hanmo.tasks.steps import task_loss
from hanmo.tasks.table import make_task


def random(*shape, seed=0, scale=3.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_the_sparse_loss_equals_the_dense_loss_and_its_gradient(scale):
    scores, numbers = random(6, 20, scale=scale), torch.tensor([[1, 2], [3, 0], [4, 5], [6, 7], [8, 9], [0, 19]])
    targets = torch.zeros(6, 20, dtype=torch.float64).scatter(-1, numbers, 1)
    one, other = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    sparse, dense = sparse_multilabel_loss(one, numbers), multilabel_loss(other, targets)
    torch.testing.assert_close(sparse, dense, atol=1e-10, rtol=1e-12)
    sparse.sum().backward(), dense.sum().backward()
    torch.testing.assert_close(one.grad, other.grad, atol=1e-12, rtol=1e-12)


def test_the_loss_of_right_classes_falls_the_surer_they_are_but_in_the_original():
    numbers = torch.tensor([[3]])

    def scores(size):
        return torch.full((1, 12), -size, dtype=torch.float64).scatter(-1, numbers, size)

    ours = [float(sparse_multilabel_loss(scores(size), numbers)) for size in (5.0, 10.0, 20.0)]
    theirs = [float(sparse_multilabel_categorical_crossentropy(numbers, scores(size))) for size in (5.0, 10.0, 20.0)]
    assert ours[0] > ours[1] > ours[2]
    assert theirs[0] > theirs[1] and theirs[2] > 1 > 1e-6 > ours[2]


def test_padding_is_neither_right_nor_wrong():
    scores = random(2, 9)
    filled = torch.tensor([[3, 0, 0], [4, 5, 0]])
    bare = [sparse_multilabel_loss(scores[row, 1:], filled[row, :count] - 1) for row, count in ((0, 1), (1, 2))]
    torch.testing.assert_close(sparse_multilabel_loss(scores, filled, padding=0), torch.stack(bare))


@pytest.mark.parametrize("dense", [False, True])
def test_a_row_loses_the_same_in_a_batch_of_longer_rows(dense):
    pairs = torch.from_numpy(pair_array([[(1, 2)], []])[None])
    scores = random(1, 2, 5, 5)
    wide = torch.full((1, 2, 8, 8), -torch.inf, dtype=torch.float64)
    wide[..., :5, :5] = scores
    torch.testing.assert_close(pointer_loss(scores, pairs, dense=dense), pointer_loss(wide, pairs, dense=dense))


@pytest.mark.parametrize("kind", POINTERS)
def test_a_rotated_score_depends_on_the_distance_alone(kind):
    torch.manual_seed(0)
    layer = POINTERS[kind](6, 2, head_size=4).double()
    scores = layer(random(1, 1, 6).expand(1, 7, 6))[0]
    torch.testing.assert_close(scores[:, :-1, :-1], scores[:, 1:, 1:])
    assert not torch.allclose(scores[:, 0, 1], scores[:, 0, 2])


def test_the_best_pairs_are_inside_the_text_and_above_the_floor():
    scores = torch.full((2, 5, 5), -1.0)
    scores[1, 2, 3], scores[0, 1, 1], scores[0, 0, 4], scores[1, 3, 4] = 2.0, 1.0, 9.0, 9.0
    assert best_pairs(scores, above=0.0, start=1, stop=4) == [(1, 2, 3, 2.0), (0, 1, 1, 1.0)]
    assert best_pairs(scores, above=0.0, start=1, stop=4, limit=1) == [(1, 2, 3, 2.0)]
    assert best_pairs(scores, above=0.0, start=1, stop=1) == []


def test_a_triple_scores_the_least_of_its_four():
    spans, first, last = (torch.full((2, 6, 6), -1.0) for _ in range(3))
    spans[0, 1, 2], spans[1, 3, 4], first[1, 1, 3], last[1, 2, 4] = 4.0, 3.0, 0.5, 2.0
    options = {"start": 1, "stop": 5}
    assert decode_triples(spans, first, last, above=0.0, **options) == [((1, 2), 1, (3, 4), 0.5)]
    assert decode_triples(spans, first, last, above=0.5, **options) == []


def test_pairs_of_heads_are_filled_up():
    assert pair_array([[(2, 3), (1, 1)], []]).tolist() == [[[1, 1], [2, 3]], [[0, 0], [0, 0]]]
    assert pair_array([[]]).dtype == np.int64


@pytest.mark.parametrize("dense", [False, True])
def test_class_weights_multiply_the_loss_of_their_label(dense):
    scores = random(2, 3, 6, 6)
    pairs = torch.from_numpy(np.stack([pair_array([{(1, 2)}, {(2, 4), (3, 3)}, set()])] * 2))
    alone = [pointer_loss(scores[:, [head]], pairs[:, [head]], dense=dense) for head in range(3)]
    found = pointer_loss(scores, pairs, dense=dense, weights=[2.0, 0.5, 0.0])
    expected = 2 * alone[0] + 0.5 * alone[1]
    torch.testing.assert_close(found, expected / 3 if dense else expected)


SPANS = [{"start": 0, "stop": 1, "label": "A"}, {"start": 2, "stop": 4, "label": "B"}]
EVENT = {"label": "A", "trigger": {"start": 0, "stop": 1}, "arguments": [{"start": 2, "stop": 4, "label": "r"}]}


@pytest.mark.parametrize(
    ("config", "row"),
    [
        (TaskConfig(kind="spans", head="global_pointer", labels=("A", "B")), {"spans": SPANS}),
        (TaskConfig(kind="relate", head="gplinker", labels=("A", "B")), {"triples": [["天", "A", "玄黄"]]}),
        (TaskConfig(kind="relate", head="casrel", labels=("A", "B")), {"triples": [["天", "A", "玄黄"]]}),
        (TaskConfig(kind="events", head="gplinker", labels=("A", "A|r")), {"events": [EVENT]}),
    ],
    ids=["spans", "gplinker", "casrel", "events"],
)
def test_class_weights_change_the_loss_of_a_kind_with_pointers(tmp_path, config, row):
    loaded, losses = load(model_folder(tmp_path / "model")), []
    for weight in (1, 3):
        task = make_task(replace(config, options={"class_weights": {"A": weight}}), loaded.tokenizer)
        example = task.encode(Row("", {"text": "天地玄黄", **row}))
        arrays = task.collate([(example, window) for window in example.windows])
        batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
        losses.append(float(task_loss(build(loaded.model, task), batch).detach()))
    assert losses[1] > 1.2 * losses[0]
    with pytest.raises(ConfigError, match=r"class_weights is .*; expected labels of the task"):
        make_task(replace(config, options={"class_weights": {"C": 1}}), loaded.tokenizer)
