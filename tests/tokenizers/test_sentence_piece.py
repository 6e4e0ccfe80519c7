"""SentencePiece against the sentencepiece package; CPM's convention with jieba."""

import io
import json
import sys

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from hanmo.errors import MissingExtra, MissingFile, TokenizerError
from hanmo.tokenizers import SentencePiece, Tokenizer, load_tokenizer

LINES = [
    "今天天气不错，我们去公园跑步。",
    "科学空间是一个好地方，我爱北京天安门。",
    "hello world, the quick brown fox",
    "价格是3.14元，共1,000个。",
    "他说“你好”，然后就走了……——",
    "▂▃今天▂天气▃不错",
]
TEXTS = [
    "今天天气不错",
    "hello 北京 world",
    "",
    " 两 端 ",
    "没见过的龘字和😀👨\u200d👩",
    "ＡＢ①",
    "a\0b",
    "“你好”……——\n下一行",
]


def train(**options):
    """Return the bytes of a tiny model."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([first + second for first in LINES for second in LINES]),
        model_writer=model,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **{"vocab_size": 420, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, **options},
    )
    return model.getvalue()


MODELS = {
    "t5": train(byte_fallback=True),
    "t5_without_bytes": train(vocab_size=150),
    "albert": train(
        vocab_size=160, control_symbols=["[CLS]", "[SEP]", "[MASK]"], eos_id=-1, normalization_rule_name="nmt_nfkc_cf"
    ),
    "cpm": train(vocab_size=160, control_symbols=["<cls>", "<mask>", "<eod>"], model_type="bpe"),
}
PEERS = {
    name: sentencepiece.SentencePieceProcessor(model_proto=model) for name, model in MODELS.items() if name != "cpm"
}
OURS = {
    "t5": SentencePiece(MODELS["t5"]),
    "t5_without_bytes": SentencePiece(MODELS["t5_without_bytes"]),
    "albert": SentencePiece(MODELS["albert"], start="[CLS]", end="[SEP]"),
    "cpm": SentencePiece(MODELS["cpm"], end="<eod>", ends=False, cpm=True),
}


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_text_equal_the_sentencepiece_package(name, text):
    ours, peer = OURS[name], PEERS[name]
    ids = peer.encode(text)
    assert ours.encode(text, ends=False).ids == ids
    assert ours.encode(text, ends=False, detail=True).ids == ids
    assert ours.decode(ids) == peer.decode(ids)
    assert ours.vocab_size == peer.get_piece_size()


def test_marks_are_the_model_s():
    t5 = OURS["t5"].special
    assert (t5.pad, t5.unk, t5.start, t5.end, t5.mask) == (0, 2, None, 1, None)
    assert OURS["t5"].encode("今天").ids[-1] == 1
    assert OURS["t5"].encode("今天", "天气").segments[-1] == 1
    albert = OURS["albert"]
    ids = albert.encode("今天").ids
    assert [albert.id_to_token(number) for number in (ids[0], ids[-1])] == ["[CLS]", "[SEP]"]
    assert albert.id_to_token(albert.special.mask) == "[MASK]"
    assert albert.decode(ids) == "今天"
    assert albert.decode(ids, special=True) == "[CLS]今天[SEP]"
    assert OURS["cpm"].cpm and not OURS["t5"].cpm
    assert isinstance(albert, Tokenizer)


def test_special_tokens_in_a_text_are_read_when_asked():
    albert = OURS["albert"]
    encoding = albert.encode("今天[MASK]气", special=True, ends=False, detail=True)
    assert "[MASK]" in encoding.tokens
    assert "[MASK]" not in albert.encode("今天[MASK]气", detail=True).tokens
    assert encoding.offsets[encoding.tokens.index("[MASK]")] == (2, 8)


@pytest.mark.parametrize("name", OURS)
@settings(deadline=None)
@given(data=st.data())
def test_streamed_pieces_joined_are_the_whole(name, data):
    tokenizer = OURS[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    for special in (False, True):
        stream = tokenizer.stream(special=special)
        pieces = [stream.push(number) for number in ids]
        assert "".join(pieces) + stream.flush() == tokenizer.decode(ids, special=special)


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_half_a_character_is_never_written(text):
    tokenizer = OURS["t5"]
    ids = tokenizer.encode(text, ends=False).ids
    stream = tokenizer.stream()
    pieces = [stream.push(number) for number in ids]
    if "\ufffd" not in text:
        assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids)


@pytest.mark.parametrize("name", OURS)
@settings(deadline=None)  # the first text of CPM reads jieba's dictionary
@given(text=st.text(st.one_of(st.sampled_from("".join(LINES) + "😀 ①\n"), st.characters(exclude_categories=["Cs"]))))
def test_offsets_slice_the_text(name, text):
    encoding = OURS[name].encode(text, ends=False, detail=True)
    assert encoding.ids == OURS[name].encode(text, ends=False).ids
    at = 0
    for token, (start, stop) in zip(encoding.tokens, encoding.offsets, strict=True):
        assert at <= start <= stop <= len(text), token
        at = start


def test_offsets_cover_whole_characters():
    text = "今天 hello😀北"
    encoding = OURS["t5"].encode(text, ends=False, detail=True)
    parts = [text[start:stop] for start, stop in encoding.offsets]
    assert parts.count("😀") == 4
    assert "".join(dict.fromkeys(encoding.offsets and parts)).replace(" ", "") == "今天helo😀北"


@settings(deadline=None)  # the first text reads jieba's dictionary
@given(st.text(st.sampled_from("今天气不错我们去公园 \nab1。▂")))
def test_cpms_spaces_and_newlines_survive(text):
    tokenizer = OURS["cpm"]
    ids = tokenizer.encode(text).ids
    if tokenizer.special.unk not in ids:
        assert tokenizer.decode(ids) == text.replace("▂", " ")


def test_cpms_ids_are_those_of_its_own_recipe():
    import jieba

    text = "今天 天气不错\n我爱北京天安门"
    spaced = " ".join(word.replace(" ", "▂").replace("\n", "▃") for word in jieba.cut(text))
    peer = sentencepiece.SentencePieceProcessor(model_proto=MODELS["cpm"])
    assert OURS["cpm"].encode(text).ids == peer.encode(spaced)


def test_without_jieba_the_install_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    tokenizer = SentencePiece(MODELS["cpm"], end=None, cpm=True)
    with pytest.raises(MissingExtra, match=r"pip install 'hanmo\[cpm\]'"):
        tokenizer.encode("今天")


def test_errors_name_the_value(tmp_path):
    with pytest.raises(MissingFile, match=r"spiece\.model"):
        SentencePiece(tmp_path / "spiece.model")
    (tmp_path / "spiece.model").write_bytes(b"not a model")
    with pytest.raises(TokenizerError, match=r"spiece\.model is no SentencePiece model"):
        SentencePiece(tmp_path / "spiece.model")
    with pytest.raises(TokenizerError, match=r"the bytes given is no SentencePiece model: 'utf-8' codec can't decode"):
        SentencePiece(MODELS["t5"].replace(b"<pad>", b"<\xff\xfe\xfd>", 1))
    with pytest.raises(TokenizerError, match="the bytes given is empty, expected a SentencePiece model"):
        SentencePiece(b"")
    with pytest.raises(TokenizerError, match=r"has no '\[CLS\]'"):
        SentencePiece(MODELS["t5"], start="[CLS]")
    size = OURS["t5"].vocab_size
    for bad in (-1, size):
        with pytest.raises(TokenizerError, match=f"the id {bad} is outside the vocabulary of {size} tokens"):
            OURS["t5"].decode([bad])


FAIRSEQ = {
    "xlm-roberta": ("XLMRobertaTokenizer", ["<s>", "<pad>", "</s>", "<unk>"], 3),
    "camembert": ("CamembertTokenizer", ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED"], 1),
}


@pytest.mark.parametrize("kind", FAIRSEQ)
@pytest.mark.parametrize("saved", [False, True])
def test_fairseq_s_order_of_pieces_gives_the_ids_of_transformers(tmp_path, kind, saved):
    import transformers

    model = train(vocab_size=150, pad_id=-1, unk_id=0, bos_id=1, eos_id=2)
    name, marks, skipped = FAIRSEQ[kind]
    sizes = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [(sizes.id_to_piece(i), sizes.get_score(i)) for i in range(len(sizes))]
    vocabulary = [*((mark, 0.0) for mark in marks), *pieces[skipped:], ("<mask>", 0.0)]
    peer = getattr(transformers, name)(vocab=vocabulary)
    (tmp_path / "sentencepiece.bpe.model").write_bytes(model)
    if saved:
        peer.save_pretrained(tmp_path)
    else:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}), "utf-8")
    ours = load_tokenizer(tmp_path)
    assert ours.vocab_size == len(peer) == len(pieces) + len(marks) - skipped + 1
    assert (ours.special.pad, ours.special.unk, ours.special.mask) == (1, 3, len(peer) - 1)
    for text in ("今天天气不错", "hello world 3.14", "今天 <mask>天气", "猫 cat"):
        assert ours.encode(text, special=True).ids == peer(text)["input_ids"], text
        assert ours.encode(text, "天气", special=True).ids == peer(text, "天气")["input_ids"], text
    assert ours.decode(ours.encode("今天天气不错").ids) == "今天天气不错"


def test_a_model_in_fairseq_s_order_needs_to_be_told_of_which_network_it_is(tmp_path):
    path = tmp_path / "sentencepiece.bpe.model"
    path.write_bytes(train(vocab_size=150, pad_id=-1, unk_id=0, bos_id=1, eos_id=2))
    with pytest.raises(TokenizerError, match=r"nothing beside it says .* XLM-R's or CamemBERT's \(found None\)"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "xlm-roberta"}', "utf-8")
    path.write_bytes(MODELS["t5"])
    with pytest.raises(TokenizerError, match=r"begins with the pieces .*; XLM-R's begins with <unk>, <s> and </s>"):
        load_tokenizer(path)
    path.write_bytes(b"no model at all")
    with pytest.raises(TokenizerError, match=r"sentencepiece\.bpe\.model is no SentencePiece model"):
        load_tokenizer(path)
