"""Whether a map stays the same under changes of the image that are too small to see. Yeh et al. 2019."""

from __future__ import annotations

import numpy as np

from xcam.evaluation.inputs import Explain
from xcam.evaluation.registry import measure
from xcam.methods.inputs import check, generator
from xcam.methods.maps import Array
from xcam.progress import steps


@measure(
    "sensitivity",
    better="lower",
    source="Yeh et al. 2019 (max-sensitivity)",
    passes="n explanations",
    bounds=(0.0, np.inf),
)
def max_sensitivity(
    heatmap: Array, x: Array, explain: Explain, *, n: int = 8, radius: float = 0.02, seed: int = 0
) -> Array:
    """max ‖Φ(x + δ) − Φ(x)‖ / ‖Φ(x)‖ over n noises δ, uniform within ± radius; Φ is the map.

    It is divided by the norm of the map, so that methods can be compared. NaN for an all-zero map and a constant image.

    Args:
        heatmap: Maps [N, H, W].
        x: Images [N, channels, H, W].
        explain: The maps of changed images.
        n: The number of noises.
        radius: A share of the range of the image's values.
        seed: The seed of the noise.
    """
    check(n=n, radius=radius)
    random = generator(seed)
    spread = (radius * np.ptp(x, axis=(1, 2, 3), keepdims=True)).astype(x.dtype)
    norm = _norm(heatmap)
    largest = np.zeros(len(x))
    for _ in steps(range(n), "sensitivity"):
        noise = random.uniform(-1, 1, size=x.shape[1:]).astype(x.dtype)
        largest = np.maximum(largest, _norm(explain(x + spread * noise, range(len(x))) - heatmap))
    return np.divide(largest, norm, out=np.full(len(x), np.nan), where=(norm > 0) & (spread.ravel() > 0))


def _norm(maps: Array) -> Array:
    return np.asarray(np.linalg.norm(maps.reshape(len(maps), -1).astype(np.float64), axis=1))
