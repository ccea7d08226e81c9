"""Eigen-CAM, compared with a singular value decomposition; its sign."""

from __future__ import annotations

import numpy as np
import pytest

from xcam.methods.registry import get


def test_eigencam_sign_follows_the_channel_mean() -> None:
    for seed in range(20):
        a = np.random.default_rng(seed).normal(size=(1, 7, 5, 4)) + 0.3
        result = get("eigencam").function(a)[0]
        mean = a[0].mean(axis=0)
        assert np.corrcoef(result.ravel(), mean.ravel())[0, 1] > 0
        np.testing.assert_allclose(get("eigencam").function(a[:, ::-1])[0], result, atol=1e-10)  # order of channels
    balanced = np.array([[[[1.0, -1.0, 3.0]], [[-1.0, 1.0, -3.0]]]])  # the mean over channels is zero everywhere
    result = get("eigencam").function(balanced)[0, 0]
    assert result[np.abs(result).argmax()] > 0


@pytest.mark.parametrize("shape", [(1, 40, 3, 4), (1, 5, 6, 7)])
def test_eigencam_is_the_first_principal_component(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    """With either Gram matrix, the result is that of a singular value decomposition."""
    a = rng.normal(size=shape)
    rows = a[0].reshape(shape[1], -1).T
    for centred in (True, False):
        x = rows - rows.mean(axis=0) if centred else rows
        u, s, _ = np.linalg.svd(x, full_matrices=False)
        result = get("eigencam").function(a, centred=centred).ravel()
        assert min(np.abs(result - u[:, 0] * s[0]).max(), np.abs(result + u[:, 0] * s[0]).max()) < 1e-9
