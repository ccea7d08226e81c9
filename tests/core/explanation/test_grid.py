"""Several explanations in one image: overlays, captions, notes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import xcam
from explanations import explanation
from xcam import Explanation, InputError
from xcam.explanation.grid import distinct
from xcam.images import montage


def test_tiles_are_the_overlays() -> None:
    parts = [explanation(), explanation("dog"), explanation("cow")]
    sheet = xcam.grid(parts, columns=2)
    gap, line = montage.GAP, 30  # a tenth of 300
    assert sheet.shape == (2 * (200 + line + gap) + gap, 2 * (300 + gap) + gap, 3)
    for k, part in enumerate(parts):
        top, left = gap + line + (k // 2) * (200 + line + gap), gap + (k % 2) * (300 + gap)
        np.testing.assert_array_equal(sheet[top : top + 200, left : left + 300], part.overlay())
        assert (sheet[top - line : top, left : left + 300] < 100).any(), "a caption"
    assert (sheet[-200:, 316:] == montage.BACKGROUND).all()


def test_a_large_image_is_shrunk_before_it_is_coloured(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[Any] = []
    drawn = Explanation.overlay
    monkeypatch.setattr(Explanation, "overlay", lambda e, *a: shapes.append(e.image.shape) or drawn(e, *a))
    ramp = np.linspace(0, 255, 4800).astype(np.uint8)[None, :, None].repeat(2400, 0).repeat(3, 2)
    large = explanation(image=ramp)
    sheet = xcam.grid([large])
    assert shapes == [(240, 480, 3)]
    tile = sheet[-montage.GAP - 240 : -montage.GAP, montage.GAP : -montage.GAP].astype(int)
    assert "heatmap" not in large.__dict__, "the large map was never made"
    np.testing.assert_allclose(tile[:, 5:-5], drawn(large)[5::10, 5::10][:, 5:-5], atol=4)


def test_captions_name_the_differences() -> None:
    assert distinct([explanation(), explanation("dog")]) == ["cat 75%", "dog 75%"]
    assert distinct([explanation(), explanation(method="fem")]) == ["gradcam", "fem"]
    assert distinct([explanation(), explanation("dog", layer="relu")]) == ["cat, conv", "dog, relu"]
    assert distinct([explanation("difference", index=None)]) == ["difference"]
    assert distinct([explanation("猫"), explanation("犬", index=0), explanation("café"), explanation("really?")]) == [
        "class 1 75%",
        "class 0 25%",
        "café 75%",
        "really? 75%",
    ]


def test_notes_are_below_the_grid_once() -> None:
    parts = [explanation(), explanation("dog")]
    bare = xcam.grid(parts)
    noted = xcam.grid([replace(part, notes=("random weights",)) for part in parts])
    np.testing.assert_array_equal(noted[: len(bare)], bare)
    assert 10 < len(noted) - len(bare) < 80
    assert (noted[len(bare) :] > 200).any()


def test_invalid_arguments() -> None:
    for columns in (-1, 1.5):
        with pytest.raises(InputError, match=f"cannot use columns={columns}"):
            xcam.grid([explanation()], columns=columns)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="2 captions for 1 images"):
        xcam.grid([explanation()], ["a", "b"])
    with pytest.raises(InputError, match="there is nothing to draw"):
        xcam.grid([])
