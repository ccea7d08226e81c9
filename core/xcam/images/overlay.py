"""Colour on a picture: a heatmap through a colormap, blended with the image. RGB in, RGB out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from xcam.errors import InputError, nearest
from xcam.images import opencv
from xcam.images.reading import Image

Blend = Literal["mix", "add"]
Style = Literal["heat", "contour", "signed"]
UNUSED = {"heat": (), "contour": ("alpha", "blend"), "signed": ("colormap", "blend")}
"""What has no effect in a style."""


def colormaps() -> list[str]:
    """The names that `colormap` takes: OpenCV's colormaps, in lower case."""
    cv2 = opencv.load()
    return sorted(name.removeprefix("COLORMAP_").lower() for name in dir(cv2) if name.startswith("COLORMAP_"))


def lookup_table(colormap: str) -> Image:
    """The 256 colours of a colormap, uint8 [256, 1, 3] RGB. Raises InputError."""
    cv2 = opencv.load()
    number = getattr(cv2, f"COLORMAP_{colormap.upper()}", None)
    if number is None:
        raise InputError(f"no colormap {colormap!r}; {nearest(colormap, colormaps())}")
    ramp = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], number)
    return np.ascontiguousarray(ramp[..., ::-1])


DIVERGING = ((33, 102, 172), (247, 247, 247), (178, 24, 43))
"""Against, neither, for: the ends and the middle of ColorBrewer's RdBu, which people who are colour-blind tell apart."""


def diverging() -> Image:
    """256 colours from blue over white to red, uint8 [256, 1, 3] RGB."""
    at = np.linspace(0, 2, 256)
    return np.stack([np.interp(at, (0, 1, 2), channel) for channel in zip(*DIVERGING, strict=True)], axis=-1)[
        :, None
    ].astype(np.uint8)


def signed_overlay(image: Image, heatmap: npt.NDArray[np.float32], alpha: float = 0.5) -> Image:
    """A signed map [H, W] in −1…1 over an RGB picture: red speaks for the target, blue against it.

    Each place takes on as much colour as its magnitude says: where the map is zero, the picture shows unchanged.
    """
    _check(image, heatmap, alpha)
    table, out = diverging()[:, 0], np.empty(image.shape, np.uint8)
    for rows in _strips(image):
        level = np.clip(np.rint(heatmap[rows] * 127.5 + 127.5), 0, 255).astype(np.uint8)
        share = np.minimum(1.6 * alpha * np.sqrt(np.abs(heatmap[rows])), 1)[..., None]
        out[rows] = np.rint(image[rows] * (1 - share) + table[level] * share)
    return out


def check_drawing(style: Style = "heat", alpha: float = 0.5, colormap: str = "jet", blend: Blend = "mix") -> None:
    """Raises InputError for an unknown word, and for one that the style has no use for."""
    if style not in get_args(Style):
        raise InputError(f"no style {style!r}; {nearest(str(style), get_args(Style))}")
    if blend not in get_args(Blend):
        raise InputError(f"no blend {blend!r}; {nearest(str(blend), get_args(Blend))}")
    lookup_table(colormap)
    changed = {"alpha": alpha != 0.5, "colormap": colormap != "jet", "blend": blend != "mix"}
    for name in UNUSED[style]:
        if changed[name]:
            raise InputError(f"{name} has no effect on style {style!r}; leave it out, or draw another style")


def contours(
    image: Image,
    heatmap: npt.NDArray[np.float32],
    colormap: str = "jet",
    levels: tuple[float, ...] = (0.25, 0.5, 0.75),
) -> Image:
    """Lines of equal height of a map [H, W] in 0…1 over an RGB picture, in the colours of their levels."""
    cv2 = opencv.load()
    _check(image, heatmap, 1.0)
    table = lookup_table(colormap)
    out = image.copy()
    width = max(1, round(max(image.shape[:2]) / 256))
    for level in levels:
        found, _ = cv2.findContours((heatmap >= level).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        dark, colour = (0, 0, 0), tuple(int(v) for v in table[round(level * 255), 0])
        cv2.drawContours(out, found, -1, dark, width + 1, cv2.LINE_AA)
        cv2.drawContours(out, found, -1, colour, width, cv2.LINE_AA)
    return out


def _strips(image: Image) -> Iterator[slice]:
    """Rows that stay in the cache: a third less time on a picture of 12 megapixels, and no large array in between."""
    return (slice(top, top + 64) for top in range(0, image.shape[0], 64))


def _check(image: Image, heatmap: npt.NDArray[np.float32], alpha: float) -> None:
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha is {alpha}; give a number from 0 (the picture) to 1 (the colours)")
    if heatmap.shape != image.shape[:2]:
        raise InputError(f"the heatmap is {heatmap.shape}, the picture {image.shape[:2]}; resize one of them")


def overlay(
    image: Image,
    heatmap: npt.NDArray[np.float32],
    alpha: float = 0.5,
    colormap: str = "jet",
    blend: Blend = "mix",
) -> Image:
    """Blend a heatmap [H, W] in 0…1 over an RGB picture uint8 [H, W, 3] of the same size.

    `mix`: (1 − alpha)·image + alpha·colour. `add`: image + alpha·colour, clipped to 255: the overlay of the classic
    Keras recipe, at its factor 0.5. alpha is in 0…1. Raises InputError.
    """
    cv2 = opencv.load()
    _check(image, heatmap, alpha)
    check_drawing(blend=blend)
    table = lookup_table(colormap)
    keep = 1 - alpha if blend == "mix" else 1.0
    out = np.empty(image.shape, np.uint8)
    for rows in _strips(image):
        level = np.multiply(heatmap[rows], 255, dtype=np.float32).astype(np.uint8)
        cv2.addWeighted(cv2.applyColorMap(level, table), alpha, image[rows], keep, 0, dst=out[rows])
    return out
