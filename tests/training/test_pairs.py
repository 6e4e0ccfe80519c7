"""Pairs of source and target: what is read, how rows look, and that batches come again the same."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from torch.nn import functional as F

from hanmo.config import ModelConfig
from hanmo.errors import DataError, MissingFile, TokenizerError
from hanmo.families import FAMILIES
from hanmo.model import Model
from hanmo.tokenizers import SentencePiece, WordPiece
from hanmo.training.data.pairs import PairData, read_pairs
from hanmo.training.loss import targets_loss

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"天地玄黄宇宙洪荒日月盈昃"]
BERT = WordPiece(TOKENS)
CLS, SEP = 2, 3
PAIRS = [("天地玄黄", "天地"), ("宇宙", "宙"), ("日月盈昃洪荒", "日月盈"), ("黄", "玄黄"), ("洪荒", "荒")]


def sentence_piece() -> SentencePiece:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["天地玄黄宇宙洪荒日月盈昃"] * 20), model_writer=model, vocab_size=16,
        model_type="char", pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    return SentencePiece(model.getvalue())


def ids(text: str) -> list[int]:
    return BERT.encode(text, ends=False).ids


def config(family: str, vocab: int) -> ModelConfig:
    sizes = {
        "vocab_size": vocab, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16,
        "intermediate_size": 32,
    }  # fmt: skip
    if family == "bert":
        sizes |= {"max_position_embeddings": 32, "hidden_act": "gelu", "type_vocab_size": 2}
    return FAMILIES[family].tensorflow.config(sizes)


UNILM = replace(config("bert", len(TOKENS)), output="mlm")
UNILM = replace(UNILM, encoder=replace(UNILM.main, mask="prefix"))
T5 = config("t5.1.1", 16)


# Rows


def test_a_row_of_an_encoder_is_bert4keras_s() -> None:
    data = PairData(PAIRS[:2], BERT, UNILM, rows=2, shuffle=False)
    batch = data.batch(0, 0)
    whole = [CLS, *ids("天地玄黄"), SEP, *ids("天地"), SEP]
    assert batch["ids"].tolist() == [whole[:-1], [CLS, *ids("宇宙"), SEP, *ids("宙"), 0, 0, 0]]
    assert batch["segments"].tolist() == [[0] * 6 + [1] * 2, [0] * 4 + [1] * 4]
    assert batch["targets"].tolist() == [
        [0, 0, 0, 0, 0, *ids("天地"), SEP],
        [0, 0, 0, *ids("宙"), SEP, 0, 0, 0],
    ]
    # As its task_seq2seq: the token ids shifted by one, counted where the segment of what is predicted is 1.
    encoding = BERT.encode("天地玄黄", "天地")
    assert encoding.ids == whole
    wanted = [number if segment else 0 for number, segment in zip(encoding.ids, encoding.segments, strict=True)]
    assert batch["targets"][0].tolist() == wanted[1:]


def test_a_row_of_an_encoder_decoder_begins_with_zero_and_ends_with_its_mark() -> None:
    tokenizer = sentence_piece()
    batch = PairData(PAIRS[:2], tokenizer, T5, rows=2, shuffle=False).batch(0, 0)
    source, target = (tokenizer.encode(text).ids for text in PAIRS[0])
    assert source[-1] == target[-1] == tokenizer.special.end == 1
    assert batch["source"][0].tolist() == source
    assert batch["source_mask"].sum(1).tolist() == [len(source), len(tokenizer.encode("宇宙").ids)]
    assert batch["ids"][0].tolist() == [0, *target[:-1]]
    assert batch["targets"][0].tolist() == target
    assert batch["source"].shape[1] == len(source)  # as long as the longest, no longer


@pytest.mark.parametrize("answers", [False, True])
def test_what_is_too_long_loses_the_end_of_its_source_and_is_counted(answers: bool) -> None:
    pairs = [("天地玄黄宇宙洪荒", "日月"), ("天", "日月盈昃宙"), ("天", "日")]
    tokenizer = sentence_piece() if answers else BERT
    data = PairData(pairs, tokenizer, T5 if answers else UNILM, rows=3, limit=9, target_limit=4, shuffle=False)
    batch = data.batch(0, 0)
    assert data.cut == 2
    if answers:
        source, target = (tokenizer.encode(text, ends=False).ids for text in (pairs[0][0], pairs[1][1]))
        assert batch["source"][0].tolist() == [*source[:8], 1]
        assert batch["targets"][1].tolist() == [*target[:3], 1]
    else:
        assert batch["ids"][0].tolist() == [CLS, *ids("天地玄黄"), SEP, *ids("日月")]
        assert batch["targets"][1].tolist() == [0, 0, *ids("日月盈"), SEP, 0, 0]


# Losses


def test_the_loss_of_an_encoder_is_that_of_the_target_and_its_end_whatever_pads() -> None:
    model = Model(UNILM).initialize(1).eval()
    batch = {name: torch.from_numpy(array) for name, array in PairData(PAIRS, BERT, UNILM, rows=5).batch(0, 0).items()}
    total, count = 0.0, 0
    for source, target in PAIRS:
        encoding = BERT.encode(source, target)
        whole, segments = torch.tensor([encoding.ids]), torch.tensor([encoding.segments])
        logits = model(whole, segments=segments).logits[0, :-1]
        asked = segments[0, 1:] == 1
        total += float(F.cross_entropy(logits[asked], whole[0, 1:][asked], reduction="sum").detach())
        count += int(asked.sum())
    assert float(targets_loss(model, batch).detach()) == pytest.approx(total / count, rel=1e-4)
    assert count == sum(len(target) + 1 for _, target in PAIRS)


def test_the_loss_of_an_encoder_decoder_is_that_of_each_answer_alone() -> None:
    tokenizer = sentence_piece()
    model = Model(config("t5.1.1", tokenizer.vocab_size)).initialize(1).eval()
    data = PairData(PAIRS, tokenizer, T5, rows=5)
    batch = {name: torch.from_numpy(array) for name, array in data.batch(0, 0).items()}
    total, count = 0.0, 0
    for source, target in PAIRS:
        wanted = torch.tensor(tokenizer.encode(target).ids)
        begun = torch.cat((torch.zeros(1, dtype=torch.long), wanted[:-1]))[None]
        logits = model(begun, source=torch.tensor([tokenizer.encode(source).ids])).logits[0]
        total += float(F.cross_entropy(logits, wanted, reduction="sum").detach())
        count += len(wanted)
    assert float(targets_loss(model, batch).detach()) == pytest.approx(total / count, rel=1e-4)


# Order


def test_batches_are_fixed_by_seed_epoch_and_step_and_go_on_from_any_step() -> None:
    data = PairData(PAIRS, BERT, UNILM, rows=2, seed=4)
    assert data.steps() == 3 and len(data) == 5
    found = [batch for batch, _ in zip(data.batches(), range(9), strict=False)]
    assert [(epoch, step) for epoch, step, _ in found] == [(e, s) for e in range(3) for s in range(3)]
    epoch, step, batch = found[7]
    again = next(PairData(PAIRS, BERT, UNILM, rows=2, seed=4).batches(epoch, step))[2]
    assert all(np.array_equal(again[name], batch[name]) for name in batch)
    orders = {str([batch["ids"].tolist() for _, _, batch in found[at : at + 3]]) for at in (0, 3, 6)}
    assert len(orders) > 1


# Files


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"source": "天，地", "target": "玄"}\n{"target": "宙", "source": "宇"}\n'),
        ("a.csv", 'x,target,source\n1,玄,"天，地"\n2,宙,宇\n'),
        ("a.csv", '"天，地",玄\n宇,宙\n'),
        ("a.tsv", "天，地\t玄\n宇\t宙\n"),
    ],
)
def test_pairs_are_read_from_objects_and_tables(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_bytes(content.encode("gb18030"))
    assert list(read_pairs([tmp_path / name])) == [("天，地", "玄"), ("宇", "宙")]


def test_keys_can_be_chosen(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"content": "天", "title": "地"}\n', "utf-8")
    (tmp_path / "b.csv").write_text("title,content\n地,天\n", "utf-8")
    assert list(read_pairs([tmp_path], source_key="content", target_key="title")) == [("天", "地")] * 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "天\t地", r"a\.txt ends in '\.txt'; pairs come as jsonl, csv or tsv"),
        ("a.jsonl", '{"source": "天", "target": "地"}\n{"source": "天"}', r"a\.jsonl line 2 has no text in 'target'"),
        ("a.jsonl", '{"source": " ", "target": "地"}', r"a\.jsonl line 1 has an empty 'source'"),
        ("a.csv", "x,y,z\n1,2,3\n", r"a\.csv line 1 has 3 columns, \['x', 'y', 'z'\], and not 'source' and 'target'"),
        ("a.tsv", "天\t地\n玄\n", r"a\.tsv line 2 has 1 columns, expected 2"),
        ("a.csv", "source,target\n", r"a\.csv holds no pair"),
    ],
)
def test_pairs_that_cannot_be_read_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(DataError, match=message):
        list(read_pairs([tmp_path / name]))
    with pytest.raises(MissingFile, match="gone is not there"):
        list(read_pairs([tmp_path / "gone"]))


@pytest.mark.parametrize(
    ("pairs", "options", "message"),
    [
        ([], {}, "there is no pair to train on"),
        ([("天", "")], {}, "the target of pair 1 has no tokens"),
        ([("天", "地"), ("\u200b", "地")], {}, "the source of pair 2 has no tokens"),
        (PAIRS, {"rows": 0}, "rows is 0, expected 1 or more"),
        (PAIRS, {"limit": 10, "target_limit": 8}, "limit is 10 and target_limit is 8, which leave no room"),
        (PAIRS, {"target_limit": 1}, "limit is 512 and target_limit is 1, which leave no room"),
    ],
)
def test_pairs_that_make_no_rows_are_refused(pairs: list, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        PairData(pairs, BERT, UNILM, **{"rows": 2, **options})


def test_a_step_beyond_the_end_and_a_vocabulary_without_marks_are_refused() -> None:
    with pytest.raises(DataError, match="epoch 0 has steps 0 to 2, asked for 3"):
        PairData(PAIRS, BERT, UNILM, rows=2).batch(0, 3)
    with pytest.raises(TokenizerError, match="marks no start or no end of a text"):
        PairData(PAIRS, WordPiece(TOKENS, start=None, end=None), UNILM, rows=2)
