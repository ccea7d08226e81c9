"""Checks of the values of an explanation: NaN, infinity, and heatmaps that are zero everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from xcam.contract import Array, Layer, Model, Trace, one_output, validation
from xcam.errors import ModelError


def check_finite(x: Array, trace: Trace, model: Model, layer: Layer) -> None:
    """Raise ModelError, with the first layer that has NaN or infinity, where a value of the trace is not finite."""
    arrays = {"activations": trace.activations, **{f"gradients[{m}]": g for m, g in enumerate(trace.gradients)}}
    for name, array in {"outputs": one_output(trace.outputs), **arrays}.items():
        if not np.isfinite(array).all():
            first = _first_layer_not_finite(model, x)
            raise ModelError(
                f"{model.name} gives NaN or infinity in its {name} at layer {layer.name!r}"
                f"{f' (the first layer with one is {first.name!r})' if first else ''}; {_remedy(first)}"
            )


def _remedy(first: Layer | None) -> str:
    if first is not None and first.dtype == "float16":
        return f"values of {first.name!r} exceed 65504, the largest float16: keep it in float32, or use bfloat16"
    return "check the weights, the preprocessing, and float16 overflow"


def _first_layer_not_finite(model: Model, x: Array) -> Layer | None:
    """Return the first layer, in execution order, whose value on `x` is not finite; None where all are."""
    for layer in validation.layers(model):  # one by one: all together could exceed the memory
        if not np.isfinite(validation.activations(model, x, [layer.name])[layer.name]).all():
            return layer
    return None


def zero_message(path: Path | None, layer: Layer, cam: Array, trace: Trace, n: int) -> str:
    """Return the warning for image `n`, whose heatmap is zero everywhere, with the likely cause."""
    if not np.any(trace.activations[n]):
        cause = "every activation of the layer is zero (dead units, or the wrong preprocessing)"
    elif trace.gradients and not any(np.any(g[n]) for g in trace.gradients):
        cause = "the gradient is zero (a saturated probability: try score='logit'; or an earlier layer)"
    elif np.any(cam):
        cause = "all evidence is against the class (try another class, layer or method)"
    elif not trace.gradients:
        cause = "the method gives every channel weight zero (try another layer, method or option)"
    else:
        cause = "gradient and activation are nowhere both nonzero (try another layer or method)"
    return f"the heatmap{f' of {path}' if path else ''} is zero everywhere at layer {layer.name!r}: {cause}"
