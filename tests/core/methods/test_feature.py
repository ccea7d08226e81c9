"""FEM, compared with values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from xcam import InputError
from xcam.methods.registry import get


def test_fem_by_hand() -> None:
    a = np.zeros((1, 1, 1, 10))
    a[0, 0, 0, 3] = 10.0  # mean 1, std 3: 10 ≥ 1 + 2·3
    np.testing.assert_allclose(get("fem").function(a)[0, 0], np.eye(10)[3])
    np.testing.assert_allclose(get("fem").function(a, k=3.0)[0, 0], np.eye(10)[3])  # 10 ≥ 10
    np.testing.assert_allclose(get("fem").function(a, variant="pytorch-grad-cam")[0, 0], np.eye(10)[3])
    with pytest.raises(InputError, match="unknown variant 'peper' of fem; known: paper, pytorch-grad-cam"):
        get("fem").function(a, variant="peper")
