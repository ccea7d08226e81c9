"""The targets of each image, and the batches."""

from __future__ import annotations

import numpy as np
import pytest

import xcam
from fake import IMAGES, FakeModel
from xcam import InputError


def test_a_list_gives_a_list_in_batches_equal_to_one_by_one(model: FakeModel) -> None:
    many = xcam.explain(model, IMAGES * 4)
    assert model.calls == [8, 4]
    for image, e in zip(IMAGES * 4, many, strict=True):
        one = xcam.explain(model, image)
        assert e.index == one.index
        np.testing.assert_allclose(e.heatmap, one.heatmap, atol=1e-6)
    assert xcam.explain(model, []) == []


def test_one_target_for_each_image_or_an_error(model: FakeModel) -> None:
    result = xcam.explain(model, IMAGES, target=[0, 1, 0])
    assert [e.index for e in result] == [0, 1, 0]
    mixed = xcam.explain(model, IMAGES, target=[[0, 1], 1, [0]])
    assert [e.index for e in mixed[0]] == [0, 1]
    assert mixed[1].index == 1
    assert [e.index for e in mixed[2]] == [0]
    with pytest.raises(InputError, match="2 targets for 3 images"):
        xcam.explain(model, IMAGES, target=[0, 1])
    with pytest.raises(InputError, match="an empty list of targets"):
        xcam.explain(model, IMAGES[0], target=[])


def test_layers_images_and_targets_give_lists_in_that_shape(model: FakeModel) -> None:
    model.trace, trace = lambda x, layer, cotangents=None: trace(x, "features", cotangents), model.trace  # type: ignore[method-assign]
    result = xcam.explain(model, IMAGES, layer=["features", "pool"], target=[["top2", 0], 1, (None,)], fuse="max")
    assert [[e.index for e in row] if isinstance(row, list) else row.index for row in result][1] == 1
    assert [len(row) if isinstance(row, list) else 0 for row in result] == [3, 0, 1]
    assert {e.layer for e in result[0]} == {"features max pool"}
    assert {e.index for e in result[0][:2]} == {0, 1}
    assert result[0][2].index == 0
