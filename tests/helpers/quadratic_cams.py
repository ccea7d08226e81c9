"""Maps of all methods for the model with known derivatives; see `quadratic`."""

from __future__ import annotations

from typing import Any

import numpy as np

from quadratic import Quadratic
from xcam import ClassScore
from xcam.explanation.context import MethodContext
from xcam.explanation.tokens import Grid
from xcam.methods.registry import get

CHEAP = {"sscam": {"n": 3, "std": 0.5}, "iscam": {"n": 3}, "smoothgradcam++": {"n": 3}}


def supply(model: Quadratic, x: Any, index: int = 0, score: Any = "logit") -> MethodContext:
    aims = [ClassScore(index, score)] * len(x)
    trace = model.trace(x, "features", lambda outputs: [aims[0].cotangent(outputs)])
    return MethodContext(model, model.layers[0], Grid(), x, trace, aims, 0)


def cam(name: str, model: Quadratic, x: Any, index: int = 0, score: Any = "logit", **options: Any) -> Any:
    return supply(model, x, index, score)(get(name), CHEAP.get(name, {}) | options)


def batch(*space: int, n: int = 2, channels: int = 3) -> Any:
    """Return the same random values in every call, independent of earlier tests."""
    return np.random.default_rng(2).normal(size=(n, channels, *space)).astype(np.float32)
