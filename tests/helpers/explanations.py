"""An explanation with made-up numbers, for tests of what is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np

from xcam import ClassScore, Explanation

RNG = np.random.default_rng(0)


def made(label: str = "cat", size: tuple[int, int] = (200, 300), **changes: Any) -> Explanation:
    facts: dict[str, Any] = {
        "image": RNG.integers(0, 256, (*size, 3), dtype=np.uint8),
        "cam": RNG.normal(size=(5, 6)).astype(np.float32),
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
