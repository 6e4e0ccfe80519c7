"""Every kind of tokenizer as packing needs it."""

import io
import pickle
import string
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from hanmo.errors import TokenizerError
from hanmo.tokenizers import ByteBPE, Lossless, SentencePiece, Tokenizer, WordPiece
from hanmo.tokenizers.byte_bpe import _alphabet
from hanmo.training.data.pack import TokenEncoder

ALPHABET = string.ascii_letters + string.digits
TOKENS = [
    *("[PAD]", "[UNK]", "[EOS]", "[NL]", "[SP]", *ALPHABET, *("##" + letter for letter in ALPHABET)),
    *"如果天地玄黄，。",
]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"天地玄黄，。", "caf", "##e"]
TEXT = "天地，Café 玄黄。\n如果 the 鱻龘鱻。"


def sentence_piece() -> SentencePiece:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["天地玄黄，宇宙洪荒。", "日月盈昃 the cafe"] * 20),
        model_writer=model, vocab_size=25, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    return SentencePiece(model.getvalue())


def byte_bpe() -> ByteBPE:
    return ByteBPE({token: number for number, token in enumerate([*_alphabet(), "<|endoftext|>"])}, [])


KINDS = {
    "lossless": Lossless(TOKENS),
    "wordpiece": WordPiece(BERT),
    "sentencepiece": sentence_piece(),
    "byte_bpe": byte_bpe(),
}


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_ids_are_the_tokenizers_own_without_marks(kind: str, text: str) -> None:
    ids = TokenEncoder(KINDS[kind]).encode(text)
    assert ids.tolist() == KINDS[kind].encode(text, ends=False).ids
    assert ids.dtype == np.uint16


@pytest.mark.parametrize(
    ("kind", "separator", "end"),
    [
        ("lossless", None, "[EOS]"),
        ("sentencepiece", None, "</s>"),
        ("byte_bpe", None, "<|endoftext|>"),
        ("wordpiece", None, None),
        ("wordpiece", "[SEP]", "[SEP]"),
        ("lossless", "[NL]", "[NL]"),
    ],
)
def test_the_end_mark_is_the_vocabularys_but_berts_only_when_asked_for(
    kind: str, separator: str | None, end: str | None
) -> None:
    found = TokenEncoder(KINDS[kind], separator=separator).end
    assert (None if found is None else KINDS[kind].id_to_token(found)) == end


def test_a_separator_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(
        TokenizerError, match=r"the separator is '\[SEPP\]', which is none of the vocabulary's 13 tokens"
    ):
        TokenEncoder(KINDS["wordpiece"], separator="[SEPP]")


@pytest.mark.parametrize(
    ("kind", "outside"),
    [
        ("lossless", {"鱻": 2, "龘": 1, "é": 1}),
        ("wordpiece", {"鱻": 2, "龘": 1, "如": 1, "果": 1}),  # a letter alone may be unknown where its word is not
        ("byte_bpe", {}),
    ],
)
def test_characters_outside_the_vocabulary_are_counted(kind: str, outside: dict[str, int]) -> None:
    found = TokenEncoder(KINDS[kind]).outside(TEXT)
    assert {character: count for character, count in found.items() if not "a" <= character <= "z"} == (
        outside | ({"C": 1, "é": 1} if kind == "wordpiece" else {})
    )


def test_the_digest_is_that_of_the_vocabulary_file(tmp_path: Path) -> None:
    content = "".join(token + "\n" for token in [*TOKENS, "\u2028"]).encode()
    (tmp_path / "vocab.txt").write_bytes(content)
    assert TokenEncoder(Lossless(tmp_path / "vocab.txt")).sha256 == sha256(content).hexdigest()


@pytest.mark.parametrize("tokenizer", KINDS.values(), ids=KINDS)
def test_an_encoder_can_be_sent_to_another_process(tokenizer: Tokenizer) -> None:
    encoder = TokenEncoder(tokenizer)
    again = pickle.loads(pickle.dumps(encoder))
    assert again.encode(TEXT).tolist() == encoder.encode(TEXT).tolist()
    assert (again.sha256, again.end) == (encoder.sha256, encoder.end)
