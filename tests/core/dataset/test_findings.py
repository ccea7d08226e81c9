"""Findings in the table of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from batch_tables import CORNER, FRAME, SPOT, SPREAD, collected, failed, row, table
from xcam.dataset import findings


def paths(result: findings.Findings, kind: findings.Kind) -> list[str]:
    return [f.path for f in result.worst[kind].findings]


def test_rows_are_sorted_into_kinds() -> None:
    wrong: dict[str, Any] = {"class": "dog", "correct": False}
    right: dict[str, Any] = {"class": "cat", "correct": True}
    result = collected(
        failed("first.jpg", "empty"),
        row("confident.jpg", SPOT, **wrong),
        row("surer.jpg", SPOT, **wrong | {"probability": 0.9}),
        row("vague.jpg", SPREAD, **wrong),
        row("right.jpg", SPOT, **right),
        row("unlabelled.jpg", SPOT),
        row("corner.jpg", CORNER, **right),
        row("frame.jpg", FRAME, **right),
        row("zero.jpg", -SPOT, **wrong),
        row("same.jpg", SPREAD, rival_correlation=0.97),
        row("almost.jpg", SPREAD, rival_correlation=0.95),
        row("zero same.jpg", 0 * SPOT, rival_correlation=1.0),
        failed(),
    )
    assert paths(result, "wrong") == ["surer.jpg", "confident.jpg"]
    assert paths(result, "edge") == ["corner.jpg", "frame.jpg"]
    assert paths(result, "same") == ["same.jpg"]
    assert paths(result, "zero") == ["zero.jpg", "zero same.jpg"]
    corner, frame = result.worst["edge"].findings
    assert (corner.region, corner.share, corner.expected) == ("top right", 1, pytest.approx(0.04))
    assert (frame.region, frame.share, frame.expected) == ("border", 1, pytest.approx(0.36))
    assert result.worst["wrong"].findings[0].severity == pytest.approx(0.9)
    assert (result.images, result.failed, result.explained, result.drawn) == (13, 2, 11, 9)
    assert (result.labelled, result.correct) == (7, 3)
    assert result.border == pytest.approx(0.75 + 1 + 3 * 0.36)
    assert result.border_expected == pytest.approx(9 * 0.36)
    assert result.histogram[:, 0].tolist() == [0, 0, 0, 0, 0, 0, 0, 10, 0, 1]
    assert result.histogram[:, 1].tolist() == [0, 0, 0, 0, 0, 0, 0, 3, 0, 1]
    assert result.failures == [("first.jpg", "empty"), ("bad.jpg", "bad.jpg is not an image")]


def test_the_worst_are_kept_for_any_size_of_parts() -> None:
    likeness = np.random.default_rng(1).permutation(np.linspace(0.951, 0.999, 60))
    rows = [row(f"{k}.jpg", rival_correlation=float(v)) for k, v in enumerate(likeness)]
    order = [f"{k}.jpg" for k in np.argsort(-likeness)[: findings.WORST]]
    for size in (1, 7, 60):
        result = findings.collect(table(rows[k : k + size]) for k in range(0, 60, size))
        assert result.worst["same"].count == 60
        assert paths(result, "same") == order
    equal = collected(*[row(f"{k}.jpg", 0 * SPOT) for k in range(30)])
    assert paths(equal, "zero") == [f"{k}.jpg" for k in range(findings.WORST)]


def test_the_average_map_of_a_class_is_the_mean_of_its_normalised_maps() -> None:
    result = collected(
        row("a", 7 * SPOT - 3, **{"class": "cat", "correct": True}),
        row("b", 5 * CORNER, **{"class": "cat", "correct": False}),
        row("c", -SPOT, **{"class": "3", "correct": True}),  # the index of cat
        row("d", SPREAD, prediction="dog", prediction_index=1),
        row("e", np.ones((20, 20), np.float32), prediction="dog", prediction_index=1),
        failed(),
    )
    cat, dog = result.classes()
    assert [(a.name, a.count, a.labelled, a.correct) for a in (cat, dog)] == [("cat", 3, 3, 2), ("dog", 2, 0, 0)]
    assert np.allclose(cat.cam, (SPOT + CORNER) / 3)
    assert np.allclose(dog.cam, 1)
    assert np.allclose(result.everything.cam, (SPOT + CORNER + 2) / 5)
    assert result.class_name("3") == "cat"
    assert result.class_name("lynx") == "lynx"


def test_a_large_map_is_averaged_on_a_small_grid() -> None:
    result = collected(row("a", np.kron(SPOT, np.ones((3, 3), np.float32))))
    assert result.classes()[0].cam.shape == (14, 14)


def test_too_many_classes_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "CLASSES", 2)
    result = collected(*[row(f"{k}.jpg", prediction=f"c{k % 4}", prediction_index=k % 4) for k in range(20)])
    assert [(a.name, a.count) for a in result.classes()] == [("c0", 5), ("c1", 5)]
    assert result.others == 10


def test_an_image_with_several_targets_counts_once() -> None:
    wrong: dict[str, Any] = {"class": "dog", "correct": False}
    result = collected(*[row(p, target=t, **wrong) for p in ("a.jpg", "b.jpg") for t in ("cat", "dog", "owl")])
    assert (result.images, result.labelled, result.correct, result.explained) == (2, 2, 0, 6)
    assert paths(result, "wrong") == ["a.jpg", "b.jpg"]
    assert result.histogram.sum(axis=0).tolist() == [2, 2]
