"""Events: targets, sets of linked spans, events over windows, scores, and rows that are refused."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_tasks import VOCABULARY

from hanmo.errors import DataError
from hanmo.tasks.config import TaskConfig
from hanmo.tasks.events import Events, cliques, events_of
from hanmo.tasks.rows import read_rows
from hanmo.tokenizers import WordPiece

TOKENIZER = WordPiece(VOCABULARY)
LABELS = ("生", "生|子", "生|母", "迁|人")
TEXT = "天地生玄黄，宇宙洪荒"


def task(**changes) -> Events:
    settings = {"kind": "events", "labels": LABELS, "head": "gplinker", "max_length": 14}
    return Events(TaskConfig(**settings | changes), TOKENIZER)


def span(start, stop, **more):
    return {"start": start, "stop": stop, **more}


def row(*events, text=TEXT):
    return read_rows([{"text": text, "events": list(events)}])[0]


BIRTH = {
    "label": "生",
    "trigger": span(2, 3),
    "arguments": [span(0, 2, label="母"), span(3, 5, label="子", text="玄黄")],
}


def test_labels_are_those_of_events_and_their_roles():
    rows = [row(BIRTH, {"label": "迁", "arguments": [span(6, 8, label="人")]})]
    assert Events.settle(TaskConfig(kind="events"), rows).labels == tuple(sorted(LABELS))


def test_all_spans_of_an_event_are_linked():
    one = task()
    made = one.encode(row(BIRTH))
    target = one.target(made, made.windows[0])
    assert [each[0] for each in target["spans"].tolist()] == [[3, 3], [4, 5], [1, 2], [0, 0]]
    assert target["first"][0].tolist() == [[1, 3], [1, 4], [3, 4]]
    assert target["last"][0].tolist() == [[2, 3], [2, 5], [3, 5]]


def outputs(one, *found, links):
    """Make the scores of a window in which spans (label, first, last) are found and numbers of them linked."""
    spans = torch.full((len(LABELS), 14, 14), -1.0)
    first, last = (torch.full((14, 14), -1.0).fill_diagonal_(1.0) for _ in range(2))
    for number, each in enumerate(found):
        spans[each] = 3.0 - number / 10
    for a, b in links:
        for scores, column in ((first, 1), (last, 2)):
            scores[tuple(sorted((found[a][column], found[b][column])))] = 1.0
    return one._links(spans, first, last, 1, 11)


def test_events_are_the_spans_that_are_all_linked():
    one = task()
    found = outputs(one, (0, 3, 3), (2, 1, 2), (1, 4, 5), (1, 7, 8), links=[(0, 1), (0, 2), (1, 2), (0, 3), (1, 3)])
    result = one.decode(one.encode(row()), [found])
    assert [[each["text"] for each in event["arguments"]] for event in result["events"]] == [
        ["天地", "玄黄"],
        ["天地", "宇宙"],
    ]
    assert all(event["trigger"]["text"] == "生" and event["label"] == "生" for event in result["events"])
    assert result["events"][0]["arguments"][1] == span(3, 5, text="玄黄", score=pytest.approx(2.8), label="子")


def test_events_without_their_trigger_are_left_out_where_the_kind_has_one():
    one = task()
    found = outputs(one, (1, 4, 5), (3, 7, 8), links=[])
    assert [event["label"] for event in one.decode(one.encode(row()), [found])["events"]] == ["迁"]


def test_thresholds_are_those_of_the_labels():
    one = task(thresholds={"生|子": 2.95, "迁|人": -0.5})
    found = outputs(one, (0, 3, 3), (1, 4, 5), links=[(0, 1)])
    result = one.decode(one.encode(row()), [found])
    assert [(event["label"], event["arguments"]) for event in result["events"]] == [("生", [])]


def test_an_event_that_two_windows_have_is_found_once():
    one = task(max_length=10, stride=3)
    made = one.encode(row(text="天地玄黄宇宙洪荒日月盈昃"))
    found = []
    for window in made.windows:
        places = [window.parts[0].place(n, n + 1) for n in (2, 6, 9)]
        spans = [(label, each[0], each[0], 1.0) for label, each in zip((2, 0, 1), places, strict=True) if each]
        found.append((spans, [set(range(len(spans))) - {n} for n in range(len(spans))]))
    assert [len(spans) for spans, _ in found] == [2, 2, 2]
    events = one.decode(made, found)["events"]
    starts = [{each["start"] for each in [*event["arguments"], event["trigger"]]} for event in events]
    assert starts == [{2, 6}, {6, 9}]


@given(
    st.integers(1, 7).flatmap(
        lambda n: st.tuples(st.just(n), st.sets(st.sampled_from([*combinations(range(n), 2), (0, 0)])))
    )
)
def test_cliques_are_all_the_largest_sets_of_linked_nodes(graph):
    count, pairs = graph
    links = [{b for a, b in [*pairs, *(p[::-1] for p in pairs)] if a == node} - {node} for node in range(count)]

    def linked(nodes):
        return all(b in links[a] for a, b in combinations(nodes, 2))

    sets = [frozenset(c) for size in range(1, count + 1) for c in combinations(range(count), size) if linked(c)]
    largest = {one for one in sets if not any(one < other for other in sets)}
    found = [frozenset(each) for each in cliques(set(range(count)), links)]
    assert len(found) == len(set(found)) and set(found) == largest


def test_scores_of_spans_and_of_events():
    rows = [row(BIRTH)]
    wrong = BIRTH | {"arguments": [span(0, 2, label="母"), span(3, 4, label="子")]}
    assert task().measure(rows, [{"events": [BIRTH]}]) == {"f1": 1, "precision": 1, "recall": 1, "event_f1": 1}
    assert task().measure(rows, [{"events": [wrong]}]) == {
        "f1": pytest.approx(2 / 3),
        "precision": pytest.approx(2 / 3),
        "recall": pytest.approx(2 / 3),
        "event_f1": 0,
    }
    assert task().measure(rows, [{"events": []}])["f1"] == 0


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ("生", "'events' holds 生; expected"),
        ({"trigger": span(2, 3)}, "'events' holds .*; expected .*'label'"),
        ({"label": "a|b", "trigger": span(2, 3)}, r"'events' holds .*; expected .* a label that has no '\|'"),
        ({"label": "生"}, "the event '生' has neither a trigger nor arguments"),
        ({"label": "生", "trigger": span(2, 99)}, "the span 2:99 is not in the text of 10 characters"),
        ({"label": "生", "trigger": "生"}, "'trigger' holds 生; expected"),
        ({"label": "生", "arguments": [span(0, 2)]}, "'arguments' holds .*; expected"),
        (
            {"label": "生", "arguments": [span(0, 2, label="母", text="天")]},
            "the span 0:2 is '天地', but its text says '天'",
        ),
        ({"label": "生", "arguments": [span(0, 2, label="父")]}, "the label '生|父' is not in the configuration"),
    ],
)
def test_a_wrong_row_is_named(event, message):
    with pytest.raises(DataError, match=f"^row 1: {message}".replace("'生|父'", r"'生\|父'")):
        Events.settle(task().config, [row(event)])


def test_rows_without_events_are_refused():
    with pytest.raises(DataError, match="row 1: 'events' is missing; expected a list"):
        Events.settle(task().config, read_rows([{"text": "天"}]))
    assert events_of(row()) == []


def test_a_window_without_spans_has_no_links():
    assert outputs(task(), links=[]) == ([], [])
    assert np.array_equal(task().target(task().encode(row()), task().encode(row()).windows[0])["first"], [[[0, 0]]])


def test_a_role_may_hold_the_mark_that_joins_it_to_its_event():
    one = task(labels=("生|子|女",))
    result = one.decode(one.encode(row()), [outputs(one, (0, 4, 5), links=[])])
    assert [span["label"] for span in result["events"][0]["arguments"]] == ["子|女"]
    assert events_of(row(*result["events"]))[0].spans == ((3, 5, "生|子|女"),)
