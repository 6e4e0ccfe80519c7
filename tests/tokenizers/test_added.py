"""Added tokens have the ids that transformers gives them, in every layout of files."""

import json
import pickle
import re

import pytest
import transformers
from tokenizers import pre_tokenizers
from transformers import AddedToken

from hanmo.errors import TokenizerError
from hanmo.tokenizers import WordPiece, load_tokenizer, special_tokens_in

MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*MARKS, *"我爱北京大学的错，[]<>", "ent", "new", "york", "ok", "##ok", "##ay", "x", "subj", "rel"]
BYTES = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
GPT2 = {**BYTES, "he": 256, "<|endoftext|>": 257}
ADDED = [
    AddedToken("[ENT]", special=True, normalized=False),
    AddedToken("<subj>", special=True, normalized=False, lstrip=True),
    AddedToken("<rel>", special=True, normalized=False, rstrip=True),
    AddedToken("北京大学", normalized=True),
    AddedToken("New York", normalized=True),
    AddedToken("OK", normalized=False, single_word=True),
]
TEXTS = [
    "我爱北京大学",
    "[ENT]我爱北京大学<subj>[MASK]的",
    "北京大学北京大学生 北 京大学",
    "我 <subj> 爱 <rel> 北",
    "new york NEW YORK New York newyork",
    "OK ok OKay 我OK我 xOK",
    "我[SEP]爱<rel>\n大学<|endoftext|>he",
    "  我  ",
]


def flags(token, **more):
    names = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return {**{name: getattr(token, name) for name in names}, **more}


def save(folder, name, value):
    (folder / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def write_vocabulary(folder, kind):
    """Write the files of a vocabulary without added tokens; return how many tokens it has."""
    save(folder, "config.json", {"model_type": kind})
    if kind == "bert":
        (folder / "vocab.txt").write_text("".join(word + "\n" for word in WORDS), encoding="utf-8")
        return len(WORDS)
    save(folder, "vocab.json", GPT2)
    (folder / "merges.txt").write_text("#version: 0.2\nh e\n", encoding="utf-8")
    return len(GPT2)


def written(folder, kind, layout, lowercase):
    """Write a tokenizer with added tokens in one of the layouts that transformers has had."""
    size = write_vocabulary(folder, kind)
    name = {"bert": "BertTokenizer", "gpt2": "GPT2Tokenizer"}[kind]
    config = {"do_lower_case": lowercase, "tokenizer_class": name}
    if layout == "tokenizer.json":
        save(folder, "tokenizer_config.json", config)
        made = transformers.AutoTokenizer.from_pretrained(folder)
        made.add_tokens(ADDED)
        for file in folder.iterdir():
            file.unlink()
        made.save_pretrained(folder)
        save(folder, "config.json", {"model_type": kind})
        return
    if layout == "added_tokens_decoder":
        config["added_tokens_decoder"] = {str(size + n): flags(token) for n, token in enumerate(ADDED)}
    if layout == "added_tokens.json":
        save(folder, "added_tokens.json", {token.content: size + n for n, token in enumerate(ADDED)})
        special = [token.content for token in ADDED if token.special]
        save(folder, "special_tokens_map.json", {"additional_special_tokens": special})
    save(folder, "tokenizer_config.json", config)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("layout", ["tokenizer.json", "added_tokens_decoder", "added_tokens.json"])
@pytest.mark.parametrize("lowercase", [True, False])
def test_added_tokens_have_the_ids_of_transformers(tmp_path, kind, layout, lowercase):
    written(tmp_path, kind, layout, lowercase)
    ours, peer = load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours.vocab_size == len(peer)
    plain = transformers.AutoTokenizer.from_pretrained(tmp_path, split_special_tokens=True)
    for text in TEXTS:
        assert ours.encode(text, special=True).ids == peer(text)["input_ids"], text
        assert ours.encode(text, special=True, detail=True).ids == peer(text)["input_ids"], text
        if layout == "added_tokens.json":  # transformers 5 forgets there which of them are special
            continue
        expected = plain(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, ends=False).ids == ours.encode_array(text).tolist() == expected, text


def test_special_tokens_that_the_files_only_name_are_read_too(tmp_path):
    write_vocabulary(tmp_path, "bert")
    config = {
        "do_lower_case": True,
        "tokenizer_class": "BertTokenizer",
        "bos_token": "ent",
        "additional_special_tokens": ["rel"],
    }
    save(tmp_path, "tokenizer_config.json", config)
    ours, peer = load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours.encode("我ent错rel[MASK]", special=True).ids == peer("我ent错rel[MASK]")["input_ids"]
    assert special_tokens_in(ours, "我ent错") == ["ent"]
    assert ours.decode([5, WORDS.index("ent"), 6]) == "我爱"


def test_added_tokens_are_written_and_special_ones_left_out(tmp_path):
    written(tmp_path, "bert", "added_tokens_decoder", True)
    ours = load_tokenizer(tmp_path)
    text = "我爱北京大学[ENT]的New York ok"
    ids = ours.encode(text, special=True, ends=False).ids
    assert ours.decode(ids) == "我爱北京大学的New York ok"
    assert ours.decode(ids, special=True) == text
    assert [ours.id_to_token(number) for number in ids[2:4]] == ["北京大学", "[ENT]"]
    assert ours.token_to_id("北京大学") == ids[2]
    assert special_tokens_in(ours, text) == ["[ENT]"]
    found = ours.encode("我 New York错", ends=False, detail=True)
    assert (found.tokens, found.offsets) == (["我", "New York", "错"], [(0, 1), (2, 10), (10, 11)])
    assert pickle.loads(pickle.dumps(ours)).encode(text, special=True, ends=False).ids == ids


def test_added_tokens_of_byte_bpe_are_written_as_their_text(tmp_path):
    written(tmp_path, "gpt2", "added_tokens.json", False)
    ours = load_tokenizer(tmp_path)
    ids = ours.encode("he北京大学<subj>!", special=True).ids
    assert ids == [256, 261, 259, BYTES["!"]]
    assert (ours.decode(ids), ours.decode(ids, special=True)) == ("he北京大学!", "he北京大学<subj>!")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("added_tokens.json", {"[ENT]": 99}, "has the id 99, expected 27"),
        ("added_tokens.json", {"[ENT]": 5}, "has the id 5, which is '我'"),
        ("added_tokens.json", {"[ENT]": -1}, "has the id -1, expected 27"),
        ("added_tokens.json", {"[ENT]": "many"}, "are not listed as transformers does"),
        ("added_tokens.json", {"": 27}, "expected its text, or an object with its content"),
        ("added_tokens.json", {"\x01": 27}, "is empty after normalization"),
        ("tokenizer_config.json", {"added_tokens_decoder": []}, "are not listed as transformers does"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"27": 3}}, "a token is 3; expected its text"),
        ("tokenizer_config.json", {"bos_token": {"content": 3}}, "a token is {'content': 3}"),
        ("special_tokens_map.json", {"additional_special_tokens": 3}, "are not listed as transformers does"),
        ("tokenizer.json", {"added_tokens": [{"content": "x"}]}, "are not listed as transformers does"),
    ],
)
def test_added_tokens_that_cannot_be_are_refused(tmp_path, name, value, message):
    write_vocabulary(tmp_path, "bert")
    save(tmp_path, name, value)
    with pytest.raises(TokenizerError, match=re.escape(message)):
        load_tokenizer(tmp_path)


def test_an_added_mark_may_be_the_one_that_the_vocabulary_lacks():
    tokenizer = WordPiece(["[UNK]", "我"], start=None, end="[SEP]", added={2: AddedToken("[SEP]", special=True)})
    assert tokenizer.encode("我").ids == [1, 2]
    assert tokenizer.vocab_size == 3
