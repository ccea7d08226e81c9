"""The inputs of measures, by parameter name, for a batch of N images explained by one method.

    heatmap         [N, H, W]: the map after ReLU, scaled to a maximum of 1, at the size of the model's input
    heatmaps        N arrays [h, w]: the same at the size of each image
    masks           N boolean arrays [h, w]: the pixels of the object; None for an image where they are unknown
    x               [N, channels, H, W]: the images as the model takes them, channels first
    score           x, rows → [K]: the target's value for changed images; for a class, its probability
    clean           [N]: this value for the unchanged images
    masked          [N]: this value for x·heatmap, the image seen through its map; −∞ where the map is all zero, because
                    nothing of the image is visible
    masked_heatmap  [N, H, W]: the map of x·heatmap, for the same target
    explain         x, rows → [K, H, W]: the maps of changed images, for the same target
    cams            [N, h, w]: the raw map at the layer's size, before ReLU: many of the shuffled ones would be empty after it
    shuffled        S arrays [N, h, w]: the raw maps after the weights of more and more layers are shuffled, last layer first

`rows` holds, for each variant, the index of its image. A value that a measure does not have for an image is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from xcam.methods.inputs import Runner, generator, scored
from xcam.methods.maps import Array

Masks = Sequence[Array | None]
Explain = Runner
"""Changed images and the row of each → their maps [K, H, W]."""

VARIANTS = 16
"""Changed images in one forward pass. More gain little on a CPU, and cost memory."""


def order(heatmap: Array, seed: int) -> Array:
    """Return the pixel indices of each map, the highest values first: [N, H, W] → [N, H·W].

    Equal values (a map has many zeros) are in random order, the same for the same seed. In the order of the rows, as a
    sort leaves them, a measure would see an edge that the map does not have.
    """
    flat = heatmap.reshape(len(heatmap), -1)
    shuffled = generator(seed).permutation(flat.shape[1])
    return shuffled[np.argsort(-flat[:, shuffled], axis=1, kind="stable")]


def curves(score: Runner, x: Array, counts: Sequence[int], change: Callable[[int, int], Array], label: str) -> Array:
    """Return the scores of images with more and more changed pixels, [N, len(counts)].

    Args:
        score: The target's value, as described above.
        x: The images [N, channels, H, W].
        counts: Numbers of changed pixels.
        change: (row, count) → image `row` with `count` pixels changed.
        label: The name of the measure in the progress bar.
    """

    def values(row: int) -> Array:
        def make(part: slice) -> Array:
            return np.stack([change(row, count) for count in counts[part]])

        return scored(score, row, len(counts), make, x[row].nbytes, label, VARIANTS)

    return np.stack([values(row) for row in range(len(x))])


def unrolled(x: Array) -> Array:
    """Flatten the spatial axes: [channels, H, W] → [channels, H·W], a view."""
    return x.reshape(len(x), -1)
