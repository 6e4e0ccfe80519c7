"""The tokenizers of bert4keras; tokenizer.json holds what bert4keras 0.11.5's own returned."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece

from hanmo.compat.bert4keras.tokenizers import SpTokenizer, Tokenizer, TokenizerBase, load_vocab, save_vocab
from hanmo.errors import MissingFile, TokenizerError, Unsupported

GOLDEN = json.loads((Path(__file__).parent.parent / "data/goldens/tokenizer.json").read_text(encoding="utf-8"))
CONFIGS = [config["name"] for config in GOLDEN["configs"]]
KINDS = ("pad", "unk", "mask", "start", "end")
PRE_TOKENIZE = {"pre_simple": lambda text: re.findall(r"[A-Za-z0-9]+|\[MASK\]|\s+|.", text)}
VOCAB_FILE = {"bert": "bert-base-chinese-vocab.txt", "clue": "clue-vocab.txt"}
SMALL = """[PAD] [UNK] [CLS] [SEP] [MASK] 我 爱 北 京 ， 。 ' - play ##ing ##s a ##b 1 2 . [unused1] 不 ##错""".split()


@pytest.fixture(scope="module")
def vocab_path(shared):
    return lambda name: shared / "vocab" / VOCAB_FILE[name]


@pytest.fixture(scope="module")
def make(vocab_path):
    configs = {config["name"]: config for config in GOLDEN["configs"]}
    made = {}

    def tokenizer(name):
        if name not in made:
            config = configs[name]
            vocabulary = str(vocab_path(config["vocab"]))
            if config["simplified"] is not None:
                vocabulary, _ = load_vocab(vocabulary, simplified=True, startswith=config["simplified"])
            pre_tokenize = PRE_TOKENIZE.get(config["pre_tokenize"])
            made[name] = Tokenizer(vocabulary, pre_tokenize=pre_tokenize, **config["kwargs"])
        return made[name]

    return tokenizer


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "vocab.txt"
    save_vocab(path, {token: number for number, token in enumerate(SMALL)})
    return str(path)


def outcome(function, *args):
    """Return the result of a call; for an error what bert4keras's goldens call it."""
    try:
        return function(*args)
    except TokenizerError as error:
        return {"error": str(error)}


def test_the_goldens_hold_every_case():
    assert len(GOLDEN["texts"]) == 69
    assert CONFIGS == [
        *("default", "lower", "gpt2_ml", "no_start", "no_end", "simplified", "simplified_nostart"),
        *("pre_simple", "pre_simple_lower", "word_maxlen_10", "translate"),
    ]
    assert [len(config["results"]) for config in GOLDEN["configs"]] == [69] * 11
    counts = {"encode_cases": 238, "tokenize_maxlen": 20, "decode_tokens_cases": 57, "decode_ids_cases": 10}
    assert {name: len(GOLDEN[name]) for name in counts} == counts


@pytest.mark.parametrize("name", CONFIGS)
def test_tokens_ids_decode_and_rematch_equal_bert4keras(name, make):
    config = next(config for config in GOLDEN["configs"] if config["name"] == name)
    tokenizer = make(name)
    assert tokenizer._vocab_size == config["vocab_size"]
    assert {kind: getattr(tokenizer, f"_token_{kind}_id", None) for kind in KINDS} == config["ids"]
    checked = errors = 0
    for text, wanted in zip(GOLDEN["texts"], config["results"], strict=True):
        tokens = tokenizer.tokenize(text)
        found = {
            "tokens": tokens,
            "ids": outcome(lambda t: tokenizer.encode(t)[0], text),
            "decode_tokens": tokenizer.decode(None, tokens=tokens),
            "rematch": outcome(tokenizer.rematch, text, tokens),
        }
        if "decode" in wanted:
            found["decode"] = tokenizer.decode(found["ids"])
        for key, value in wanted.items():
            if isinstance(value, dict):  # where bert4keras crashed there is an error that says what to do
                assert set(found[key]) == {"error"}, (text, key)
                errors += 1
            else:
                assert found[key] == value, (text, key)
                checked += 1
    assert (checked, errors) == {"simplified_nostart": (207, 69), "translate": (337, 8)}.get(name, (345, 0))


def test_pairs_patterns_and_truncation_equal_bert4keras(make):
    made = {
        "default": make("default"),
        "none": Tokenizer(make("default")._token_dict, token_start=None, token_end=None),
    }
    assert {case["tok"] for case in GOLDEN["encode_cases"]} == set(made)
    for case in GOLDEN["encode_cases"]:
        result = made[case["tok"]].encode(
            case["first"],
            case["second"],
            maxlen=case["maxlen"],
            pattern=case["pattern"],
            truncate_from=case["truncate_from"],
        )
        assert [*result] == case["out"], case


def test_tokenize_with_a_length_equals_bert4keras(make):
    tokenizers = {"default": make("default"), **{name: make(name) for name in CONFIGS}}
    tokenizers["none"] = Tokenizer(make("default")._token_dict, token_start=None, token_end=None)
    for case in GOLDEN["tokenize_maxlen"]:
        assert tokenizers[case["tok"]].tokenize(case["text"], maxlen=case["maxlen"]) == case["out"], case


def test_decoded_tokens_and_ids_equal_bert4keras(make):
    tokenizer = make("default")
    crashes = []
    for case in GOLDEN["decode_tokens_cases"]:
        if isinstance(case["out"], dict):
            crashes.append(tokenizer.decode(None, tokens=case["tokens"]))
        else:
            assert tokenizer.decode(None, tokens=case["tokens"]) == case["out"], case
    assert crashes == ["a"]  # bert4keras: string index out of range
    for case in GOLDEN["decode_ids_cases"]:
        assert tokenizer.decode(case["ids"]) == case["out"], case


def test_a_simplified_vocabulary_equals_bert4keras(vocab_path):
    wanted = GOLDEN["simplified"]
    vocabulary, keep_tokens = load_vocab(vocab_path("bert"), simplified=True, startswith=wanted["startswith"])
    assert keep_tokens == wanted["keep_tokens"]
    assert len(vocabulary) == wanted["size"] == 13584
    assert list(vocabulary.values()) == list(range(13584))
    bare, _ = load_vocab(vocab_path("bert"), simplified=True)
    assert len(bare) == wanted["no_startswith_size"]
    assert ("[CLS]" in bare, "[MASK]" in bare) == (False, False)


@pytest.mark.parametrize("name", ["bert", "clue"])
def test_gpt2_ml_s_own_tokenizer_gives_the_same(name, vocab_path):
    tokenizer = Tokenizer(str(vocab_path(name)), token_start=None, token_end=None, do_lower_case=True)
    assert tokenizer._vocab_size == GOLDEN["vocab"][name]["load_vocab_len"]
    cases = GOLDEN[f"gpt2ml_fulltokenizer_{name}"]
    assert len(cases) == 69
    for text, wanted in zip(GOLDEN["texts"], cases, strict=True):
        assert tokenizer.encode(text) == (wanted["ids"], [0] * len(wanted["ids"])), text


def test_the_articles_call_works_on_a_small_vocabulary(small):
    tokenizer = Tokenizer(small, token_start=None, token_end=None, do_lower_case=True)
    token_ids, segment_ids = tokenizer.encode("我爱北京，PLAYING 不错。")
    assert tokenizer.ids_to_tokens(token_ids) == ["我", "爱", "北", "京", "，", "play", "##ing", "不", "[UNK]", "。"]
    assert segment_ids == [0] * 10
    assert tokenizer.decode(token_ids) == "我爱北京，playing不。"
    assert tokenizer.decode([SMALL.index(t) for t in ["a", "##b", "play", "-", "1", ".", "2"]]) == "ab play-1.2"


def test_pairs_of_a_small_vocabulary(small):
    tokenizer = Tokenizer(small)
    assert tokenizer.encode("我爱", "北京") == ([2, 5, 6, 3, 7, 8, 3], [0, 0, 0, 0, 1, 1, 1])
    assert tokenizer.encode("我爱", "北京", pattern="S*ES*E")[0] == [2, 5, 6, 3, 2, 7, 8, 3]
    assert tokenizer.encode("我爱", "北京", maxlen=5)[0] == [2, 5, 3, 7, 3]
    ready = ["[CLS]", "我", "爱", "[SEP]"]
    assert tokenizer.encode(ready, maxlen=3)[0] == [2, 5, 3]
    assert ready == ["[CLS]", "我", "[SEP]"]  # cut in place, as in bert4keras
    assert tokenizer.rematch("我爱play", ["[CLS]", "我", "爱", "play"]) == [[], [0], [1], [2, 3, 4, 5]]


def test_lone_surrogates_are_an_unknown_word_as_in_bert4keras(small):
    assert Tokenizer(small, token_start=None, token_end=None).encode("我\ud800爱")[0] == [5, 1, 6]


def test_a_vocabulary_is_read_as_bert4keras_reads_it(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes("a 7\r\nb\u2028c\n\u2028\na\nd".encode())
    assert load_vocab(path) == {"a": 3, "b": 1, "": 2, "d": 3}  # a token that is there twice moves ids
    path.write_bytes("中\n".encode("gbk"))
    assert load_vocab(path, encoding="gbk") == {"中": 0}
    with pytest.raises(TokenizerError, match="is not utf-8 at byte 0"):
        load_vocab(path)
    with pytest.raises(TokenizerError, match=r"startswith names '\[PAD\]'"):
        load_vocab(path, "gbk", True, ["[PAD]"])
    with pytest.raises(MissingFile, match=r"nowhere\.txt"):
        load_vocab(tmp_path / "nowhere.txt")


def test_a_saved_vocabulary_is_in_the_order_of_its_ids(tmp_path):
    save_vocab(tmp_path / "v.txt", {"b": 1, "a": 0, "中": 2})
    assert (tmp_path / "v.txt").read_bytes() == "a\nb\n中\n".encode()
    assert [path.name for path in tmp_path.iterdir()] == ["v.txt"]
    with pytest.raises(UnicodeEncodeError, match="ascii"):
        save_vocab(tmp_path / "w.txt", {"中": 0}, encoding="ascii")
    assert [path.name for path in tmp_path.iterdir()] == ["v.txt"]


def test_errors_name_the_value(small):
    tokenizer = Tokenizer(small)
    with pytest.raises(TokenizerError, match="the id 24 has no token"):
        tokenizer.decode([24])
    with pytest.raises(TokenizerError, match="'爱' is not in the text after position 0"):
        tokenizer.rematch("我", ["爱"])
    with pytest.raises(TokenizerError, match=r"'x' is not in the vocabulary of 1 tokens, and neither is '\[UNK\]'"):
        Tokenizer({"a": 0}).token_to_id("x")
    bare = TokenizerBase()
    for name, call in {
        "token_to_id": lambda: bare.token_to_id("a"),
        "id_to_token": lambda: bare.id_to_token(1),
        "decode": lambda: bare.decode([1]),
        "_tokenize": lambda: bare.tokenize("a"),
    }.items():
        with pytest.raises(Unsupported, match=f"TokenizerBase has no {name}"):
            call()


def test_helpers_that_scripts_call_are_there():
    assert Tokenizer.stem("##ing") == "ing"
    assert Tokenizer._is_punctuation("，") and Tokenizer._is_punctuation("$") and not Tokenizer._is_punctuation("€")
    assert Tokenizer._is_cjk_character("中") and not Tokenizer._is_cjk_character("か")
    assert Tokenizer._is_space("\u3000") and not Tokenizer._is_space("\u2028")
    assert Tokenizer._is_control("\u200d") and Tokenizer._is_control("\n")
    assert Tokenizer._is_special("[MASK]") and not Tokenizer._is_special("")
    assert Tokenizer._is_redundant("##中") and not Tokenizer._is_redundant("##a")
    assert len(Tokenizer._cjk_punctuation()) == len(set(Tokenizer._cjk_punctuation())) == 81


def test_word_pieces_can_be_asked_for(small):
    assert Tokenizer(small)._word_piece_tokenize("plays") == ["play", "##s"]
    assert Tokenizer(small, word_maxlen=4)._word_piece_tokenize("plays") == ["plays"]


@pytest.fixture(scope="module")
def sp_path(tmp_path_factory):
    """A tiny T5-like model."""
    lines = ["今天天气不错。", "我爱北京。", "hello world", "今天\u2582天气\u2583不错"] * 20
    prefix = tmp_path_factory.mktemp("sp") / "tiny"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(prefix),
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        control_symbols=["<cls>"],
        minloglevel=2,
        num_threads=1,
    )
    return str(prefix) + ".model"


def test_a_sentencepiece_tokenizer_equals_the_sentencepiece_package(sp_path):
    peer = sentencepiece.SentencePieceProcessor(model_file=sp_path)
    tokenizer = SpTokenizer(sp_path, token_start=None, token_end="</s>")
    for text in ["今天天气不错。", "hello 北京", "", "没见过的字"]:
        assert tokenizer.tokenize(text) == [*peer.encode_as_pieces(text), "</s>"]
        ids, segments = tokenizer.encode(text)
        assert ids == [*peer.encode(text), 1]
        assert segments == [0] * len(ids)
        assert tokenizer.decode(ids[:-1]) == peer.decode(ids[:-1])
    assert (tokenizer._token_pad, tokenizer._token_unk) == ("<pad>", "<unk>")
    assert (tokenizer._token_pad_id, tokenizer._token_end_id, tokenizer._token_mask_id) == (0, 1, 2)
    assert tokenizer.id_to_token(tokenizer._vocab_size) == ""
    assert tokenizer._is_special(1) and not tokenizer._is_decodable(1)
    assert tokenizer._is_decodable(9) and not tokenizer._is_decodable(tokenizer._vocab_size)


def test_cpms_way_of_cutting_and_translating_works(sp_path):
    def pre_tokenize(text):
        return [
            word.replace(" ", "\u2582").replace("\n", "\u2583") for word in re.findall("今天|天气|不错|.", text, re.S)
        ]

    tokenizer = SpTokenizer(
        sp_path,
        token_start=None,
        token_end=None,
        pre_tokenize=pre_tokenize,
        token_translate={"\u2583": "<cls>"},
    )
    text = "今天 天气\n不错"
    ids, _ = tokenizer.encode(text)
    assert tokenizer.token_to_id("<cls>") in ids
    assert tokenizer.token_to_id("\u2583") not in ids
    restored = tokenizer.decode(ids).replace(" ", "").replace("\u2582", " ").replace("\u2583", "\n")
    assert restored == text


def test_a_sentencepiece_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(MissingFile, match=r"spiece\.model"):
        SpTokenizer(str(tmp_path / "spiece.model"))


def test_the_tokenizers_are_served_without_torch():
    code = "import sys, hanmo.compat.bert4keras.tokenizers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
