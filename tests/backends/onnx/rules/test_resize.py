"""Resizing: the rules of `xcam_onnx.autodiff.rules.resize`.

Values stay away from kinks and ties, where no derivative exists.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch.nn.functional as F  # noqa: N812  (as everywhere)

from onnx_gradients import NEWEST
from onnx_rules import Case, Cases, Draw, Values, gradients, in_other_precisions, ints, one, rules_of

case = Cases()


def _resized(d: Draw, x: np.ndarray, opset: int, sizes: list[int] | None, scales: list[float] | None) -> Values:
    """Version 11 requires a region and scales, even empty ones."""
    empty = np.zeros(0, np.float32)
    values: Values = {"x": x, "roi" if opset < 13 else "_": empty}
    if scales is not None:
        return values | {"scales": np.array(scales, np.float32)}
    return values | {"scales" if opset < 13 else "_2": empty, "sizes": ints(*sizes)}


@case("Resize")
def resize(d: Draw) -> Case:
    """Every mode of the runtime, by scales or sizes, larger and smaller."""
    opset = d.opset(11, 13, 18, 19, NEWEST)
    mode = d.of("nearest", "linear", "cubic")
    coordinates = d.of(
        "half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", *["half_pixel_symmetric"] * (opset >= 19)
    )
    attributes: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": coordinates}
    if mode == "nearest":
        attributes["nearest_mode"] = d.of("round_prefer_floor", "floor", "ceil", "round_prefer_ceil")
    if mode == "cubic":
        attributes |= {"exclude_outside": d.whole(0, 1), "cubic_coeff_a": d.of(-0.75, -0.5)}
    x = d.any(d.whole(1, 2), d.whole(1, 2), *d.each(2, 2, 5))
    if by_scale := d.flag():
        factors: list[Any] = [d.of(1.0, 2.0, 3.0, 1.7, 0.6, 0.5) for _ in range(2)]
    else:
        factors = d.each(2, 1, 8)
    if opset >= 18 and d.flag():
        attributes["axes"] = [2, 3]
    else:
        factors = [*((1.0, 1.0) if by_scale else x.shape[:2]), *factors]
    values = _resized(d, x, opset, None if by_scale else factors, factors if by_scale else None)
    free = ("scales",) if by_scale else ("sizes",)
    fixed = [name for name in values if name not in ("x", *free) and name[0] != "_"]
    return one(d, values, fixed=fixed, free=free, by="runtime", step=1, opset=opset, **attributes)


@case("Resize", kind="antialias")
def resize_antialias(d: Draw) -> Case:
    x = d.any(1, d.whole(1, 2), *d.each(2, 3, 6))
    values = _resized(d, x, 18, [*x.shape[:2], *d.each(2, 2, 7)], None)
    mode = d.of("linear", "cubic")
    return one(d, values, fixed=["sizes"], by="runtime", step=1, opset=d.opset(18, 19), mode=mode, antialias=1)


TORCH_RESIZES = {
    "nearest": ({"mode": "nearest"}, {"nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}),
    "bilinear": ({"mode": "bilinear"}, {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}),
    "corners": (
        {"mode": "bilinear", "align_corners": True},
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    ),
    "bicubic": ({"mode": "bicubic"}, {"mode": "cubic", "coordinate_transformation_mode": "half_pixel"}),
}


@case("Resize", kind="torch")
def resize_torch(d: Draw) -> Case:
    """The only nearest-neighbour mode of torch is asymmetric, rounded down."""
    theirs, attributes = TORCH_RESIZES[d.of(*TORCH_RESIZES)]
    x = d.any(d.whole(1, 2), d.whole(1, 2), *d.each(2, 2, 5))
    sizes = d.each(2, 2, 8)
    opset = d.opset(11, 13, 18, 19, NEWEST)
    values = _resized(d, x, opset, [*x.shape[:2], *sizes], None)
    fixed = [name for name in values if name != "x" and name[0] != "_"]
    function = lambda x, *_: F.interpolate(x, sizes, **theirs)  # noqa: E731
    return one(d, values, function, fixed=fixed, by="torch", opset=opset, **attributes)


@case("Resize", kind="blocks")
def resize_blocks(d: Draw) -> Case:
    """Nearest-neighbour by integer factors, as decoders use it, along any number of axes."""
    x = d.any(1, 2, *d.each(d.of(1, 2, 3), 1, 3))
    factors = [d.whole(1, 3) for _ in x.shape[2:]]
    values = _resized(d, x, 18, None, [1.0, 1.0, *map(float, factors)])
    modes = d.of(("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("asymmetric", "round_prefer_floor"))
    attributes = dict(zip(("coordinate_transformation_mode", "nearest_mode"), modes, strict=True))
    return one(d, values, fixed=["scales"], by="runtime", step=1, opset=d.opset(18, 19, NEWEST), **attributes)


test_gradient = gradients(case)
test_other_precisions = in_other_precisions(case)


def test_every_rule_has_cases() -> None:
    assert case.operators == rules_of("resize")
