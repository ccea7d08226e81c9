"""An explanation with invented values, for tests of drawing."""

from __future__ import annotations

from typing import Any

import numpy as np

from xcam import ClassScore, Explanation


def explanation(label: str = "cat", size: tuple[int, int] = (200, 300), **changes: Any) -> Explanation:
    """Return an explanation whose values depend on the label only."""
    rng = np.random.default_rng(list(label.encode()))
    facts: dict[str, Any] = {
        "image": rng.integers(0, 256, (*size, 3), dtype=np.uint8),
        "cam": rng.normal(size=(5, 6)).astype(np.float32),
        "outputs": np.float32([1, 2]),
        "scores": np.float32([0.25, 0.75]),
        "target": ClassScore(1),
        "index": 1,
        "label": label,
        "score": 2.0,
        "layer": "conv",
        "method": "gradcam",
        "backend": "fake",
        "model": "net",
    }
    return Explanation(**(facts | changes))
