"""Byte-level BPE against the GPT-2 tokenizer of transformers."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as RustTokenizer

from hanmo.errors import MissingFile, PromptError, TokenizerError
from hanmo.tokenizers import ByteBPE, Tokenizer, load_tokenizer
from hanmo.tokenizers.protocol import SpecialIds

LINES = [
    "今天天气不错，我们去公园跑步。",
    "hello world, it's 3.14!",
    "表情😀👨\u200d👩和emoji",
    "newline\n  spaces\tand “quotes”",
] * 3
MIXED = [
    "今天天气不错 hello world 😀",
    "",
    " ",
    "  two  spaces\n\n\tand tabs ",
    "it's we'll I'M 1234567 3.14",
    "👨\u200d👩\u200d👧 🏽 한국어 é e\u0301 \0 \u2028",
    "<|endoftext|>" * 2,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A vocab.json and a merges.txt, trained on a few lines."""
    folder = tmp_path_factory.mktemp("gpt2")
    rust = RustTokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    rust.train_from_iterator(LINES, trainer)
    rust.model.save(str(folder))
    return folder


@pytest.fixture(scope="module")
def ours(folder):
    return ByteBPE.from_files(folder / "vocab.json", folder / "merges.txt")


@pytest.fixture(scope="module")
def peer(folder):
    from transformers import GPT2Tokenizer

    return GPT2Tokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


def test_ids_and_text_equal_transformers(ours, peer):
    assert ours.vocab_size == len(peer) > 300
    for text in MIXED[:-1]:
        ids = ours.encode(text).ids
        assert ids == peer(text)["input_ids"], text
        assert ours.decode(ids) == peer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_an_end_mark_in_the_text_is_read_only_when_asked(ours, peer):
    text = "今天<|endoftext|>hello"
    assert ours.encode(text, special=True).ids == peer(text)["input_ids"]
    assert ours.special.end in ours.encode(text, special=True).ids
    assert ours.special.end not in ours.encode(text).ids
    assert ours.decode(ours.encode(text).ids) == text
    assert ours.decode(ours.encode(text, special=True).ids) == "今天hello"
    assert ours.decode(ours.encode(text, special=True).ids, special=True) == text
    assert ours.encode("今天", ends=True).ids[-1] == ours.special.end == ours.token_to_id("<|endoftext|>")


def test_every_text_comes_back(ours, peer):
    @settings(deadline=None)
    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def check(text):
        encoding = ours.encode(text, detail=True)
        assert ours.decode(encoding.ids) == text
        assert encoding.ids == ours.encode(text).ids
        assert encoding.ids == peer(text)["input_ids"] or "<|endoftext|>" in text
        covered = set()
        for start, stop in encoding.offsets:
            covered.update(range(start, stop))
        assert covered == set(range(len(text)))

    check()


def test_streamed_pieces_joined_are_the_whole_and_no_character_is_halved(ours):
    @settings(deadline=None)
    @given(st.lists(st.integers(0, ours.vocab_size - 1)), st.booleans())
    def random_ids(ids, special):
        stream = ours.stream(special=special)
        assert "".join([stream.push(number) for number in ids]) + stream.flush() == ours.decode(ids, special=special)

    @settings(deadline=None)
    @given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd")))
    def real_text(text):
        stream = ours.stream()
        pieces = [stream.push(number) for number in ours.encode(text).ids]
        assert "".join(pieces) == text
        assert all("\ufffd" not in piece for piece in pieces)

    random_ids()
    real_text()


def test_text_of_cut_characters_equals_transformers(ours, peer):
    @settings(deadline=None)
    @given(st.lists(st.integers(1, ours.vocab_size - 1)))
    def check(ids):
        assert ours.decode(ids) == peer.decode(ids, clean_up_tokenization_spaces=False)

    check()


def test_it_is_what_the_protocol_says(ours):
    assert isinstance(ours, Tokenizer)
    assert ours.id_to_token(0) == "<|endoftext|>"
    assert (ours.special.unk, ours.special.start, ours.special.pad) == (None, None, None)
    with pytest.raises(PromptError, match=r"lone surrogate U\+DCFF at position 1"):
        ours.encode("a\udcff")
    with pytest.raises(TokenizerError, match=f"the id {ours.vocab_size} is outside"):
        ours.decode([ours.vocab_size])


def test_files_that_do_not_fit_are_refused(folder, tmp_path):
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))

    def refused(message, error=TokenizerError, vocab=vocabulary, merges="", **options):
        path = tmp_path / "vocab.json"
        path.write_text(vocab if isinstance(vocab, str) else json.dumps(vocab), encoding="utf-8")
        (tmp_path / "merges.txt").write_bytes(merges if isinstance(merges, bytes) else merges.encode())
        with pytest.raises(error, match=re.escape(message)):
            ByteBPE.from_files(path, tmp_path / "merges.txt", **options)

    refused("is not JSON", vocab="{")
    refused("is not JSON: it is nested too deeply", vocab='{"a":' * 100_000)
    refused("holds a list; expected a JSON object; expected an object of token and id", vocab="[]")
    refused("is not an object of token and id", vocab='{"a": "1"}')
    refused("the ids of the vocabulary are not 0, 1, 2", vocab={**vocabulary, "extra": 9999})
    without = [token for token in vocabulary if token != "a"]
    refused("lacks 1 of the 256 bytes, first 0x61", vocab={token: number for number, token in enumerate(without)})
    refused("has no '<eod>'", end="<eod>")
    refused("line 2 of", merges="#version: 0.2\na b c\n")
    refused("merge 1 joins 'a' and 'zz'", merges="a zz\n")
    refused("is not UTF-8 at byte 0", merges=b"\xff\n")
    with pytest.raises(MissingFile, match=r"there are no merges at .*no\.txt"):
        ByteBPE.from_files(folder / "vocab.json", tmp_path / "no.txt")
    with pytest.raises(MissingFile, match=r"there is no vocabulary at .*no\.json"):
        ByteBPE.from_files(tmp_path / "no.json", folder / "merges.txt")


def test_windows_line_ends_in_merges_do_no_harm(folder, tmp_path, ours):
    data = (folder / "merges.txt").read_bytes()
    (tmp_path / "merges.txt").write_bytes(data.replace(b"\n", b"\r\n"))
    windows = ByteBPE.from_files(folder / "vocab.json", tmp_path / "merges.txt")
    assert windows.encode(MIXED[0]).ids == ours.encode(MIXED[0]).ids


@pytest.mark.parametrize("saved", [False, True])
def test_roberta_s_vocabulary_gives_the_ids_of_transformers_with_its_marks(folder, tmp_path, saved):
    from transformers import RobertaTokenizer

    ids = json.loads((folder / "vocab.json").read_text("utf-8"))
    del ids["<|endoftext|>"]
    names = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ids, key=ids.get), "<mask>"]
    (tmp_path / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}), "utf-8")
    (tmp_path / "merges.txt").write_bytes((folder / "merges.txt").read_bytes())
    mask = AddedToken("<mask>", lstrip=True, special=True, normalized=False)  # as roberta-base's own files have it
    peer = RobertaTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), mask_token=mask)
    if saved:
        peer.save_pretrained(tmp_path / "saved")
    ours = load_tokenizer(tmp_path / "saved" if saved else tmp_path)
    assert ours.special == SpecialIds(pad=1, unk=3, start=0, end=2, mask=len(names) - 1) and ours.vocab_size == len(
        names
    )
    for text in (*MIXED[:-1], "今天 <mask>天气", "hello <mask> world"):
        assert ours.encode(text, special=True).ids == peer(text)["input_ids"], text
        assert ours.encode(text, "公园 hello", special=True).ids == peer(text, "公园 hello")["input_ids"], text
    assert ours.decode(ours.encode("今天 hello").ids) == "今天 hello"
    assert ours.encode("今天<s>", ends=False).ids == peer("今天", add_special_tokens=False)["input_ids"] + [
        ours.token_to_id(character) for character in "<s>"
    ]
    assert len(ours.encode("今天天气不错" * 9, "我们" * 9, limit=12)) == 12
