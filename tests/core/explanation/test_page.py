"""The report of explanations."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from report_pages import Reader, detailed_image, explained, written
from xcam.errors import InputError
from xcam.explanation import page as explanation_page


def test_embedded_images_keep_their_content(tmp_path: Path) -> None:
    image, cam = detailed_image(1, 300, 1024), np.zeros((4, 4))
    cam[1, 2] = 5
    html = written(tmp_path, [explained(image, cam)])
    embedded = re.findall(r"data:image/(?:png|jpeg);base64,([A-Za-z0-9+/=]+)", html)
    assert len(embedded) == 2  # the image once, and its heatmap
    small, heat = (cv2.imdecode(np.frombuffer(base64.b64decode(f), np.uint8), cv2.IMREAD_COLOR_RGB) for f in embedded)
    assert small.shape == (150, 512, 3)
    expected = cv2.resize(image, (512, 150), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - expected).mean() < 8
    hot = heat[round(heat.shape[0] * 0.375), round(heat.shape[1] * 0.625)]
    cold = heat[-4, 4]
    assert hot[0] > 100 > hot[2]  # red: jet's upper end
    assert cold[2] > 100 > cold[0]  # blue


def test_explanations_of_an_image_are_tabs(tmp_path: Path) -> None:
    a = explained(detailed_image(0), np.eye(3))
    b = explained(detailed_image(0), np.eye(3), method="layercam")
    reader = Reader(written(tmp_path, [a, b]))
    tabs = [attributes for attributes in reader.has("button") if attributes.get("role") == "tab"]
    panels = [attributes for _, attributes in reader.tags if attributes.get("role") == "tabpanel"]
    assert [t["aria-controls"] for t in tabs] == [p["id"] for p in panels]
    assert [p["aria-labelledby"] for p in panels] == [t["id"] for t in tabs]
    assert reader.text.index("layercam") > 0


def test_two_files_of_one_name_have_their_paths() -> None:
    es = [explained(detailed_image(0), np.eye(3), path=Path(p)) for p in ("x/a.jpg", "y/a.jpg", "b.jpg")]
    assert [g["name"] for g in explanation_page.content(es)["groups"]] == [
        str(Path("x/a.jpg")),
        str(Path("y/a.jpg")),
        "b.jpg",
    ]


def test_a_heatmap_that_is_zero_everywhere_is_reported(tmp_path: Path) -> None:
    assert "Zero everywhere" in written(tmp_path, [explained(detailed_image(0), -np.eye(3))])
    assert "Zero everywhere" not in written(tmp_path, [explained(detailed_image(0), np.eye(3))])


def test_nothing_to_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to report"):
        explanation_page.write([], tmp_path / "report.html")
