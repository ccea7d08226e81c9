"""Sampling at computed positions: the rules of `xcam_onnx.autodiff.rules.sampling`.

Positions stay away from those of pixels, where the slope changes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (as everywhere)

from onnx_gradients import NEWEST, by_graph, single
from onnx_rules import Case, Cases, Draw, gradients, in_other_precisions, one, rules_of

case = Cases()


@case("GridSample")
@case("GridSample", domain="com.microsoft")
def grid_sample(d: Draw) -> Case:
    """Two and three axes, every mode with a rule, positions also outside of the image."""
    opset = d.opset(16, 18, 20, NEWEST) if not d.domain else 18
    space = d.whole(2, 3) if opset >= 20 and not d.domain else 2
    mode, padding, corners = d.of("bilinear", "nearest"), d.of("zeros", "border"), d.flag()
    x = d.any(d.whole(1, 2), d.whole(1, 3), *d.each(space, 2, 4))
    sizes = np.array(x.shape[:1:-1])
    points = (len(x), *d.each(space, 1, 3))
    cells = d.rng.integers(-2, sizes + 1, (*points, space))
    offset = d.rng.uniform(0.1, 0.9, cells.shape) if mode == "bilinear" else d.rng.uniform(-0.4, 0.4, cells.shape)
    pixels = cells + offset
    grid = 2 * pixels / np.maximum(sizes - 1, 1) - 1 if corners else (2 * pixels + 1) / sizes - 1
    attributes = {
        "mode": {"bilinear": "linear"}.get(mode, mode) if opset >= 20 and not d.domain else mode,
        "padding_mode": padding,
        "align_corners": int(corners),
    }
    function = lambda x, grid: F.grid_sample(x, grid, mode, padding, corners)  # noqa: E731
    values = {"x": x, "grid": grid.astype(np.float32)}
    at = ("x", "grid") if mode == "bilinear" else ("x",)
    return one(d, values, function, at=at, by="torch", opset=opset, tolerance=1e-3, **attributes)


@case("RoiAlign")
def roi_align(d: Draw) -> Case:
    """Regions inside, across the border and outside, of several images."""
    opset = d.opset(10, 16, 21)  # the runtime lacks the newest version
    x = d.any(d.whole(1, 3), d.whole(1, 3), *d.each(2, 2, 6))
    count = d.whole(1, 4)
    low = d.rng.uniform(-3, 8, (count, 2))
    regions = np.concatenate([low, low + d.rng.uniform(0.5, 6, (count, 2))], 1).astype(np.float32)
    attributes: dict[str, Any] = {
        "sampling_ratio": d.whole(1, 3),
        "output_height": d.whole(1, 3),
        "output_width": d.whole(1, 3),
        "spatial_scale": d.of(1.0, 0.5),
    }
    if opset >= 16 and d.flag():
        attributes["coordinate_transformation_mode"] = d.of("half_pixel", "output_half_pixel")
    values = {"x": x, "rois": regions, "owners": d.rng.integers(0, len(x), count)}
    return one(d, values, by="runtime", step=1, free=("rois", "owners"), opset=opset, **attributes)


test_gradient = gradients(case)
test_other_precisions = in_other_precisions(case)


def test_cases_cover_the_family() -> None:
    assert case.operators == rules_of("sampling")


def test_regions_are_constants() -> None:
    """As in torchvision, whose gradient is that of the image alone."""
    x = np.random.default_rng(0).normal(size=(1, 2, 5, 5)).astype(np.float32)
    regions = np.asarray([[0.5, 0.5, 3.5, 4.5]], np.float32)
    model = single("RoiAlign", {"x": x, "rois": regions, "owners": np.zeros(1, np.int64)}, sampling_ratio=2, opset=18)
    with pytest.raises(Exception, match="no differentiable path"):
        by_graph(model, {"x": x, "rois": regions, "owners": np.zeros(1, np.int64)}, at="rois")


@pytest.mark.parametrize(
    ("op", "attributes", "text"),
    [
        ("GridSample", {"mode": "cubic"}, "mode cubic with the padding zeros is not supported"),
        ("GridSample", {"padding_mode": "reflection"}, "mode linear with the padding reflection is not supported"),
        ("RoiAlign", {"mode": "max", "sampling_ratio": 2}, "takes the maximum, or a number of samples that depends"),
        ("RoiAlign", {"sampling_ratio": 0}, "takes the maximum, or a number of samples that depends"),
    ],
)
def test_what_is_not_supported_is_stated(op: str, attributes: dict[str, Any], text: str) -> None:
    x = np.ones((1, 1, 3, 3), np.float32)
    others: dict[str, Any] = {"rois": np.asarray([[0, 0, 2, 2]], np.float32), "owners": np.zeros(1, np.int64)}
    if op == "GridSample":
        others = {"grid": np.zeros((1, 2, 2, 2), np.float32)}
    model = single(op, {"x": x} | others, fixed=list(others), opset=20, **attributes)
    with pytest.raises(Exception, match=text):
        by_graph(model, {"x": x})


def test_torch_and_the_runtime_agree_on_positions() -> None:
    """The rule follows the runtime's own definition, which is torch's."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(1, 2, 4, 5)).astype(np.float32)
    grid = rng.uniform(-1.2, 1.2, (1, 6, 2, 2)).astype(np.float32)
    model = single("GridSample", {"x": x, "grid": grid}, fixed=["grid"], opset=20, mode="linear")
    y, _, _ = by_graph(model, {"x": x})
    expected = F.grid_sample(torch.from_numpy(x), torch.from_numpy(grid), align_corners=False).numpy()
    np.testing.assert_allclose(y, expected, atol=1e-5)
