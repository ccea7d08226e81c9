"""Methods that weight by gradients, compared with other forms of their formulas; errors that other implementations have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from quadratic import Quadratic
from quadratic_cams import batch, cam
from xcam import ClassScore
from xcam.methods import maps
from xcam.methods.registry import get

A = np.array([[[[1.0, 2.0], [3.0, 4.0]], [[-1.0, 0.0], [2.0, 1.0]]]])  # [1, 2, 2, 2]
G = np.array([[[[1.0, -1.0], [2.0, 2.0]], [[0.0, 4.0], [-2.0, -4.0]]]])

finite = st.floats(-1e3, 1e3, width=32)


def stacks() -> st.SearchStrategy[np.ndarray]:
    """Return a strategy for [N, C, *space] with one to three spatial axes."""
    return array_shapes(min_dims=3, max_dims=5, max_side=5).flatmap(
        lambda shape: arrays(np.float32, shape, elements=finite)
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gradcam", [[1.5, 2.0], [2.0, 3.5]]),  # 1·A0 − 0.5·A1
        ("hirescam", [[1.0, -2.0], [2.0, 4.0]]),
        ("layercam", [[1.0, 0.0], [6.0, 8.0]]),
    ],
)
def test_methods_by_hand(name: str, expected: list[list[float]]) -> None:
    np.testing.assert_allclose(get(name).function(A, G), [expected])


@given(stacks())
def test_gradcam_equals_hirescam_for_constant_gradients(a: np.ndarray) -> None:
    g = np.broadcast_to(np.arange(1, a.shape[1] + 1, dtype=np.float32).reshape(1, -1, *[1] * (a.ndim - 2)), a.shape)
    np.testing.assert_allclose(get("gradcam").function(a, g), get("hirescam").function(a, g), rtol=1e-4, atol=1e-2)


def test_gradcam_plus_plus_sums_activations_alone(rng: np.random.Generator) -> None:
    """Eq. 19: α = G²/(2G² + S(A)·G³). torch-cam's code has S(G²·relu(G)) instead of S(A)."""
    a, g = np.abs(rng.normal(size=(2, 1, 3, 4, 5)))
    g = g * np.sign(rng.normal(size=g.shape))
    total = a.sum(axis=(2, 3), keepdims=True)
    alpha = np.where(g > 0, g**2 / (2 * g**2 + total * g**3), 0)
    weights = (alpha * np.maximum(g, 0)).sum(axis=(2, 3))
    expected = np.einsum("nc,nchw->nhw", weights, a)
    np.testing.assert_allclose(get("gradcam++").function(a, g), expected, rtol=1e-10)


def test_gradcam_plus_plus_with_small_gradients(rng: np.random.Generator) -> None:
    """With an ε in the denominator, gradients of 1e-8 would have no weight; the map scales with the gradients."""
    a = np.abs(rng.normal(size=(1, 3, 4, 5)))
    g = np.abs(rng.normal(size=(1, 3, 4, 5)))
    small, smaller = (get("gradcam++").function(a, f * g) / f for f in (1e-8, 1e-12))
    np.testing.assert_allclose(small, smaller, rtol=1e-6)


def test_xgradcam_for_sums_of_zero_and_less() -> None:
    a = np.array([[[[1.0, -1.0]], [[-2.0, -1.0]]]])  # S(A): 0 and −3
    g = np.array([[[[3.0, 1.0]], [[0.5, 2.0]]]])
    np.testing.assert_allclose(get("xgradcam").function(a, g), [(-1.0 - 2.0) / -3.0 * a[0, 1]])


def hessian_product(model: Quadratic, x: Any, index: int, score: Any) -> Any:
    """Return the gradient and H·A at A, from differences of exact gradients in float64."""
    aim, step = ClassScore(index, score), 1e-5

    def gradient(a: Any) -> Any:
        m = a.mean(axis=(2, 3))
        v = aim.cotangent(model.outputs(a))
        slope = v @ model.w.T + (2 * v * (m @ model.v)) @ model.v.T
        return np.broadcast_to(slope[:, :, None, None] / 24, a.shape)

    x = x.astype(np.float64)
    return gradient(x), (gradient(x * (1 + step)) - gradient(x * (1 - step))) / (2 * step)


@pytest.mark.parametrize("score", ["logit", "probability"])
@pytest.mark.parametrize("exact", [False, True])
def test_shapleycam(score: Any, exact: bool) -> None:
    """With a backend's double backward pass, whose cotangent is constant, and with differences."""
    model, x = Quadratic(capabilities={"gradients", "resume", "hvp"} if exact else None), batch(4, 6)

    def hvp(batch: Any, layer: str, cotangents: Any, vectors: Any) -> Any:
        (v,) = cotangents(model.outputs(batch))
        along = vectors[0].mean(axis=(2, 3)).astype(np.float64)
        slope = (2 * v * (along @ model.v)) @ model.v.T / 24
        return [np.broadcast_to(slope[:, :, None, None], batch.shape).astype(np.float32)]

    model.hvp = hvp  # type: ignore[attr-defined]
    gradient, product = hessian_product(model, x, 0, score)
    weights = (gradient - 0.5 * product).mean(axis=(2, 3))
    expected = np.einsum("nc,nchw->nhw", weights, x)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(cam("shapleycam", model, x, 0, score) / scale, expected / scale, atol=2e-3)


def test_shapleycam_of_a_linear_tail_is_gradcam() -> None:
    model, x = Quadratic(bend=0.0), batch(4, 6)
    np.testing.assert_allclose(cam("shapleycam", model, x), cam("gradcam", model, x), rtol=1e-3, atol=1e-5)


def test_smoothgradcam_plus_plus_averages_over_all_passes() -> None:
    """torch-cam uses the last noisy pass only."""
    model, x, n = Quadratic(), batch(4, 6), 3
    random = np.random.default_rng(5)
    spread = 0.15 * (x.max(axis=(1, 2, 3), keepdims=True) - x.min(axis=(1, 2, 3), keepdims=True))
    gradients = []
    for _ in range(n):
        noisy = x + spread * random.normal(size=x.shape[1:]).astype(np.float32)
        cotangent = np.eye(2)[[0, 0]]
        gradients.append(model.gradient(noisy, cotangent).astype(np.float64))
    first, second, third = (np.mean([g**k for g in gradients], axis=0) for k in (1, 2, 3))
    below = 2 * second + np.maximum(x.sum(axis=(2, 3), keepdims=True), 0) * third
    alpha = np.where(below > 0, second / np.where(below > 0, below, 1), 0)
    weights = (alpha * np.maximum(first, 0)).sum(axis=(2, 3))
    result = cam("smoothgradcam++", model, x, n=n, seed=5)
    np.testing.assert_allclose(result, np.einsum("nc,nchw->nhw", weights, x), rtol=1e-3, atol=1e-6)


def test_eigen_smooth_is_the_principal_component_of_the_weighted_activations(rng: np.random.Generator) -> None:
    a, g = rng.normal(size=(2, 1, 3, 4, 5))
    weighted = g.mean(axis=(2, 3), keepdims=True) * a
    np.testing.assert_allclose(get("gradcam").function(a, g, eigen_smooth=True), maps.principal(weighted))
