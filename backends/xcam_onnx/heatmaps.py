"""Heatmaps as ONNX operators: the formulas of xcam.methods, for a self-explaining file.

A and G are activations and gradients, [N, C, h, w]. Each method returns the raw map before ReLU, [N, 1, h, w].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xcam_onnx.autodiff import Ops, Value

SPACE = [2, 3]


def gradcam(o: Ops, a: Value, g: Value) -> Value:
    """Σc mean(G)·A (Selvaraju et al. 2017, Eq. 1 and 2)."""
    return weighted_sum(o, o.ReduceMean(g, SPACE, keepdims=1), a)


def gradcam_plus_plus(o: Ops, a: Value, g: Value) -> Value:
    """Σc w·A, w = S(α·relu(G)), α = 1/(2 + max(S(A), 0)·G) where G > 0 (Chattopadhay et al. 2018, Eq. 19)."""
    positive = o.Relu(g)
    alpha = 1 / (2 + o.Relu(o.ReduceSum(a, SPACE, keepdims=1)) * positive)
    return weighted_sum(o, o.ReduceSum(alpha * positive, SPACE, keepdims=1), a)


def layercam(o: Ops, a: Value, g: Value) -> Value:
    """Σc relu(G)·A (Jiang et al. 2021)."""
    return weighted_sum(o, o.Relu(g), a)


def hirescam(o: Ops, a: Value, g: Value) -> Value:
    """Σc G·A (Draelos and Carin 2020)."""
    return weighted_sum(o, g, a)


def xgradcam(o: Ops, a: Value, g: Value) -> Value:
    """Σc w·A, w = S(G·A)/S(A), 0 where S(A) is 0 (Fu et al. 2020)."""
    total = o.ReduceSum(a, SPACE, keepdims=1)
    zero = o.Equal(total, 0)
    weights = o.ReduceSum(g * a, SPACE, keepdims=1) / o.Where(zero, 1, total)
    return weighted_sum(o, o.Where(zero, 0, weights), a)


def weighted_sum(o: Ops, weights: Value, a: Value) -> Value:
    """Σc w·A."""
    return o.ReduceSum(weights * a, [1], keepdims=1)


METHODS: dict[str, Callable[[Ops, Value, Value], Value]] = {
    "gradcam": gradcam,
    "gradcam++": gradcam_plus_plus,
    "layercam": layercam,
    "hirescam": hirescam,
    "xgradcam": xgradcam,
}


def heatmap(o: Ops, method: str, a: Value, g: Value, size: Sequence[Any], name: str) -> Value:
    """Write a heatmap: ReLU, divided by the maximum (zero stays zero), resized as by cv2.INTER_LINEAR.

    Args:
        o: Writes the nodes.
        method: A key of METHODS.
        a: Activations [N, C, h, w].
        g: Gradients [N, C, h, w].
        size: The image's height and width, numbers or Values [1].
        name: The name of the result.

    Returns:
        The heatmap [N, H, W], in 0…1.
    """
    cam = o.Relu(METHODS[method](o, a, g))
    top = o.ReduceMax(cam, [1, 2, 3], keepdims=1)
    cam = cam / o.Where(o.Equal(top, 0), 1, top)
    sizes = o.Concat(o.Slice(o.Shape(cam), [0], [2], [0]), o.dims(size), axis=0)
    omitted = None if o.opset >= 13 else np.zeros(0, np.float32)  # before, all inputs of Resize were required
    cam = o.Resize(cam, omitted, omitted, sizes, mode="linear", coordinate_transformation_mode="half_pixel")
    return o.named(o.Squeeze(cam, [1]), name)
