import pytest

from hanmo.errors import DataError, TokenizerError
from hanmo.tokenizers import Lossless, write_vocab
from hanmo.training.data.vocabulary import CorpusCounts, common_characters, make_vocabulary

TEXT = "天地玄黄，宇宙洪荒。\n日月盈昃，辰宿列张。Python 的 Python 3.14，python testing 与 testing。鱻\n"


def counted(text: str = TEXT, times: int = 3) -> CorpusCounts:
    counts = CorpusCounts()
    counts.add([text] * times)
    return counts


def test_a_vocabulary_encodes_and_decodes_its_corpus_without_loss(tmp_path) -> None:
    vocabulary = make_vocabulary(counted(), size=400, pieces=20)
    write_vocab(tmp_path / "vocab.txt", vocabulary.tokens)
    tokenizer = Lossless(tmp_path / "vocab.txt")
    ids = tokenizer.encode(TEXT).ids
    assert tokenizer.special.unk not in ids
    assert tokenizer.decode(ids) == TEXT
    assert len(ids) < len(TEXT) - 20  # words are few pieces


def test_the_named_tokens_stand_first_and_pad_is_id_zero() -> None:
    tokens = make_vocabulary(counted(), size=400).tokens
    assert tokens[:8] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[EOS]", "[NL]", "[SP]"]
    assert len(set(tokens)) == len(tokens)


def test_full_width_punctuation_and_asked_characters_are_always_in() -> None:
    tokens = make_vocabulary(counted(), size=400, pieces=0, always="龘").tokens
    assert set("“”…—《》【】龘") <= set(tokens)


def test_the_most_frequent_characters_are_chosen() -> None:
    counts = counted("甲" * 50 + "乙" * 40 + "丙" * 2 + "丁", times=1)
    tokens = make_vocabulary(counts, size=8 + 62 + 94 + 25 + 2, pieces=0, coverage=0.9).tokens
    assert "甲" in tokens and "乙" in tokens and "丙" not in tokens and "丁" not in tokens


def test_weights_decide_which_characters_are_chosen() -> None:
    counts = CorpusCounts()
    counts.add(["甲甲甲"])
    counts.add(["乙"], weight=10)
    vocabulary = make_vocabulary(counts, size=8 + 62 + 94 + 25 + 1, pieces=0, coverage=0.5)
    assert "乙" in vocabulary.tokens and "甲" not in vocabulary.tokens
    assert vocabulary.coverage == pytest.approx(10 / 13)


def test_the_same_counts_give_the_same_vocabulary() -> None:
    assert make_vocabulary(counted(), size=400).tokens == make_vocabulary(counted(), size=400).tokens


def test_pieces_are_at_most_as_many_as_asked() -> None:
    vocabulary = make_vocabulary(counted(), size=400, pieces=7)
    assert vocabulary.pieces == 7
    assert sum(len(token.removeprefix("##")) > 1 and token[0] != "[" for token in vocabulary.tokens) == 7


def test_too_small_a_size_is_refused_with_the_coverage() -> None:
    with pytest.raises(
        TokenizerError, match=r"190 tokens leave 120 for characters, which hold .*expected at least 99\.9"
    ):
        make_vocabulary(counted(), size=190, pieces=0)


def test_an_empty_corpus_is_refused() -> None:
    with pytest.raises(DataError, match="the corpus holds no characters"):
        make_vocabulary(CorpusCounts(), size=400)


def test_white_space_and_control_characters_are_not_counted() -> None:
    assert set(counted("天 \n\u3000\x00地", times=1).characters) == {"天", "地"}


def test_the_common_characters_are_the_first_level_of_gb2312() -> None:
    assert len(common_characters()) == 3755
    assert common_characters()[0] == "啊"
