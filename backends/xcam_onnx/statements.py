"""The metadata that other tools write into an ONNX file: labels, size and scaling of the images.

Sources: ONNX' image metadata (onnx.ai/onnx/repo-docs/MetadataProps.html), which Custom Vision and coremltools write;
the exporters of ultralytics (`names`, `imgsz`, `task`, `stride`); mean and std under their usual names; and the
`preprocessor_config.json` that exports of Hugging Face's models have next to them.
"""

from __future__ import annotations

import ast
import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xcam.contract.fit import Fit, of_ultralytics
from xcam.contract.preprocessing import PRESETS, Preprocessing, preset
from xcam.contract.processors import facts
from xcam.contract.scaling import BGR
from xcam.errors import InputError
from xcam_onnx.graph import FLOATS, Graph, metadata

PROCESSOR = "preprocessor_config.json"
"""The file in which Hugging Face states how images are prepared."""
FORMATS = {"rgb8": "RGB", "rgba8": "RGB", "bgr8": "BGR", "bgra8": "BGR", "gray8": "RGB"}
RANGES = {"nominalrange_0_255": "raw", "normalized_0_1": "unit", "normalized_1_1": "tf"}
LABELS = ("names", "labels", "classes", "class_names", "class_labels", "categories", "id2label")
MEANS = (("mean", "std"), ("image_mean", "image_std"), ("standardization_mean", "standardization_std"))


def stated(graph: Graph) -> dict[str, Any]:
    """Return the preprocessing, the labels, the size and the fit that a file's metadata state, each where it does."""
    texts = {key.lower(): text for key, text in metadata(graph.model).items()}
    labels = next(filter(None, (_labels(texts.get(key)) for key in LABELS)), None)
    counts = _class_counts(graph.typed) if labels or "names" in texts else []
    preprocessing = _of_image_metadata(texts) or _of_mean_and_std(texts) or _of_ultralytics(texts, bool(counts))
    takes_floats = any(graph.dtype(value.name) in FLOATS for value in graph.inputs)  # integers are pixels
    options: dict[str, Any] = {"preprocessing": preprocessing} if preprocessing and takes_floats else {}
    if labels and all(not isinstance(count, int) or count == len(labels) for count in counts):
        options["labels"] = labels
    size = _literal(texts.get("imgsz"))
    size = (size, size) if isinstance(size, int) else size
    if isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size):
        options["size"] = tuple(size)
    if fit := _fit(texts, bool(counts)):
        options["fit"] = fit
    return options


def of_folder(path: Path, graph: Graph) -> dict[str, Any]:
    """Return the facts of a `preprocessor_config.json` next to the file, or above its folder `onnx`; {} without one."""
    folders = [path.parent, *([path.parent.parent] if path.parent.name == "onnx" else [])]
    file = next(filter(Path.is_file, (folder / PROCESSOR for folder in folders)), None)
    if file is None or not all(graph.dtype(value.name) in FLOATS for value in graph.inputs[:1]):
        return {}
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, InputError, KeyError):
        return {key: value for key, value in facts(json.loads(file.read_text(encoding="utf-8"))).items() if value}
    return {}


def _fit(texts: Mapping[str, str], has_classes: bool) -> Fit | None:
    """Return the fit of an export of ultralytics; that of YOLOv5, which has no `task`, too."""
    if "stride" not in texts or "names" not in texts:
        return None
    if "task" not in texts and has_classes:  # YOLOv5 crops a square first, and resizes it with OpenCV
        return Fit("crop", antialias=False, like="keras")
    return of_ultralytics(texts.get("task", "detect"), texts.get("head", ""))


def _class_counts(graph: Graph) -> list[int | str | None]:
    shapes = [graph.shape(output.name) for output in graph.proto.output]
    return [shape[1] for shape in shapes if shape is not None and len(shape) == 2]


def _of_image_metadata(texts: Mapping[str, str]) -> Preprocessing | None:
    order = FORMATS.get(texts.get("image.bitmappixelformat", "").lower())
    name = RANGES.get(texts.get("image.nominalpixelrange", "").lower())
    if order is None or name is None:
        return None
    if order == "BGR":
        return BGR.get(name) or Preprocessing(f"{name}, BGR", 1 / 127.5, (1.0,), order="BGR")
    return PRESETS[name]


def _of_mean_and_std(texts: Mapping[str, str]) -> Preprocessing | None:
    for mean_key, std_key in MEANS:
        mean, std = (_numbers(texts.get(key)) for key in (mean_key, std_key))
        if mean and std and len(mean) in (1, 3) and len(std) in (1, 3) and all(n > 0 for n in std):
            scale = 1.0 if max(*mean, *std) > 2 else 1 / 255
            return preset(Preprocessing("the file's mean and std", scale, mean, std))
    return None


def _of_ultralytics(texts: Mapping[str, str], has_classes: bool) -> Preprocessing | None:
    """Return the scaling of an ultralytics export: 0…1; YOLOv5's classifiers, whose exports have no `task`: ImageNet's."""
    if "stride" not in texts or "names" not in texts:
        return None
    return PRESETS["unit" if "task" in texts or not has_classes else "torch"]


def _labels(text: str | None) -> tuple[str, ...] | None:
    value = _literal(text)
    if isinstance(value, dict):
        with contextlib.suppress(ValueError, TypeError):
            by_index = {int(key): name for key, name in value.items()}
            value = [by_index[k] for k in range(len(by_index))] if set(by_index) == {*range(len(by_index))} else None
    if isinstance(value, list | tuple) and len(value) > 1 and all(isinstance(name, str) for name in value):
        return tuple(value)
    return None


def _numbers(text: str | None) -> tuple[float, ...] | None:
    value = _literal(text)
    values = value if isinstance(value, list | tuple) else [value]
    if all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in values):
        return tuple(float(n) for n in values)
    return None


def _literal(text: str | None) -> Any:
    """Return a text's value as JSON or as a Python literal; None where it is neither."""
    if text is None:
        return None
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)
    with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return ast.literal_eval(text.strip())
    return None
