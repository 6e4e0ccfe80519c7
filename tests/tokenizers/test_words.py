"""Vocabularies of words: recognised, and cut by jieba as bert4keras's and transformers' RoFormer do."""

import json
import pickle
import sys
from functools import partial

import jieba
import pytest

from hanmo.compat.bert4keras.tokenizers import Tokenizer as Bert4kerasTokenizer
from hanmo.errors import MissingExtra
from hanmo.tokenizers import load_tokenizer, read_vocab
from hanmo.tokenizers.words import holds_words, jieba_words
from hanmo.training.data.pack import TokenEncoder

MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CHARACTERS = [*MARKS, *"今天气不错很好我爱北京门科学空间的，。3", ".", "14", "hello", "##wor", "##ld", "a", "b", "é"]
WORDS = [*CHARACTERS, "不错", "天气", "今天天气", "北京", "天安门", "科学", "空间"]
TEXTS = [
    "今天天气不错",
    "今天天气，很好。我爱北京天安门",
    "科学空间 Hello helloworld\n北京 3.14",
    "É é Σ ｶ かな",
    "  a  b　",
    "",
    "[MASK]天气",
]


def folder_of(path, tokens, config=None):
    (path / "vocab.txt").write_text("".join(token + "\n" for token in tokens), encoding="utf-8")
    if config is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("config", [None, {"do_lower_case": True, "tokenizer_class": "BertTokenizer"}])
def test_a_vocabulary_of_words_is_cut_as_bert4keras_cuts_it(tmp_path, config):
    ours = load_tokenizer(folder_of(tmp_path, WORDS, config))
    theirs = Bert4kerasTokenizer(
        str(tmp_path / "vocab.txt"), do_lower_case=True, pre_tokenize=partial(jieba.cut, HMM=False)
    )
    assert ours.pre_tokenizes
    assert ours.encode("今天天气不错", detail=True).tokens[1:-1] == ["今天天气", "不错"]
    for text in TEXTS:
        assert ours.encode(text).ids == theirs.encode(text)[0], text
        assert ours.encode(text, ends=False).ids == ours.encode_array(text).tolist(), text
    found = ours.encode("今天天气，不错", ends=False, detail=True)
    assert ["今天天气，不错"[start:stop] for start, stop in found.offsets] == found.tokens
    assert ours.decode(found.ids) == "今天天气，不错"
    assert pickle.loads(pickle.dumps(ours)).encode("今天天气不错").ids == ours.encode("今天天气不错").ids


def test_roformers_tokenizer_class_is_enough(tmp_path):
    config = {"do_lower_case": True, "tokenizer_class": "RoFormerTokenizer"}
    few = [*CHARACTERS, *(f"x{n}" for n in range(200)), "不错"]
    assert not load_tokenizer(folder_of(tmp_path, few)).pre_tokenizes
    ours = load_tokenizer(folder_of(tmp_path, few, config))
    assert ours.pre_tokenizes and few.index("不错") in ours.encode("天气不错").ids


def test_ids_equal_those_of_transformers_roformer(tmp_path):
    pytest.importorskip("rjieba", reason="pip install rjieba")
    from transformers import RoFormerTokenizer

    config = {"do_lower_case": True, "tokenizer_class": "RoFormerTokenizer"}
    # From a path it looks for words in the path's name, not in the vocabulary (transformers 5.23).
    peer = RoFormerTokenizer({token: number for number, token in enumerate(WORDS)})
    ours = load_tokenizer(folder_of(tmp_path, WORDS, config))
    for text in TEXTS:
        assert ours.encode(text, special=True).ids == peer(text)["input_ids"], text
    peer.save_pretrained(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").encode(TEXTS[1]).ids == ours.encode(TEXTS[1]).ids


def test_one_may_choose(tmp_path):
    folder_of(tmp_path, WORDS)
    by_characters = load_tokenizer(tmp_path, pre_tokenize=False)
    assert by_characters.encode("不错", detail=True).tokens[1:-1] == ["不", "错"]
    own = load_tokenizer(tmp_path, pre_tokenize=lambda text: text.split("/"))
    assert own.encode("我/不错", detail=True).tokens[1:-1] == ["我", "不错"]
    folder_of(tmp_path, CHARACTERS)
    assert not load_tokenizer(tmp_path).pre_tokenizes
    assert load_tokenizer(tmp_path, pre_tokenize=True).pre_tokenizes


def test_packed_data_of_words_and_of_characters_are_told_apart(tmp_path):
    folder_of(tmp_path, WORDS)
    whole, parts = (TokenEncoder(load_tokenizer(tmp_path, pre_tokenize=cut)) for cut in (True, False))
    assert whole.sha256 != parts.sha256


def test_the_published_vocabularies_of_characters_hold_no_words(shared):
    for name in ("bert-base-chinese-vocab.txt", "clue-vocab.txt"):
        assert not holds_words(read_vocab(shared / "vocab" / name))


def test_without_jieba_a_text_names_the_install_command_and_loading_does_not(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    ours = load_tokenizer(folder_of(tmp_path, WORDS))
    with pytest.raises(MissingExtra, match=r"pip install 'hanmo\[cpm\]'"):
        ours.encode("今天天气不错")
    assert load_tokenizer(tmp_path, pre_tokenize=False).encode("不错").ids[1:-1] == [
        WORDS.index("不"),
        WORDS.index("错"),
    ]
    with pytest.raises(MissingExtra, match="takes jieba, which is not installed"):
        jieba_words("今天", hmm=True)
