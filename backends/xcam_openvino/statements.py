"""The statements of other tools in a model: labels, scaling and fit of the images.

Source: the section `model_info` of OpenVINO's Model API (docs of open-model-api, "Model configuration"), which Geti, anomalib,
Open Model Zoo and ultralytics write.
"""

from __future__ import annotations

import re
from typing import Any

import openvino

from xcam.contract.fit import Fit
from xcam.contract.preprocessing import PRESETS, Preprocessing, preset
from xcam_openvino.graph import FLOATS, Graph

SECTION = "model_info"
FITS = {
    "standard": Fit("stretch"),
    "fit_to_window": Fit("letterbox", centred=False),
    "fit_to_window_letterbox": Fit("letterbox"),
    "crop": Fit("crop"),
}
"""The values of `resize_type`."""


def stated(graph: Graph) -> dict[str, Any]:
    """Return the labels, the preprocessing and the fit that a model states, each where it does."""
    model = graph.model
    result: dict[str, Any] = {}
    labels = tuple(_words(model, "labels"))
    counts = [shape[1] for shape in map(graph.shape, graph.results) if shape is not None and len(shape) == 2]
    if len(labels) > 1 and all(count in (None, len(labels)) for count in counts):
        result["labels"] = labels
    if graph.dtype(graph.source) in FLOATS and _text(model, "embedded_processing").lower() != "true":
        preprocessing = _preprocessing(_numbers(model, "mean_values"), _numbers(model, "scale_values"))
        if preprocessing is not None:
            result["preprocessing"] = preprocessing
    fit = FITS.get(_text(model, "resize_type"))
    return result if fit is None else {**result, "fit": fit}


def _preprocessing(mean: tuple[float, ...], scale: tuple[float, ...]) -> Preprocessing | None:
    """Return (x − mean) / scale for pixels in 0…255; None where neither is stated."""
    if not mean and not scale:
        return None
    mean, scale = mean or (0.0,), scale or (1.0,)
    if not {len(mean), len(scale)} <= {1, 3} or not all(n > 0 for n in scale):
        return None
    if mean == (0.0,) * len(mean) and set(scale) == {255.0}:
        return PRESETS["unit"]
    return preset(Preprocessing("the model's mean and scale", 1.0, mean, scale))


def _text(model: openvino.Model, key: str) -> str:
    """Return a value as text; "" where it is not stated."""
    path = [SECTION, key]
    if not model.has_rt_info(path):
        return ""
    value = model.get_rt_info(path)
    value = getattr(value, "value", value)
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _words(model: openvino.Model, key: str) -> list[str]:
    """Return names that are separated by spaces; a space within a name is an underscore."""
    return [name.replace("_", " ") for name in _text(model, key).split()]


def _numbers(model: openvino.Model, key: str) -> tuple[float, ...]:
    text = re.sub(r"[\[\],;()]", " ", _text(model, key))
    try:
        return tuple(float(number) for number in text.split())
    except ValueError:
        return ()
