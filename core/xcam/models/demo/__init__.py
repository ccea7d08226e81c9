"""The embedded default: a small trained network, in one framework-neutral file, and pictures to try it on.

Six shapes on cluttered, textured backgrounds. It is also the project's ground truth: `scenes` can draw pictures with
two shapes, and says where each one is. Every backend builds `network()` with its own framework's layers.
"""

from __future__ import annotations

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
    """A square convolution of stride 1, padded to keep its size, with bias, then ReLU."""

    name: str
    filters: int
    kernel: int


@dataclass(frozen=True)
class Pool:
    """2×2 maximum, stride 2."""

    name: str


@dataclass(frozen=True)
class Mean:
    """The mean over space."""

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
    """The architecture, and for each layer that has them (kernel [out, in, *space], bias [out])."""

    steps: tuple[Conv | Pool | Mean | Dense, ...]
    weights: dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]
    size: tuple[int, int] = (128, 128)
    labels: tuple[str, ...] = CLASSES
    preprocessing: Preprocessing = PRESETS["tf"]


@cache
def network() -> Network:
    """The trained network."""
    with resources.files("xcam.models.demo").joinpath(WEIGHTS).open("rb") as file, np.load(file) as arrays:
        names = [step.name for step in STEPS if isinstance(step, Conv | Dense)]
        weights = {
            name: (arrays[f"{name}/kernel"].astype(np.float32), arrays[f"{name}/bias"].astype(np.float32))
            for name in names
        }
    return Network(STEPS, weights)


def pictures() -> list[Path]:
    """The generated pictures that are shipped, sorted by name."""
    folder = Path(str(resources.files("xcam.models.demo").joinpath("pictures")))
    return sorted(folder.glob("*.png"))
