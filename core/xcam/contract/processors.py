"""Hugging Face's image processors: the size, the scaling and the fit that a `preprocessor_config.json` states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from xcam.contract.fit import Fit, Interpolation
from xcam.contract.preprocessing import Preprocessing, preset

RESAMPLING: dict[int, Interpolation] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
    5: "hamming",
}
"""PIL's numbers of the interpolations."""
SHORTER = (
    "CLIP",
    "ConvNext",
    "ConvNeXT",
    "Levit",
    "PoolFormer",
    "MobileNet",
    "MobileViT",
    "Bit",
    "Vilt",
    "Regnet",
    "ResNet",
)
"""The processors whose `size`, where it is one number, is the shorter side."""
DETR = ("Detr", "Yolos", "ConditionalDetr", "DeformableDetr", "Deta", "MaskFormer", "Mask2Former", "OneFormer")
"""The processors that keep the ratio between a shorter and a longer side."""


def normalisation(mean: Sequence[float], std: Sequence[float], scale: float = 1 / 255) -> Preprocessing:
    """Return (pixel · scale − mean) / std, as a preset where it is one."""
    return preset(Preprocessing("own", scale=scale, mean=tuple(map(float, mean)), std=tuple(map(float, std))))


def facts(processor: Mapping[str, Any]) -> dict[str, Any]:
    """Return the size, the scaling and the fit of an image processor; nothing for an empty one.

    Args:
        processor: The content of a `preprocessor_config.json`.

    Returns:
        `preprocessing`; `size` (height, width), None where it follows from the image; `fit`, where the processor resizes.
    """
    if not processor:
        return {}
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
    return {"preprocessing": scaling} | _geometry(processor)


def _geometry(processor: Mapping[str, Any]) -> dict[str, Any]:
    """Return the size and the fit."""
    name = str(processor.get("image_processor_type") or processor.get("feature_extractor_type") or "")
    name = (
        name.removesuffix("Fast").removesuffix("Pil").removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    )
    is_shorter = name.startswith((*SHORTER, *DETR))
    size, crop = _sides(processor.get("size"), is_shorter), _sides(processor.get("crop_size"), False)
    is_cropped = bool(processor.get("do_center_crop")) and crop is not None
    input_size = crop if is_cropped and isinstance(crop, tuple) else size
    if isinstance(input_size, int):
        input_size = (input_size, input_size)
    options: dict[str, Any] = {
        "interpolation": RESAMPLING.get(processor.get("resample", 2), "bilinear"),
        "like": "transformers",
    }
    if size is None or not processor.get("do_resize", True):
        return {"size": input_size} if input_size and is_cropped else {}
    longest = (
        (processor.get("size") or {}).get("longest_edge") if isinstance(processor.get("size"), Mapping) else None
    )
    longest = longest or processor.get("max_size")
    pct = processor.get("crop_pct")
    if isinstance(size, tuple):
        if processor.get("do_thumbnail"):  # Donut's: not for classes
            return {"size": size}
        if name.startswith("Owl") and processor.get("do_pad"):  # to a square first
            return {"size": size, "fit": Fit("pad", centred=False, like="keras")}
        return {"size": input_size, "fit": Fit("stretch", resize=size if size != input_size else None, **options)}
    if name.startswith(DETR) or longest:
        divisor = int(processor.get("size_divisor") or 1) if name.startswith(("Mask", "OneF")) else 1
        return {
            "size": None,
            "fit": Fit("pad", resize=size, longest=longest, multiple=divisor, fill="mean", centred=False, **options),
        }
    if name.startswith(("ConvNext", "ConvNeXT")):
        if size >= 384:
            return {"size": input_size, "fit": Fit("stretch", **options)}
        return {"size": input_size, "fit": Fit("crop", resize=int(size / (pct or 0.875)), **options)}
    if name.startswith("Levit"):
        size = int(256 / 224 * size)
    elif pct:
        size = int(size / pct)
    if not is_cropped and name.startswith("Vilt"):
        return {"size": None}
    return {"size": input_size, "fit": Fit("crop", resize=size, **options)}


def _sides(value: Any, is_shorter: bool) -> int | tuple[int, int] | None:
    """Return the shorter side, (height, width), or None where it is not stated."""
    if isinstance(value, Mapping):
        if value.get("height") and value.get("width"):
            return int(value["height"]), int(value["width"])
        side = value.get("shortest_edge")
        return int(side) if side else None
    if isinstance(value, list | tuple) and len(value) == 2:
        return int(value[0]), int(value[1])
    if isinstance(value, int):
        return value if is_shorter else (value, value)
    return None
