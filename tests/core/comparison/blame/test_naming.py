"""Which stretches are named."""

from __future__ import annotations

import math

import pytest

from xcam.comparison.blame import naming
from xcam.comparison.divergence import ROUNDING
from xcam.comparison.own_error import OwnError


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([1e-6, 2e-6, 0.05, 1e-6], [2]),
        ([1e-6, 0.03, 0.05, 0.02], [1, 2, 3]),  # most stretches are faulty
        ([0.0, 0.03, 0.0], [1]),
        (
            [2e-3, 3e-3, 1e-3, 0.05, 2e-3, 0.0, 0.0, 0.0],
            [3],
        ),  # values of half precision at every stretch with arithmetic
        ([2e-3, 3e-3, 1e-3, 4e-3], []),
        ([1e-6, 2e-6, 3e-5, 1e-6], [2]),  # below rounding, but the models are known to differ
        ([1e-6, math.nan, 1e-6, 1e-6], []),
        ([], []),
    ],
)
def test_a_clear_margin_decides(errors: list[float], expected: list[int]) -> None:
    limit = naming.threshold(errors, differs=True)
    assert [k for k, error in enumerate(errors) if error > limit] == expected


def test_small_errors_do_not_count_where_the_models_agree() -> None:
    assert naming.threshold([1e-6, 2e-6, 3e-5], differs=False) == ROUNDING


def test_reduced_precision_adds_an_error_at_every_stretch() -> None:
    assert naming.is_even([2e-3, 3e-3, 1e-3, 4e-3])
    assert not naming.is_even([2e-3, 1e-6, 1e-3, 4e-3])


def test_all_layers_that_stand_out_are_found() -> None:
    def error(added: float) -> OwnError:
        return OwnError(added, 0.01, 1.0, True)

    errors = [error(0.01), error(0.2), error(0.012), error(0.3), error(0.011), error(0.009)]
    assert naming.outliers(errors) == [1, 3]
    assert naming.outliers([error(0.01)] * 4) == []
