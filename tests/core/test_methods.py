"""Every method against its formula written out another way, and against the mistakes that others make."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xcam
from quadratic import Quadratic
from xcam import BackendError, ClassScore, InputError, ModelError, maps
from xcam.methods import Method, get, methods
from xcam.supply import Supply
from xcam.tokens import Grid

RNG = np.random.default_rng(2)
CHEAP = {"sscam": {"n": 3, "std": 0.5}, "iscam": {"n": 3}, "smoothgradcam++": {"n": 3}}


def supply(model: Quadratic, x: Any, index: int = 0, score: Any = "logit") -> Supply:
    aims = [ClassScore(index, score)] * len(x)
    trace = model.trace(x, "features", lambda outputs: [aims[0].cotangent(outputs)])
    return Supply(model, model.layers[0], Grid(), x, trace, aims, 0)


def cam(name: str, model: Quadratic, x: Any, index: int = 0, score: Any = "logit", **options: Any) -> Any:
    return supply(model, x, index, score)(get(name), CHEAP.get(name, {}) | options)


def batch(*space: int, n: int = 2, channels: int = 3) -> Any:
    return RNG.normal(size=(n, channels, *space)).astype(np.float32)


def runs(method: Method, rank: int) -> bool:
    """Masks are pictures: the methods that make some need two axes of space."""
    return rank == 2 or "forward" not in method.needs


@pytest.mark.parametrize("space", [(6,), (4, 6), (6, 3), (3, 4, 2)], ids=str)
@pytest.mark.parametrize("name", methods())
def test_shape_determinism_and_rows_alone(name: str, space: tuple[int, ...]) -> None:
    if not runs(get(name), len(space)):
        with pytest.raises(InputError, match="masks are pictures"):
            cam(name, Quadratic(space), batch(*space))
        return
    model, x = Quadratic(space), batch(*space)
    found = cam(name, model, x)
    assert found.shape == (2, *space)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, cam(name, model, x))
    for row in range(2):
        np.testing.assert_allclose(cam(name, model, x[row : row + 1])[0], found[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["zero", "constant", "negative", "one dead channel", "tiny"])
@pytest.mark.parametrize("name", methods())
def test_no_nan_on_awkward_activations(name: str, kind: str) -> None:
    x = {
        "zero": np.zeros((1, 3, 4, 6)),
        "constant": np.full((1, 3, 4, 6), 2.5),
        "negative": -np.abs(batch(4, 6, n=1)),
        "one dead channel": batch(4, 6, n=1) * np.array([1, 0, 1])[:, None, None],
        "tiny": 1e-20 * batch(4, 6, n=1),
    }[kind].astype(np.float32)
    with np.errstate(all="raise", under="ignore"):
        assert np.isfinite(cam(name, Quadratic(), x)).all()


@pytest.mark.parametrize("name", ["eigencam", "eigengradcam", "fem", "gradcam++", "xgradcam"])
def test_zero_activations_give_zero(name: str) -> None:
    assert not cam(name, Quadratic(), np.zeros((1, 3, 4, 6), np.float32)).any()


def test_gradcam_plus_plus_sums_activations_alone() -> None:
    """Eq. 19: α = G²/(2G² + S(A)·G³). torch-cam's code puts S(G²·relu(G)) in the place of S(A)."""
    a, g = np.abs(RNG.normal(size=(2, 1, 3, 4, 5)))
    g = g * np.sign(RNG.normal(size=g.shape))
    total = a.sum(axis=(2, 3), keepdims=True)
    alpha = np.where(g > 0, g**2 / (2 * g**2 + total * g**3), 0)
    weights = (alpha * np.maximum(g, 0)).sum(axis=(2, 3))
    expected = np.einsum("nc,nchw->nhw", weights, a)
    np.testing.assert_allclose(get("gradcam++").function(a, g), expected, rtol=1e-10)


def test_gradcam_plus_plus_with_small_gradients() -> None:
    """Where others add ε to the denominator, gradients of 1e-8 weigh nothing; the map's form does not depend on that."""
    a = np.abs(RNG.normal(size=(1, 3, 4, 5)))
    g = np.abs(RNG.normal(size=(1, 3, 4, 5)))
    small, smaller = (get("gradcam++").function(a, f * g) / f for f in (1e-8, 1e-12))
    np.testing.assert_allclose(small, smaller, rtol=1e-6)


def test_xgradcam_survives_sums_of_zero_and_less() -> None:
    a = np.array([[[[1.0, -1.0]], [[-2.0, -1.0]]]])  # S(A): 0 and −3
    g = np.array([[[[3.0, 1.0]], [[0.5, 2.0]]]])
    np.testing.assert_allclose(get("xgradcam").function(a, g), [(-1.0 - 2.0) / -3.0 * a[0, 1]])


def test_eigencam_sign_follows_the_channel_mean() -> None:
    for seed in range(20):
        a = np.random.default_rng(seed).normal(size=(1, 7, 5, 4)) + 0.3
        found = get("eigencam").function(a)[0]
        mean = a[0].mean(axis=0)
        assert np.corrcoef(found.ravel(), mean.ravel())[0, 1] > 0
        np.testing.assert_allclose(get("eigencam").function(a[:, ::-1])[0], found, atol=1e-10)  # order of channels
    balanced = np.array([[[[1.0, -1.0, 3.0]], [[-1.0, 1.0, -3.0]]]])  # the mean over channels is zero everywhere
    found = get("eigencam").function(balanced)[0, 0]
    assert found[np.abs(found).argmax()] > 0


@pytest.mark.parametrize("shape", [(1, 40, 3, 4), (1, 5, 6, 7)])
def test_eigencam_is_the_first_principal_component(shape: tuple[int, ...]) -> None:
    """Through either Gram matrix, the same as a singular value decomposition."""
    a = RNG.normal(size=shape)
    rows = a[0].reshape(shape[1], -1).T
    for centred in (True, False):
        x = rows - rows.mean(axis=0) if centred else rows
        u, s, _ = np.linalg.svd(x, full_matrices=False)
        found = get("eigencam").function(a, centred=centred).ravel()
        assert min(np.abs(found - u[:, 0] * s[0]).max(), np.abs(found + u[:, 0] * s[0]).max()) < 1e-9


def test_fem_by_hand() -> None:
    a = np.zeros((1, 1, 1, 10))
    a[0, 0, 0, 3] = 10.0  # mean 1, std 3: 10 ≥ 1 + 2·3
    np.testing.assert_allclose(get("fem").function(a)[0, 0], np.eye(10)[3])
    np.testing.assert_allclose(get("fem").function(a, k=3.0)[0, 0], np.eye(10)[3])  # 10 ≥ 10
    np.testing.assert_allclose(get("fem").function(a, variant="pytorch-grad-cam")[0, 0], np.eye(10)[3])
    with pytest.raises(InputError, match="no variant 'peper' of fem; known: paper, pytorch-grad-cam"):
        get("fem").function(a, variant="peper")


def masked_scores(model: Quadratic, x: Any, factor: float = 1.0, noise: Any = None) -> tuple[Any, Any]:
    """score(x·H_c) for each channel, and score(0): the loop of the paper."""
    scores = np.zeros(x.shape[:2])
    for n in range(len(x)):
        for c in range(x.shape[1]):
            low, high = x[n, c].min(), x[n, c].max()
            mask = factor * (x[n, c] - low) / (high - low)
            mask = mask if noise is None else mask + noise
            scores[n, c] = model.outputs((x[n] * mask)[None])[0, 0]
    return scores, model.outputs(np.zeros_like(x))[:, :1]


def test_scorecam_and_its_variants() -> None:
    model, x = Quadratic(), batch(4, 6)
    scores, zero = masked_scores(model, x)
    for options, weights in (
        ({}, scores - zero),
        ({"baseline": "none"}, scores),
        ({"softmax": True}, np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)),
    ):
        expected = np.einsum("nc,nchw->nhw", weights, x)
        np.testing.assert_allclose(cam("scorecam", model, x, **options), expected, rtol=1e-4, atol=1e-5)
    energy = (x**2).sum(axis=(2, 3))
    kept = np.where(energy == energy.max(axis=1, keepdims=True), scores - zero, 0)
    expected = np.einsum("nc,nchw->nhw", kept, x)
    np.testing.assert_allclose(cam("scorecam", model, x, max_channels=1), expected, rtol=1e-4, atol=1e-5)


def test_scorecam_gives_a_constant_channel_no_weight() -> None:
    """min–max of a constant channel is 0/0 in other code."""
    x = batch(4, 6, n=1)
    x[0, 1] = 3.0
    model = Quadratic()
    found = cam("scorecam", model, x)
    weights = np.array([[model.outputs((x[0] * _mask(x[0, c]))[None])[0, 0] for c in range(3)]])
    weights = weights - model.outputs(np.zeros_like(x))[:, :1]
    weights[0, 1] = 0
    np.testing.assert_allclose(found, np.einsum("nc,nchw->nhw", weights, x), rtol=1e-4, atol=1e-5)


def _mask(channel: Any) -> Any:
    return (channel - channel.min()) / (np.ptp(channel) or 1.0)


def test_iscam_masks_grow_from_one_nth_to_one() -> None:
    """torch-cam's accumulate, and reach 5.5 for n = 10."""
    model, x = Quadratic(), batch(4, 6)
    parts = [masked_scores(model, x, (i + 1) / 4) for i in range(4)]
    weights = np.mean([scores - zero for scores, zero in parts], axis=0)
    found = cam("iscam", model, x, n=4)
    np.testing.assert_allclose(found, np.einsum("nc,nchw->nhw", weights, x), rtol=1e-4, atol=1e-5)


def test_sscam_averages_over_noisy_masks() -> None:
    model, x = Quadratic(), batch(4, 6)
    noise = 0.5 * np.random.default_rng(7).normal(size=(3, 4, 6)).astype(np.float32)
    parts = [masked_scores(model, x, 1.0, delta) for delta in noise]
    weights = np.mean([scores - zero for scores, zero in parts], axis=0)
    found = cam("sscam", model, x, n=3, std=0.5, seed=7)
    np.testing.assert_allclose(found, np.einsum("nc,nchw->nhw", weights, x), rtol=1e-4, atol=1e-5)


def test_ablationcam_sets_channels_to_zero_and_divides_by_the_magnitude() -> None:
    """Also for a negative score, where dividing by y itself turns the map round."""
    model, x = Quadratic(), batch(4, 6)
    for index in range(2):
        y = model.outputs(x)[:, index]
        weights = np.zeros(x.shape[:2])
        for c in range(3):
            without = x.copy()
            without[:, c] = 0
            weights[:, c] = (y - model.outputs(without)[:, index]) / np.abs(y)
        expected = np.einsum("nc,nchw->nhw", weights, x)
        np.testing.assert_allclose(cam("ablationcam", model, x, index), expected, rtol=1e-4, atol=1e-5)
    assert (model.outputs(x) < 0).any(), "the case that others get wrong is among them"


def test_reciprocam_keeps_one_place_at_a_time() -> None:
    model, x = Quadratic(), batch(4, 6)
    expected = np.zeros((2, 4, 6))
    for i, j in np.ndindex(4, 6):
        alone = np.zeros_like(x)
        alone[:, :, i, j] = x[:, :, i, j]
        expected[:, i, j] = model.outputs(alone)[:, 0]
    expected -= expected.min(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(cam("reciprocam", model, x), expected, rtol=1e-4, atol=1e-6)


def hessian_product(model: Quadratic, x: Any, index: int, score: Any) -> Any:
    """H·A at A by differences of exact gradients in float64."""
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
    """With a backend's double backward pass, whose cotangent is a constant, and with differences."""
    model, x = Quadratic(capabilities={"gradients", "resume", "hvp"} if exact else None), batch(4, 6)

    def hvp(batch: Any, layer: str, seeds: Any, vectors: Any) -> Any:
        (v,) = seeds(model.outputs(batch))
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
    """torch-cam keeps the last noisy pass alone."""
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
    found = cam("smoothgradcam++", model, x, n=n, seed=5)
    np.testing.assert_allclose(found, np.einsum("nc,nchw->nhw", weights, x), rtol=1e-3, atol=1e-6)


def test_eigen_smooth_is_the_principal_component_of_the_weighed_activations() -> None:
    a, g = RNG.normal(size=(2, 1, 3, 4, 5))
    weighed = g.mean(axis=(2, 3), keepdims=True) * a
    np.testing.assert_allclose(get("gradcam").function(a, g, eigen_smooth=True), maps.principal(weighed))


def test_what_it_costs() -> None:
    """Ablation and Recipro-CAM run the tail alone, Score-CAM the whole model once for each channel."""
    for name, passes, tails in (("ablationcam", 1, 3), ("reciprocam", 1, 24), ("scorecam", 1 + 1 + 3, 0)):
        model = Quadratic()
        cam(name, model, batch(4, 6, n=1))
        assert (model.passes, model.tails) == (passes, tails), name


def test_a_backend_that_lacks_something_is_told_what_works() -> None:
    model = Quadratic(capabilities=())
    image = np.zeros((4, 6, 3), np.uint8)
    with pytest.raises(
        BackendError, match="needs gradients, which backend 'quadratic' does not have; these work: eigencam"
    ):
        xcam.explain(model, image)
    with pytest.raises(BackendError, match="method 'ablationcam' needs resume"):
        xcam.explain(model, image, method="ablationcam")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("iscam", {"n": 0}, "n is 0; give a number above 0"),
        ("iscam", {"n": 10**12}, "n is 1000000000000; give a number above 0, and 10000 at most"),
        ("sscam", {"std": float("nan")}, "std is nan"),
        ("random", {"seed": -1}, "seed is -1; give 0 or more"),
        ("scorecam", {"max_channels": 4}, "max_channels is 4; give 0 for all, or a number up to 3"),
        ("smoothgradcam++", {"std": -1}, "std is -1; give a number above 0"),
        ("sscam", {"n": -3}, "n is -3"),
        ("scorecam", {"max_channels": -1}, "max_channels is -1; give 0 for all"),
        ("scorecam", {"baseline": "grey"}, "no baseline 'grey'; known: zero, none"),
    ],
)
def test_options_that_make_no_sense(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        cam(name, Quadratic(), batch(4, 6), **options)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("iscam", {"n": 2.5}, "n of iscam takes a whole number, not 2.5"),
        ("iscam", {"n": "3"}, "n of iscam takes a whole number, not '3'"),
        ("iscam", {"n": True}, "n of iscam takes a whole number, not True"),
        ("sscam", {"std": np.inf}, "std of sscam takes a finite number, not inf"),
        ("fem", {"k": float("nan")}, "k of fem takes a finite number, not nan"),
        ("fem", {"variant": None}, "variant of fem takes a word, not None"),
        ("eigencam", {"centred": "false"}, "centred of eigencam takes true or false, not 'false'"),
    ],
)
def test_options_of_another_kind(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        get(name).checked(options)


def test_options_of_the_right_kind_in_other_clothes() -> None:
    get("sscam").checked({"n": np.int64(3), "std": 1, "seed": np.uint8(2)})
    get("eigencam").checked({"centred": np.False_})


def test_a_batch_that_does_not_fit_is_halved() -> None:
    model, x = Quadratic(), batch(4, 6)
    expected = cam("reciprocam", model, x)
    resume, sizes = model.resume, []

    def small(trace: Any, activations: Any, *more: Any) -> Any:
        sizes.append(len(activations))
        if len(activations) > 7:
            raise MemoryError
        return resume(trace, activations, *more)

    model.resume = small  # type: ignore[method-assign]
    np.testing.assert_allclose(cam("reciprocam", model, x), expected, rtol=1e-6)
    assert sizes == [24, 12, 6, 6, 12, 6, 6] * 2


class PerBatch:
    """A value that is one for the whole batch, however many rows it has."""

    def value(self, outputs: Any) -> Any:
        return outputs[:, 0].mean()

    def cotangent(self, outputs: Any) -> Any:
        return np.eye(2)[[0] * len(outputs)] / len(outputs)


@pytest.mark.parametrize("name", methods())
def test_a_value_for_the_whole_batch_is_asked_for_row_by_row(name: str) -> None:
    model, x = Quadratic(), batch(4, 6)
    aims = [PerBatch()] * 2
    trace = model.trace(x, "features", lambda outputs: [np.eye(2)[[0, 0]]])
    found = Supply(model, model.layers[0], Grid(), x, trace, aims, 0)(get(name), CHEAP.get(name, {}))
    np.testing.assert_allclose(found, cam(name, model, x), rtol=1e-5, atol=1e-6)


def test_a_value_with_more_numbers_than_rows_is_refused() -> None:
    class Wide(PerBatch):
        def value(self, outputs: Any) -> Any:
            return outputs

    model, x = Quadratic(), batch(4, 6)
    trace = model.trace(x, "features")
    with pytest.raises(InputError, match="the value of Wide has 2 numbers for one row of outputs"):
        Supply(model, model.layers[0], Grid(), x, trace, [Wide()] * 2, 0)(get("scorecam"), {})


@pytest.mark.parametrize("name", ["scorecam", "iscam", "sscam", "smoothgradcam++"])
def test_a_model_of_whole_numbers_is_given_pixels(name: str) -> None:
    """iscam's factors below 1 and noise would be cut to 0, and masked pictures arrive as fractions."""
    model, seen = Quadratic(), []
    predict, trace = model.predict, model.trace
    model.predict = lambda x: seen.append(x) or predict(x)  # type: ignore[method-assign,func-returns-value]
    model.trace = lambda x, *more: seen.append(x) or trace(x.astype(np.float32), *more)  # type: ignore[method-assign,func-returns-value]
    x = RNG.integers(0, 256, (1, 3, 4, 6)).astype(np.int32)
    found = cam(name, model, x)
    assert {array.dtype for array in seen} == {np.dtype(np.int32)}
    assert all(array.min() >= 0 and array.max() <= 255 for array in seen)
    expected = cam(name, Quadratic(), x.astype(np.float32))
    np.testing.assert_allclose(
        found, expected, atol=(0.7 if "smooth" in name or name == "sscam" else 0.02) * np.abs(expected).max()
    )


def test_what_the_model_does_on_changed_values_is_said() -> None:
    model, x = Quadratic(), batch(4, 6, n=1)

    def one(trace: Any, activations: Any, *_: Any) -> Any:
        raise ValueError(f"cannot take {len(activations)}")

    model.resume = one  # type: ignore[method-assign]
    with pytest.raises(ModelError, match=r"quadratic fails on a batch of 3 changed .*: ValueError: cannot take 3"):
        cam("ablationcam", model, x)
    trace = model.trace
    model.trace = lambda x, *more: spoiled(trace(x, *more))  # type: ignore[method-assign]

    def spoiled(found: Any) -> Any:
        found.gradients = [np.full_like(g, np.nan) for g in found.gradients]
        return found

    with pytest.raises(ModelError, match="of quadratic gives NaN or infinity at layer 'features'"):
        cam("smoothgradcam++", model, x)
