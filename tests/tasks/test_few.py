"""PET: templates, words, both losses and their gradients, long texts, and settings that are refused."""

import math

import numpy as np
import pytest
import torch
from toy_tasks import VOCABULARY, model_folder

import hanmo
from hanmo.errors import ConfigError, DataError
from hanmo.tasks import TaskConfig
from hanmo.tasks.few import Few
from hanmo.tasks.network import build
from hanmo.tasks.rows import read_rows
from hanmo.tokenizers import WordPiece

TOKENIZER = WordPiece(VOCABULARY)
MASK = VOCABULARY.index("[MASK]")
OPTIONS = {"template": "云{label}雨：{text}。", "words": {"a": "天地", "b": "玄黄", "c": "宇宙"}}


def task(**options) -> Few:
    config = TaskConfig(
        kind="few", form="single", labels=("a", "b", "c"), head="linear", max_length=20, options=OPTIONS | options
    )
    return Few(config, TOKENIZER)


def example(text: str, label: str = "a"):
    return task().encode(read_rows([{"text": text, "label": label}])[0])


def test_the_template_is_around_the_text():
    window = example("日月").windows[0]
    assert [VOCABULARY[id] for id in window.ids] == [
        "[CLS]", "云", "[MASK]", "[MASK]", "雨", "[UNK]", "日", "月", "。", "[SEP]"
    ]  # fmt: skip
    assert window.parts[0].place(0, 2) == (6, 8)


def test_the_template_is_around_every_window_of_a_long_text():
    one = example("日月盈昃辰宿列张" * 4)
    assert len(one.windows) > 2
    for window in one.windows:
        part = window.parts[0]
        assert len(window) <= 20
        assert window.ids.count(MASK) == 2
        assert window.ids[part.at : part.at + len(part)] == one.tokens[0].ids[part.start : part.stop]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return hanmo.load(model_folder(tmp_path_factory.mktemp("few") / "model")).model


def test_a_label_is_scored_by_the_product_of_its_tokens(model):
    one = task()
    network = build(model, one).eval()
    arrays = one.collate([(each, each.windows[0]) for each in (example("日月"), example("日月盈昃辰"))])
    batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    with torch.inference_mode():
        found = network(batch)
    for row, each in enumerate((example("日月"), example("日月盈昃辰"))):
        ids = each.windows[0].ids
        with torch.inference_mode():
            logits = network.backbone(torch.tensor([ids])).logits[0].double().numpy()
        for number, word in enumerate(("天地", "玄黄", "宇宙")):
            total = 0.0
            for place, character in zip((2, 3), word, strict=True):
                odds = np.exp(logits[place]) / np.exp(logits[place]).sum()
                total += math.log(odds[VOCABULARY.index(character)])
            assert found[row, number].item() == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize("loss", ["labels", "vocabulary"])
def test_the_losses_and_their_gradients_are_those_of_the_formulas(loss):
    one = task(loss=loss)
    scores = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    label = torch.tensor([0, 2, 1, 1])
    values = scores.detach().numpy()
    chosen = values[range(4), label]
    expected = np.log(np.exp(values).sum(1)) - chosen if loss == "labels" else -chosen / 2
    assert one.losses(scores, {"label": label}).tolist() == pytest.approx(expected.tolist(), rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: one.losses(x, {"label": label}).mean(), scores, atol=1e-8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "{text}"}, "template is '{text}'; expected a string with {label} and {text} once each"),
        ({"template": 3}, "template is 3; expected a string"),
        ({"words": {"a": "天", "b": "玄黄", "c": "宇宙"}}, r"the words of the labels have \{'a': 1, 'b': 2, 'c': 2\}"),
        ({"words": {"a": "龘龘", "b": "玄黄", "c": "宇宙"}}, "the word '龘龘' of label 'a' is not in the vocabulary"),
        ({"words": {"a": 1}}, "words is .*; expected a word for each label"),
        ({"loss": "focal"}, "loss is 'focal'; expected 'labels' or 'vocabulary'"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ConfigError, match=message):
        task(**options)


def test_a_pair_is_refused():
    rows = read_rows([{"a": "天", "b": "地", "label": "a"}, {"text": "天", "label": "b"}])
    with pytest.raises(DataError, match="row 1: it is a pair; a template of 'few' takes one 'text'"):
        Few.settle(TaskConfig(kind="few"), rows)


def test_words_are_the_labels_themselves_by_default():
    config = TaskConfig(kind="few", form="single", labels=("天", "地"), head="linear")
    assert Few(config, TOKENIZER).words == [[VOCABULARY.index("天")], [VOCABULARY.index("地")]]
