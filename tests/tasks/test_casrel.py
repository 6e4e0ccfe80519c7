"""CasRel: its targets, its loss against the formula written out, and the ends that it pairs."""

import numpy as np
import pytest
import torch
from toy_tasks import model_folder

import hanmo
from hanmo.model import Output
from hanmo.tasks.casrel import CasRel, casrel_loss, casrel_targets, object_pairs, subject_pairs
from hanmo.tasks.config import TaskConfig
from hanmo.tasks.network import build
from hanmo.tasks.relate import Relate
from hanmo.tasks.task import pad


def batch_of(*windows, length=6, predicates=2):
    """Collate the targets of windows, each given by its relations."""
    targets = [casrel_targets(relations, length, predicates) for relations in windows]
    arrays = {name: pad([each[name] for each in targets], -1 if name == "subjects" else 0) for name in targets[0]}
    arrays["mask"] = np.ones((len(windows), length), np.bool_)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def test_subjects_that_right_ends_are_decoded_to_are_trained_on_too():
    targets = casrel_targets([(0, (1, 4), (5, 5)), (1, (2, 3), (5, 5))], 7, 2)
    assert targets["subjects"].tolist() == [[1, 3], [1, 4], [2, 3]]
    assert np.argwhere(targets["subject"]).tolist() == [[1, 0], [2, 0], [3, 1], [4, 1]]
    assert np.argwhere(targets["objects"]).tolist() == [[1, 5, 0, 0], [1, 5, 0, 1], [2, 5, 1, 0], [2, 5, 1, 1]]


def test_the_loss_is_the_cross_entropy_of_powers_of_sigmoids():
    batch = batch_of([(0, (1, 1), (3, 4))], [])
    draw = torch.Generator().manual_seed(0)
    subject, objects = (torch.randn(*shape, generator=draw) for shape in ((2, 6, 2), (1, 6, 2, 2)))
    loss = casrel_loss(subject, objects, batch)

    def entropy(logits, targets, power):
        odds = torch.sigmoid(logits) ** power
        return torch.nn.functional.binary_cross_entropy(odds, targets.float(), reduction="none")

    ours = entropy(subject, batch["subject"], 2).mean((1, 2))
    of_objects = entropy(objects[0], batch["objects"][0, 0], 4).mean(-1).sum(-1).mean()
    torch.testing.assert_close(loss, torch.stack([ours[0] + of_objects, ours[1]]))


def test_class_weights_multiply_the_loss_of_objects():
    batch = batch_of([(0, (1, 1), (3, 4)), (1, (1, 1), (2, 2))])
    draw = torch.Generator().manual_seed(0)
    subject, objects = (torch.randn(*shape, generator=draw) for shape in ((1, 6, 2), (1, 6, 2, 2)))
    none, first, second = (casrel_loss(subject, objects, batch, weights=each) for each in ([0, 0], [1, 0], [0, 1]))
    torch.testing.assert_close(first + second - none, casrel_loss(subject, objects, batch))
    torch.testing.assert_close(casrel_loss(subject, objects, batch, weights=[3, 0]), none + 3 * (first - none))


def test_sure_scores_have_a_finite_loss_and_gradient():
    batch = batch_of([(0, (1, 1), (3, 4))])
    subject = torch.full((1, 6, 2), 200.0, requires_grad=True)
    objects = torch.full((1, 6, 2, 2), -200.0, requires_grad=True)
    casrel_loss(subject, objects, batch).sum().backward()
    assert subject.grad.isfinite().all() and objects.grad.isfinite().all()


def test_padding_changes_no_loss():
    relations, draw = [(1, (1, 2), (0, 0))], torch.Generator().manual_seed(0)
    subject, objects = torch.randn(1, 7, 2, generator=draw), torch.randn(1, 7, 2, 2, generator=draw)
    short, long = batch_of(relations, length=4), batch_of(relations, length=7)
    long["mask"][:, 4:] = False
    found = [casrel_loss(subject[:, :n], objects[:, :n], batch) for n, batch in ((4, short), (7, long))]
    torch.testing.assert_close(*found)


def test_windows_without_a_subject_have_no_objects(tmp_path):
    config = hanmo.load(model_folder(tmp_path / "model")).config
    hidden = torch.randn(2, 6, 32)
    batch = batch_of([], [])
    subject, objects, _ = CasRel(config, 2)(Output(hidden), batch)
    assert objects.shape == (0, 6, 2, 2)
    assert casrel_loss(subject, objects, batch).isfinite().all()


def test_a_subject_changes_nothing_before_training(tmp_path):
    loaded = hanmo.load(model_folder(tmp_path / "model"))
    task = Relate(TaskConfig(kind="relate", head="casrel", labels=("a",)), loaded.tokenizer)
    head, hidden = build(loaded.model, task).head, torch.randn(1, 6, 32)
    one, other = (head.objects(hidden, torch.tensor([pair])) for pair in ([1, 2], [3, 4]))
    assert torch.equal(one, other)


def test_a_first_token_takes_the_nearest_last_one_inside_the_text():
    odds = np.zeros((7, 2), np.float32)
    odds[[0, 2, 4, 6], 0] = 0.9
    odds[[3, 5, 6], 1] = 0.55
    assert subject_pairs(odds, start=1, stop=6) == [(2, 3, pytest.approx(0.55)), (4, 5, pytest.approx(0.55))]
    odds[2, 0], odds[3, 1] = 0.6, 0.5
    assert [pair[:2] for pair in subject_pairs(odds, start=1, stop=6)] == [(4, 5)]


def test_objects_pair_ends_of_one_predicate():
    odds = np.zeros((6, 2, 2), np.float32)
    odds[2, 0, 0], odds[3, 1, 1], odds[4, 0, 1], odds[3, 1, 0] = 0.7, 0.8, 0.9, 0.9
    found = object_pairs(odds, start=1, stop=5)
    assert [each[:3] for each in found] == [(2, 4, 0), (3, 3, 1)]
    assert [each[3] for each in found] == pytest.approx([0.7, 0.8])
