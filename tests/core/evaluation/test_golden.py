"""Measures of trust against Quantus, pytorch-grad-cam and xplique, on the network and maps of tests/golden/make_trust.py.

Where a peer is wrong, or measures something else, the test states the reason and reproduces the value of the peer.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xcam.evaluation import agreement, localization, perturbation, randomization, road, robustness

HERE = Path(__file__).parents[2] / "golden"


@cache
def stored() -> dict[str, np.ndarray]:
    with np.load(HERE / "trust.npz") as file:
        return dict(file)


@cache
def network() -> torch.nn.Module:
    spec = importlib.util.spec_from_file_location("golden_networks", HERE / "networks.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with np.load(HERE / "smooth.npz") as file:
        weights = {key.removeprefix("weights/"): file[key] for key in file if key.startswith("weights/")}
    return module.build("smooth", weights)


def x() -> np.ndarray:
    with np.load(HERE / "smooth.npz") as file:
        return np.ascontiguousarray(np.moveaxis(file["images"], -1, 1)).astype(np.float32)


def score(variants: Any, rows: Any) -> np.ndarray:
    """The probability of each row's own class."""
    with torch.no_grad():
        p = network()(torch.tensor(variants)).softmax(-1).numpy()
    return p[np.arange(len(p)), stored()["classes"][list(rows)]].astype(float)


def peer(key: str) -> np.ndarray:
    return stored()[key]


def maps() -> np.ndarray:
    return stored()["maps"]


def masks() -> list[np.ndarray]:
    return list(stored()["masks"])


def clean_and_masked() -> tuple[np.ndarray, np.ndarray]:
    return score(x(), [0, 1]), score(x() * maps()[:, None], [0, 1])


def test_the_network_is_that_of_the_stored_values() -> None:
    clean, masked = clean_and_masked()
    np.testing.assert_allclose(clean, peer("pytorch-grad-cam/clean"), atol=1e-5)
    np.testing.assert_allclose(masked, peer("pytorch-grad-cam/masked"), atol=1e-5)


# xplique


@pytest.mark.parametrize(
    ("name", "function"), [("deletion", perturbation.deletion), ("insertion", perturbation.insertion)]
)
def test_deletion_and_insertion(name: str, function: Any) -> None:
    result = function(maps(), x(), score, steps=14, baseline="mean")
    expected = [peer(f"xplique/{name}/{n}/area") for n in range(2)]
    np.testing.assert_allclose(result, expected, atol=2e-5)
    assert abs(result[0] - result[1]) > 0.1


def test_average_drop_and_increase() -> None:
    """xplique scales a map to 0…1 first; xcam takes it as drawn, with a maximum of 1. Scaled, both are equal."""
    low, high = (f(maps(), axis=(1, 2), keepdims=True) for f in (np.min, np.max))
    stretched = (maps() - low) / (high - low)
    masked = score(x() * stretched[:, None].astype(np.float32), [0, 1])
    clean, _ = clean_and_masked()
    np.testing.assert_allclose(perturbation.average_drop(clean, masked), peer("xplique/drop"), atol=1e-4)
    np.testing.assert_array_equal(perturbation.increase(clean, masked), peer("xplique/increase"))


# pytorch-grad-cam


def test_the_drop_of_pytorch_grad_cam_is_absolute() -> None:
    """It gives max(0, y − o), and Chattopadhay et al. divide by y: an image with a low score counts as much."""
    clean, masked = clean_and_masked()
    np.testing.assert_allclose(
        perturbation.average_drop(clean, masked) * clean, peer("pytorch-grad-cam/drop"), atol=1e-5
    )
    np.testing.assert_array_equal(perturbation.increase(clean, masked), peer("pytorch-grad-cam/increase"))
    assert perturbation.average_drop(clean, masked)[0] == pytest.approx(0.1001, abs=1e-3)


def without(share: float, lowest: bool) -> np.ndarray:
    """The images without a share of their pixels, imputed."""
    indices = road.order(-maps() if lowest else maps(), 0)
    removed = np.zeros((2, 560), bool)
    for row in range(2):
        removed[row, indices[row, : round(share * 560)]] = True
    return np.stack([road.imputed(a, w) for a, w in zip(x(), removed.reshape(2, 20, 28), strict=True)])


@pytest.mark.parametrize("lowest", [False, True])
def test_road(lowest: bool) -> None:
    name = "lerf" if lowest else "morf"
    np.testing.assert_allclose(without(0.5, lowest), peer(f"pytorch-grad-cam/{name}/images"), atol=2e-3)
    expected = np.mean([peer(f"pytorch-grad-cam/{name}/{p}") for p in (10, 30, 50, 70, 90)], axis=0)
    function = road.least_relevant_first if lowest else road.most_relevant_first
    np.testing.assert_allclose(function(maps(), x(), score, noise=0.0), expected, atol=1e-4)


def test_road_is_half_the_difference() -> None:
    """As pytorch-grad-cam's ROADCombined."""
    least, most = (
        np.mean([peer(f"pytorch-grad-cam/{name}/{p}") for p in (10, 30, 50, 70, 90)], axis=0)
        for name in ("lerf", "morf")
    )
    np.testing.assert_allclose(road.road(maps(), x(), score, noise=0.0), (least - most) / 2, atol=1e-4)


def test_the_automatic_threshold_of_pytorch_grad_cam_is_inverted() -> None:
    """With percentile="auto", "most relevant first" keeps the pixels above Otsu's threshold, and fills all others."""
    import cv2

    for row in range(2):
        _, above = cv2.threshold(np.uint8(maps()[row] * 255), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
        theirs = peer("pytorch-grad-cam/auto/images")[row]
        kept = above > 0
        assert 0.2 < kept.mean() < 0.8
        np.testing.assert_array_equal(theirs[:, kept], x()[row][:, kept])
        np.testing.assert_allclose(theirs, road.imputed(x()[row], ~kept), atol=2e-3)


def test_complexity_and_correlation() -> None:
    np.testing.assert_allclose(agreement.complexity(maps()), peer("pytorch-grad-cam/complexity"), atol=1e-6)
    rho = 2 * agreement.coherency(maps(), maps()[::-1]) - 1
    np.testing.assert_allclose(rho, peer("pytorch-grad-cam/correlation"), atol=1e-5)


# Quantus


def test_imputation() -> None:
    """Its own ROAD fails on colour images with one map each: it indexes one channel with pixels of all (IndexError)."""
    np.testing.assert_allclose(without(0.5, False), peer("quantus/imputed"), atol=2e-3)


def test_localisation() -> None:
    where = masks()
    np.testing.assert_array_equal(
        localization.pointing_game(list(maps()), where, tolerance=0.0), peer("quantus/pointing")
    )
    np.testing.assert_allclose(localization.energy(list(maps()), where), peer("quantus/mass"), atol=1e-6)
    np.testing.assert_allclose(localization.energy(list(maps()), where), peer("quantus/localisation"), atol=1e-6)
    np.testing.assert_allclose(localization.relevance_rank(list(maps()), where), peer("quantus/rank"), atol=1e-6)


def test_an_image_without_an_object_is_a_hit_in_quantus() -> None:
    """Its pointing game stores NaN in a boolean array, where it becomes a hit. In xcam it is NaN, as its own energy is."""
    first, second = masks()
    empty = [first, second & False]
    assert peer("quantus/pointing/empty").tolist() == [1, 1]
    np.testing.assert_array_equal(localization.pointing_game(list(maps()), empty, tolerance=0.0), [1, np.nan])
    np.testing.assert_allclose(localization.energy(list(maps()), empty), peer("quantus/mass/empty"), atol=1e-6)


def test_the_weighted_localisation_of_quantus_divides_by_a_slice_of_the_batch() -> None:
    """x_batch[2:].size is used as the size of an image: for a batch of two it is 0, and the result infinite."""
    assert np.isinf(peer("quantus/localisation/weighted")).all()


def test_sensitivity() -> None:
    """An explanation without a network, so that only the noise counts."""

    def explained(x: Any, _: Any = None) -> np.ndarray:
        return np.abs(x - x.mean(axis=(2, 3), keepdims=True)).max(axis=1)

    result = robustness.max_sensitivity(explained(x()), x(), explained, n=8, radius=0.02, seed=5)
    np.testing.assert_allclose(result, peer("quantus/sensitivity"), rtol=1e-5)


def test_rank_correlation_and_entropy() -> None:
    result = randomization.randomization(maps()[:1], [maps()[1:]])
    np.testing.assert_allclose(result, peer("quantus/spearman"), atol=1e-6)
    before, after = peer("quantus/entropy")
    result = randomization.efficient_randomization(maps()[:1], [maps()[:1], maps()[1:]])
    np.testing.assert_allclose(result, [(after - before) / before], atol=1e-6)
