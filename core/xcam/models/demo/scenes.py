"""Random scenes: shapes on cluttered, textured backgrounds, with a mask of each shape.

The same state of the random generator gives the same scene.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xcam.images import opencv
from xcam.images.reading import Image

CLASSES = ("disc", "square", "triangle", "star", "cross", "ring")
SUPERSAMPLING = 3
"""The factor by which scenes are drawn larger; area averaging then shrinks them."""


@dataclass(frozen=True)
class Shape:
    """One shape in a scene."""

    label: int
    """Index into CLASSES."""
    mask: npt.NDArray[np.bool_]
    """bool [H, W], true within the outline (the hole of a ring included)."""


@dataclass(frozen=True)
class Scene:
    """An image with its shapes."""

    image: Image
    """uint8 [H, W, 3]."""
    shapes: tuple[Shape, ...]
    """The shapes in the order in which they were requested."""


def scene(rng: np.random.Generator, labels: Sequence[int], size: int = 128) -> Scene:
    """Draw shapes that do not overlap.

    Args:
        rng: The source of randomness.
        labels: Indices into CLASSES, one for each shape.
        size: Height and width of the image in pixels.

    Returns:
        The scene.
    """
    cv2 = opencv.load()
    big = size * SUPERSAMPLING
    image = _clutter(rng, _texture(rng, big))
    shapes = []
    for label, (x, y, radius) in zip(labels, _circles(rng, len(labels), big), strict=True):
        outline = _outline(rng, label, x, y, radius)
        mask = np.zeros((big, big), np.uint8)
        cv2.fillPoly(mask, [outline], 255)
        paint = mask.copy()
        if CLASSES[label] == "ring":
            cv2.circle(paint, (int(x), int(y)), int(radius * rng.uniform(0.5, 0.62)), 0, -1)
        image = _fill(rng, image, paint)
        small = cv2.resize(mask, (size, size), interpolation=cv2.INTER_AREA)
        shapes.append(Shape(label, np.asarray(small) >= 128))
    noise = rng.normal(0, rng.uniform(2, 10), (size, size, 3))
    small = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)
    return Scene(np.clip(small + noise, 0, 255).astype(np.uint8), tuple(shapes))


def _circles(rng: np.random.Generator, count: int, size: int) -> list[tuple[float, float, float]]:
    """Return (x, y, radius) of `count` circles that neither touch each other nor leave the image."""
    while True:
        radii = rng.uniform(0.12, 0.2, count) * size
        centres = [rng.uniform(r, size - r, 2) for r in radii]
        apart = all(
            np.hypot(*(centres[i] - centres[j])) > 1.1 * (radii[i] + radii[j]) for i in range(count) for j in range(i)
        )
        if apart:
            return [(float(c[0]), float(c[1]), float(r)) for c, r in zip(centres, radii, strict=True)]


def _outline(rng: np.random.Generator, label: int, x: float, y: float, radius: float) -> npt.NDArray[np.int32]:
    """Return the corners of a shape within a circle, turned at random, int32 [K, 2]."""
    turn = rng.uniform(0, 2 * np.pi)
    match CLASSES[label]:
        case "disc" | "ring":
            polar = [(1.0, 2 * np.pi * k / 72) for k in range(72)]
        case "square":
            polar = [(1.0, np.pi / 2 * k) for k in range(4)]
        case "triangle":
            polar = [(1.0, 2 * np.pi / 3 * k) for k in range(3)]
        case "star":
            polar = [(1.0 if k % 2 == 0 else 0.42, np.pi / 5 * k) for k in range(10)]
        case _:  # cross: three corners in each quarter turn
            arm = np.arctan2(0.3, 1.0)
            inner = 0.3 * np.sqrt(2)
            polar = [
                corner
                for k in range(4)
                for corner in (
                    (1.0, np.pi / 2 * k - arm),
                    (1.0, np.pi / 2 * k + arm),
                    (inner, np.pi / 2 * k + np.pi / 4),
                )
            ]
    points = [(x + radius * r * np.cos(a + turn), y + radius * r * np.sin(a + turn)) for r, a in polar]
    return np.rint(points).astype(np.int32)


def _texture(rng: np.random.Generator, size: int) -> Image:
    """Return coloured noise at several scales around a random base colour, uint8 [size, size, 3]."""
    cv2 = opencv.load()
    image = np.full((size, size, 3), rng.uniform(50, 205, 3), np.float32)
    for cells in (3, 8, 24, 64):
        noise = rng.normal(0, rng.uniform(4, 22), (cells, cells, 3 if cells < 20 else 1)).astype(np.float32)
        grown = cv2.resize(noise, (size, size), interpolation=cv2.INTER_LINEAR)
        image += grown if grown.ndim == 3 else grown[..., None]
    return np.clip(image, 0, 255).astype(np.uint8)


def _clutter(rng: np.random.Generator, image: Image) -> Image:
    """Draw strokes, open arcs, bars and specks, which belong to no class, into the image."""
    cv2 = opencv.load()
    size = image.shape[0]
    for _ in range(rng.integers(6, 16)):
        colour = rng.uniform(0, 255, 3).tolist()
        x, y = rng.uniform(0, size, 2).astype(int).tolist()
        turn = float(rng.uniform(0, 360))
        match rng.integers(4):
            case 0:
                end = (rng.uniform(-0.4, 0.4, 2) * size + (x, y)).astype(int).tolist()
                cv2.line(image, (x, y), end, colour, int(rng.integers(2, 8)), cv2.LINE_AA)
            case 1:
                axes = (rng.uniform(0.06, 0.2, 2) * size).astype(int).tolist()
                span = float(rng.uniform(60, 150))
                cv2.ellipse(image, (x, y), axes, turn, 0, span, colour, int(rng.integers(2, 8)), cv2.LINE_AA)
            case 2:
                sides = (float(rng.uniform(0.15, 0.4) * size), float(rng.uniform(0.015, 0.04) * size))
                cv2.fillPoly(image, [cv2.boxPoints(((x, y), sides, turn)).astype(np.int32)], colour)
            case _:
                for _ in range(8):
                    spot = (rng.normal(0, 0.05, 2) * size + (x, y)).astype(int).tolist()
                    cv2.circle(image, spot, int(rng.integers(2, 6)), colour, -1)
    return image


def _fill(rng: np.random.Generator, image: Image, paint: npt.NDArray[np.uint8]) -> Image:
    """Fill the pixels where `paint` is not 0 with a textured colour that contrasts with the background."""
    inside = paint > 0
    base = image[inside].mean(axis=0)
    texture = _texture(rng, image.shape[0]).astype(np.float32)
    for _ in range(20):
        colour = rng.uniform(0, 255, 3)
        if np.abs(colour - base).mean() > 60:
            break
    texture += (colour - texture[inside].mean(axis=0)).astype(np.float32)
    image[inside] = np.clip(texture[inside], 0, 255).astype(np.uint8)
    return image
