"""Keys of slices in TensorFlow's ordered code, and how slices join."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanmo.checkpoint.tf.index import partition_axis, slice_key
from hanmo.errors import CheckpointError, CorruptFile


@pytest.mark.parametrize(
    ("extents", "tail"),
    [
        # number of axes, then start and length of each; worked out by hand
        ([], "00"),
        ([(0, None)], "0101" "80" "7f"),
        ([(0, 63)], "0101" "80" "bf"),
        ([(0, 64)], "0101" "80" "c040"),
        ([(8191, 8192)], "0101" "dfff" "e02000"),
        ([(0, 2), (1 << 20, 1 << 40)], "0102" "80" "82" "f0100000" "fd0000000000"),
    ],
)  # fmt: skip
def test_slice_keys_are_ordered_code(extents, tail):
    expected = bytes.fromhex(tail)
    assert slice_key(b"v", extents).startswith(b"\x00v\x00\x01")
    assert slice_key(b"v", extents)[4:] == expected


def test_zero_and_255_in_names_are_escaped():
    assert slice_key(b"a\x00b\xff", []) == b"\x00a\x00\xffb\xff\x00\x00\x01\x00"


@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=2, max_size=20))
def test_signed_numbers_sort_as_their_codes(numbers):
    codes = {number: slice_key(b"", [(number, 0)]) for number in numbers}
    assert sorted(codes, key=codes.__getitem__) == sorted(codes)


def test_slices_join_in_any_order():
    assert partition_axis((5, 4), [[(3, 2), (0, 4)], [(0, 3), (0, None)]]) == (0, [1, 0])
    assert partition_axis((5, 4), [[(0, None), (0, 1)], [(0, None), (1, 3)]]) == (1, [0, 1])
    assert partition_axis((5,), [[(0, None)]]) == (0, [0])
    assert partition_axis((), [[]]) == (0, [0])


@pytest.mark.parametrize(
    ("shape", "slices", "words"),
    [
        ((5,), [[(0, 3)], [(2, 3)]], "hole or overlap at 3 of axis 0: next is 2, 3"),
        ((5,), [[(0, 2)], [(3, 2)]], "hole or overlap at 2 of axis 0: next is 3, 2"),
        ((5,), [[(0, 3)], [(3, 3)]], "end at 6 of axis 0, which has 5"),
        ((5,), [[(0, 2)], [(2, -2)]], "next is 2, -2"),
        ((5,), [[(0, 2), (0, 1)]], "slice of 2 axes in a tensor of 1"),
        ((), [[], []], "a scalar in 2 slices"),
    ],
)
def test_slices_that_do_not_make_the_tensor_are_refused(shape, slices, words):
    with pytest.raises(CorruptFile, match=words):
        partition_axis(shape, slices)


def test_slices_along_two_axes_are_refused_by_name():
    quarters = [[(i, 1), (j, 1)] for i in (0, 1) for j in (0, 1)]
    with pytest.raises(CheckpointError, match=r"cut along 2 axes \[0, 1\].*save it again without a partitioner"):
        partition_axis((2, 2), quarters)
