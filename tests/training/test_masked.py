"""Hidden tokens: which, how many, as what, and the same ones again."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hanmo.errors import DataError, TokenizerError
from hanmo.families import FAMILIES
from hanmo.model import Model
from hanmo.tokenizers import WordPiece
from hanmo.training.data.masked import MaskedData
from hanmo.training.loss import targets_loss

TOKENIZER = WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(0x4E00, 0x4E00 + 195))])
UNK, CLS, SEP, MASK, VOCAB = 1, 2, 3, 4, 200


class Windows:
    """Three batches an epoch of 40 windows of 50 ids, the last half empty; every tenth id is [UNK] or [SEP]."""

    def batches(self, epoch: int = 0, step: int = 0) -> Iterator[tuple[int, int, Any]]:
        while True:
            for number in range(step, 3):
                ids = np.random.default_rng([epoch, number]).integers(5, VOCAB, (40, 50))
                ids[:, ::20], ids[:, 10::20] = UNK, SEP
                if number == 2:
                    ids[5, 30:], ids[20:] = 0, 0
                yield epoch, number, ids
            epoch, step = epoch + 1, 0


def taken(data: MaskedData, count: int) -> list[tuple[int, int, dict[str, Any]]]:
    return [found for found, _ in zip(data.batches(), range(count), strict=False)]


def test_a_share_is_hidden_and_of_these_eight_tenths_are_masks_and_one_tenth_stays() -> None:
    for share in (0.15, 0.5):
        ids, targets, real = [], [], []
        for (_, _, batch), (_, _, windows) in zip(
            taken(MaskedData(Windows(), TOKENIZER, share=share), 20), Windows().batches(), strict=False
        ):
            for row, wanted, window in zip(batch["ids"], batch["targets"], windows, strict=False):
                ids += row[1:51].tolist()
                targets += wanted[1:51].tolist()
                real += window.tolist()
        ids, targets, real = map(np.array, (ids, targets, real))
        hidden = targets > 0
        assert (targets[hidden] == real[hidden]).all() and (real[hidden] > 4).all()
        eligible = (real > 4).sum()
        assert hidden.sum() / eligible == pytest.approx(share, rel=0.06)
        assert (ids[hidden] == MASK).mean() == pytest.approx(0.8, abs=0.03)
        assert (ids[hidden] == real[hidden]).mean() == pytest.approx(0.1, abs=0.03)
        changed = hidden & (ids != MASK) & (ids != real)
        assert changed.sum() > 100 and ids[changed].min() > 4
        beside = ~hidden & (real > 0)
        assert (ids[beside] == real[beside]).all()


def test_marks_stand_around_each_window_and_padding_is_masked() -> None:
    *_, (_, number, batch) = taken(MaskedData(Windows(), TOKENIZER), 3)
    assert number == 2 and batch["ids"].shape == (20, 52)  # rows of nothing are left out
    assert (batch["ids"][:, 0] == CLS).all()
    assert batch["ids"][0, 51] == SEP and batch["ids"][5, 31] == SEP and not batch["ids"][5, 32:].any()
    assert batch["mask"].sum(1).tolist() == [52] * 5 + [32] + [52] * 14
    assert "mask" not in taken(MaskedData(Windows(), TOKENIZER), 1)[0][2]


def test_batches_are_fixed_by_seed_epoch_and_step_and_differ_between_epochs() -> None:
    found = taken(MaskedData(Windows(), TOKENIZER, seed=3), 8)
    epoch, step, batch = found[7]
    assert (epoch, step) == (2, 1)
    again = next(MaskedData(Windows(), TOKENIZER, seed=3).batches(epoch, step))[2]
    assert all(np.array_equal(again[name], batch[name]) for name in batch)
    other = next(MaskedData(Windows(), TOKENIZER, seed=4).batches(epoch, step))[2]
    assert not np.array_equal(other["targets"] > 0, batch["targets"] > 0)
    assert not np.array_equal(found[0][2]["targets"] > 0, found[3][2]["targets"] > 0)


@pytest.mark.parametrize("chunk_bytes", [None, 4 * VOCAB * 7])
def test_the_loss_is_that_of_the_hidden_places_alone(chunk_bytes: int | None) -> None:
    config = FAMILIES["bert"].tensorflow.config(
        {
            "vocab_size": VOCAB, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16,
            "intermediate_size": 32, "max_position_embeddings": 64, "hidden_act": "gelu", "type_vocab_size": 2,
        }
    )  # fmt: skip
    model = Model(config).initialize(0).eval()
    batch = {name: torch.from_numpy(array) for name, array in taken(MaskedData(Windows(), TOKENIZER), 3)[2][2].items()}
    logits = model(batch["ids"], mask=batch["mask"]).logits
    hidden = batch["targets"] > 0
    wanted = F.cross_entropy(logits[hidden], batch["targets"][hidden])
    loss = targets_loss(model, batch, chunk_bytes=chunk_bytes)
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
    loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "pooler" not in name)
    nothing = {"ids": batch["ids"], "targets": torch.zeros_like(batch["targets"])}
    assert float(targets_loss(model, nothing).detach()) == 0.0


def test_what_cannot_be_masked_is_refused() -> None:
    with pytest.raises(DataError, match=r"share is 1\.5, expected a number between 0 and 1"):
        MaskedData(Windows(), TOKENIZER, share=1.5)
    with pytest.raises(TokenizerError, match=r"has no \[MASK\]"):
        MaskedData(Windows(), WordPiece(["[UNK]", "[CLS]", "[SEP]"]))
