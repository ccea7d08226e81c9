"""Whether a map holds still when the picture changes by less than anybody sees. Yeh et al. 2019."""

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
    """max ‖Φ(x + δ) − Φ(x)‖ / ‖Φ(x)‖ over n noises δ, uniform in ± radius; Φ is the map.

    radius: a share of the range of the picture's values. Divided by the map's own norm, so that methods can be
    compared. NaN where the map is zero everywhere, or the picture the same.
    """
    check(n=n, radius=radius)
    random = generator(seed)
    spread = (radius * np.ptp(x, axis=(1, 2, 3), keepdims=True)).astype(x.dtype)
    norm = _norm(heatmap)
    worst = np.zeros(len(x))
    for _ in steps(range(n), "sensitivity"):
        noise = random.uniform(-1, 1, size=x.shape[1:]).astype(x.dtype)
        worst = np.maximum(worst, _norm(explain(x + spread * noise, range(len(x))) - heatmap))
    return np.divide(worst, norm, out=np.full(len(x), np.nan), where=(norm > 0) & (spread.ravel() > 0))


def _norm(maps: Array) -> Array:
    return np.asarray(np.linalg.norm(maps.reshape(len(maps), -1).astype(np.float64), axis=1))
