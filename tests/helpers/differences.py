"""Gradients by finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np


def numerical_cotangent(aim: Any, outputs: np.ndarray) -> np.ndarray:
    """Return the gradient of a target's value with respect to the outputs [N, …], by central differences."""
    gradient = np.zeros_like(outputs)
    for position in np.ndindex(outputs.shape[1:]):
        step = np.zeros_like(outputs)
        step[(slice(None), *position)] = 1e-6
        gradient[(slice(None), *position)] = (aim.value(outputs + step) - aim.value(outputs - step)) / 2e-6
    return gradient
