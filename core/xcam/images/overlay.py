"""Overlays: a heatmap in colours on an image, contours, and signed maps. RGB in, RGB out."""

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
"""Arguments without effect on a style."""


def colormaps() -> list[str]:
    """Return the names of OpenCV's colormaps in lower case, sorted."""
    cv2 = opencv.load()
    return sorted(name.removeprefix("COLORMAP_").lower() for name in dir(cv2) if name.startswith("COLORMAP_"))


def lookup_table(colormap: str) -> Image:
    """Return the 256 colours of a colormap, RGB uint8 [256, 1, 3].

    Raises:
        InputError: The colormap does not exist.
    """
    cv2 = opencv.load()
    number = getattr(cv2, f"COLORMAP_{colormap.upper()}", None)
    if number is None:
        raise InputError(f"unknown colormap {colormap!r}; {nearest(colormap, colormaps())}")
    ramp = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], number)
    return np.ascontiguousarray(ramp[..., ::-1])


DIVERGING = ((33, 102, 172), (247, 247, 247), (178, 24, 43))
"""The colours at −1, 0 and 1: ends and middle of ColorBrewer's RdBu, which is safe for colour-blind readers."""


def diverging() -> Image:
    """Return 256 colours from blue over white to red, RGB uint8 [256, 1, 3]."""
    positions = np.linspace(0, 2, 256)
    channels = [np.interp(positions, (0, 1, 2), channel) for channel in zip(*DIVERGING, strict=True)]
    return np.stack(channels, axis=-1)[:, None].astype(np.uint8)


def signed_overlay(image: Image, heatmap: npt.NDArray[np.float32], alpha: float = 0.5) -> Image:
    """Draw a signed map: red where it is positive, blue where it is negative, the unchanged image where it is zero.

    The share of the colour in a pixel is min(1.6·alpha·√|value|, 1).

    Args:
        image: RGB uint8 [H, W, 3].
        heatmap: float [H, W] in −1…1.
        alpha: The strength of the colours, 0…1.

    Returns:
        RGB uint8 [H, W, 3].

    Raises:
        InputError: The sizes differ, or alpha is out of range.
    """
    _check(image, heatmap, alpha)
    table, out = diverging()[:, 0], np.empty(image.shape, np.uint8)
    for rows in _strips(image):
        level = np.clip(np.rint(heatmap[rows] * 127.5 + 127.5), 0, 255).astype(np.uint8)
        share = np.minimum(1.6 * alpha * np.sqrt(np.abs(heatmap[rows])), 1)[..., None]
        out[rows] = np.rint(image[rows] * (1 - share) + table[level] * share)
    return out


def check_drawing(style: Style = "heat", alpha: float = 0.5, colormap: str = "jet", blend: Blend = "mix") -> None:
    """Check the arguments of a drawing.

    Raises:
        InputError: A style, colormap or blend is unknown, or an argument has no effect on the style.
    """
    if style not in get_args(Style):
        raise InputError(f"unknown style {style!r}; {nearest(str(style), get_args(Style))}")
    if blend not in get_args(Blend):
        raise InputError(f"unknown blend {blend!r}; {nearest(str(blend), get_args(Blend))}")
    lookup_table(colormap)
    changed = {"alpha": alpha != 0.5, "colormap": colormap != "jet", "blend": blend != "mix"}
    for name in UNUSED[style]:
        if changed[name]:
            raise InputError(f"{name} has no effect on style {style!r}; leave it out, or choose another style")


def contours(
    image: Image,
    heatmap: npt.NDArray[np.float32],
    colormap: str = "jet",
    levels: tuple[float, ...] = (0.25, 0.5, 0.75),
) -> Image:
    """Draw contour lines of a heatmap, in the colours of their levels.

    Args:
        image: RGB uint8 [H, W, 3].
        heatmap: float [H, W] in 0…1.
        colormap: A name from `colormaps()`.
        levels: The values of the contours, in 0…1.

    Returns:
        RGB uint8 [H, W, 3].

    Raises:
        InputError: The sizes differ, or the colormap does not exist.
    """
    cv2 = opencv.load()
    _check(image, heatmap, 1.0)
    table = lookup_table(colormap)
    out = image.copy()
    width = max(1, round(max(image.shape[:2]) / 256))
    for level in levels:
        lines, _ = cv2.findContours((heatmap >= level).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        dark, colour = (0, 0, 0), tuple(int(v) for v in table[round(level * 255), 0])
        cv2.drawContours(out, lines, -1, dark, width + 1, cv2.LINE_AA)
        cv2.drawContours(out, lines, -1, colour, width, cv2.LINE_AA)
    return out


def _strips(image: Image) -> Iterator[slice]:
    """Yield slices of 64 rows: they fit into the cache (a third less time for 12 megapixels) and keep temporaries small."""
    return (slice(top, top + 64) for top in range(0, image.shape[0], 64))


def _check(image: Image, heatmap: npt.NDArray[np.float32], alpha: float) -> None:
    """Raise InputError for a map of another size than the image, or an alpha outside 0…1."""
    if not 0 <= alpha <= 1:
        raise InputError(f"cannot use alpha={alpha}; give a number from 0 (the image) to 1 (the colours)")
    if heatmap.shape != image.shape[:2]:
        raise InputError(f"the heatmap has the size {heatmap.shape}, the image {image.shape[:2]}; resize one of them")


def overlay(
    image: Image,
    heatmap: npt.NDArray[np.float32],
    alpha: float = 0.5,
    colormap: str = "jet",
    blend: Blend = "mix",
) -> Image:
    """Blend the colours of a heatmap with an image.

    Args:
        image: RGB uint8 [H, W, 3].
        heatmap: float [H, W] in 0…1.
        alpha: The weight of the colours, 0…1.
        colormap: A name from `colormaps()`.
        blend: `mix` for (1 − alpha)·image + alpha·colour; `add` for image + alpha·colour, clipped to 255, as in the
            Grad-CAM example of Keras.

    Returns:
        RGB uint8 [H, W, 3].

    Raises:
        InputError: The sizes differ, alpha is out of range, or the colormap or blend does not exist.
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


def drawn(
    image: Image, heatmap: npt.NDArray[np.float32], style: Style, alpha: float, colormap: str, blend: Blend
) -> Image:
    """Draw a heatmap in a style; see `overlay`, `contours` and `signed_overlay` (whose values are in −1…1)."""
    if style == "signed":
        return signed_overlay(image, heatmap, alpha)
    if style == "contour":
        return contours(image, heatmap, colormap)
    return overlay(image, heatmap, alpha, colormap, blend)
