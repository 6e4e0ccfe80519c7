"""Integrated gradients: the sum of what tokens add, characters, windows, pictures, errors."""

import io
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from toy_tasks import key_rows, model_folder, number_rows, pair_rows, sky_rows, texts
from untrained import untrained

import hanmo
from hanmo.errors import ConfigError, DataError
from hanmo.tasks import TaskArgs, TaskConfig, fit
from hanmo.tasks.explain import Explanation, _attribute, _of_class, _of_spans, explain, path_gradients, with_vectors
from hanmo.tasks.rows import Row

FORMS = {"single": sky_rows, "multi": key_rows, "regression": number_rows}


def pipeline(tmp_path_factory, rows, *, count=64, epochs=2, lr=2e-3, **config):
    folder = tmp_path_factory.mktemp("explained")
    fitted = fit(
        model_folder(folder / "model"),
        train=rows(count),
        dev=rows(40, seed=1),
        config=TaskConfig(kind="classify", pooling="mean", **config),
        out=folder / "run",
        args=TaskArgs(batch=16, epochs=epochs, lr=lr),
    )
    return hanmo.load(fitted.folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    enough = {"single": {"count": 400, "epochs": 3, "lr": 4e-3}}
    return {form: pipeline(tmp_path_factory, rows, **enough.get(form, {})) for form, rows in FORMS.items()}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    return pipeline(tmp_path_factory, pair_rows, max_length=16)


@pytest.mark.parametrize("form", FORMS)
def test_tokens_add_up_to_the_change_of_the_prediction(trained, form):
    loaded = trained[form]
    text = FORMS[form](30, seed=4)[3]["text"]
    found = explain(loaded, text, points=100)
    batch = loaded.task.collate([(e := loaded.task.encode(Row("", {"text": text})), e.windows[0])], targets=False)
    batch = {name: torch.from_numpy(array) for name, array in batch.items()}
    table = loaded.network.backbone.token.weight
    with torch.no_grad():
        kept = table.clone()
        table.zero_()
        logits = loaded.network(batch)[0].double() / loaded.task.config.temperature
        table.copy_(kept)
    nothing = {"single": logits.softmax(-1), "multi": logits.sigmoid(), "regression": logits}[form]
    number = 0 if form == "regression" else loaded.labels.index(found.label)
    marks = sum(marks_add(loaded, text, found.label))
    change = found.probability - float(nothing[number])
    assert sum(score for _, score in found.characters) + marks == pytest.approx(change, rel=0.01, abs=1e-5)
    assert abs(change) > 1e-3


def marks_add(loaded, text, label):
    """Return what [CLS] and [SEP] add, which are no characters."""
    example = loaded.task.encode(Row("", {"text": text}))
    explained = _of_class(loaded.task, loaded.predict(text), None if label == "score" else label)
    found = _attribute(loaded.network, example, 0, explained.value, 100)[0].sum(-1)
    return float(found[0]), float(found[-1])


def test_the_character_that_decides_has_the_highest_score(trained):
    found = explain(trained["single"], "天地玄黄日宇宙洪")
    assert found.label == "sky"
    assert max(found.characters, key=lambda pair: pair[1])[0] == "日"
    assert explain(trained["single"], "天地玄黄日宇宙洪", label="earth").scores[0][4] < 0


@pytest.mark.parametrize("by", ["length", "largest"])
def test_lengths_are_between_0_and_1(trained, by):
    scores = explain(trained["single"], "天地玄黄日宇宙洪", by=by).scores[0]
    assert 0 <= min(scores) < max(scores) <= 1
    assert max(range(8), key=scores.__getitem__) == 4


def test_gradients_along_a_path_are_those_of_each_point():
    vectors = torch.tensor([[1.0, -2.0, 3.0]], dtype=torch.float64)
    found = path_gradients(lambda x: (x**3).sum(), vectors, 5)
    shares = np.linspace(0, 1, 5)[:, None, None]
    np.testing.assert_allclose(found.numpy(), 3 * (shares * vectors.numpy()) ** 2)


def test_spaces_have_no_score_and_a_word_shares_its_own(trained):
    text = "天 ab\u3000日"
    found = explain(trained["single"], text)
    assert [character for character, _ in found.characters] == list(text)
    scores = dict(zip(range(6), found.scores[0], strict=True))
    assert scores[1] == scores[4] == 0
    assert scores[2] == scores[3]


def test_a_pair_and_a_long_text_are_explained_to_their_ends(narrow):
    found = explain(narrow, ("天地玄黄", "宇宙日荒"))
    assert found.texts == ("天地玄黄", "宇宙日荒") and [len(scores) for scores in found.scores] == [4, 4]
    long = explain(narrow, {"a": "天地", "b": "云腾致雨露结为霜" * 5 + "日"})
    assert len(long.scores[1]) == 41
    assert all(score != 0 for score in long.scores[1])
    assert not narrow.network.backbone.token._forward_hooks


def test_pictures_hold_the_text_and_escape_it():
    made = Explanation(("<天>日",), "sky", 0.75, ([0.0, -0.5, 0.0, 1.0],))
    page = made.to_html()
    assert "sky 0.750" in page and "&lt;" in page and "<天" not in page
    assert '<span style="background:rgba(220,50,40,1.00)">日</span>' in page
    assert '<span style="background:rgba(40,90,220,0.50)">天</span>' in page
    out = io.StringIO()
    Console(file=out, force_terminal=True, color_system="truecolor").print(made)
    assert "sky 0.750" in out.getvalue() and "48;2;220;50;40m日" in out.getvalue()
    plain = io.StringIO()
    Console(file=plain).print(Explanation(("天日",), "sky", 0.5, ([0.0, 0.0],)))
    assert plain.getvalue() == "sky 0.500\n天日\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "sea"}, "label is 'sea'; expected one of earth, sky"),
        ({"points": 1}, "points is 1; expected 2 or more"),
        ({"by": "size"}, "by is 'size'; expected one of sum, length, largest"),
    ],
)
def test_wrong_options_are_named(trained, options, message):
    with pytest.raises(ConfigError, match=message):
        explain(trained["single"], "天日", **options)


TAG = TaskConfig(kind="tag", form="BIO", labels=("LOC", "PER"), head="softmax", max_length=30)
SPANS = TaskConfig(
    kind="spans", labels=("LOC", "PER"), head="global_pointer", max_length=30, thresholds={"LOC": -1.0, "PER": -1.0}
)


@pytest.fixture(params=[TAG, SPANS], ids=["tag", "spans"])
def finder(request, tmp_path):
    return untrained(tmp_path, request.param)


def test_spans_are_explained_by_what_adds_up_to_their_mean_probability(finder):
    text = max(texts(30), key=lambda text: len(finder.predict(text)["spans"]))
    result, example = finder.predict(text), finder.task.encode(Row("", {"text": text}))
    explained = _of_spans(finder.task, example, result, None)
    added, value = _attribute(finder.network, example, 0, explained.value, 100)
    arrays = finder.task.collate([(example, example.windows[0])], targets=False)
    batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    with torch.no_grad():
        nothing = torch.zeros(1, len(example.windows[0]), finder.network.backbone.config.main.embedding_size)
        start = float(explained.value(with_vectors(finder.network, batch, nothing), 0))
    assert added.sum() == pytest.approx(value - start, rel=0.02, abs=1e-5)
    assert abs(value - start) > 1e-4
    every = explain(finder, text, points=100)
    assert every.probability == pytest.approx(value)
    characters = added.sum(-1)[1:-1]
    np.testing.assert_allclose(every.scores[0], characters, rtol=0, atol=1e-6)
    by_label = {label: explain(finder, text, label=label) for label in {span["label"] for span in result["spans"]}}
    counts = Counter(span["label"] for span in result["spans"])
    mean = sum(counts[label] * found.probability for label, found in by_label.items()) / sum(counts.values())
    assert mean == pytest.approx(every.probability) and set(every.label.split(", ")) == set(by_label)


def test_a_long_text_is_explained_to_its_end(finder):
    text = max(texts(30), key=lambda text: len(finder.predict(text)["spans"])) * 8
    found = explain(finder, text)
    assert len(found.scores[0]) == len(text) > 30
    assert any(found.scores[0][-20:])


def test_a_text_without_spans_is_refused(tmp_path):
    none = untrained(tmp_path, replace(SPANS, thresholds={"LOC": 1e6, "PER": 1e6}))
    with pytest.raises(DataError, match="no span of label 'LOC' was found in the text; nothing is explained"):
        explain(none, "天地", label="LOC")


def test_torch_computes_whatever_predicts(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = TaskConfig(kind="classify", form="single", labels=("a", "b"), head="linear", max_length=40)
    pipeline = untrained(tmp_path, config)
    expected = explain(pipeline, "天地玄黄").scores[0]
    found = explain(pipeline.use_openvino(threads=1), "天地玄黄").scores[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_another_kind_is_refused(tmp_path):
    pipeline = untrained(tmp_path, TaskConfig(kind="read", head="linear", max_length=40))
    with pytest.raises(ConfigError, match="the kind is 'read'; explain takes the kinds classify, few, tag and spans"):
        explain(pipeline, "天")
