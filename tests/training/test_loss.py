"""The loss: the original's to the digit, chunked as plain, and the bits that evaluation adds up."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hanmo.checkpoint.names import import_row
from hanmo.checkpoint.open import open_source
from hanmo.errors import ConfigError, DataError
from hanmo.families import FAMILIES
from hanmo.families.gpt2_ml import gpt2_ml_config
from hanmo.model import Model
from hanmo.training.data.pack import DOCUMENT, FORMAT
from hanmo.training.data.packed import PackedFile
from hanmo.training.loss import cross_entropy, next_token_loss
from hanmo.training.score import evaluation, held_out, spent_on

VOCAB, END = 50, 5


def model(positions: int = 8) -> Model:
    return Model(
        gpt2_ml_config(vocab_size=VOCAB, num_layers=2, hidden_size=32, positions=positions, head_dim=16)
    ).initialize(1)


def gradients(model: Model) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_loss_and_all_gradients_equal_the_originals(data: Path) -> None:
    folder = data / "goldens" / "gpt2_ml_original"
    cases = np.load(folder / "cases.npz")
    family = FAMILIES["gpt2_ml"].tensorflow
    config = family.config(json.loads((folder / "config.json").read_text()))
    original = Model(config)
    with open_source(folder / "model.ckpt") as source, torch.no_grad():
        ours = dict(original.named_parameters())
        for row in family.rows(config):
            for name, part in zip(
                row.ours, import_row(row, torch.from_numpy(np.array(source.read(row.theirs)))), strict=True
            ):
                ours[name].copy_(part)
    original.eval()  # the golden was made without dropout
    for chunk_bytes in (None, 4 * config.vocab_size * 7):
        original.zero_grad()
        loss = next_token_loss(original, torch.from_numpy(cases["train/in/tokens"]).long(), chunk_bytes=chunk_bytes)
        loss.backward()
        assert float(loss.detach()) == pytest.approx(float(cases["train/out/loss"]), abs=1e-5)
        compared = 0
        for row in family.rows(config):
            wanted = import_row(row, torch.from_numpy(cases[f"train/grad/{row.theirs}"]))
            for name, part in zip(row.ours, wanted, strict=True):
                torch.testing.assert_close(ours[name].grad, part, atol=1e-5, rtol=1e-5)
                compared += 1
        assert compared == 52 == len(ours)


@pytest.mark.parametrize("rows", [1, 5, 6, 100])
def test_chunked_equals_plain_in_loss_and_gradients(rows: int) -> None:
    ids = torch.randint(0, VOCAB, (3, 7), generator=torch.Generator().manual_seed(0))
    ids[1, 3:] = 0
    whole = model()
    targets = ids[:, 1:].flatten()
    logits = whole(ids[:, :-1]).logits.flatten(0, 1)
    plain = F.cross_entropy(logits, targets, ignore_index=0, reduction="sum") / ((targets != 0).sum() + 1e-5)
    plain.backward()
    expected = gradients(whole)
    whole.zero_grad()
    chunked = next_token_loss(whole, ids, chunk_bytes=4 * VOCAB * rows)
    chunked.backward()
    torch.testing.assert_close(chunked, plain, atol=1e-6, rtol=1e-6)
    assert len(expected) == len(list(whole.parameters()))
    for name, gradient in gradients(whole).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-6)


def test_chunks_never_hold_more_scores_than_told() -> None:
    seen: list[int] = []

    def scores(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(len(hidden))
        return hidden @ torch.ones(4, VOCAB)

    hidden = torch.randn(11, 4, requires_grad=True)
    cross_entropy(
        scores, hidden, torch.ones(11, dtype=torch.long), vocab_size=VOCAB, chunk_bytes=4 * VOCAB * 3
    ).backward()
    assert max(seen) == 3 and sum(seen) == 22  # forward, and again in backward


def test_a_text_of_nothing_has_loss_zero() -> None:
    assert float(next_token_loss(model(), torch.zeros(2, 5, dtype=torch.long)).detach()) == 0.0


def test_a_chunk_too_small_for_one_token_is_refused() -> None:
    with pytest.raises(ConfigError, match="chunk_bytes is 10; scores of one token over 50 words need 200"):
        next_token_loss(model(), torch.ones(1, 4, dtype=torch.long), chunk_bytes=10)


def packed(folder: Path, documents: list[list[int]], *, name: str = "valid-a", end: int | None = END) -> PackedFile:
    """Write a packed file whose documents end with the end mark, as hanmo.training.data.pack does."""
    ids = [END, *(number for document in documents for number in (*document, END))]
    table = np.zeros(len(documents), DOCUMENT)
    at = 1
    for row, document in zip(table, documents, strict=True):
        row["start"], row["tokens"], row["characters"] = at, len(document) + 1, len(document)
        at += len(document) + 1
    np.array(ids, "<u2").tofile(folder / f"{name}.bin")
    table.tofile(folder / f"{name}.documents")
    facts = {
        "format": FORMAT, "dtype": "uint16", "tokens": len(ids) - 1, "documents": len(documents), "end": end,
        "marks": {} if end is not None else {"a": [0, 1]}, "sources": {"a": {}}, "vocabulary_sha256": "x",
        "vocabulary_size": max(ids) + 1, "unknown": 0, "distinct_unknown": 0, "characters": sum(map(len, documents)),
    }  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(facts), "utf-8")
    return PackedFile(folder / name)


def test_evaluation_adds_up_what_each_document_costs_by_itself(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    documents = [random.integers(6, VOCAB, size=size).tolist() for size in (3, 7, 1, 0, 5)]
    documents[0][1] = 1
    whole = model()
    expected = 0.0
    for document in documents:
        ids = torch.tensor([[END, *document, END]])
        expected += float(F.cross_entropy(whole(ids[:, :-1]).logits[0], ids[0, 1:], reduction="sum").detach())
    for tokens in (1, 12, 1000):
        spent = spent_on(whole, packed(tmp_path, documents), window=8, unknown=1, tokens=tokens)
        assert spent.nats == pytest.approx(expected, rel=1e-5)
        assert (spent.tokens, spent.characters, spent.unknown) == (21, 16, 1)
    assert spent_on(whole, packed(tmp_path, documents), window=8, documents=2).tokens == 12


@pytest.mark.parametrize("stride", [1, 3, 8])
def test_long_documents_are_predicted_once_a_token_with_all_context_that_fits(tmp_path: Path, stride: int) -> None:
    document = np.random.default_rng(1).integers(6, VOCAB, size=29).tolist()
    whole, ids = model(), [END, *document, END]
    expected, done = 0.0, 0
    while done < 30:
        stop = min(30, done + (stride if done else 8))
        begin = max(0, stop - 8)
        logits = whole(torch.tensor([ids[begin:stop]])).logits[0, done - begin :]
        expected += float(F.cross_entropy(logits, torch.tensor(ids[done + 1 : stop + 1]), reduction="sum").detach())
        done = stop
    spent = spent_on(whole, packed(tmp_path, [document]), window=8, stride=stride)
    assert spent.nats == pytest.approx(expected, rel=1e-5) and spent.tokens == 30


def test_evaluation_joins_files_but_those_apart(tmp_path: Path) -> None:
    packed(tmp_path, [[7, 8, 9]])
    packed(tmp_path, [[1, 11]], name="valid-b")
    files = held_out(tmp_path, vocabulary_sha256="x")
    found = evaluation(files, distinct_unknown=3, window=8, apart=["b"])(model())
    assert list(found["files"]) == ["a", "b"]
    assert found["bits_per_character"] == found["files"]["a"]["bits_per_character"]
    b = found["files"]["b"]
    assert b["bits_per_character"] == pytest.approx((b["nats"] / math.log(2) + math.log2(4)) / 2)


def test_evaluation_refuses_what_it_cannot_measure(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no valid-\*.json"):
        held_out(tmp_path, vocabulary_sha256="x")
    with pytest.raises(ValueError, match="stride is 9; expected 1 to the window, 8"):
        spent_on(model(), packed(tmp_path, [[7]]), window=8, stride=9)


@pytest.mark.parametrize("stride", [1, 3, 5])
def test_without_an_end_mark_the_first_token_is_given(tmp_path: Path, stride: int) -> None:
    document = [1, *np.random.default_rng(2).integers(6, VOCAB, size=12).tolist()]
    file = packed(tmp_path, [document[:-1]], end=None)  # its last id is the END that `packed` adds
    file.ids = np.array([END, *document])
    whole, expected, done = model(), 0.0, 1
    while done < 13:
        stop = min(13, done + (stride if done > 1 else 5))
        begin = max(0, stop - 6)
        logits = whole(torch.tensor([document[begin : stop - 1]])).logits[0, done - begin - 1 :]
        expected += float(F.cross_entropy(logits, torch.tensor(document[done:stop]), reduction="sum").detach())
        done = stop
    spent = spent_on(whole, file, window=5, stride=stride)
    assert spent.nats == pytest.approx(expected, rel=1e-5)
    assert (spent.tokens, spent.characters, spent.unknown) == (12, 11, 0)
