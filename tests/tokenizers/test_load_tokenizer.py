"""Which tokenizer is at a path; a prompt or the reason why it is none."""

import io
import json
import re
import subprocess
import sys

import pytest
import sentencepiece
import transformers
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from hanmo.errors import MissingFile, PromptError, TokenizerError
from hanmo.tokenizers import (
    ByteBPE,
    Lossless,
    SentencePiece,
    Tokenizer,
    TokenizerJson,
    WordPiece,
    encode_prompt,
    load_tokenizer,
    special_tokens_in,
)
from hanmo.tokenizers.load import tokenizer_files

MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
BYTES = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
GPT2 = {**BYTES, "he": 256, "<|endoftext|>": 257}


def write(path, tokens):
    path.write_text("".join(token + "\n" for token in tokens), encoding="utf-8")


def write_gpt2(folder):
    (folder / "vocab.json").write_text(json.dumps(GPT2), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\nh e\n", encoding="utf-8")


def write_model(path, **options):
    lines = ["今天天气不错", "hello world", "\u2582今天\u2583天气"] * 10
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=(model := io.BytesIO()),
        vocab_size=70,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **options,
    )
    path.write_bytes(model.getvalue())


def test_a_vocab_txt_is_word_piece(tmp_path):
    write(tmp_path / "vocab.txt", [*MARKS, "我", "a"])
    for path in (tmp_path, tmp_path / "vocab.txt", str(tmp_path)):
        tokenizer = load_tokenizer(path)
        assert isinstance(tokenizer, WordPiece) and isinstance(tokenizer, Tokenizer)
        assert tokenizer.encode("我A").ids == [2, 5, 6, 3]
    assert load_tokenizer(tmp_path, ends=False).encode("我A").ids == [5, 6]
    assert load_tokenizer(tmp_path, ends=False).special.end is None
    assert load_tokenizer(tmp_path, lowercase=False).encode("我A", ends=False).ids == [5, 1]


def test_case_is_folded_unless_the_vocabulary_has_capitals_or_its_config_says_so(tmp_path):
    write(tmp_path / "vocab.txt", [*MARKS, "<S>", "a", "A"])
    assert load_tokenizer(tmp_path, ends=False).encode("A").ids == [7]
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert load_tokenizer(tmp_path, ends=False).encode("A").ids == [6]
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    assert load_tokenizer(tmp_path, ends=False).encode("A").ids == [7]
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json is not JSON"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert load_tokenizer(tmp_path, lowercase=True, ends=False).encode("A").ids == [6]


def test_marks_that_the_vocabulary_has_not_are_left_out(tmp_path):
    write(tmp_path / "vocab.txt", ["[UNK]", "我"])
    assert load_tokenizer(tmp_path).encode("我").ids == [1]
    with pytest.raises(TokenizerError, match=r"has no '\[CLS\]'"):
        load_tokenizer(tmp_path, ends=True)


def test_a_repeated_line_keeps_the_later_id_as_in_transformers(tmp_path):
    write(tmp_path / "vocab.txt", [*MARKS, "我", "a", "我", "##a"])
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    tokenizer = load_tokenizer(tmp_path)
    peer = transformers.BertTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode("我aa我").ids == peer("我aa我")["input_ids"] == [2, 7, 6, 8, 7, 3]
    assert (tokenizer.vocab_size, tokenizer.token_to_id("我"), tokenizer.id_to_token(5)) == (9, 7, "我")
    assert tokenizer.decode([5, 6, 8, 7]) == "我aa我"


def test_a_vocabulary_with_newline_and_space_is_lossless(tmp_path):
    tokens = [*MARKS, "[EOS]", "[NL]", "[SP]", *ALPHABET, *("##" + letter for letter in ALPHABET)]
    write(tmp_path / "vocab.txt", tokens)
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, Lossless)
    assert tokenizer.decode(tokenizer.encode("A b\n").ids) == "A b\n"


def test_vocab_json_and_merges_are_byte_bpe(tmp_path):
    write_gpt2(tmp_path)
    for path in (tmp_path, tmp_path / "vocab.json", tmp_path / "merges.txt"):
        tokenizer = load_tokenizer(path)
        assert isinstance(tokenizer, ByteBPE)
        assert tokenizer.encode("he").ids == [256]
    assert load_tokenizer(tmp_path, ends=True).encode("he").ids == [256, 257]


def test_a_model_is_sentence_piece_of_its_kind(tmp_path):
    path = tmp_path / "spiece.model"
    write_model(path, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, user_defined_symbols=["x"])
    path_of_plain = tmp_path / "plain.model"
    path.rename(path_of_plain)
    with_blocks = load_tokenizer(path_of_plain)
    assert isinstance(with_blocks, SentencePiece) and with_blocks.cpm
    assert with_blocks.special.end == 1
    assert not with_blocks.ends
    path_of_plain.unlink()
    write_model(path, control_symbols=["[CLS]", "[SEP]"], pad_id=0, eos_id=-1, bos_id=-1, unk_id=1)
    assert load_tokenizer(tmp_path).cpm
    assert load_tokenizer(path).special.end is None


def test_t5_and_albert_models_get_their_own_marks(tmp_path, monkeypatch):
    monkeypatch.setattr("hanmo.tokenizers.load.CPM_SPACE", "none of the pieces")
    path = tmp_path / "spiece.model"
    write_model(path, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    assert load_tokenizer(tmp_path).encode("今天").ids[-1] == 1
    assert load_tokenizer(tmp_path, ends=False).encode("今天").ids[-1] != 1
    write_model(path, control_symbols=["[CLS]", "[SEP]"], pad_id=0, eos_id=-1, bos_id=-1, unk_id=1)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("").ids == [tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")]
    write_model(path, eos_id=-1, bos_id=-1, unk_id=0)
    assert load_tokenizer(tmp_path).encode("").ids == []


def test_several_tokenizers_in_a_folder_are_an_error_that_names_them(tmp_path):
    write(tmp_path / "vocab.txt", MARKS)
    write_gpt2(tmp_path)
    with pytest.raises(TokenizerError, match=r"holds several tokenizers: vocab\.txt, vocab\.json"):
        load_tokenizer(tmp_path)
    assert isinstance(load_tokenizer(tmp_path / "vocab.txt"), WordPiece)


def test_the_files_of_a_tokenizer_are_listed_with_those_that_say_how_it_is_used(tmp_path):
    write(tmp_path / "mine.txt", MARKS)
    write(tmp_path / "vocab.txt", MARKS)
    for name in ("added_tokens.json", "config.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{}")
    beside = ["tokenizer_config.json", "added_tokens.json"]
    assert [file.name for file in tokenizer_files(tmp_path / "mine.txt")] == ["mine.txt", *beside]
    assert [file.name for file in tokenizer_files(tmp_path)] == ["vocab.txt", *beside]


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(MissingFile, match=r"holds no vocab\.txt"):
        load_tokenizer(tmp_path)
    with pytest.raises(MissingFile, match=r"there is no tokenizer at .*nothing\.txt"):
        load_tokenizer(tmp_path / "nothing.txt")
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(TokenizerError, match=r"weights\.bin is none of the files"):
        load_tokenizer(tmp_path / "weights.bin")
    (tmp_path / "vocab.json").write_text(json.dumps(GPT2), encoding="utf-8")
    with pytest.raises(MissingFile, match=r"merges\.txt"):
        load_tokenizer(tmp_path / "vocab.json")


def save_json(path, rust):
    rust.save(str(path))
    return path


def test_a_tokenizer_json_of_word_piece_is_word_piece(tmp_path):
    rust = RustTokenizer(
        models.WordPiece({token: n for n, token in enumerate([*MARKS, "我", "a", "A"])}, unk_token="[UNK]")
    )
    rust.normalizer = normalizers.BertNormalizer(lowercase=True)
    path = save_json(tmp_path / "tokenizer.json", rust)
    for where in (path, tmp_path):
        tokenizer = load_tokenizer(where)
        assert isinstance(tokenizer, WordPiece)
        assert tokenizer.encode("我A").ids == [2, 5, 6, 3]
    assert load_tokenizer(path, lowercase=False).encode("A", ends=False).ids == [7]
    found = json.loads(path.read_text(encoding="utf-8"))
    found["model"]["vocab"]["我"] = 99
    path.write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(TokenizerError, match="are not 0, 1, 2"):
        load_tokenizer(path)


def byte_level(template=None):
    rust = RustTokenizer(models.BPE(vocab=GPT2, merges=[("h", "e")]))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    rust.add_special_tokens(["<|endoftext|>"])
    if template:
        rust.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<|endoftext|>", 257)])
    return rust


def test_any_other_tokenizer_json_is_run_as_it_is(tmp_path):
    tokenizer = load_tokenizer(save_json(tmp_path / "tokenizer.json", byte_level()))
    assert isinstance(tokenizer, TokenizerJson) and isinstance(tokenizer, Tokenizer)
    text = "he 今天😀<|endoftext|>"
    encoding = tokenizer.encode(text, detail=True)
    assert 257 not in encoding.ids
    assert encoding.ids == tokenizer.encode(text).ids
    assert tokenizer.decode(encoding.ids) == text
    stream = tokenizer.stream()
    pieces = [stream.push(number) for number in encoding.ids]
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)
    assert {text[start:stop] for start, stop in encoding.offsets} >= {"he", "今", "😀"}
    assert tokenizer.encode(text, special=True).ids[-1] == 257 == tokenizer.special.end
    assert tokenizer.decode([256, 257]) == "he"
    assert tokenizer.decode([256, 257], special=True) == "he<|endoftext|>"
    assert (tokenizer.vocab_size, tokenizer.id_to_token(256), tokenizer.token_to_id("none")) == (258, "he", None)
    with pytest.raises(TokenizerError, match="the id 258 is outside"):
        tokenizer.decode([258])


def test_the_marks_of_a_tokenizer_json_are_its_own(tmp_path):
    path = tmp_path / "tokenizer.json"
    assert load_tokenizer(save_json(path, byte_level("$A <|endoftext|>"))).encode("he").ids == [256, 257]
    assert load_tokenizer(save_json(path, byte_level("<|endoftext|> $A"))).encode("he").ids == [257, 256]
    assert load_tokenizer(path, ends=False).encode("he").ids == [256]
    assert load_tokenizer(save_json(path, byte_level())).encode("he").ids == [256]
    with pytest.raises(TokenizerError, match="puts 2 marks before a text and 0 after it"):
        load_tokenizer(save_json(path, byte_level("<|endoftext|> <|endoftext|> $A")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ('{"model":' * 100_000, "is not JSON: it is nested too deeply"),
        ('{"model": {"type": "WordPiece", "vocab": {"a": "b", "c": 0}}}', r"the ids of .* are not 0, 1, 2"),
        ('{"model": {"type": "WordPiece", "vocab": {"a": null}}}', r"the ids of .* are not 0, 1, 2"),
        ('{"model": {"type": "Unigram", "unk_id": null, "vocab": [["a", -1.0]]}}', "cannot split a text"),
        (
            '{"model": {"type": "Unigram", "unk_id": 5, "vocab": []}}',
            "is no tokenizer that Hugging Face tokenizers reads",
        ),
        ('{"a": 1}', "has no 'model'"),
        (
            '{"model": {"type": "BPE", "vocab": {"a": 4294967295}, "merges": []}}',
            "claims the id 4,294,967,295; expected",
        ),
        ({"added_tokens": [{"id": 1 << 40, "content": "x"}]}, "claims the id 1,099,511,627,776; expected less than"),
        ({"normalizer": {"type": "Prepend", "prepend": "▁" * 5000}}, "has a prepend of 5,000 characters"),
        (
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "////////AAAA"}},
            "of 9 bytes that claims more",
        ),
        ({"post_processor": {"type": "TemplateProcessing", "single": [{}] * 50}}, "has a template of 50 parts"),
        ('{"model": {"type": "Nothing"}}', "is no tokenizer that Hugging Face tokenizers reads"),
    ],
)
def test_a_damaged_tokenizer_json_is_refused(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    path.write_text(content if isinstance(content, str) else json.dumps({"model": {}, **content}))
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(path)
    with pytest.raises(MissingFile, match=r"no tokenizer\.json at"):
        TokenizerJson(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty"),
        (" \n", r"the prompt is ' \n' and holds nothing but white space"),
        ("我\0", "holds the character U+0000 at position 1"),
        ("龘龘", "the prompt '龘龘' has no character that the vocabulary of 7 tokens knows"),
        ("我\ud800", "the lone surrogate U+D800 at position 1"),
    ],
)
def test_a_prompt_that_says_nothing_is_refused(prompt, message):
    tokenizer = WordPiece([*MARKS, "我", "a"])
    with pytest.raises(PromptError, match=re.escape(message)):
        encode_prompt(tokenizer, prompt)


def test_a_prompt_is_its_ids():
    tokenizer = WordPiece([*MARKS, "我", "a"])
    assert encode_prompt(tokenizer, "我龘") == [5, 1]
    assert encode_prompt(tokenizer, "我[MASK]", special=True) == [5, 4]


def test_special_tokens_written_in_a_text_are_listed():
    tokenizer = WordPiece([*MARKS, "[unused1]", "我", "[", "]", "a"])
    assert special_tokens_in(tokenizer, "[CLS]我[SEP][unused1]我[SEP]龘[a]") == ["[CLS]", "[SEP]", "[unused1]"]
    assert special_tokens_in(tokenizer, "龘[UNK]") == ["[UNK]"]
    assert special_tokens_in(tokenizer, "我龘") == []


@pytest.mark.parametrize("module", ["hanmo.tokenizers", "hanmo.compat.bert4keras.tokenizers"])
def test_importing_the_tokenizers_does_not_import_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'jieba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
