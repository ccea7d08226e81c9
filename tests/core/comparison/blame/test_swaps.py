"""Swapped values, against runs of the plain network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

import blocks
from xcam import ClassScore
from xcam.comparison.blame.locations import Location
from xcam.comparison.blame.subject import Subject
from xcam.comparison.blame.swaps import Pair, Side
from xcam.explanation.settings import settings

CUTS = ["stem_relu", "relu0", "relu1", "relu2", "relu3", "pool"]


def pair(first: blocks.Blocks, second: blocks.Blocks, opened: list[str], explained: str = "relu3") -> Pair:
    sides = [
        Side(model, model.input, next(layer for layer in model.layers if layer.name == explained))
        for model in (first, second)
    ]
    names = [layer.name for layer in second.layers]
    subject = Subject((sides[0], sides[1]), ClassScore(1), settings("gradcam"), names.index(explained))
    layers = [[layer for layer in model.layers if layer.name in opened] for model in (first, second)]
    return subject.run(blocks.images()[0], *layers)


def location(model: blocks.Blocks, name: str) -> Location:
    k = [layer.name for layer in model.layers].index(name)
    return Location(model.layers[k], model.layers[k], (k, k))


def mixed(second: blocks.Blocks, values: dict[str, Any], x: Any) -> dict[str, Any]:
    """Return all values of the second network where some are given."""
    return second.graph.run({"x": x} | values)


def cam(second: blocks.Blocks, values: dict[str, Any]) -> Any:
    """Return Grad-CAM of class 1 at relu3: the weights of a mean and a dense layer are constants."""
    fc = second.graph.nodes[-1].forward(np.eye(blocks.WIDTH, dtype=np.float32))
    small = np.maximum(np.einsum("c,chw->hw", fc[:, 1], values["relu3"][0]), 0)
    return cv2.resize(small, (128, 128), interpolation=cv2.INTER_LINEAR)


@pytest.fixture
def both() -> tuple[blocks.Blocks, blocks.Blocks]:
    return blocks.network(), blocks.network("second", b1=lambda w: w * 1.3, a2=lambda w: w[::-1])


def test_a_walk_is_that_of_mixed_networks(both: tuple[blocks.Blocks, blocks.Blocks]) -> None:
    first, second = both
    opened = pair(first, second, CUTS)
    x = opened.first.x
    walk = opened.walk([location(second, name) for name in CUTS])
    a = first.graph.run({"x": x})
    for k, name in enumerate(["", *CUTS]):
        values = mixed(second, {name: a[name]} if name else {}, x)
        difference = values["fc"] - a["fc"]
        whole = second.graph.run({"x": x})["fc"] - a["fc"]
        expected = float((difference * whole).sum() / np.linalg.norm(whole) / np.sqrt(5) / np.abs(a["fc"]).max())
        assert walk.scores[k] == pytest.approx(expected, abs=1e-6)
        following = [*CUTS, "fc"][k]
        size = np.abs(a[following]).max()
        assert walk.errors[k] == pytest.approx(np.abs(values[following] - a[following]).max() / size, abs=1e-6)
        if name != "pool":
            correlation = np.corrcoef(cam(second, values).ravel(), cam(first, a).ravel())[0, 1]
            assert walk.heatmap[k] == pytest.approx(1 - correlation, abs=1e-5)
    assert walk.scores[-1] == walk.heatmap[-1] == 0
    assert np.isnan(walk.heatmap[-2])


def test_the_skip_keeps_the_first_models_value(both: tuple[blocks.Blocks, blocks.Blocks]) -> None:
    """In the third block, the stretch to `b2` starts from exact values both at its input and inside."""
    first, second = both
    inner, end = ["a2", "inside2", "b2"], "relu2"
    opened = pair(first, second, [*CUTS, *inner])
    walk = opened.chain(location(second, "relu1"), [location(second, name) for name in inner], location(second, end))
    a = first.graph.run({"x": opened.first.x})
    known: dict[str, Any] = {"relu1": a["relu1"]}
    for k, name in enumerate([*inner, end]):
        values = mixed(second, known, opened.first.x)
        size = np.abs(a[name]).max()
        assert walk.errors[k] == pytest.approx(np.abs(values[name] - a[name]).max() / size, abs=1e-6)
        known[name] = a[name]
    assert walk.errors[0] > 0.1 > 1e-5 > max(walk.errors[1:])


def test_the_other_direction_puts_the_second_models_value_into_the_first(
    both: tuple[blocks.Blocks, blocks.Blocks],
) -> None:
    first, second = both
    opened = pair(first, second, CUTS)
    b = second.graph.run({"x": opened.first.x})
    a = first.graph.run({"x": opened.first.x})
    expected = mixed(first, {"relu1": b["relu1"]}, opened.first.x)["fc"]
    scores, heatmap = opened.opposite(location(second, "relu1"), False)
    assert opened.whole[0] - scores == pytest.approx(opened.measure(expected), abs=1e-7)
    assert 0 < opened.lost - heatmap < 0.5
    assert opened.measure(a["fc"]) == pytest.approx(0, abs=1e-7)


def test_contributions_of_the_second_models_values_in_the_first(both: tuple[blocks.Blocks, blocks.Blocks]) -> None:
    first, second = both
    opened = replace(pair(first, second, [*CUTS, "a2", "b2"]), in_first=True)
    cuts = [location(second, name) for name in CUTS]
    walk = opened.walk(cuts)
    forward = replace(opened, in_first=False)
    assert walk.errors == forward.walk(cuts).errors
    for k, each in enumerate(cuts):
        assert walk.scores[k + 1] == forward.opposite(each, False)[0]
        assert opened.opposite(each, True)[0] == forward.walk(cuts).scores[k + 1]
    b = second.graph.run({"x": opened.first.x})
    parts = opened.chain(location(second, "relu1"), [location(second, name) for name in ("a2", "b2")], None, True)
    known = {"relu1": b["relu1"]}
    for k, name in enumerate(["relu1", "a2", "b2"]):
        known[name] = b[name]
        expected = opened.whole[0] - opened.measure(mixed(first, known, opened.first.x)["fc"])
        assert parts.scores[k] == pytest.approx(expected, abs=1e-7)
