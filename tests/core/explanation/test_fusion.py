"""Fusing the maps of several layers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import xcam
from fake import IMAGES, FakeModel
from xcam import InputError, ZeroHeatmapWarning
from xcam.images.framing import frame


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


def test_maps_of_different_parts_of_the_image_are_refused(model: FakeModel) -> None:
    e = xcam.explain(model, IMAGES[0], target=0)
    other = replace(e, frame=frame(e.image.shape, (8, 8), xcam.Fit("crop", crop_pct=0.5)))
    with pytest.raises(InputError, match="cover different parts of the image"):
        xcam.fuse([e, other])
