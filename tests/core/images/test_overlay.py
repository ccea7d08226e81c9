"""Overlays, pixel by pixel: heatmaps, signed maps, contours."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from explanations import explanation
from xcam import InputError
from xcam.images.overlay import colormaps, contours, diverging, lookup_table, overlay, signed_overlay

_values = np.random.default_rng(0)
IMAGE = _values.integers(0, 256, (150, 40, 3), dtype=np.uint8)  # more rows than one strip
HEAT = _values.random((150, 40), dtype=np.float32)


def colour(heat: np.ndarray) -> np.ndarray:
    """Return the colours of jet, RGB, of 255·heat truncated to integers, as in the Grad-CAM example of Keras."""
    return cv2.applyColorMap(np.uint8(255 * heat), cv2.COLORMAP_JET)[..., ::-1].astype(np.float64)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_mix(alpha: float) -> None:
    expected = (1 - alpha) * IMAGE + alpha * colour(HEAT)
    assert np.abs(overlay(IMAGE, HEAT, alpha) - expected).max() <= 0.5 + 1e-6


def test_add_is_the_classic_recipe_clipped() -> None:
    expected = np.clip(IMAGE + 0.5 * colour(HEAT), 0, 255)
    result = overlay(IMAGE, HEAT, blend="add")
    assert np.abs(result - expected).max() <= 0.5
    assert result.max() == 255


def test_hot_is_red_and_cold_is_blue() -> None:
    table = lookup_table("jet")[:, 0]
    assert table[255].argmax() == 0
    assert table[0].argmax() == 2


def test_inputs_are_not_changed() -> None:
    image, heat = IMAGE.copy(), HEAT.copy()
    overlay(image, heat)
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal(heat, HEAT)


def test_invalid_arguments() -> None:
    with pytest.raises(InputError, match="unknown colormap 'jett'; nearest: jet"):
        overlay(IMAGE, HEAT, colormap="jett")
    with pytest.raises(InputError, match="unknown blend 'screen'; known: mix, add"):
        overlay(IMAGE, HEAT, blend="screen")  # type: ignore[arg-type]
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="give a number from 0"):
            overlay(IMAGE, HEAT, alpha=alpha)
    with pytest.raises(InputError, match="resize one of them"):
        overlay(IMAGE, HEAT[:-1])
    assert {"jet", "viridis", "turbo"} <= set(colormaps())


def test_signed_maps_are_red_for_and_blue_against(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (130, 3, 3), dtype=np.uint8)  # more rows than one strip
    heat = np.float32([[-1, 0, 1]]).repeat(130, 0)
    result = signed_overlay(image, heat, alpha=1.0)
    np.testing.assert_array_equal(result[:, 0], np.uint8([[33, 102, 172]]).repeat(130, 0))
    np.testing.assert_array_equal(result[:, 1], image[:, 1])
    np.testing.assert_array_equal(result[:, 2], np.uint8([[178, 24, 43]]).repeat(130, 0))
    quarter = signed_overlay(image, np.full((130, 3), 0.25, np.float32))  # 1.6·0.5·√0.25 = 0.4 of the colour
    expected = 0.6 * image + 0.4 * diverging()[round(0.25 * 127.5 + 127.5), 0]
    np.testing.assert_allclose(quarter, expected, atol=0.51)


def test_a_signed_map_is_independent_of_the_normalisation() -> None:
    part = explanation()
    assert float(np.abs(part.cam).max()) != 1.0
    for normalize in ("none", "minmax"):
        other = replace(part, normalize=normalize)  # type: ignore[arg-type]
        np.testing.assert_array_equal(other.overlay(style="signed"), part.overlay(style="signed"))
    np.testing.assert_array_equal(
        replace(part, normalize="none").overlay(style="contour"), part.overlay(style="contour")
    )
    flipped = replace(part, cam=-part.cam)
    np.testing.assert_array_equal(flipped.signed, -part.signed)


def test_contours_are_lines_in_the_colour_of_their_level() -> None:
    image = np.full((100, 120, 3), 128, np.uint8)
    heat = np.zeros((100, 120), np.float32)
    heat[30:70, 40:80] = 0.6  # above 0.25 and 0.5
    result = contours(image, heat)
    line = result[30, 60].astype(float)  # anti-aliased on a dark line: slightly darker than the colour
    np.testing.assert_allclose(line / line.max(), lookup_table("jet")[round(0.5 * 255), 0] / 255, atol=0.03)
    assert line.max() > 190
    np.testing.assert_allclose(result[50, 40], line, atol=2)
    inside, outside = result[35:65, 45:75], result[:25]
    assert (inside == 128).all()
    assert (outside == 128).all()
    np.testing.assert_array_equal(contours(image, heat, levels=(0.75,)), image)


def test_an_argument_without_effect_on_the_style_is_refused() -> None:
    part = explanation()
    for arguments, name in (
        ({"style": "contour", "alpha": 0.3}, "alpha"),
        ({"style": "contour", "blend": "add"}, "blend"),
        ({"style": "signed", "colormap": "viridis"}, "colormap"),
    ):
        with pytest.raises(InputError, match=f"{name} has no effect on style"):
            part.overlay(**arguments)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown style 'sign'; known: heat, contour, signed"):
        part.overlay(style="sign")  # type: ignore[arg-type]


def test_images_in_any_memory_order(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (90, 70, 3), dtype=np.uint8)
    for turned in (image.transpose(1, 0, 2), image[::-1, ::-1], np.asfortranarray(image)):
        for style in ("heat", "contour", "signed"):
            part = explanation(image=turned, cam=np.ones((2, 2), np.float32))
            plain = replace(part, image=np.ascontiguousarray(turned))
            np.testing.assert_array_equal(part.overlay(style=style), plain.overlay(style=style))  # type: ignore[arg-type]
