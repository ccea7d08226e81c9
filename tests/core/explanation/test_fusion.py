"""Fusing the maps of several layers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import xcam
from fake import IMAGES, FakeModel
from xcam import InputError, ZeroHeatmapWarning


def test_maps_of_other_images_or_classes_are_refused_and_zero_maps_are_reported(model: FakeModel) -> None:
    a, b = xcam.explain(model, IMAGES[:2], target=0)
    with pytest.raises(InputError, match="is another image or class than 'cat' at features"):
        xcam.fuse([a, b])
    with pytest.raises(InputError, match="'dog' at features is another image or class"):
        xcam.fuse(xcam.explain(model, IMAGES[0], target=[0, 1]))
    halves = [replace(a, cam=np.float32([row])) for row in ([1, 0], [0, 1])]
    with pytest.warns(ZeroHeatmapWarning, match="the product of 2 layers is zero everywhere"):
        assert not xcam.fuse(halves, "product").cam.any()
    np.testing.assert_array_equal(xcam.fuse(halves).cam, [[0.5, 0.5]])
