"""The size, the scaling and the labels that the libraries of models state of a module."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from xcam.contract.preprocessing import PRESETS, Preprocessing, preset
from xcam.models import labels


def known(module: nn.Module) -> dict[str, Any]:
    """Return the facts that a live module declares: those of timm, Hugging Face or ultralytics."""
    config = getattr(module, "config", None)
    if config is not None and hasattr(config, "id2label"):
        inner = getattr(module, "timm_model", None)  # transformers' wrapper of timm
        facts = of_timm(inner) if isinstance(inner, nn.Module) and hasattr(inner, "pretrained_cfg") else {}
        return facts | {k: v for k, v in of_config(config).items() if v} | of_processor(_cached_processor(config))
    if getattr(module, "pretrained_cfg", None):
        return of_timm(module)
    fields = vars(module)  # a property of a wrapper may run code
    if isinstance(fields.get("names"), dict) and {"stride", "yaml"} <= set(fields):
        return _of_ultralytics(module, fields["names"])
    return {}


def normalisation(mean: Sequence[float], std: Sequence[float], scale: float = 1 / 255) -> Preprocessing:
    """Return (pixel · scale − mean) / std, as a preset where it is one."""
    return preset(Preprocessing("own", scale=scale, mean=tuple(map(float, mean)), std=tuple(map(float, std))))


def of_timm(module: nn.Module) -> dict[str, Any]:
    """Return the facts of a model of timm: those of its `pretrained_cfg`, with the size for tests where it has one.

    A module that was built for another size (its patch embedding knows it) or for grey images takes these.
    """
    declared = module.pretrained_cfg
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
    if getattr(module, "num_classes", 0) == config.get("num_classes", 1000) == 1000:
        facts["labels"] = labels.imagenet()
    return facts


def of_config(config: Any) -> dict[str, Any]:
    """Return the labels and the size that a Hugging Face configuration declares."""
    names = [config.id2label[i] for i in range(len(config.id2label))] if config.id2label else None
    side = getattr(config, "image_size", None)
    size = (side, side) if isinstance(side, int) else tuple(side) if isinstance(side, list | tuple) else None
    return {"labels": names, "size": size, "channels": getattr(config, "num_channels", None)}


def of_processor(processor: Mapping[str, Any]) -> dict[str, Any]:
    """Return the size and the scaling that a Hugging Face image processor applies; nothing for an empty one."""
    if not processor:
        return {}
    size = processor.get("crop_size") if processor.get("do_center_crop") else processor.get("size")
    size = processor.get("size") if size is None else size
    if isinstance(size, dict):
        side = size.get("shortest_edge")
        size = (size.get("height", side), size.get("width", side))
    elif isinstance(size, int):
        size = (size, size)
    scale = float(processor.get("rescale_factor", 1 / 255)) if processor.get("do_rescale", True) else 1.0
    mean, std, is_flipped = [0.0], [1.0], bool(processor.get("do_flip_channel_order"))
    if processor.get("do_normalize", not is_flipped) and "image_mean" in processor:
        mean, std = processor["image_mean"], processor["image_std"]
    if processor.get("include_top") and "image_std" in processor:  # EfficientNet's divides by std again
        std = [s * t for s, t in zip(std * 3 if len(std) == 1 else std, processor["image_std"], strict=True)]
    if processor.get("rescale_offset"):
        mean = [m + 1 for m in mean]
    scaling = normalisation(mean, std, scale)
    if is_flipped:
        scaling = replace(scaling, name=f"{scaling.name}, BGR", order="BGR")
    return {"preprocessing": scaling} | ({"size": tuple(size)} if size and None not in size else {})


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
    size = getattr(transforms, "crop_size", None) or getattr(transforms, "resize_size", None) or ()
    scaled = normalisation(transforms.mean, transforms.std) if hasattr(transforms, "mean") else PRESETS["unit"]
    return {
        "preprocessing": scaled,
        "labels": weights.meta.get("categories"),
        "size": (size[0], size[-1]) if size else None,
    }


def _of_ultralytics(module: nn.Module, names: Mapping[int, str]) -> dict[str, Any]:
    """Return the facts of a network of ultralytics, which takes 0…1."""
    facts: dict[str, Any] = {"preprocessing": PRESETS["unit"]}
    if all(isinstance(name, str) and not name.isdigit() for name in names.values()):  # numbers are not names
        facts["labels"] = [names[k] for k in sorted(names)]
    options = getattr(module, "args", None)
    side = options.get("imgsz") if isinstance(options, Mapping) else getattr(options, "imgsz", None)
    return facts | ({"size": (side, side)} if isinstance(side, int) else {})
