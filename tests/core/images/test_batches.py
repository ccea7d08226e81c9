"""Batches: layouts, data types, channels."""

from __future__ import annotations

import numpy as np
import pytest

from xcam import InputError, InputSpec
from xcam.contract.preprocessing import PRESETS
from xcam.images.batches import batch


def test_layouts_types_and_channels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    last = batch([image, image], InputSpec((4, 3), layout="channels_last"), (4, 3), PRESETS["raw"])
    first = batch([image, image], InputSpec((4, 3), layout="channels_first"), (4, 3), PRESETS["raw"])
    assert last.shape == (2, 4, 3, 3)
    assert first.shape == (2, 3, 4, 3)
    np.testing.assert_array_equal(np.moveaxis(first, 1, -1), last)
    # 2×2 areas are averaged
    np.testing.assert_allclose(last[0, 0, 0], image[:2, :2].astype(float).mean(axis=(0, 1)), atol=0.51)
    grey = batch([image], InputSpec((8, 6), channels=1, layout="channels_last"), (8, 6), PRESETS["raw"])
    assert grey.shape == (1, 8, 6, 1)
    assert batch([image], InputSpec((4, 3), dtype="uint8"), (4, 3), PRESETS["raw"]).dtype == np.uint8
    with pytest.raises(InputError, match="takes 5 channels"):
        batch([image], InputSpec((4, 3), channels=5), (4, 3), PRESETS["raw"])


def test_preprocessing_for_three_channels_does_not_fit_a_grey_model() -> None:
    image = np.zeros((8, 6, 3), np.uint8)
    with pytest.raises(InputError, match="'torch' is for three channels, and the model takes one; use unit"):
        batch([image], InputSpec((8, 6), channels=1), (8, 6), PRESETS["torch"])
