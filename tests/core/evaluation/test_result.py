"""The result of `evaluate`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from xcam.evaluation.registry import get
from xcam.evaluation.result import Evaluation


def test_save_writes_the_report(tmp_path: Path) -> None:
    evaluation = Evaluation(
        model="net",
        layer="conv5",
        images=("a.png", "b.png"),
        targets=("cat", "dog"),
        values={"gradcam": {"deletion": np.array([0.25, 0.75])}},
        measures=(get("deletion"),),
    )
    evaluation.save(tmp_path / "trust.html")
    text = (tmp_path / "trust.html").read_text(encoding="utf-8")
    assert "Measured on 2 images at layer conv5." in text
    assert "0.500" in text or ">0.5<" in text
