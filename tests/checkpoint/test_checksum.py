"""The masked crc32c, over threads and without."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from hanmo.checkpoint.tf.bundle import MIN_PART, joined_crc32c, threaded_crc32c
from hanmo.checkpoint.tf.sstable import masked


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5))
def test_sums_of_parts_join_to_the_sum_of_the_whole(parts):
    assert joined_crc32c([crc32c(part) for part in parts], [len(part) for part in parts]) == crc32c(b"".join(parts))


@pytest.mark.parametrize("size", [0, 1, MIN_PART, 2 * MIN_PART, 3 * MIN_PART + 5])
def test_threads_do_not_change_the_sum(size):
    raw = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    with ThreadPoolExecutor(2) as pool:
        assert {threaded_crc32c(raw, pool, threads) for threads in (1, 2, 3)} == {crc32c(raw.tobytes())}


def test_the_mask_is_leveldbs():
    assert crc32c(b"123456789") == 0xE3069283
    assert masked(0xE3069283) == 0xC78AB0E5  # 0x2507C60D, rotated right by 15, and 0xA282EAD8
