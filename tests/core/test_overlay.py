"""Colour on a picture, pixel by pixel."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from xcam import InputError
from xcam.overlay import colormaps, lookup_table, overlay

rng = np.random.default_rng(0)
IMAGE = rng.integers(0, 256, (150, 40, 3), dtype=np.uint8)  # more rows than one strip
HEAT = rng.random((150, 40), dtype=np.float32)


def colour(heat: np.ndarray) -> np.ndarray:
    """Jet, RGB, as the seed's recipe colours: 255·heat cut to whole numbers."""
    return cv2.applyColorMap(np.uint8(255 * heat), cv2.COLORMAP_JET)[..., ::-1].astype(np.float64)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_mix(alpha: float) -> None:
    expected = (1 - alpha) * IMAGE + alpha * colour(HEAT)
    assert np.abs(overlay(IMAGE, HEAT, alpha) - expected).max() <= 0.5 + 1e-6


def test_add_is_the_classic_recipe_clipped() -> None:
    expected = np.clip(IMAGE + 0.5 * colour(HEAT), 0, 255)
    found = overlay(IMAGE, HEAT, blend="add")
    assert np.abs(found - expected).max() <= 0.5
    assert found.max() == 255


def test_hot_is_red_and_cold_is_blue() -> None:
    table = lookup_table("jet")[:, 0]
    assert table[255].argmax() == 0
    assert table[0].argmax() == 2


def test_inputs_are_left_alone() -> None:
    image, heat = IMAGE.copy(), HEAT.copy()
    overlay(image, heat)
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal(heat, HEAT)


def test_bad_words() -> None:
    with pytest.raises(InputError, match="no colormap 'jett'; nearest: jet"):
        overlay(IMAGE, HEAT, colormap="jett")
    with pytest.raises(InputError, match="no blend 'screen'; known: mix, add"):
        overlay(IMAGE, HEAT, blend="screen")  # type: ignore[arg-type]
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="give a number from 0"):
            overlay(IMAGE, HEAT, alpha=alpha)
    with pytest.raises(InputError, match="resize one of them"):
        overlay(IMAGE, HEAT[:-1])
    assert {"jet", "viridis", "turbo"} <= set(colormaps())
