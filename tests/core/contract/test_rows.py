"""Rows of a batch: of variants, and of fixed batches."""

import pytest

from xcam import InputError
from xcam.contract.rows import batch_slices, rows_of


@pytest.mark.parametrize(
    ("rows", "images", "variants", "expected"),
    [(None, 1, 3, [0, 0, 0]), (None, 3, 3, [0, 1, 2]), ([2, 0], 3, 2, [2, 0]), ((1, 1, 1), 2, 3, [1, 1, 1])],
)
def test_rows_of_variants(rows, images, variants, expected):
    assert rows_of(rows, images, variants) == expected


@pytest.mark.parametrize(("rows", "images", "variants"), [(None, 2, 3), ([0], 1, 2), ([2], 2, 1), ([-1], 2, 1)])
def test_rows_that_do_not_fit_are_refused(rows, images, variants):
    with pytest.raises(InputError, match=f"for {variants} variants of {images} images; give one row for each"):
        rows_of(rows, images, variants)


def test_slices_of_a_fixed_batch_cover_all_rows_in_order():
    assert batch_slices(6, 2, "net") == [slice(0, 2), slice(2, 4), slice(4, 6)]
    assert batch_slices(5, None, "net") == [slice(0, 5)]
    assert batch_slices(0, 2, "net") == []


def test_a_batch_that_is_not_a_multiple_is_refused():
    with pytest.raises(InputError, match="cannot run net on a batch of 5: it takes batches of 2; export it"):
        batch_slices(5, 2, "net")
