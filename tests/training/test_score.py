import math
import string
from pathlib import Path

import numpy as np
import pytest

from hanmo.errors import DataError
from hanmo.tokenizers import Lossless
from hanmo.training.data.documents import Part
from hanmo.training.data.encoding import TokenEncoder
from hanmo.training.data.pack import pack_documents
from hanmo.training.data.packed import PackedFile
from hanmo.training.score import measure, scoring_windows

ALPHABET = string.ascii_letters + string.digits
TOKENS = [
    "[PAD]",
    "[UNK]",
    "[EOS]",
    "[NL]",
    "[SP]",
    *ALPHABET,
    *("##" + letter for letter in ALPHABET),
    *"天地玄黄，。",
]
ENCODER = TokenEncoder(Lossless(TOKENS))
TEXTS = ["天地玄黄，" * n + "鱻" * (n % 2) for n in range(1, 12)]


@pytest.fixture
def file(tmp_path: Path) -> PackedFile:
    parts = [Part(text) for text in TEXTS]
    pack_documents(parts, tmp_path / "d", encoder=ENCODER, processes=1)
    return PackedFile(tmp_path / "d")


@pytest.mark.parametrize(("window", "context"), [(6, 3), (6, 0), (6, 5), (1, 0), (200, 100)])
def test_every_id_is_counted_once_in_order_after_enough_context(file: PackedFile, window: int, context: int) -> None:
    found = []
    for ids, counted in scoring_windows(file, window=window, context=context, rows=3):
        assert ids.shape == (3, window + 1)
        for row, counts in zip(ids, counted, strict=True):
            places = np.flatnonzero(counts)
            assert row[0] == ENCODER.end or not len(places) or places[0] >= context
            found += row[1:][counts].tolist()
    assert found == file.ids[1:].tolist()


def test_a_uniform_model_spends_the_same_on_every_token(file: PackedFile) -> None:
    spent = measure(lambda ids: np.full(ids[:, 1:].shape, -math.log(8)), file, window=7, context=2)
    assert spent.nats == pytest.approx(file.facts["tokens"] * math.log(8))
    assert (spent.characters, spent.unknown) == (sum(map(len, TEXTS)), 6)


def test_a_context_as_long_as_the_window_is_refused(file: PackedFile) -> None:
    with pytest.raises(DataError, match="context is 6, expected 0 to 5"):
        next(scoring_windows(file, window=6, context=6, rows=1))


def test_data_without_an_end_mark_is_refused(file: PackedFile) -> None:
    file.facts["end"] = None
    with pytest.raises(DataError, match="was packed without an end mark"):
        next(scoring_windows(file, window=6, context=3, rows=1))
