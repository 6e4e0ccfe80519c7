"""Tags of BIO, BMES and words equal seqeval's strict reading; paths hold what a scheme allows; MEMM's best labels."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hanmo.tasks.chains import memm_logits
from hanmo.tasks.schemes import SCHEMES, Scheme, memm_scores, viterbi
from hanmo.tasks.scores import set_scores

LABELS = ("LOC", "PER")


def scheme(name: str) -> Scheme:
    return Scheme(name, ("word",) if name == "words" else LABELS)


def test_tags_have_the_order_of_bert4keras():
    assert scheme("BIO").tags == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    assert scheme("BMES").tags == ("O", *(f"{letter}-{label}" for label in LABELS for letter in "BMES"))
    assert scheme("words").tags == ("S", "B", "M", "E")


@pytest.mark.parametrize("name", SCHEMES)
def test_spans_come_back_from_their_tags(name):
    one = scheme(name)
    spans = [(0, 1, 0), (1, 3, 0), (3, 7, 0)] if name == "words" else [(1, 2, 1), (2, 4, 0), (4, 7, 0)]
    assert one.decode(one.encode(spans, 7)) == one.decode(one.encode(spans, 7), strict=False) == spans


def test_a_tag_that_continues_another_label_ends_the_span():
    bio = scheme("BIO")
    tags = [bio.tags.index(tag) for tag in ("I-PER", "B-LOC", "I-PER", "I-LOC", "O", "B-PER", "I-PER")]
    assert bio.decode(tags) == [(1, 2, 0), (5, 7, 1)]
    assert bio.decode(tags, strict=False) == [(1, 4, 0), (5, 7, 1)]


@pytest.mark.parametrize("name", SCHEMES)
def test_the_best_path_is_the_best_of_all_that_the_scheme_allows(name):
    one, draw = scheme(name), np.random.default_rng(0)
    count = len(one.tags)
    for steps in (1, 2, 3, 4):
        scores, between = draw.normal(size=(steps, count)), draw.normal(size=(count, count))
        allowed = [path for path in itertools.product(range(count), repeat=steps) if is_allowed(one, path)]

        def score(path, scores=scores, between=between):
            return sum(scores[range(len(path)), path]) + sum(between[a, b] for a, b in itertools.pairwise(path))

        assert tuple(one.path(scores, between).tolist()) == max(allowed, key=score)
    assert one.path(np.zeros((0, count))).tolist() == []


@pytest.mark.parametrize("steps", [1, 3, 4])
@pytest.mark.parametrize("name", SCHEMES)
def test_the_probability_of_a_span_is_that_of_the_sequences_that_have_it(name, steps):
    one, draw = scheme(name), np.random.default_rng(steps)
    count = len(one.tags)
    scores, between = draw.normal(size=(steps, count)), draw.normal(size=(steps - 1, count, count))
    paths = [path for path in itertools.product(range(count), repeat=steps) if is_allowed(one, path)]
    odds = {
        path: np.exp(sum(scores[range(steps), path]) + sum(between[range(steps - 1), path[:-1], path[1:]]))
        for path in paths
    }
    held = {path: one.decode(path) for path in odds}
    spans = sorted({span for found in held.values() for span in found})
    expected = [sum(odds[path] for path in odds if span in held[path]) / sum(odds.values()) for span in spans]
    assert one.probabilities(scores, between, spans) == pytest.approx(expected, rel=1e-9)
    assert one.probabilities(scores, 0.0, []) == []
    sure = one.encode(spans[-1:], steps) if name != "words" else one.encode([(0, steps, 0)], steps)
    certain = 1000.0 * np.eye(count)[sure]
    assert all(1 - 1e-9 < each <= 1 for each in one.probabilities(certain, between, one.decode(sure)))


def is_allowed(one: Scheme, path: tuple[int, ...]) -> bool:
    """Whether the tags are those of the spans they stand for."""
    return one.encode(one.decode(path), len(path)).tolist() == list(path)


@pytest.mark.parametrize(("name", "theirs"), [("BIO", "IOB2"), ("BMES", "IOBES")])
def test_strict_f1_equals_seqeval_s(name, theirs):
    from seqeval import metrics
    from seqeval import scheme as schemes

    one, draw = scheme(name), np.random.default_rng(1)
    true = [one.path(draw.normal(size=(20, len(one.tags)))) for _ in range(40)]
    found = [np.where(draw.random(20) < 0.7, tags, draw.integers(0, len(one.tags), 20)) for tags in true]
    names = [[[one.tags[tag].replace("M-", "I-") for tag in tags] for tags in side] for side in (true, found)]
    ours = set_scores(*([one.decode(tags) for tags in side] for side in (true, found)))
    for key in ("f1", "precision", "recall"):
        score = getattr(metrics, f"{key}_score")(*names, mode="strict", scheme=getattr(schemes, theirs))
        assert ours[key] == pytest.approx(float(score), abs=1e-12)
    assert 0.2 < ours["f1"] < 0.9


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_best_path_of_a_memm_is_the_most_likely_one(steps):
    draw = np.random.default_rng(2)
    scores, transitions = draw.normal(size=(steps, 3)) * 2, draw.normal(size=(3, 3)) * 2
    ends, between = memm_scores(scores, transitions)

    def likelihood(path):
        labels = torch.tensor([path])
        right = F.one_hot(labels, 3).double()
        mask = torch.ones(1, steps, dtype=torch.bool)
        ways = memm_logits(torch.from_numpy(scores)[None], right, torch.from_numpy(transitions), mask)
        return -float(sum(F.cross_entropy(logits.transpose(1, 2), labels, reduction="sum") for logits in ways)) / 2

    paths = list(itertools.product(range(3), repeat=steps))
    for path in paths:
        found = ends[range(steps), path].sum() + sum(between[n, a, b] for n, (a, b) in enumerate(pairs(path)))
        assert found == pytest.approx(likelihood(path), abs=1e-9)
    assert tuple(viterbi(ends, between).tolist()) == max(paths, key=likelihood)
    if steps == 1:
        np.testing.assert_allclose(np.exp(ends[0]), np.exp(scores[0]) / np.exp(scores[0]).sum(), rtol=1e-12)


def pairs(path: tuple[int, ...]) -> list[tuple[int, int]]:
    return list(itertools.pairwise(path))
