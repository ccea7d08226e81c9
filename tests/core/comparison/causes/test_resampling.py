"""Kinds of interpolation and pooling, against torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from xcam.comparison.causes.resampling import interpolations, poolings

X = np.random.default_rng(0).normal(size=(1, 2, 7, 8)).astype(np.float32)


@pytest.mark.parametrize("size", [(14, 16), (10, 13), (4, 5)])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("nearest", {"mode": "nearest"}),
        ("linear", {"mode": "bilinear"}),
        ("linear (aligned corners)", {"mode": "bilinear", "align_corners": True}),
        ("cubic", {"mode": "bicubic"}),
        ("cubic (aligned corners)", {"mode": "bicubic", "align_corners": True}),
        ("area", {"mode": "area"}),
    ],
)
def test_interpolations(name: str, options: Any, size: tuple[int, int]) -> None:
    expected = functional.interpolate(torch.from_numpy(X), size=size, **options).numpy()
    np.testing.assert_allclose(interpolations((7, 8), size)[name](X), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("maximum of 2×2", functional.max_pool2d(torch.from_numpy(X), 2)),
        ("mean of 2×2", functional.avg_pool2d(torch.from_numpy(X), 2)),
        ("maximum of 3×3, padded 1 and 1", functional.max_pool2d(torch.from_numpy(X), 3, 2, 1)),
        ("mean of 3×3, padded 1 and 1", functional.avg_pool2d(torch.from_numpy(X), 3, 2, 1)),
        (
            "mean of 3×3, padded 1 and 1, padding not counted",
            functional.avg_pool2d(torch.from_numpy(X), 3, 2, 1, count_include_pad=False),
        ),
        ("maximum of 3×3, padded 1 and 1", functional.max_pool2d(torch.from_numpy(X), 3, 1, 1)),
    ],
)
def test_poolings(name: str, expected: torch.Tensor) -> None:
    shape: Any = tuple(expected.shape[2:])
    np.testing.assert_allclose(poolings((7, 8), shape)[name](X), expected.numpy(), atol=1e-6)


def test_global_poolings() -> None:
    for space, keep in (((), False), ((1, 1), True)):
        pools = poolings((7, 8), space)
        np.testing.assert_allclose(pools["global mean"](X), X.mean((2, 3), keepdims=keep), atol=1e-6)
        np.testing.assert_array_equal(pools["global maximum"](X), X.max((2, 3), keepdims=keep))
    assert poolings((1, 1), ()) == interpolations((7, 8), (7, 8)) == {}
