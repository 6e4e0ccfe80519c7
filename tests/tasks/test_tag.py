"""Tagging: offsets in any text, long texts, strict F1, class weights, rows and options that are refused."""

import json

import numpy as np
import pytest
import torch
from test_every_task import assert_close
from torch.nn import functional as F
from toy_tasks import VOCABULARY, entity_rows, model_folder

import hanmo
from hanmo.errors import ConfigError, DataError
from hanmo.tasks import TaskConfig, fit
from hanmo.tasks.finetune import make_optimizer, prepare
from hanmo.tasks.network import build
from hanmo.tasks.rows import read_rows
from hanmo.tasks.tag import Tag, TagScores
from hanmo.tasks.task import weighted_mean
from hanmo.tokenizers import WordPiece
from hanmo.training.args import TrainArgs

TOKENIZER = WordPiece(VOCABULARY)
NESTED = [{"start": 0, "stop": 3, "label": "SKY"}, {"start": 1, "stop": 2, "label": "SUN"}]


def task(**changes) -> Tag:
    settings = {"kind": "tag", "form": "BIO", "labels": ("SKY", "SUN"), "head": "crf", "max_length": 16}
    return Tag(TaskConfig(**settings | changes), TOKENIZER)


def example(one: Tag, row: dict):
    return one.encode(read_rows([row])[0])


def span(text: str, inner: str, label: str = "SKY") -> dict:
    start = text.index(inner)
    return {"start": start, "stop": start + len(inner), "label": label, "text": inner}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tag")
    args = TrainArgs(batch=16, epochs=4, lr=2e-3)
    base = model_folder(folder / "model")
    fit(base, train=entity_rows(200), dev=entity_rows(40, seed=1), kind="tag", out=folder / "run", args=args)
    return hanmo.load(folder / "run")


@pytest.mark.parametrize("form", ["BIO", "BMES"])
@pytest.mark.parametrize(
    ("text", "inner"),
    [
        ("天　地玄　黄", "地玄"),  # U+3000
        ("天　地玄　黄", "地玄　黄"),
        ("在ＡＢ１公司，", "ＡＢ１"),  # full width
        ("去😀天地😀", "天地"),
        ("去😀天地😀", "😀天地😀"),
        ("说 café 好", "café"),
        ("说 cafe\u0301 好", "cafe\u0301"),
        ("见𠮷野家店", "𠮷野家"),
        ("\U0002a6d6天\U00031350地", "\U0002a6d6天\U00031350"),
        ("İa天地", "天地"),
        pytest.param("一" * 40 + "天地玄" + "二" * 40, "天地玄", id="several windows"),
    ],
)
def test_a_span_is_the_same_after_encoding_as_tags_and_decoding(form, text, inner):
    one = task(form=form)
    row = {"text": text, "spans": [span(text, inner)]}
    found = example(one, row)
    targets = [one.target(found, window)["tags"] for window in found.windows]
    scores = [(F.one_hot(torch.from_numpy(tags).clamp(min=0), len(one.scheme.tags)).numpy(), None) for tags in targets]
    result = one.decode(found, scores)
    odds = [each.pop("probability") for each in result["spans"]]
    assert result == {"spans": row["spans"]} and 0 < odds[0] < 1
    assert text[result["spans"][0]["start"] : result["spans"][0]["stop"]] == inner
    assert one.notes([found]) == ["spans: 1, in 1 rows"]


def test_spaces_around_a_span_are_no_part_of_it():
    rows = read_rows([{"text": " 天地　玄", "spans": [{"start": 0, "stop": 4, "label": "SKY"}]}])
    assert Tag.spans(rows[0]) == [(1, 3, "SKY")]


def test_spans_inside_a_token_are_counted():
    one = task()
    text = "天abcdef"
    found = example(one, {"text": text, "spans": [span(text, "天"), span(text, "bc")]})
    assert len(found.tokens[0]) == 2
    assert one.notes([found])[-1].startswith("spans that begin or end inside a token: 1")


def test_entities_beyond_position_512_are_found(pipeline):
    rows = entity_rows(60, seed=3)
    text = "".join(row["text"] for row in rows)
    starts = np.cumsum([0, *(len(row["text"]) for row in rows)]).tolist()
    wanted = {
        (start + s["start"], start + s["stop"], s["label"])
        for start, row in zip(starts, rows, strict=False)
        for s in row["spans"]
    }
    assert pipeline.task.config.max_length == 64
    found = {(s["start"], s["stop"], s["label"]) for s in pipeline.predict(text)["spans"]}
    beyond = {each for each in wanted if each[0] > 512}
    assert len(beyond) > 10
    assert len(beyond & found) >= 0.9 * len(beyond)


def test_long_and_short_texts_in_one_batch_equal_each_alone(pipeline):
    texts = [row["text"] for row in entity_rows(12, seed=4)]
    texts += ["".join(texts) * 4, "天", "".join(texts[:6])]
    assert_close([pipeline.predict(text) for text in texts], pipeline.predict(texts, batch=4))


def test_an_empty_result_has_scores_of_zero():
    rows = read_rows([{"text": "天地", "spans": [span("天地", "天")]}, {"text": "天", "spans": []}])
    nothing = [{"spans": []}, {"spans": []}]
    assert task().measure(rows, nothing) == {"f1": 0.0, "precision": 0.0, "recall": 0.0}
    assert task().measure(rows[1:], nothing[1:]) == {"f1": 0.0, "precision": 0.0, "recall": 0.0}
    part = [{"spans": [span("天地", "天地")]}, {"spans": []}]
    assert task().measure(rows, part)["f1"] == 0.0  # not the exact span
    assert task().measure(rows, [{"spans": [span("天地", "天")]}, {"spans": []}])["f1"] == 1.0


@pytest.mark.parametrize("head", Tag.heads)
def test_a_text_without_tokens_has_no_spans(head):
    one = task(head=head)
    found = example(one, {"text": "\u200b", "spans": []})
    assert len(found.tokens[0]) == 0
    assert one.decode(found, [(np.zeros((2, 5)), None if head == "softmax" else np.zeros((5, 5)))]) == {"spans": []}
    batch = {name: torch.from_numpy(array) for name, array in one.collate([(found, found.windows[0])]).items()}
    outputs = TagScores(torch.ones(1, 2, 5), None if head == "softmax" else torch.ones(5, 5))
    assert one.losses(outputs, batch).tolist() == [0]


@pytest.mark.parametrize(
    ("row", "form"), [({"words": ["天"]}, "words"), ({"text": "天地玄", "spans": NESTED[1:]}, "BIO")]
)
def test_the_data_tells_the_form(row, form):
    assert Tag.settle(TaskConfig(kind="tag"), read_rows([row])).form == form


def test_training_rows_without_any_span_are_refused():
    with pytest.raises(DataError, match="none of the 2 training rows has spans"):
        Tag.settle(TaskConfig(kind="tag"), read_rows([{"text": "天", "spans": []}] * 2))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "天地玄", "spans": NESTED}, "the spans 0:3 SKY and 1:2 SUN overlap; .*kind 'spans' takes nested"),
        (
            {"text": "天地玄", "spans": [{**NESTED[0], "stop": 2}, {**NESTED[1], "stop": 3}]},
            "the spans 0:2 SKY and 1:3 SUN overlap; .*crossing spans",
        ),
        ({"text": "天地玄", "spans": [NESTED[0], {**NESTED[0], "label": "SUN"}]}, "the spans 0:3 SKY and 0:3 SUN"),
        ({"text": "天地玄"}, "'spans' is missing; expected a list"),
        ({"text": "天地玄", "spans": [{"start": 1, "stop": 1, "label": "SKY"}]}, ".*are its ends inclusive"),
        ({"text": "天地玄", "spans": [span("地玄天", "地玄")]}, "the span 0:2 is '天地', but its text says '地玄'"),
        ({"text": "天 玄", "spans": [{"start": 1, "stop": 2, "label": "SKY"}]}, "the span 1:2 holds spaces only"),
        ({"text": "天", "spans": [span("天", "天", "SEA")]}, "the label 'SEA' is not in the configuration"),
        ({"a": "天", "b": "地", "spans": []}, "'text' is missing"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, row, message):
    path = tmp_path / "train.jsonl"
    rows = [{"text": "天", "spans": []}, row]
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows), "utf-8")
    with pytest.raises(DataError, match=f"^train.jsonl:2: {message}"):
        prepare(TaskConfig(kind="tag", labels=("SKY", "SUN")), path, [{"text": "天", "spans": []}])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"words": ["天地", ""]}, "'words' is .*; expected a list of words"),
        ({"words": []}, "'words' is .*; expected a list of words"),
        ({"words": ["天地"], "text": "天 地"}, "'text' is not its 'words' joined"),
        ({"text": "天地玄黄", "spans": [span("天地玄黄", "天地", "word")]}, "'玄黄' after character 2 is in no word"),
    ],
)
def test_a_wrong_row_of_words_is_named(row, message):
    rows = read_rows([{"words": ["天"]}, row])
    with pytest.raises(DataError, match=f"^row 2: {message}"):
        Tag.settle(TaskConfig(kind="tag", form="words"), rows)


def test_words_are_spans_that_cover_the_text():
    one = task(form="words", labels=("word",))
    found = example(one, {"words": ["天", "地玄", "黄宇宙洪"]})
    tags = one.target(found, found.windows[0])["tags"]
    assert tags.tolist() == [-1, 0, 1, 3, 1, 2, 2, 3, -1]
    result = one.decode(found, [(np.eye(4)[tags.clip(0)], None)])
    assert result["words"] == ["天", "地玄", "黄宇宙洪"]
    assert one.measure([found.row], [result])["f1"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": {"class_weights": {"SEA": 1.0}}, "head": "softmax"}, "class_weights is .*; expected labels"),
        ({"options": {"class_weights": {"SKY": "much"}}, "head": "softmax"}, "class_weights is .*; expected labels"),
        ({"options": {"class_weights": {"SKY": 2.0}}}, "class_weights is given with head 'crf'.*use 'softmax'"),
        ({"options": {"transitions_rate": 0}}, "transitions_rate is 0; expected a factor"),
        ({"form": "words"}, r"the labels are \['SKY', 'SUN'\]; expected one for form 'words'"),
        ({"form": "IOB"}, "form is 'IOB'; expected one of BIO, BMES, words"),
    ],
)
def test_wrong_options_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        task(**changes)


def test_class_weights_make_the_weighted_mean_of_torch():
    one = task(head="softmax", max_length=64, options={"class_weights": {"SKY": 4.0, "O": 0.5}})
    rows = [
        {"text": text, "spans": [span(text, "天地"), span(text, "日", "SUN")]} for text in ("天地日", "玄黄天地宇日宙")
    ]
    found = [example(one, row) for row in rows]
    batch = {
        name: torch.from_numpy(array)
        for name, array in one.collate([(each, each.windows[0]) for each in found]).items()
    }
    scores = torch.randn(*batch["tags"].shape, 5, generator=torch.Generator().manual_seed(0))
    ours = weighted_mean(one.losses(TagScores(scores, None), batch), batch["weight"])
    weights = torch.tensor([0.5, 4.0, 4.0, 1.0, 1.0])
    theirs = F.cross_entropy(scores.transpose(1, 2), batch["tags"], weight=weights, ignore_index=-1)
    assert float(ours) == pytest.approx(float(theirs), abs=1e-6)


@pytest.mark.parametrize("head", ["softmax", "memm"])
def test_the_tokens_of_a_text_weigh_the_same_in_one_window_or_several(head):
    row = {"text": "天地玄黄" * 10, "spans": []}
    for length, windows in ((64, 1), (16, 4)):
        one = task(head=head, max_length=length)
        found = example(one, row)
        batch = one.collate([(found, window) for window in found.windows])
        assert len(found.windows) == windows
        assert batch["weight"].sum() == pytest.approx(40)


def test_transitions_have_their_own_rate(pipeline):
    network = build(pipeline.model, task(options={"transitions_rate": 50.0}))
    optimizer = make_optimizer(network, TrainArgs(steps=1, lr=1e-3, optimizer="adamw"), head_lr=2)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    named = {name: rates[id(parameter)] for name, parameter in network.head.named_parameters()}
    assert named == {"transitions": pytest.approx(0.1), "linear.weight": 2e-3, "linear.bias": 2e-3}
