"""From RGB images to the batch that a model takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from xcam.contract.preprocessing import Preprocessing
from xcam.contract.types import InputSpec
from xcam.errors import InputError
from xcam.images import opencv
from xcam.images.resizing import resize


def batch(
    images: Sequence[npt.NDArray[np.uint8]], spec: InputSpec, size: tuple[int, int], how: Preprocessing
) -> npt.NDArray[Any]:
    """RGB pictures → the batch that a model with `spec` takes, [N, H, W, C] or [N, C, H, W]."""
    cv2 = opencv.load()
    small: list[npt.NDArray[Any]] = [resize(image, size) for image in images]
    if spec.channels == 1:
        if len(how.mean) > 1 or len(how.std) > 1:
            raise InputError(
                f"preprocessing {how.name!r} is for three channels, and the model takes one; use unit, raw, tf, or "
                "MEAN/STD with one number each"
            )
        small = [np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[..., None] for image in small]
    elif spec.channels != 3:
        raise InputError(
            f"the model takes {spec.channels} channels, a picture has 3; call model.trace with your own array"
        )
    x = np.stack(small)
    if spec.layout == "channels_first":  # moved as bytes: an eighth of the time that floats take
        return how(np.ascontiguousarray(np.moveaxis(x, -1, 1)), axis=1).astype(spec.dtype, copy=False)
    return how(x).astype(spec.dtype, copy=False)
