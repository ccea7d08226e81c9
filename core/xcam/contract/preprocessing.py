"""Preprocessing: scale, shift and order of the channels, in NumPy, so that all frameworks receive the same numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xcam.errors import InputError, nearest


@dataclass(frozen=True)
class Preprocessing:
    """x = (pixel · scale − mean) / std, with pixels in 0…255, channel by channel in `order`."""

    name: str
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    order: str = "RGB"

    def __call__(self, image: npt.NDArray[Any], axis: int = -1) -> npt.NDArray[np.float32]:
        """Return an image as float32 input of a model.

        Args:
            image: RGB or grey values in 0…255.
            axis: the axis of its channels.
        """
        if self.order == "BGR":
            image = np.flip(image, axis)
        following = [1] * (-axis - 1 if axis < 0 else image.ndim - axis - 1)
        x = image.astype(np.float32)
        x *= np.float32(self.scale)
        x -= np.asarray(self.mean, np.float32).reshape(-1, *following)
        x /= np.asarray(self.std, np.float32).reshape(-1, *following)
        return x

    def same_as(self, other: Preprocessing) -> bool:
        """Return whether another preprocessing computes the same, to 1e-4."""
        gain, other_gain = np.divide(self.scale, self.std), np.divide(other.scale, other.std)
        offset, other_offset = np.divide(self.mean, self.std), np.divide(other.mean, other.std)
        return (
            self.order == other.order
            and np.allclose(gain, other_gain, rtol=1e-4, atol=0)
            and np.allclose(offset, other_offset, rtol=0, atol=1e-4)
        )


PRESETS = {
    preset.name: preset
    for preset in (
        # caffe, tf, torch: keras.applications.imagenet_utils.preprocess_input
        Preprocessing("caffe", mean=(103.939, 116.779, 123.68), order="BGR"),
        Preprocessing("tf", scale=1 / 127.5, mean=(1.0,)),
        Preprocessing("torch", scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        Preprocessing("unit", scale=1 / 255),
        Preprocessing("raw"),
    )
}


def preset(scaling: Preprocessing) -> Preprocessing:
    """Return the preset that computes the same as `scaling`, to 1e-4, or `scaling` where there is none."""
    return next(filter(scaling.same_as, PRESETS.values()), scaling)


def preprocessing(value: str | Preprocessing | None) -> Preprocessing | None:
    """Return a preprocessing from a preset's name, or from `MEAN/STD` on the 0…1 scale.

    Args:
        value: `torch`, `0.5,0.5,0.5/0.25,0.25,0.25`, `0.5/0.5`, a Preprocessing, or None.

    Raises:
        InputError: the value is none of these.
    """
    if value is None or isinstance(value, Preprocessing):
        return value
    value = str(value)
    if value in PRESETS:
        return PRESETS[value]
    mean, slash, std = value.partition("/")
    if slash:
        try:
            m, s = (tuple(float(number) for number in part.split(",")) for part in (mean, std))
        except ValueError:
            m = s = ()
        if (
            len(m) in (1, 3)
            and len(s) in (1, 3)
            and all(np.isfinite(m))
            and all(np.isfinite(s))
            and all(d > 0 for d in s)
        ):
            return Preprocessing(value, scale=1 / 255, mean=m, std=s)
    raise InputError(
        f"unknown preprocessing {value!r}; {nearest(value, PRESETS)}; or MEAN/STD on the 0…1 scale, as in 0.5,0.5,0.5/0.2,0.2,0.2"
    )
