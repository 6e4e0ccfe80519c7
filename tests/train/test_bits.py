import math

import pytest

from hanmo.errors import DataError
from hanmo.train.bits import Bits, bits_per_character


def test_bits_are_divided_by_characters_and_unknown_ones_are_named() -> None:
    spent = Bits(nats=10 * math.log(2), tokens=6, characters=5, unknown=2)
    assert bits_per_character(spent, distinct_unknown=7) == pytest.approx((10 + 2 * 3) / 5)


def test_two_files_add_up() -> None:
    both = Bits(1.0, 2, 3, 4) + Bits(0.5, 1, 1, 1)
    assert both == Bits(1.5, 3, 4, 5)


def test_no_characters_are_refused() -> None:
    with pytest.raises(DataError, match="0 characters were measured"):
        bits_per_character(Bits(0.0, 0, 0, 0), distinct_unknown=1)
