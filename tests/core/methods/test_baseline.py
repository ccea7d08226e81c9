"""The baseline of random weights."""

from __future__ import annotations

import numpy as np

from xcam.methods.registry import get

A = np.arange(8.0).reshape(1, 2, 2, 2)


def test_random_is_seeded_and_ignores_the_gradient() -> None:
    function = get("random").function
    np.testing.assert_array_equal(function(A), function(A))
    assert not np.array_equal(function(A), function(A, seed=1))
    assert get("random").inputs == ("activations",)
