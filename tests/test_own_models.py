"""Models that Hanmo trained: their documents begin and end with a mark, and unknown characters have their price."""

import math

import pytest
import torch

import hanmo
from hanmo.errors import CorruptFile
from hanmo.families.gpt2_ml import gpt2_ml_config
from hanmo.model import Model
from hanmo.tokenizers.lossless import Lossless

ASCII = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
WORDS = ["[PAD]", "[UNK]", "[EOS]", "[NL]", "[SP]", *ASCII, *("##" + letter for letter in ASCII), *"天地玄黄。"]


@pytest.fixture
def own(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", "utf-8")
    model = Model(gpt2_ml_config(vocab_size=len(WORDS), num_layers=2, hidden_size=64, positions=32)).initialize(0)
    hanmo.save(model, tmp_path / "own", tokenizer=[tmp_path / "vocab.txt"])
    return hanmo.load(tmp_path / "own")


def test_a_prompt_stands_behind_an_end_mark(own):
    written = own.write_detailed("天地", preset="greedy", max_tokens=1, stop=None, min_chars=0)[0]
    ids = torch.tensor([[2, *Lossless(WORDS).encode("天地").ids]])
    scores = own.model(ids).logits[0, -1].float()
    scores[len(WORDS) :] = -torch.inf
    assert written.ids == (int(scores.argmax()),)


def test_a_text_is_scored_with_both_its_marks(own):
    found = own.score("天地玄黄。")
    assert found.tokens == [*"天地玄黄。", "[EOS]"]  # behind the end mark that is given
    assert len(found.logprobs) == 6
    assert found.bits_per_char == pytest.approx(-sum(found.logprobs) / math.log(2) / 5)


def test_an_unknown_character_costs_what_training_saw(own):
    plain = own.score("天地龘").bits_per_char
    (own.path.parent / "training.json").write_text('{"distinct_unknown": 7}', "utf-8")
    assert own.score("天地龘").bits_per_char == pytest.approx(plain + 3 / 3)
    assert own.score("天地龘", distinct_unknown=0).bits_per_char == pytest.approx(plain)


@pytest.mark.parametrize("text", ["[]", "{}", "not json", '{"distinct_unknown": -1}', '{"distinct_unknown": true}'])
def test_a_broken_record_of_training_is_named(own, text):
    (own.path.parent / "training.json").write_text(text, "utf-8")
    with pytest.raises(CorruptFile, match=r"training\.json (holds a list|is not JSON|says dist\w+ is (None|-1|True))"):
        own.score("天地")
