"""The methods compared with other packages: the values of tests/golden, see its README.md.

DEVIATIONS lists the packages that do not compute the paper's formula, with the reason, their formula, and the size of
the difference. Deviations are tested too: the formula gives the package's values, and ours differ by that size.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import xcam
from xcam.methods.registry import get

GOLDEN = Path(__file__).parents[2] / "golden"
CASES = ("pooled", "signed", "smooth", "small", "large")
NETWORKS = CASES[:3]
"""Cases whose network is stored; the others are `smooth` with other gradients."""
PURE = {
    "gradcam": {},
    "gradcam++": {},
    "xgradcam": {},
    "layercam": {},
    "hirescam": {},
    "gradcam-elementwise": {},
    "eigencam": {},
    "eigengradcam": {},
    "fem": {"variant": "pytorch-grad-cam"},
}
"""Functions of A and G only, with the options with which they equal the packages'."""
Numbers = dict[str, np.ndarray]

pytestmark = pytest.mark.filterwarnings("ignore::xcam.ZeroHeatmapWarning")  # the raw maps are compared


@cache
def load(case: str) -> Numbers:
    with np.load(GOLDEN / f"{case}.npz") as stored:
        return dict(stored)


@cache
def network(case: str) -> nn.Module:
    weights = {key.removeprefix("weights/"): value for key, value in load(case).items() if key.startswith("weights/")}
    return runpy.run_path(str(GOLDEN / "networks.py"))["build"](case, weights)


@cache
def opened(case: str) -> xcam.Model:
    return xcam.load(network(case), size=(20, 28), preprocess="raw")


def explain(case: str, number: int, method: str, **options: object) -> np.ndarray:
    """Return the raw maps [2, 8, 12] of the two images, each for its class in target set `number`."""
    stored = load(case)
    result = xcam.explain(
        opened(case),
        list(stored["images"]),
        layer="layer",
        target=stored["targets"][number].tolist(),
        method=method,
        method_options=options,
    )
    return np.stack([e.cam for e in result])


def pure(case: str, number: str, method: str) -> np.ndarray:
    """Return the method's map of the stored activations and gradients."""
    entry = get(method)
    supplied = {"activations": load(case)["activations"], "gradients": load(case)[f"gradients/{number}"]}
    return entry.function(*(supplied[name] for name in entry.inputs), **PURE[method])


def exact(case: str, number: str | int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return A, G [2, C, 8, 12] and the score of each image's class [2, 1, 1, 1], in float64."""
    stored = load(case)
    scores = stored["outputs"][np.arange(2), stored["targets"][int(number)]]
    return tuple(x.astype(float) for x in (stored["activations"], stored[f"gradients/{number}"], _over(scores, 3)))


def _over(array: np.ndarray, more: int) -> np.ndarray:
    return array[(...,) + (None,) * more]


def space(array: np.ndarray) -> np.ndarray:
    return array.sum((2, 3), keepdims=True)


def relu(array: np.ndarray) -> np.ndarray:
    return np.maximum(array, 0)


def worst(result: np.ndarray, expected: np.ndarray, signed: bool = True) -> float:
    """Return the largest difference of an image's maps relative to the largest value; without `signed`, up to sign."""

    def error(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(a - b).max() / np.abs(b).max())

    assert result.shape == expected.shape
    return max(
        error(a, b) if signed else min(error(a, b), error(-a, b)) for a, b in zip(result, expected, strict=True)
    )


def heatmaps(cam: np.ndarray) -> np.ndarray:
    cam = relu(cam)
    return cam / cam.max((1, 2), keepdims=True)


def peers(*methods: str) -> list[tuple[str, ...]]:
    """Return (case, target set, package, method) of every stored map of these methods."""
    keys = [(case, *key.split("/")) for case in CASES for key in load(case) if key[0].isdigit()]
    return [key for key in keys if len(key) == 4 and key[3] in methods]


# Grad-CAM++, paper: w = S(α·relu(G)), α = G² / (2G² + S(A)·G³). S is the sum over space.


@dataclass(frozen=True)
class Deviation:
    reason: str
    weights: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    """The package's weights: A, G, score → w [N, C, 1, 1]."""
    sizes: Mapping[str, float]
    """The largest difference between its heatmap and ours, both in 0…1, by case and target set."""
    tolerance: float = 1e-4


def _with_epsilon(a: np.ndarray, g: np.ndarray, _: np.ndarray) -> np.ndarray:
    return space(relu(g) * g**2 / (2 * g**2 + space(a) * g**3 + 1e-6))


def _undivided(a: np.ndarray, g: np.ndarray, _: np.ndarray) -> np.ndarray:
    return space(relu(g) * g**2)


def _shared_out(a: np.ndarray, g: np.ndarray, score: np.ndarray) -> np.ndarray:
    alpha = np.divide(1, 2 + space(a) * g, out=np.zeros_like(g), where=g != 0)
    total = space(alpha)
    return np.exp(score) * space(relu(g) * alpha) / np.where(total == 0, 1, total)


DEVIATIONS = {
    "pytorch-grad-cam": Deviation(
        "adds 1e-6 to the denominator, which dominates where G² is that small; and where S(A) is negative (`signed`) "
        "its denominator passes through zero",
        _with_epsilon,
        {"pooled/0": 0.012, "pooled/1": 0.0086, "signed/0": 1.0, "smooth/0": 0.0028, "small/0": 0.24},
    ),
    "torch-cam": Deviation(
        "divides a copy by the denominator and drops it, so that α is G²",
        _undivided,
        {"pooled/0": 0.44, "pooled/1": 0.41, "signed/0": 0.71, "smooth/0": 0.40, "small/0": 0.24, "large/0": 0.66},
    ),
    "tf-keras-vis": Deviation(
        "differentiates exp(score), which cancels in α and scales the map, and divides each channel's α by their sum, "
        "positions with negative gradients included, where α has a pole (hence the tolerance)",
        _shared_out,
        {"pooled/0": 0.060, "pooled/1": 0.074, "smooth/0": 0.97},
        tolerance=5e-3,
    ),
}


def deviates(case: str, number: str, peer: str, method: str) -> bool:
    return method == "gradcam++" and f"{case}/{number}" in DEVIATIONS[peer].sizes


def test_every_stored_map_is_compared() -> None:
    stored = {
        key.split("/")[2] for case in CASES for key in load(case) if key[0].isdigit() and not key.endswith("scores")
    }
    assert stored == {*PURE, "shapleycam", "scorecam", "ablationcam", "iscam"}
    assert len(peers(*PURE)) == 66


@pytest.mark.parametrize(
    ("case", "number", "peer", "method"), [entry for entry in peers(*PURE) if not deviates(*entry)]
)
def test_the_package_computes_the_same(case: str, number: str, peer: str, method: str) -> None:
    expected = load(case)[f"{number}/{peer}/{method}"]
    assert worst(pure(case, number, method), expected, signed="eigen" not in method) < 1e-4


@pytest.mark.parametrize(("case", "number", "peer", "method"), [entry for entry in peers(*PURE) if deviates(*entry)])
def test_the_package_deviates_as_described(case: str, number: str, peer: str, method: str) -> None:
    theirs, deviation = load(case)[f"{number}/{peer}/{method}"], DEVIATIONS[peer]
    a, g, score = exact(case, number)
    assert worst((deviation.weights(a, g, score) * a).sum(1), theirs) < deviation.tolerance, deviation.reason
    difference = np.abs(heatmaps(pure(case, number, method)) - heatmaps(theirs)).max()
    assert difference == pytest.approx(deviation.sizes[f"{case}/{number}"], rel=0.1), deviation.reason


@pytest.mark.parametrize("case", CASES)
def test_gradcampp_is_equation_19(case: str) -> None:
    """In float64, in the paper's form; a negative S(A), which the paper excludes, counts as zero."""
    a, g, _ = exact(case, 0)
    below = 2 * g**2 + relu(space(a)) * g**3
    alpha = np.divide(g**2, below, out=np.zeros_like(g), where=g > 0)
    assert worst(pure(case, "0", "gradcam++"), (space(alpha * relu(g)) * a).sum(1)) < 1e-4


# Methods that run the network.


@pytest.mark.parametrize("case", NETWORKS)
def test_the_network_is_the_one_of_the_stored_values(case: str) -> None:
    stored = load(case)
    x = np.ascontiguousarray(np.moveaxis(stored["images"], -1, 1)).astype(np.float32)
    for number, classes in enumerate(stored["targets"]):
        trace = opened(case).trace(x, "layer", lambda y, classes=classes: [np.eye(5, dtype=np.float32)[classes]])
        assert worst(trace.outputs, stored["outputs"]) < 1e-4
        assert worst(trace.activations, stored["activations"]) < 1e-4
        assert worst(trace.gradients[0], stored[f"gradients/{number}"]) < 1e-4


@pytest.mark.parametrize(("case", "number", "peer", "method"), peers("shapleycam"))
def test_shapleycam(case: str, number: str, peer: str, method: str) -> None:
    """The package uses the exact Hessian–vector product. It is zero except in `smooth`, and both give Grad-CAM."""
    theirs = load(case)[f"{number}/{peer}/{method}"]
    assert worst(explain(case, int(number), method), theirs) < 1e-4
    assert (worst(load(case)[f"{number}/{peer}/gradcam"], theirs) > 0.4) == (case == "smooth")


@torch.no_grad()
def without_each_channel(case: str, number: int) -> np.ndarray:
    """Return the scores [2, C] of each image's class with one channel set to 0, in float64."""
    stored, module = load(case), network(case)
    start = [name for name, _ in module.named_children()].index("layer") + 1
    tail = nn.Sequential(*list(module.children())[start:])
    scores = []
    for a, index in zip(stored["activations"], stored["targets"][number], strict=True):
        kept = 1 - torch.eye(len(a))[..., None, None]
        scores.append(tail(torch.tensor(a) * kept)[:, index].numpy())
    return np.stack(scores).astype(float)


@pytest.mark.parametrize(("case", "number", "peer", "method"), peers("ablationcam"))
def test_ablationcam(case: str, number: str, peer: str, method: str) -> None:
    """w = (y − y without c) / |y|.

    pytorch-grad-cam divides by y: where y is negative, its map has the opposite sign. Where the layer's minimum is not
    zero (`signed`), it sets channels to −1e7 instead of 0; its weights reach 1e10, and the maps are unrelated.
    """
    a, _, y = exact(case, number)
    w = _over((y[..., 0, 0] - without_each_channel(case, int(number))) / np.abs(y[..., 0, 0]), 2)
    result = explain(case, int(number), method)
    assert worst(result, (w * a).sum(1)) < 1e-4
    if case != "signed":
        assert worst(result * np.sign(y[..., 0]), load(case)[f"{number}/{peer}/{method}"]) < 1e-4


@torch.no_grad()
def masked_scores(
    case: str, number: int, factor: float = 1.0, aligned: bool = False, before: bool = False, blank: bool = False
) -> np.ndarray:
    """Return the scores [2, C] of each image masked by `factor` times each channel, in float64.

    A channel is resized (half-pixel centres, or aligned corners), then scaled to 0…1 (or before, with `before`). With
    `blank`, the scores are those of zeros.
    """
    stored, module = load(case), network(case)
    masks = torch.tensor(stored["activations"])
    masks = scaled(masks) if before else masks
    masks = nn.functional.interpolate(masks, (20, 28), mode="bilinear", align_corners=aligned)
    masks = factor * (masks if before else scaled(masks)) * (not blank)
    x = torch.tensor(stored["images"]).permute(0, 3, 1, 2).float()
    classes = stored["targets"][number]
    return np.stack([module(x[n] * masks[n][:, None])[:, c].numpy() for n, c in enumerate(classes)]).astype(float)


def scaled(masks: torch.Tensor) -> torch.Tensor:
    masks = masks - masks.amin((2, 3), keepdim=True)
    top = masks.amax((2, 3), keepdim=True)
    return masks / torch.where(top > 0, top, 1)


def shares(scores: np.ndarray) -> np.ndarray:
    """Return the softmax over the channels."""
    e = np.exp(scores - scores.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def weighted_sum(case: str, weights: np.ndarray) -> np.ndarray:
    return (_over(weights, 2) * load(case)["activations"]).sum(1)


SCORECAM = {
    "pytorch-grad-cam": (
        "resizes with aligned corners instead of half-pixel centres",
        {"aligned": True},
        {"pooled/0": 0.064, "pooled/1": 0.015, "signed/0": 0.14, "smooth/0": 0.044},
    ),
    "torch-cam": (
        "scales each channel to 0…1 before it is resized; the paper does so after",
        {"before": True},
        {"pooled/0": 0.024, "pooled/1": 0.0081, "signed/0": 0.060, "smooth/0": 0.032},
    ),
}
"""The deviation of a package, the options of `masked_scores` for it, and the size of the difference of heatmaps."""


@pytest.mark.parametrize(("case", "number", "peer", "method"), peers("scorecam"))
def test_scorecam(case: str, number: str, peer: str, method: str) -> None:
    """With a softmax over the channels, as in the paper's Algorithm 1; the baseline's score cancels in it."""
    stored, key, n = load(case), f"{number}/{peer}/{method}", int(number)
    result = explain(case, n, method, softmax=True)
    assert worst(result, weighted_sum(case, shares(masked_scores(case, n)))) < 1e-4
    reason, options, sizes = SCORECAM[peer]
    scores = masked_scores(case, n, **options)
    assert worst(scores, stored[f"{key}/scores"]) < 1e-4, reason
    assert worst(weighted_sum(case, shares(scores)), stored[key]) < 1e-4, reason
    difference = np.abs(heatmaps(result) - heatmaps(stored[key])).max()
    assert difference == pytest.approx(sizes[f"{case}/{number}"], rel=0.1), reason


@pytest.mark.parametrize("case", NETWORKS)
def test_scorecam_without_softmax(case: str) -> None:
    scores, base = masked_scores(case, 0), masked_scores(case, 0, blank=True)
    assert worst(explain(case, 0, "scorecam"), weighted_sum(case, scores - base)) < 1e-4
    assert worst(explain(case, 0, "scorecam", baseline="none"), weighted_sum(case, scores)) < 1e-4


@pytest.mark.parametrize(("case", "number", "peer", "method"), peers("iscam"))
def test_iscam(case: str, number: str, peer: str, method: str) -> None:
    """Masks scaled by 1/10 … 1. In torch-cam the factors accumulate (0.1, 0.3, 0.6, … 5.5).

    It scales masks before it resizes them, and applies a softmax at the end. With a softmax on ours too, heatmaps still
    differ by 0.17 to 0.93.
    """
    stored, key, n = load(case), f"{number}/{peer}/{method}", int(number)
    factors = np.arange(1, 11) / 10
    result = explain(case, n, method)
    mean = np.mean([masked_scores(case, n, factor) for factor in factors], axis=0)
    assert worst(result, weighted_sum(case, mean - masked_scores(case, n, blank=True))) < 1e-4
    theirs = np.mean([masked_scores(case, n, factor, before=True) for factor in np.cumsum(factors)], axis=0)
    assert worst(weighted_sum(case, shares(theirs)), stored[key]) < 1e-4
    difference = np.abs(heatmaps(weighted_sum(case, shares(mean))) - heatmaps(stored[key])).max()
    assert 0.16 < difference < 0.94
