"""Spans: nested ones, those past position 512, exact offsets, thresholds chosen on dev rows, rows that are refused."""

import numpy as np
import pytest
from toy_relations import nested_rows
from toy_tasks import VOCABULARY, model_folder

import hanmo
from hanmo.errors import ConfigError, DataError
from hanmo.tasks.config import TaskConfig
from hanmo.tasks.finetune import fit
from hanmo.tasks.rows import read_rows
from hanmo.tasks.spans import Spans
from hanmo.tokenizers import WordPiece
from hanmo.training.args import TrainArgs

TOKENIZER = WordPiece(VOCABULARY)


def task(**changes) -> Spans:
    settings = {"kind": "spans", "labels": ("a", "b"), "head": "global_pointer", "max_length": 12}
    return Spans(TaskConfig(**settings | changes), TOKENIZER)


def span(start, stop, label="a", **more):
    return {"start": start, "stop": stop, "label": label, **more}


def example(one, text, *spans):
    return one.encode(read_rows([{"text": text, "spans": list(spans)}])[0])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spans")
    config = TaskConfig(kind="spans", max_length=20, options={"head_size": 8})
    args = TrainArgs(batch=16, epochs=5, lr=5e-3)
    base, out = model_folder(folder / "model"), folder / "run"
    fit(
        base,
        train=nested_rows(240, longest=40),
        dev=nested_rows(40, seed=1, longest=40),
        config=config,
        out=out,
        args=args,
    )
    return hanmo.load(out)


def found(result):
    return [(each["start"], each["stop"], each["label"]) for each in result["spans"]]


def test_nested_spans_both_come_back(trained):
    assert found(trained.predict("宇宙日天月洪荒")) == [(2, 5, "pair"), (3, 4, "middle")]


def test_spans_past_position_512_are_found(trained):
    text = "宇宙洪荒" * 150 + "日天月" + "寒来" * 10
    assert found(trained.predict(text)) == [(600, 603, "pair"), (601, 602, "middle")]


def test_offsets_are_those_of_the_text_handed_in(trained):
    text = "　Ａ，\u200b日天月\U0001f642e\u0301𠮷 \t日地月Ｂ"
    result = trained.predict(text)
    assert [each["text"] for each in result["spans"] if each["label"] == "pair"] == ["日天月", "日地月"]
    assert all(text[each["start"] : each["stop"]] == each["text"] for each in result["spans"])


def test_results_are_rows_that_are_right(trained):
    texts = [row["text"] for row in nested_rows(20, seed=2)]
    rows = [{"text": text, **result} for text, result in zip(texts, trained.predict(texts), strict=True)]
    assert trained.evaluate(rows)["f1"] == 1


def test_a_span_that_two_windows_have_is_found_once():
    one = task(stride=4)
    made = example(one, "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往")
    spans = {(start, start + 3) for start in range(18)}
    outputs = []
    for window in made.windows:
        places = [window.parts[0].place(*each) for each in sorted(spans)]
        outputs.append([(1, first, stop - 1, 2.0) for first, stop in filter(None, places)])
    assert sum(map(len, outputs)) > len(made.windows) > 2
    assert found(one.decode(made, outputs)) == [(start, stop, "b") for start, stop in sorted(spans)]


def test_a_repeated_mention_is_bound_to_its_offset():
    one = task()
    made = example(one, "金玉金玉", span(2, 4))
    assert one.target(made, made.windows[0])["pairs"].tolist() == [[[3, 4]], [[0, 0]]]


def test_a_span_is_a_target_in_each_window_that_has_it_all():
    one = task(stride=4)
    made = example(one, "天地玄黄宇宙洪荒日月盈昃辰宿", span(6, 9, "b"))
    targets = [one.target(made, window)["pairs"][1].tolist() for window in made.windows]
    assert targets == [[[7, 9]], [[3, 5]]]


def test_spans_that_cannot_be_learned_are_counted():
    one = task()
    rows = [example(one, "天ab地", span(1, 2), span(1, 3)), example(one, "天地" * 10, span(0, 11))]
    assert one.notes(rows) == [
        "spans: 3",
        "1 of them begin or end inside a token, and cannot be learned or found",
        "1 of them fit no window, and cannot be learned or found; raise max_length",
    ]


def candidates(*items):
    return {"spans": [], "candidates": [list(item) for item in items]}


def test_thresholds_are_chosen_on_dev_rows():
    rows = read_rows([{"text": "天地玄黄", "spans": [span(0, 1), span(1, 2), span(3, 4, "b")]}])
    results = [candidates(("a", 0, 1, 2.0), ("a", 1, 2, -0.5), ("a", 2, 3, -2.0), ("b", 0, 1, 3.0), ("b", 3, 4, 4.0))]
    one = task()
    assert one.floor < -2
    config, chosen = one.calibrate(rows, results)
    assert config.thresholds == {"a": pytest.approx(-1.25), "b": pytest.approx(3.5)}
    assert found(chosen[0]) == [(0, 1, "a"), (1, 2, "a"), (3, 4, "b")]
    assert one.measure(rows, chosen) == {"f1": 1.0, "precision": 1.0, "recall": 1.0}
    assert task(thresholds=config.thresholds).floor == pytest.approx(-1.25)


def test_thresholds_that_are_given_are_kept():
    one = task(thresholds={"a": 1.0})
    scores = {("a", 0, 1): 0.5, ("a", 1, 2): 1.5, ("b", 0, 2): 0.5}
    result = one.result("天地", scores)
    assert found(result) == [(0, 2, "b"), (1, 2, "a")] and "candidates" not in result
    assert one.calibrate([], []) == (one.config, [])


def test_nothing_found_has_a_score_of_zero():
    rows = read_rows([{"text": "天地", "spans": [span(0, 1)]}])
    assert task().measure(rows, [{"spans": []}]) == {"f1": 0.0, "precision": 0.0, "recall": 0.0}
    assert task().measure(rows, [{"spans": [span(0, 2)]}])["f1"] == 0


def test_a_text_without_tokens_has_no_span():
    one = task()
    made = example(one, "\u200b")
    assert one.collate([(made, made.windows[0])], targets=False)["text"].tolist() == [[1, 1]]
    assert one.decode(made, [[]])["spans"] == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "天地"}, "'spans' is missing; expected a list"),
        ({"text": "天地", "spans": [span(1, 3)]}, "the span 1:3 is not in the text of 2 characters"),
        ({"text": "天地", "spans": [span(1, 1)]}, "the span 1:1 .*are its ends inclusive"),
        (
            {"text": "天地", "spans": [span(0, 1, text="天地")]},
            "the span 0:1 is '天', but its text says",
        ),
        ({"text": "天地", "spans": [span(0, 1, "c")]}, "the label 'c' is not in the configuration, which has a, b"),
    ],
)
def test_a_wrong_row_is_named(row, message):
    rows = read_rows([{"text": "天", "spans": []}, row])
    with pytest.raises(DataError, match=f"^row 2: {message}"):
        Spans.settle(task().config, rows)


def test_data_without_any_span_is_refused():
    with pytest.raises(DataError, match="none of the 2 training rows has spans"):
        Spans.settle(TaskConfig(kind="spans"), read_rows([{"text": "天", "spans": []}] * 2))


@pytest.mark.parametrize("options", [{"head_size": 3}, {"head_size": 0}, {"head_size": "8"}, {"loss": "focal"}])
def test_options_are_checked(options):
    name, value = next(iter(options.items()))
    with pytest.raises(ConfigError, match=f"{name} is {value!r}; expected"):
        task(options=options)


def test_a_vocabulary_without_a_start_mark_is_refused():
    with pytest.raises(ConfigError, match="the vocabulary has no start mark"):
        Spans(task().config, WordPiece(VOCABULARY, start=None))


def test_scores_of_both_losses_are_those_of_one_set_of_pairs():
    one, two = task(), task(options={"loss": "dense"})
    made = example(one, "天地玄黄", span(0, 2), span(1, 3, "b"))
    assert (one.dense, two.dense) == (False, True)
    assert np.array_equal(one.target(made, made.windows[0])["pairs"], two.target(made, made.windows[0])["pairs"])
