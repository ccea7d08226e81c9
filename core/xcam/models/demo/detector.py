"""The demo detector: a small trained network that finds the six shapes of the scenes, with one scale of boxes.

Its output is [N, 4 + 6, 256], as that of YOLOv8: the centre, width and height of each box in pixels of the input, and the
probability of each class, at each of 16 × 16 cells. Every backend builds `network()` with its framework's layers.
"""

from __future__ import annotations

from functools import cache

from xcam.models.demo import Conv, Network, Pool, read

WEIGHTS = "detector.npz"
NAME = "demo-detector"
BOXES, CLASSES = "boxes", "classes"
"""The names of the last convolutions, 1×1 and without an activation: four numbers, and six logits, for each cell."""
STRIDE = 8
"""Pixels from a cell to the next."""
SIDE = 32.0
"""Width and height in pixels of a box whose numbers are 0. Its centre is then the middle of its cell."""
STEPS = (
    Conv("conv1", 12, 5),
    Pool("pool1"),
    Conv("conv2", 24, 3),
    Pool("pool2"),
    Conv("conv3", 48, 3),
    Pool("pool3"),
    Conv("conv4", 64, 3),
    Conv("conv5", 64, 3),
    Conv("conv6", 64, 3),
)


@cache
def network() -> Network:
    """Return the trained network; it is read once. The weights of `boxes` and `classes` are [out, in, 1, 1]."""
    return read(WEIGHTS, STEPS, (BOXES, CLASSES))
