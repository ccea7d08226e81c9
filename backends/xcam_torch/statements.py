"""The size, the scaling and the labels that the libraries of models state of a module."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from xcam.contract.fit import Fit, of_ultralytics
from xcam.contract.preprocessing import PRESETS
from xcam.contract.processors import facts as of_processor
from xcam.contract.processors import normalisation
from xcam.models import labels


def known(module: nn.Module) -> dict[str, Any]:
    """Return the facts that a live module declares: those of timm, Hugging Face or ultralytics."""
    config = getattr(module, "config", None)
    if config is not None and hasattr(config, "id2label"):
        inner = getattr(module, "timm_model", None)  # transformers' wrapper of timm
        is_timm = isinstance(inner, nn.Module) and hasattr(inner, "pretrained_cfg")
        facts = of_timm(inner, getattr(config, "pretrained_cfg", None)) if is_timm else {}
        return facts | {k: v for k, v in of_config(config).items() if v} | of_processor(_cached_processor(config))
    if getattr(module, "pretrained_cfg", None):
        return of_timm(module)
    fields = vars(module)  # a property of a wrapper may run code
    if isinstance(fields.get("names"), dict) and {"stride", "yaml"} <= set(fields):
        return _of_ultralytics(module, fields["names"])
    return {}


CROPS: dict[str, Literal["crop", "stretch", "pad"]] = {"center": "crop", "squash": "stretch", "border": "pad"}
"""The modes of timm's `crop_mode`."""


def of_timm(module: Any, stated: Any = None) -> dict[str, Any]:
    """Return the facts of a model of timm: those of its `pretrained_cfg`, with the size for tests where it has one.

    A module that was built for another size (its patch embedding knows it) or for grey images takes these.

    Args:
        module: The module.
        stated: The configuration that replaces the module's own.
    """
    declared = stated or module.pretrained_cfg
    config: Mapping[str, Any] = declared if isinstance(declared, Mapping) else vars(declared)
    facts: dict[str, Any] = {}
    mean, std = config.get("mean"), config.get("std")
    if mean and std:
        is_grey = getattr(module, "in_chans", getattr(getattr(module, "patch_embed", None), "in_chans", 3)) == 1
        mean, std = ([sum(v) / len(v)] if is_grey else v for v in (mean, std))
        facts["preprocessing"] = normalisation(mean, std)
    size = config.get("test_input_size") or config.get("input_size")
    built = getattr(getattr(module, "patch_embed", None), "img_size", None)
    built = (built, built) if isinstance(built, int) else built
    if built and all(built):
        facts["size"] = tuple(built)
    elif size:
        facts["size"] = tuple(size)[1:]
    crop_pct = (config.get("test_input_size") and config.get("test_crop_pct")) or config.get("crop_pct") or 0.875
    facts["fit"] = Fit(
        CROPS.get(config.get("crop_mode") or "center", "crop"),
        crop_pct=crop_pct,
        interpolation=config.get("interpolation") or "bicubic",
        fill="mean",
        like="timm",
    )
    if getattr(module, "num_classes", 0) == config.get("num_classes", 1000) == 1000:
        facts["labels"] = labels.imagenet()
    return facts


def of_config(config: Any) -> dict[str, Any]:
    """Return the labels and the size that a Hugging Face configuration declares."""
    names = [config.id2label[i] for i in range(len(config.id2label))] if config.id2label else None
    side = getattr(config, "image_size", None)
    size = (side, side) if isinstance(side, int) else tuple(side) if isinstance(side, list | tuple) else None
    return {"labels": names, "size": size, "channels": getattr(config, "num_channels", None)}


def _cached_processor(config: Any) -> Mapping[str, Any]:
    """Return the image processor of the files that a live model was loaded from; none is downloaded."""
    hub, name = sys.modules.get("transformers"), getattr(config, "name_or_path", "")
    if hub is None or not name:
        return {}
    try:
        processor: Mapping[str, Any] = hub.ImageProcessingMixin.get_image_processor_dict(name, local_files_only=True)[
            0
        ]
    except Exception:  # no preprocessor_config.json there
        return {}
    return processor


def of_torchvision(weights: Any) -> dict[str, Any]:
    """Return the facts of torchvision's weights, of their transforms above all."""
    transforms = weights.transforms()
    size, resized = (getattr(transforms, name, None) or () for name in ("crop_size", "resize_size"))
    scaled = normalisation(transforms.mean, transforms.std) if hasattr(transforms, "mean") else PRESETS["unit"]
    return {
        "preprocessing": scaled,
        "labels": weights.meta.get("categories"),
        "size": (size[0], size[-1]) if size else None,
        "fit": _of_resizing(resized, bool(size), getattr(transforms, "interpolation", None)),
    }


def _of_resizing(resized: Sequence[int], is_cropped: bool, interpolation: Any) -> Fit | None:
    """Return the fit of torchvision's transforms; None where they do not resize.

    Args:
        resized: The shorter side, or (height, width).
        is_cropped: Whether the centre is cropped afterwards; else the size of the input follows from the image.
        interpolation: torchvision's InterpolationMode.
    """
    if not resized:
        return None
    name: Any = getattr(interpolation, "value", "bilinear")
    if len(resized) == 1:
        return Fit("crop" if is_cropped else "pad", resize=resized[0], interpolation=name, like="torchvision")
    return Fit("stretch", resize=(resized[0], resized[1]), interpolation=name)


def _of_ultralytics(module: nn.Module, names: Mapping[int, str]) -> dict[str, Any]:
    """Return the facts of a network of ultralytics, which takes 0…1."""
    facts: dict[str, Any] = {"preprocessing": PRESETS["unit"]}
    if all(isinstance(name, str) and not name.isdigit() for name in names.values()):  # numbers are not names
        facts["labels"] = [names[k] for k in sorted(names)]
    options = getattr(module, "args", None)
    side = options.get("imgsz") if isinstance(options, Mapping) else getattr(options, "imgsz", None)
    kind = type(module).__name__
    facts["fit"] = of_ultralytics("classify" if kind.startswith("Classification") else "detect", kind)
    return facts | ({"size": (side, side)} if isinstance(side, int) else {})
