"""What a measure may ask for by the name of a parameter, for a batch of N pictures that one method has explained.

    heatmap   [N, H, W]: the map, 0 or more, 1 at its highest place, at the size of the model's input
    heatmaps  N arrays [h, w]: the same at each picture's own size
    masks     N arrays [h, w] of bool: where the object is; None for a picture of which it is not known
    x         [N, channels, H, W]: the pictures as the model takes them, channels first
    score     x, rows → [K]: the target's value for changed pictures. Of a class this is its probability
    clean     [N]: that value for the pictures themselves
    masked    [N]: … and for x·heatmap, the pictures seen through their maps; −∞ where the map is zero everywhere: nothing is
              seen
    again     [N, H, W]: the map of x·heatmap, for the same target
    explain   x, rows → [K, H, W]: the maps of changed pictures, for the same target
    cams      [N, h, w]: the map at the layer's size, before ReLU, which would make many of the shuffled ones empty
    shuffled  S arrays [N, h, w]: the same after the weights of more and more layers were shuffled, the last layer first

`rows` says which picture each variant belongs to. A value that a measure does not have for a picture is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from xcam.methods.inputs import Runner, generator, scored
from xcam.methods.maps import Array

Masks = Sequence[Array | None]
Explain = Runner
"""Changed pictures and the row of each → their maps [K, H, W]."""

TOGETHER = 16
"""Changed pictures in one forward pass: more gain little on a CPU, and cost memory."""


def order(heatmap: Array, seed: int) -> Array:
    """For each map [N, H, W] its places [N, H·W], the highest first.

    Equal places (a map has many that are zero) come in a random order, the same for the same seed: row by row, as
    sorting leaves them, a measure would see an edge that the map does not have.
    """
    flat = heatmap.reshape(len(heatmap), -1)
    shuffled = generator(seed).permutation(flat.shape[1])
    return shuffled[np.argsort(-flat[:, shuffled], axis=1, kind="stable")]


def curves(score: Runner, x: Array, counts: Sequence[int], change: Callable[[int, int], Array], what: str) -> Array:
    """[N, len(counts)] values of changed pictures: `change(row, count)` is picture `row` with `count` places changed."""

    def values(row: int) -> Array:
        def make(part: slice) -> Array:
            return np.stack([change(row, count) for count in counts[part]])

        return scored(score, row, len(counts), make, x[row].nbytes, what, TOGETHER)

    return np.stack([values(row) for row in range(len(x))])


def unrolled(x: Array) -> Array:
    """[channels, H, W] → [channels, H·W]."""
    return x.reshape(len(x), -1)
