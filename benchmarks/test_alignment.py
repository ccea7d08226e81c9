"""Matching the layers of two networks of 2,000 layers of one shape, the worst case: under five seconds, in little memory."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest

from xcam import Layer
from xcam.comparison.alignment import LayerSample, align

LAYERS, SHAPE = 2000, (64, 14, 14)
LIMIT = 5.0
"""Seconds."""


def network(name: str, difference: float) -> list[LayerSample]:
    """Return the samples of a residual network: each layer is similar to the one before."""
    random, other = np.random.default_rng(0), np.random.default_rng(1)
    state = random.standard_normal((1, 64, 196), np.float32)
    result = []
    for k in range(LAYERS):
        state = np.float32(0.95) * state + np.float32(0.3) * random.standard_normal(state.shape, np.float32)
        values = state
        if difference:
            values = state + np.float32(difference) * other.standard_normal(state.shape, np.float32)
        result.append(LayerSample(Layer(f"{name}{k}", "Conv", SHAPE), values, SHAPE))
    return result


@pytest.mark.parametrize("difference", [0.0, 0.1, 1.0], ids=["exact copy", "10 % error", "100 % error"])
def test_2000_layers(difference: float) -> None:
    first, second = network("a", 0.0), network("b", difference)
    start = time.process_time(), time.perf_counter()
    matches = align(first, second)
    seconds = time.process_time() - start[0], time.perf_counter() - start[1]
    right = np.mean([m.first == m.second for m in matches])
    print(
        f"\n{LAYERS} × {LAYERS} layers, {difference:.0%}: {seconds[1]:.1f} s ({seconds[0]:.1f} s of processor time)"
    )
    assert min(seconds) < LIMIT  # the machine may be busy
    assert (len(matches), right) == (LAYERS, 1.0) if difference < 0.5 else right > 0.9


def test_the_memory() -> None:
    first, second = network("a", 0.0), network("b", 0.1)
    tracemalloc.start()
    align(first, second)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"\nmemory of {LAYERS} × {LAYERS} layers: {peak / 1e6:.0f} MB")
    assert peak < 400e6
