"""Several maps in one picture: tiles, captions, notes; signed maps and contours, pixel by pixel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import xcam
from xcam import ClassScore, Explanation, InputError, montage
from xcam.explanation import drawable
from xcam.overlay import contours, diverging, lookup_table, signed_overlay

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


def test_tiles_stand_in_rows_as_they_were_drawn() -> None:
    parts = [made(), made("dog"), made("cow")]
    sheet = xcam.grid(parts, columns=2)
    gap, line = montage.GAP, 30  # a tenth of 300
    assert sheet.shape == (2 * (200 + line + gap) + gap, 2 * (300 + gap) + gap, 3)
    for k, part in enumerate(parts):
        top, left = gap + line + (k // 2) * (200 + line + gap), gap + (k % 2) * (300 + gap)
        np.testing.assert_array_equal(sheet[top : top + 200, left : left + 300], part.overlay())
        assert (sheet[top - line : top, left : left + 300] < 100).any(), "a caption"
    assert (sheet[-200:, 316:] == montage.PAPER).all()


def test_a_large_picture_is_shrunk_before_it_is_coloured(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[Any] = []
    drawn = Explanation.overlay
    monkeypatch.setattr(Explanation, "overlay", lambda e, **k: shapes.append(e.image.shape) or drawn(e, **k))
    ramp = np.linspace(0, 255, 4800).astype(np.uint8)[None, :, None].repeat(2400, 0).repeat(3, 2)
    large = made(image=ramp)
    sheet = xcam.grid([large])
    assert shapes == [(240, 480, 3)]
    tile = sheet[-montage.GAP - 240 : -montage.GAP, montage.GAP : -montage.GAP].astype(int)
    assert "heatmap" not in large.__dict__, "the large map was never made"
    np.testing.assert_allclose(tile[:, 5:-5], drawn(large)[5::10, 5::10][:, 5:-5], atol=4)


def test_captions_say_what_differs() -> None:
    assert montage.distinct([made(), made("dog")]) == ["cat 75%", "dog 75%"]
    assert montage.distinct([made(), made(method="fem")]) == ["gradcam", "fem"]
    assert montage.distinct([made(), made("dog", layer="relu")]) == ["cat, conv", "dog, relu"]
    assert montage.distinct([made("difference", index=None)]) == ["difference"]
    assert montage.distinct([made("猫"), made("犬", index=0), made("café"), made("really?")]) == [
        "class 1 75%",
        "class 0 25%",
        "café 75%",
        "really? 75%",
    ]


def test_letters_that_the_font_has_not() -> None:
    assert drawable("café naïve – 3×3 → −1") == "cafe naive - 3x3 -> -1"
    assert drawable("猫 cat") == "? cat"
    plain, accented = (xcam.grid([made(image=np.zeros((200, 300, 3), np.uint8))], [c]) for c in ("cafe", "café"))
    np.testing.assert_array_equal(plain[:38], accented[:38])


def test_notes_stand_once_under_the_grid() -> None:
    parts = [made(), made("dog")]
    bare = xcam.grid(parts)
    noted = xcam.grid([replace(part, notes=("random weights",)) for part in parts])
    np.testing.assert_array_equal(noted[: len(bare)], bare)
    assert 10 < len(noted) - len(bare) < 80
    assert (noted[len(bare) :] > 200).any()


def test_grids_that_make_no_sense() -> None:
    for columns in (-1, 1.5):
        with pytest.raises(InputError, match=f"columns is {columns}"):
            xcam.grid([made()], columns=columns)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="2 captions for 1 pictures"):
        xcam.grid([made()], ["a", "b"])
    with pytest.raises(InputError, match="there is nothing to draw"):
        xcam.grid([])


def test_signed_maps_are_red_for_and_blue_against() -> None:
    image = RNG.integers(0, 256, (130, 3, 3), dtype=np.uint8)  # more rows than one strip
    heat = np.float32([[-1, 0, 1]]).repeat(130, 0)
    found = signed_overlay(image, heat, alpha=1.0)
    np.testing.assert_array_equal(found[:, 0], np.uint8([[33, 102, 172]]).repeat(130, 0))
    np.testing.assert_array_equal(found[:, 1], image[:, 1])
    np.testing.assert_array_equal(found[:, 2], np.uint8([[178, 24, 43]]).repeat(130, 0))
    quarter = signed_overlay(image, np.full((130, 3), 0.25, np.float32))  # 1.6·0.5·√0.25 = 0.4 of the colour
    expected = 0.6 * image + 0.4 * diverging()[round(0.25 * 127.5 + 127.5), 0]
    np.testing.assert_allclose(quarter, expected, atol=0.51)


def test_a_signed_map_does_not_depend_on_the_normalisation() -> None:
    part = made()
    assert float(np.abs(part.cam).max()) != 1.0
    for how in ("none", "minmax"):
        other = replace(part, normalize=how)  # type: ignore[arg-type]
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
    found = contours(image, heat)
    line = found[30, 60].astype(float)  # anti-aliased, on a dark line: a little darker than the colour
    np.testing.assert_allclose(line / line.max(), lookup_table("jet")[round(0.5 * 255), 0] / 255, atol=0.03)
    assert line.max() > 190
    np.testing.assert_allclose(found[50, 40], line, atol=2)
    inside, outside = found[35:65, 45:75], found[:25]
    assert (inside == 128).all()
    assert (outside == 128).all()
    np.testing.assert_array_equal(contours(image, heat, levels=(0.75,)), image)


def test_a_word_that_a_style_has_no_use_for_is_refused() -> None:
    part = made()
    for words, name in (
        ({"style": "contour", "alpha": 0.3}, "alpha"),
        ({"style": "contour", "blend": "add"}, "blend"),
        ({"style": "signed", "colormap": "viridis"}, "colormap"),
    ):
        with pytest.raises(InputError, match=f"{name} has no effect on style"):
            part.overlay(**words)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no style 'sign'; known: heat, contour, signed"):
        part.overlay(style="sign")  # type: ignore[arg-type]


def test_pictures_in_any_memory_order() -> None:
    image = RNG.integers(0, 256, (90, 70, 3), dtype=np.uint8)
    for turned in (image.transpose(1, 0, 2), image[::-1, ::-1], np.asfortranarray(image)):
        for style in ("heat", "contour", "signed"):
            part = made(image=turned, cam=np.ones((2, 2), np.float32))
            plain = replace(part, image=np.ascontiguousarray(turned))
            np.testing.assert_array_equal(part.overlay(style=style), plain.overlay(style=style))  # type: ignore[arg-type]
