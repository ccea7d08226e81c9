"""Detection of the first jump in sequences of errors."""

from __future__ import annotations

import pytest

from xcam.comparison.divergence import SUSPECT, first_jump


@pytest.mark.parametrize(
    ("errors", "index"),
    [
        ([], None),
        ([1e-7, 3e-7, 9e-7, 2e-6, 5e-6], None),
        ([1e-7, 2e-5, 9e-5], None),  # within what rounding does
        ([1e-7, 2e-7, 3e-2, 1e-1, 4e-2], 2),
        ([3e-4, 1e-3, 1e-3], 0),
        ([1e-7, 1e-7, 4e-3, 4e-7, 5e-7], None),  # a vector in another order, which the next layer follows
        ([1e-7, 2e-4, 6e-5, 5e-5, 4e-5, 6e-6], 1),  # fades, and is there all the same
        ([1e-7, 2e-7, 5e-2, 2e-7, 3e-2], 2),  # a branch without the difference is next to it
        ([1e-7, 1e-7, 5e-2], 2),
        ([1e-5, 3e-3, 2e-5, 1e-5, 1e-5, 9e-5, 4e-5], None),  # a sigmoid that is nearly closed
        ([5e-5, 9e-5, 8e-4, 7e-5, 6e-5, 6e-5, 2e-3, 2e-3], 6),  # it hides nothing behind it
    ],
)
def test_first_jump(errors: list[float], index: int | None) -> None:
    assert first_jump(errors) == index


def test_a_known_difference_has_a_lower_threshold() -> None:
    errors = [5e-7, 8e-7, 7e-5, 6e-5, 9e-5, 2e-4, 1e-4]
    assert first_jump(errors) is None
    assert first_jump(errors, SUSPECT) == 2
