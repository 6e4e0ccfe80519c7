import math

import pytest

from hanmo.errors import DataError
from hanmo.training.score import Bits, bits_per_character, token_logprobs


def test_bits_are_divided_by_characters_and_unknown_ones_are_named() -> None:
    spent = Bits(nats=10 * math.log(2), tokens=6, characters=5, unknown=2)
    assert bits_per_character(spent, distinct_unknown=7) == pytest.approx((10 + 2 * 3) / 5)


def test_two_files_add_up() -> None:
    both = Bits(1.0, 2, 3, 4) + Bits(0.5, 1, 1, 1)
    assert both == Bits(1.5, 3, 4, 5)


def test_no_characters_are_refused() -> None:
    with pytest.raises(DataError, match="0 characters were measured"):
        bits_per_character(Bits(0.0, 0, 0, 0), distinct_unknown=1)


@pytest.mark.parametrize(
    ("count", "window", "reads"), [(5, 8, 1), (8, 8, 1), (9, 8, 2), (30, 8, 7), (9, 3, 7), (1, 8, 0)]
)
def test_every_id_but_the_first_is_predicted_once_with_half_a_window_before_it(count, window, reads) -> None:
    seen = []

    def last(ids):
        seen.append(len(ids))
        return [-(id + before / 100) for before, id in enumerate(ids[1:], 1)]

    found = token_logprobs(last, list(range(count)), window=window)
    assert [int(-each) for each in found] == list(range(1, count))
    assert all(round(-each % 1 * 100) >= min(int(-each), window // 2) for each in found)
    assert len(seen) == reads and all(size <= window for size in seen)
