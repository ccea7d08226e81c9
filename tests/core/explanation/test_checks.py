"""NaN, infinity, and heatmaps that are zero everywhere."""

from __future__ import annotations

import numpy as np
import pytest

import xcam
from fake import IMAGES, FakeModel
from xcam import ModelError, ZeroHeatmapWarning


def test_a_zero_map_is_reported_with_its_cause(model: FakeModel) -> None:
    with pytest.warns(ZeroHeatmapWarning, match="every activation of the layer is zero"):
        e = xcam.explain(model, np.zeros((4, 6, 3), np.uint8), target=0)
    np.testing.assert_array_equal(e.heatmap, 0)
    model.weights[:] = [[-1, 1], [-1, 1], [-1, 1]]
    with pytest.warns(ZeroHeatmapWarning, match="all evidence is against the class"):
        e = xcam.explain(model, IMAGES[0], target=0)
    np.testing.assert_array_equal(e.heatmap, 0)
    assert e.cam.max() < 0
    model.weights[:] = 0
    with pytest.warns(ZeroHeatmapWarning, match="the gradient is zero"):
        xcam.explain(model, IMAGES[0], target=0)


def test_nan_is_an_error(model: FakeModel) -> None:
    model.weights[0, 0] = np.nan
    with pytest.raises(ModelError, match="fake gives NaN or infinity in its outputs at layer 'features'"):
        xcam.explain(model, IMAGES[0])


def test_nan_on_augmented_images_is_an_error(model: FakeModel) -> None:
    model.spoil_outputs = lambda outputs: outputs * np.float32(np.nan if model.calls[1:] else 1)
    with pytest.raises(ModelError, match="fake gives NaN or infinity in its outputs"):
        xcam.explain(model, IMAGES[0], target=0, augment=True)
