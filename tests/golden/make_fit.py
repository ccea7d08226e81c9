"""Fit images to sizes with other libraries; see README.md.

    python make_fit.py torch     creates fit.npz: Pillow, torchvision, timm, transformers, ultralytics
    python make_fit.py keras     adds Keras

The name of an array is IMAGE/LIBRARY/FIT/HxW, with FIT in the text form of xcam.Fit.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}

import numpy as np

FILE = Path(__file__).parent / "fit.npz"
SIZES = (45, 75), (52, 31)
Fitted = Iterator[tuple[str, str, Any]]


def image(height: int, width: int) -> np.ndarray:
    """Return an image of waves, with noise."""
    rng = np.random.default_rng(height)
    y, x = (axis[..., None] for axis in np.mgrid[:height, :width])
    waves = 128 + 90 * np.sin(0.3 * y + rng.uniform(0, 6, 3)) * np.sin(0.2 * x + rng.uniform(0, 6, 3))
    return np.clip(waves + rng.normal(0, 40, (height, width, 1)), 0, 255).astype(np.uint8)


def of_pillow(pixels: np.ndarray) -> Fitted:
    """Yield stretched images."""
    from PIL import Image

    for name in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"):
        for size in ((16, 16), (48, 40)):
            resized = Image.fromarray(pixels).resize(size[::-1], getattr(Image.Resampling, name.upper()))
            yield f"stretch:interpolation={name}", f"{size[0]}x{size[1]}", resized


def of_torchvision(pixels: np.ndarray) -> Fitted:
    """Yield crops of PIL images and of tensors, and images whose shorter side is resized."""
    import torch
    from PIL import Image
    from torchvision.transforms import InterpolationMode, v2

    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for name, (side, crop) in itertools.product(("bilinear", "bicubic"), ((28, 25), (20, 29))):
        fit = f"crop:resize={side},interpolation={name}"
        transform = v2.Compose([v2.Resize(side, InterpolationMode(name), antialias=True), v2.CenterCrop(crop)])
        yield fit, f"{crop}x{crop}", transform(Image.fromarray(pixels))
        yield f"{fit},like=torchvision", f"{crop}x{crop}", transform(tensor).permute(1, 2, 0)
        if name == "bilinear":
            plain = v2.Compose([v2.Resize(side, antialias=False), v2.CenterCrop(crop)])
            yield f"{fit},antialias=no", f"{crop}x{crop}", plain(tensor).permute(1, 2, 0)
    yield "pad:resize=30,longest=40,like=torchvision", "any", v2.Resize(30, max_size=40)(Image.fromarray(pixels))


def of_timm(pixels: np.ndarray) -> Fitted:
    """Yield the images of timm's transforms for evaluation."""
    from PIL import Image
    from timm.data import create_transform

    modes = {"center": "crop", "squash": "stretch", "border": "pad"}
    cases = itertools.product(modes, ("bilinear", "bicubic"), (0.875, 1.0), ((24, 24), (20, 28)))
    for mode, name, share, (height, width) in cases:
        transform = create_transform(
            (3, height, width),
            interpolation=name,
            crop_pct=share,
            crop_mode=mode,
            mean=(0.5, 0.4, 0.3),
            use_prefetcher=True,
        )
        fill = ",fill=128/102/76" if mode == "border" else ""
        fit = f"{modes[mode]}:crop_pct={share},interpolation={name},like=timm{fill}"
        yield fit, f"{height}x{width}", np.asarray(transform(Image.fromarray(pixels))).transpose(1, 2, 0)


def of_transformers(pixels: np.ndarray) -> Fitted:
    """Yield the images of Hugging Face's image processors."""
    import transformers
    from PIL import Image

    side = {"height": 28, "width": 28}
    plain: dict[str, Any] = {"do_rescale": False, "do_normalize": False, "return_tensors": "np"}
    for name, fit, size, options in (
        ("CLIP", "crop:resize=32,interpolation=bicubic", "28x28", {"size": {"shortest_edge": 32}, "crop_size": side}),
        ("CLIP", "crop:resize=21,interpolation=bicubic", "28x28", {"size": {"shortest_edge": 21}, "crop_size": side}),
        ("ViT", "stretch:interpolation=bilinear", "28x28", {"size": side}),
        (
            "DeiT",
            "stretch:resize=32x32,interpolation=bicubic",
            "28x28",
            {"size": {"height": 32, "width": 32}, "crop_size": side},
        ),
        (
            "ConvNext",
            "crop:resize=32,interpolation=bicubic",
            "28x28",
            {"size": {"shortest_edge": 28}, "crop_pct": 0.875},
        ),
        ("Detr", "pad:resize=30,longest=40", "any", {"size": {"shortest_edge": 30, "longest_edge": 40}}),
    ):
        processor = getattr(transformers, f"{name}ImageProcessor")(**options, **plain)
        values = np.asarray(processor(Image.fromarray(pixels))["pixel_values"])[0].transpose(1, 2, 0)
        yield f"{fit}{',' if ':' in fit else ':'}like=transformers", size, np.rint(values)


def of_ultralytics(pixels: np.ndarray) -> Fitted:
    """Yield letterboxes, and the crops of classifiers."""
    from PIL import Image
    from ultralytics.data.augment import LetterBox, classify_transforms

    for size, centred, enlarge in itertools.product(((24, 24), (55, 41)), (True, False), (True, False)):
        letterbox = LetterBox(size, auto=False, center=centred, scaleup=enlarge)
        fit = f"letterbox:centred={'yes' if centred else 'no'},enlarge={'yes' if enlarge else 'no'}"
        yield fit, f"{size[0]}x{size[1]}", letterbox(image=pixels)
    cropped = classify_transforms(28)(Image.fromarray(pixels)).permute(1, 2, 0)
    yield "crop", "28x28", np.rint(cropped.numpy() * 255)


def of_keras(pixels: np.ndarray) -> Fitted:
    """Yield the images of smart_resize and of the layer Resizing."""
    import keras

    for height, width in ((24, 24), (20, 36)):
        fit = "interpolation=bilinear,antialias=no,like=keras"
        smart = keras.utils.img_to_array(keras.preprocessing.image.smart_resize(pixels, (height, width)))
        yield f"crop:{fit}", f"{height}x{width}", np.rint(smart)
        padded = keras.layers.Resizing(height, width, pad_to_aspect_ratio=True)(pixels[None].astype(np.float32))[0]
        yield f"pad:{fit}", f"{height}x{width}", np.rint(np.asarray(padded))


LIBRARIES = {
    "pillow": of_pillow,
    "torchvision": of_torchvision,
    "timm": of_timm,
    "transformers": of_transformers,
    "ultralytics": of_ultralytics,
    "keras": of_keras,
}


def main(kind: str) -> None:
    """Write the file, or add to it."""
    chosen = [name for name in LIBRARIES if (name == "keras") == (kind == "keras")]
    arrays: dict[str, np.ndarray] = {}
    if kind == "keras":
        with np.load(FILE) as content:
            arrays = {name: content[name] for name in content.files}
    for k, size in enumerate(SIZES):
        pixels = image(*size)
        arrays[f"images/{k}"] = pixels
        for library in chosen:
            for fit, wanted, fitted in LIBRARIES[library](pixels):
                arrays[f"{k}/{library}/{fit}/{wanted}"] = np.asarray(fitted).astype(np.uint8)
    versions = [f"{name} {version(name)}" for name in chosen]
    arrays["versions"] = np.array([*arrays.get("versions", []), *versions])
    np.savez_compressed(FILE, **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
