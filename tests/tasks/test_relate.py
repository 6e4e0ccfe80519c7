"""Relations: rows of spans and of triples, targets, results, exact scores, and rows that are refused."""

import numpy as np
import pytest
from toy_tasks import VOCABULARY

from hanmo.errors import ConfigError, DataError
from hanmo.tasks.config import TaskConfig
from hanmo.tasks.relate import Relate, relations_of
from hanmo.tasks.report import confused
from hanmo.tasks.rows import read_rows
from hanmo.tasks.scores import Counts
from hanmo.tokenizers import WordPiece

TOKENIZER = WordPiece(VOCABULARY)
TEXT = "天地生玄黄，天地"


def task(**changes) -> Relate:
    settings = {"kind": "relate", "labels": ("a", "b"), "head": "gplinker", "max_length": 12}
    return Relate(TaskConfig(**settings | changes), TOKENIZER)


def row(*relations, text=TEXT, spans=((0, 2), (3, 5), (6, 8)), **more):
    data = {"text": text, "spans": [{"start": a, "stop": b, "label": "entity"} for a, b in spans]}
    data["relations"] = [{"subject": s, "object": o, "label": label} for s, o, label in relations]
    return read_rows([data | more])[0]


def triples(*found, text=TEXT):
    return read_rows([{"text": text, "triples": list(found)}])[0]


def test_relations_point_to_spans():
    assert relations_of(row((0, 1, "a"), (1, 1, "b"))) == [("a", (0, 2), (3, 5)), ("b", (3, 5), (3, 5))]


def test_a_repeated_mention_is_bound_to_its_offset():
    one = task()
    made = one.encode(row((2, 1, "a")))
    target = one.target(made, made.windows[0])
    assert target["spans"].tolist() == [[[7, 8]], [[4, 5]]]
    assert target["first"][0].tolist() == [[7, 4]] and target["last"][0].tolist() == [[8, 5]]
    assert target["first"][1].tolist() == [[0, 0]]


@pytest.mark.parametrize("triple", [["天地", "a", "玄黄"], {"subject": "天地", "predicate": "a", "object": "玄黄"}])
def test_a_triple_is_bound_to_first_occurrences_and_ambiguous_ones_are_counted(triple):
    found = triples(triple, ["玄", "b", "黄"])
    assert relations_of(found) == [("a", (0, 2), (3, 5)), ("b", (3, 4), (4, 5))]
    assert task().notes([task().encode(found)]) == [
        "relations: 2",
        "1 triples have a string that occurs in their text again; the first occurrence is taken",
    ]


def test_triples_that_were_left_out_are_counted():
    found = read_rows([{"text": TEXT, "triples": [["生", "a", "玄"]], "missing": 2}])[0]
    notes = task().notes([task().encode(found)])
    assert notes == ["relations: 1", "2 triples have a string that is not in their text, and are left out"]


def test_relations_whose_spans_are_too_far_apart_are_counted():
    one = task()
    far = row((0, 1, "a"), text="天地" * 10, spans=((0, 2), (17, 18)))
    assert one.notes([one.encode(far)])[1:] == [
        "1 of them fit no window, and cannot be learned or found; raise max_length"
    ]


def result(*relations, spans=((0, 2), (3, 5), (6, 8))):
    spans = [{"start": a, "stop": b, "label": "entity", "text": TEXT[a:b]} for a, b in spans]
    return {"spans": spans, "relations": [{"subject": s, "object": o, "label": label} for s, o, label in relations]}


def test_relations_are_right_by_both_offsets_and_the_label():
    rows = [row((0, 1, "a"), (1, 0, "b"))]
    assert task().measure(rows, [result((0, 1, "a"), (2, 1, "a"), (1, 0, "a"))]) == {
        "f1": pytest.approx(2 / 5),
        "precision": pytest.approx(1 / 3),
        "recall": 0.5,
    }


def test_triples_are_right_by_their_strings():
    rows = [triples(["天地", "a", "玄黄"])]
    assert task().measure(rows, [result((2, 1, "a"))])["f1"] == 1
    assert task().measure(rows, [result((2, 1, "a"), (0, 1, "a"))])["f1"] == 1
    assert task().measure(rows, [result()])["f1"] == 0


def test_relations_are_counted_by_their_labels():
    rows, found = [row((0, 1, "a"), (1, 0, "b"))], [result((0, 1, "a"), (2, 1, "a"))]
    assert task().label_counts(rows, found) == {"a": Counts(1, 2, 1), "b": Counts(0, 0, 1)}
    with pytest.raises(ConfigError, match="a confusion matrix is of tasks with one label a text, or spans"):
        confused(rows, found)


def test_a_relation_that_two_windows_have_is_found_once():
    one = task(stride=4, thresholds={"a": 0.0})
    made = one.encode(row(text="天地玄黄宇宙洪荒日月盈昃辰宿", spans=()))
    outputs = []
    for window in made.windows:
        places = [window.parts[0].place(*span) for span in ((6, 7), (8, 10))]
        both = [(place[0], place[1] - 1) for place in places if place]
        outputs.append([(both[0], 1, both[1], 2.0)] if len(both) == 2 else [])
    assert [len(found) for found in outputs] == [1, 1]
    assert one.decode(made, outputs) == {
        "spans": [
            {"start": 6, "stop": 7, "label": "entity", "text": "洪"},
            {"start": 8, "stop": 10, "label": "entity", "text": "日月"},
        ],
        "relations": [{"subject": 0, "object": 1, "label": "b", "score": 2.0}],
    }


def test_thresholds_are_chosen_on_dev_rows_of_either_form():
    found = {("a", 0, 2, 3, 5): -0.5, ("a", 6, 8, 3, 5): -1.0, ("a", 3, 5, 0, 2): -2.0}
    one = task()
    candidates = one.result(TEXT, found)
    for right, relations in ((row((0, 1, "a")), 1), (triples(["天地", "a", "玄黄"]), 2)):
        config, results = one.calibrate([right], [candidates])
        assert config.thresholds["b"] == 0 and len(results[0]["relations"]) >= 1
        assert one.measure([right], results)["f1"] == 1
        assert -2 < config.thresholds["a"] < -0.5 and len(results[0]["relations"]) <= relations


def test_casrel_has_no_thresholds_to_choose():
    one = task(head="casrel")
    answer = one.result(TEXT, {("a", 0, 2, 3, 5): 0.7})
    assert "candidates" not in answer and len(answer["relations"]) == 1
    assert one.calibrate([row()], [answer]) == (one.config, [answer])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (read_rows([{"text": "天"}])[0], "'relations' is missing; expected a list"),
        (row((0, 3, "a")), "'object' of a relation is 3; expected one of the 3 spans, counted from 0"),
        (row((True, 1, "a")), "'subject' of a relation is True"),
        (row(relations=[{"subject": 0, "object": 1}]), "'relations' holds .*; expected"),
        (row((0, 1, "c")), "the label 'c' is not in the configuration"),
        (row((0, 1, "a"), triples=[]), "it has 'triples' and 'relations'; expected one of them"),
        (row((0, 1, "a"), spans=((0, 9), (1, 2))), "the span 0:9 is not in the text of 8 characters"),
        (triples(["天地", "a", "宇宙"]), "the triple .* is not in the text, which has no '宇宙'"),
        (triples(["天地", "a"]), "'triples' holds .*; expected .*three strings"),
        (triples({"subject": "天", "object": "地"}), "'triples' holds .*; expected .*three strings"),
    ],
)
def test_a_wrong_row_is_named(wrong, message):
    with pytest.raises(DataError, match=f"^row 1: {message}"):
        Relate.settle(task().config, [wrong])


def test_targets_of_both_heads_have_the_window_s_length():
    for head in Relate.heads:
        one = task(head=head)
        made = one.encode(row((0, 1, "a")))
        batch = one.collate([(made, window) for window in made.windows])
        assert batch["ids"].shape == (1, 10) and batch["text"].tolist() == [[1, 9]]
        if head == "casrel":
            assert batch["objects"].shape == (1, 1, 10, 2, 2)
            assert np.argwhere(batch["objects"][0, 0]).tolist() == [[4, 0, 0], [5, 0, 1]]
