"""Comparisons and explanations with invented values, and a parser of their pages."""

from __future__ import annotations

import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from xcam import ClassScore, Comparison, Explanation
from xcam.comparison import Diagnosis, Divergence, ImageComparison, Measures, Step, Verdict
from xcam.explanation import page as explanation_page

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><style>*{display:none}",
    "</script><script>alert(1)</script>",
    "{{7*7}}{% include 'style.css' %}",
    "--><!-- javascript:alert(1)",
    "Straße/日本語/שלום/\N{RIGHT-TO-LEFT OVERRIDE}gpj.🐯",
    "nul\0bell\a\x9b",
    "undecodable \udcff",
    "long" * 1000,
)


BIAS = Diagnosis("channel-scale", "a bias is missing")


def explained(image: np.ndarray, cam: np.ndarray, label: str = "tiger", **fields: Any) -> Explanation:
    outputs = np.array([0.5, 3.0, 1.0, 0.0], np.float32)
    scores = np.exp(outputs) / np.exp(outputs).sum()
    facts: dict[str, Any] = {
        "layer": "conv5",
        "method": "gradcam",
        "backend": "onnx",
        "model": "net",
        "path": Path("image.jpg"),
    } | fields
    return Explanation(image, cam.astype(np.float32), outputs, scores, ClassScore(1), 1, label, 3.0, **facts)


def measured(verdict: Verdict = "identical", largest: float = 1e-6, same_class: bool = True) -> Measures:
    return Measures(largest, 0.99999, 0.98765, 1.0, 0.75, 0.123, math.nan, same_class, verdict)


def detailed_image(seed: int, height: int = 600, width: int = 800) -> np.ndarray:
    """Return an image with the amount of detail of a camera image: waves, edges and noise."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8), (width, height))
    noise = rng.normal(0, 12, (height, width, 3))
    return np.clip(coarse + noise, 0, 255).astype(np.uint8)


def comparison(n: int = 2, models: int = 2, verdict: Verdict = "identical", **fields: Any) -> Comparison:
    rng = np.random.default_rng(7)
    pairs = [(a, b) for a in range(models) for b in range(a + 1, models)]
    images = [
        ImageComparison(
            Path(f"folder/{k}.jpg"),
            tuple(
                explained(detailed_image(k, 120, 160), rng.random((7, 7)), path=Path(f"folder/{k}.jpg"))
                for _ in range(models)
            ),
            dict.fromkeys(pairs, measured(verdict)),
        )
        for k in range(n)
    ]
    names = tuple(f"net {k}" for k in range(models))
    return Comparison(
        **{"names": names, "layers": ("conv5",) * models, "method": "gradcam", "images": tuple(images)} | fields
    )


def divergence(index: int | None = 2) -> Divergence:
    errors = (0.0, 2e-7, 0.04, 0.1)
    return Divergence((0, 1), tuple(Step(f"a{k}", f"b{k}", e) for k, e in enumerate(errors)), index, BIAS)


def reduced_divergence(index: int | None = 1) -> Divergence:
    """One of a float model and an int8 file; the pool of layer 3 adds no error."""
    errors = ((2e-3, 1e-3), (0.03, 2e-3), (1e-3, 9e-4), (0.0, 0.0))
    steps = tuple(Step(f"a{k}", f"b{k}", 0.1, added=each[0], expected=each[1]) for k, each in enumerate(errors))
    cause = Diagnosis("quantized", "evenly, as int8 does") if index is None else BIAS
    return Divergence((0, 1), steps, index, cause, tolerance=3)


def written(tmp_path: Path, content: Comparison | list[Explanation]) -> str:
    path = tmp_path / "report.html"
    if isinstance(content, Comparison):
        content.save(path)
    else:
        explanation_page.write(content, path)
    return path.read_text("utf-8")


class Reader(HTMLParser):
    """The elements of a page with their attributes, and its text without style and script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.inline: dict[str, list[str]] = {"style": [], "script": []}
        self._in = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self._in = tag

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in in self.inline:
            self.inline[self._in].append(data)
        else:
            self.text += data

    def has(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]
