"""T5's sentinels <extra_id_0> …: their ids, and filling the holes they mark, beside transformers on tiny models."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch

import hanmo
from hanmo.errors import CheckpointError, PromptError
from hanmo.model_pipeline import ModelPipeline
from hanmo.tokenizers import SentencePiece, load_tokenizer
from hanmo.tokenizers.sentence_piece import sentinel_ids, with_sentinels

transformers = pytest.importorskip("transformers")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

TEXTS = [
    "今天<extra_id_0>不错<extra_id_1>",
    "今天 <extra_id_0> 不错",
    "hello<extra_id_0> world",
    "<extra_id_3>天",
    "今天",
]
EXTRA = 6


def piece_model(*symbols: str) -> bytes:
    model = io.BytesIO()
    lines = ["今天天气不错", "可以去跑步", "床前明月光", "疑是地上霜", "hello world"] * 30
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=60, model_type="unigram", pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, minloglevel=2, hard_vocab_limit=False, user_defined_symbols=list(symbols),
    )  # fmt: skip
    return model.getvalue()


MODEL = piece_model()
PIECES = SentencePiece(MODEL).vocab_size


def of_transformers(extra: int) -> Any:
    """Make their T5Tokenizer of MODEL as they convert a .model: its pieces, then the sentinels, the last first."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=MODEL)
    scores = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(PIECES)]
    scores += [(f"<extra_id_{i}>", 0.0) for i in range(extra - 1, -1, -1)]
    return transformers.T5Tokenizer(vocab=scores, extra_ids=extra)


def t5(folder: Path, rows: int) -> Any:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": rows}
    sizes |= {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    torch.manual_seed(5)
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float(parameter.ndim == 1 and name.endswith("weight")), 0.3)
    model.save_pretrained(folder)
    (folder / "spiece.model").write_bytes(MODEL)
    return model


@pytest.mark.parametrize("said", [{}, {"extra_ids": EXTRA}, {"extra_special_tokens": ["<extra_id_0>"] * EXTRA}])
def test_a_text_with_sentinels_has_the_ids_of_transformers(said: dict[str, Any], tmp_path: Path) -> None:
    t5(tmp_path, PIECES + EXTRA + (2 if said else 0))  # spare rows are sentinels only where no file says how many
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    loaded = hanmo.load(tmp_path)
    assert loaded.tokenizer is not None
    theirs = of_transformers(EXTRA)
    assert [loaded.tokenizer.encode(text, special=True).ids for text in TEXTS] == theirs(TEXTS).input_ids
    assert sentinel_ids(loaded.tokenizer) == [theirs.convert_tokens_to_ids(f"<extra_id_{i}>") for i in range(EXTRA)]
    ids = theirs(TEXTS[0]).input_ids
    assert loaded.tokenizer.decode(ids, special=True) == "今天<extra_id_0>不错<extra_id_1></s>"
    assert loaded.tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_a_folder_of_128_spare_rows_has_100_sentinels() -> None:
    tokenizer = with_sentinels(SentencePiece(MODEL), PIECES + 128)
    assert sentinel_ids(tokenizer) == [PIECES + 99 - i for i in range(100)]


def test_sentinels_that_a_model_holds_itself_are_found_there(tmp_path: Path) -> None:
    names = [f"▁<extra_id_{i}>" for i in range(2, -1, -1)]
    (tmp_path / "x.model").write_bytes(piece_model(*names))
    tokenizer = with_sentinels(load_tokenizer(tmp_path), 999)
    assert isinstance(tokenizer, SentencePiece) and tokenizer.extra_ids == 0
    ids = sentinel_ids(tokenizer)
    assert [tokenizer.id_to_token(number) for number in ids] == names[::-1]
    assert set(ids[:2]) <= set(tokenizer.encode("今天<extra_id_0>不错<extra_id_1>", special=True).ids)


def test_no_sentinel_is_written_where_none_is_filled(tmp_path: Path) -> None:
    t5(tmp_path, PIECES + EXTRA)
    loaded = hanmo.load(tmp_path)
    assert loaded.tokenizer is not None
    assert set(sentinel_ids(loaded.tokenizer)) <= set(loaded.generation_config().sampling.banned)


def spans(ids: list[int], loaded: ModelPipeline, sentinels: list[int]) -> dict[int, str]:
    """Part an answer at its sentinels and its end: sentinel → what follows it where it comes first."""
    starts = [at for at, number in enumerate(ids) if number in (*sentinels, 1)]
    assert loaded.tokenizer is not None
    parts = [(ids[at], ids[at + 1 : stop]) for at, stop in zip(starts, [*starts[1:], len(ids)], strict=True)]
    return {number: loaded.tokenizer.decode(span) for number, span in reversed(parts)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A model of transformers that has learned three answers to one text, so that candidates are few and likely."""
    folder, theirs = tmp_path_factory.mktemp("trained"), of_transformers(3)
    model = t5(folder, PIECES + 3)
    source = theirs(TEXTS[0], return_tensors="pt").input_ids
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(90):
        first, second = (("天气", "跑步"), ("床前", "跑步"), ("天气", "明月光"))[step % 3]
        labels = theirs(f"<extra_id_0>{first}<extra_id_1>{second}<extra_id_2>", return_tensors="pt").input_ids
        model(source, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return model, folder


@pytest.mark.parametrize("text", [TEXTS[0], "今天[MASK]不错[MASK]"])
def test_filling_finds_the_answers_of_transformers(text: str, trained: tuple[Any, Path]) -> None:
    model, loaded, hidden_size = trained[0], hanmo.load(trained[1]), 8
    source = of_transformers(3)(TEXTS[0], return_tensors="pt").input_ids
    found = model.generate(
        source, num_beams=hidden_size, num_return_sequences=hidden_size, do_sample=False, length_penalty=0.0,
        early_stopping="never", max_new_tokens=48, bad_words_ids=[[0], [2]], return_dict_in_generate=True,
        output_scores=True,
    )  # fmt: skip
    assert loaded.tokenizer is not None
    sentinels = sentinel_ids(loaded.tokenizer)
    expected: list[dict[str, float]] = [{}, {}]
    for sequence, score in zip(found.sequences.tolist(), found.sequences_scores.exp().tolist(), strict=True):
        for number, span in spans(sequence[1:], loaded, sentinels).items():
            if number in sentinels[:2]:
                mine = expected[sentinels.index(number)]
                mine[span] = mine.get(span, 0.0) + score
    got = [{each.token: each.probability for each in candidates} for candidates in loaded.fill(text, k=hidden_size)]
    assert {"天气", "床前"} <= set(got[0]) and {"跑步", "明月光"} <= set(got[1])
    for mine, other in zip(got, expected, strict=True):
        assert list(mine) == sorted(mine, key=lambda span: -mine[span])
        assert mine == pytest.approx(other, rel=1e-3)
    assert 0.1 < sum(got[0].values()) <= 1


def test_filling_says_what_is_missing(tmp_path: Path) -> None:
    t5(tmp_path / "with", PIECES + EXTRA)
    with pytest.raises(PromptError, match="has no <extra_id_0> and no"):
        hanmo.load(tmp_path / "with").fill("今天不错")
    t5(tmp_path / "without", PIECES)
    with pytest.raises(CheckpointError, match="vocabulary has no <extra_id_0>"):
        hanmo.load(tmp_path / "without").fill("今天<extra_id_0>")


def test_a_converted_t5_has_the_same_sentinels_in_transformers(tmp_path: Path) -> None:
    pytest.importorskip("google.protobuf", reason="transformers reads a .model with protobuf")
    t5(tmp_path / "first", PIECES + EXTRA)
    hanmo.load(tmp_path / "first").save(tmp_path / "tensorflow" / "model.ckpt", form="tensorflow")
    (tmp_path / "tensorflow" / "spiece.model").rename(tmp_path / "tensorflow" / "sentencepiece_cn.model")
    (tmp_path / "tensorflow" / "generation_config.json").unlink()
    loaded = hanmo.load(tmp_path / "tensorflow")
    loaded.save(tmp_path / "last", form="huggingface")
    assert loaded.tokenizer is not None
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "last")
    assert theirs(TEXTS).input_ids == [loaded.tokenizer.encode(text, special=True).ids for text in TEXTS]
