"""The demo: a small trained network in a framework-neutral file, and example images.

The network classifies six shapes on cluttered, textured backgrounds. Every backend builds `network()` with its
framework's layers. `scenes` draws images with any number of shapes and their masks, the ground truth of the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt

from xcam.contract.preprocessing import PRESETS, Preprocessing
from xcam.models.demo.scenes import CLASSES

WEIGHTS = "network.npz"


@dataclass(frozen=True)
class Conv:
    """A convolution with a square kernel, stride 1, zero padding that keeps the size, and bias, then ReLU."""

    name: str
    filters: int
    kernel: int


@dataclass(frozen=True)
class Pool:
    """2×2 max pooling with stride 2."""

    name: str


@dataclass(frozen=True)
class Mean:
    """Global average pooling."""

    name: str


@dataclass(frozen=True)
class Dense:
    """A dense layer with bias, then softmax."""

    name: str
    units: int


STEPS: tuple[Conv | Pool | Mean | Dense, ...] = (
    Conv("conv1", 12, 5),
    Pool("pool1"),
    Conv("conv2", 24, 3),
    Pool("pool2"),
    Conv("conv3", 48, 3),
    Pool("pool3"),
    Conv("conv4", 64, 3),
    Conv("conv5", 64, 3),
    Mean("mean"),
    Dense("scores", len(CLASSES)),
)


@dataclass(frozen=True)
class Network:
    """Architecture and weights of the demo network."""

    steps: tuple[Conv | Pool | Mean | Dense, ...]
    """The layers in execution order."""
    weights: dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]
    """Weights by layer name: kernel [out, in, kernel, kernel] (convolution) or [out, in] (dense layer), bias [out]."""
    size: tuple[int, int] = (128, 128)
    """(height, width) of the input in pixels."""
    labels: tuple[str, ...] = CLASSES
    preprocessing: Preprocessing = PRESETS["tf"]


@cache
def network() -> Network:
    """Return the trained network; it is read once."""
    return read(WEIGHTS, STEPS)


def read(file_name: str, steps: tuple[Conv | Pool | Mean | Dense, ...], heads: Sequence[str] = ()) -> Network:
    """Return a network with the weights of a file in this package; `heads` are layers that are not among its steps."""
    names = [step.name for step in steps if isinstance(step, Conv | Dense)]
    with resources.files("xcam.models.demo").joinpath(file_name).open("rb") as file, np.load(file) as arrays:
        weights = {
            name: (arrays[f"{name}/kernel"].astype(np.float32), arrays[f"{name}/bias"].astype(np.float32))
            for name in (*names, *heads)
        }
    return Network(steps, weights)


def image_paths() -> list[Path]:
    """Return the paths of the shipped images, sorted by name."""
    folder = Path(str(resources.files("xcam.models.demo").joinpath("images")))
    return sorted(folder.glob("*.png"))
