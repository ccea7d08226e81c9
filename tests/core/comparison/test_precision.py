"""Models of which one has a reduced precision, from their values to the layer and the cause."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import reduced
from xcam.comparison import Diagnosis, own_error, precision
from xcam.comparison.correspondence import Correspondence
from xcam.comparison.data import Divergence
from xcam.comparison.own_error import OwnError, Pair

IMAGES = list(np.random.default_rng(4).integers(0, 256, (2, *reduced.SIZE, 3), dtype=np.uint8))


def divergence(swapped: bool = False, **mistakes: object) -> Divergence:
    first = reduced.chain()
    x = np.stack([image.transpose(2, 0, 1) / np.float32(127.5) - 1 for image in IMAGES])
    models: list[Any] = [first, reduced.reduced(first, x, **mistakes)]
    models = models[::-1] if swapped else models
    correspondence = Correspondence(models, [model.input for model in models], IMAGES)
    (result,) = correspondence.divergences([1])
    return result


@pytest.mark.parametrize("swapped", [False, True])
def test_an_honest_quantisation_differs_evenly(swapped: bool) -> None:
    result = divergence(swapped)
    assert result.layer is None
    assert result.cause is not None
    assert result.cause.code == "quantized"
    assert result.cause.text.startswith("evenly, as uint8 does: ")
    assert result.tolerance == 2.5
    for step in result.steps:
        assert step.added is not None
        assert step.expected is not None
        assert 0.5 < step.added / step.expected < 1.5
    assert result.notes == ()


@pytest.mark.parametrize("swapped", [False, True])
def test_a_mistake_is_named_at_its_layer(swapped: bool) -> None:
    result = divergence(swapped, ranges={3: 0.5})
    assert result.layer == "conv3"
    assert result.cause is not None
    assert result.cause.code == "narrow-range"


def test_ranges_that_are_too_narrow_for_the_images_at_most_layers() -> None:
    """The first of them is named, and that it is not the only one; the precision explains all other errors."""
    result = divergence(ranges=dict.fromkeys((3, 4, 5), 0.2))
    assert result.layer == "conv3"
    assert result.cause is not None
    assert result.cause.code == "narrow-range"
    assert result.cause.text.endswith("; so are those of 3 of 5 layers: the calibration saw no such images")


def test_other_weights_are_not_explained_by_the_precision() -> None:
    first = reduced.chain()
    x = np.stack([image.transpose(2, 0, 1) / np.float32(127.5) - 1 for image in IMAGES])
    second = reduced.reduced(first, x)
    second.weights = [w * np.float32(1.3) for w in second.weights]
    models: list[Any] = [first, second]
    (result,) = Correspondence(models, [model.input for model in models], IMAGES).divergences([1])
    assert result.cause is None or result.cause.code != "quantized"


def test_a_failure_leaves_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise MemoryError("no memory\nat all")

    monkeypatch.setattr(reduced.Reduced, "stretches", fails)
    result = divergence()
    assert result.notes[0] == "the own errors of the layers could not be measured: MemoryError: no memory"
    assert result.tolerance is None


def test_one_scale_for_most_weights_is_the_precision_of_the_model() -> None:
    """Where one scale is too coarse for most weights, no layer is named; the text tells how to do better."""
    cause = Diagnosis("per-tensor-weights", "one scale")
    errors = [OwnError(1.0, 1.0, 1.0, True, 1.0, (0.0, 0.0), steps, cause) for steps in (3.0, 9.0, 5.0, 6.0)]
    assert own_error.outlier(errors) is None
    assert own_error.outlier([replace(error, per_tensor=1.0) for error in errors[:3]] + errors[3:]) == 3
    pairs = [Pair(f"a{k}", f"b{k}") for k in range(4)]
    text = precision.even(pairs, errors, "int8").text
    assert text.endswith("with a scale of each, the steps at b1 would be 9 times smaller")
