"""Targets for numbers, maps, embeddings and boxes: values, cotangents, outputs that do not fit."""

from __future__ import annotations

import numpy as np
import pytest

from differences import numerical_cotangent
from xcam import Detection, Element, InputError, Segmentation, Similarity

Z = np.array([[0.5, -1.0, 2.0, 0.0], [3.0, 1.0, -2.0, 0.25]])
RNG = np.random.default_rng(3)
MAPS = RNG.normal(size=(2, 3, 4, 5))
MASK = RNG.random((4, 5)) > 0.5
BOXES = np.concatenate(
    [np.array([[0, 0, 4, 4], [3, 3, 9, 9], [20, 20, 30, 30.0]])[None], RNG.normal(size=(1, 3, 2))], 2
)
VECTORS = RNG.normal(size=(2, 6))


@pytest.mark.parametrize(
    ("aim", "outputs"),
    [
        (Element((3,)), Z),
        (Element((1, 2, -1)), MAPS),
        (Segmentation(1, MASK), MAPS),
        (Segmentation(2), MAPS),
        (Segmentation(1, MASK, last=True), np.moveaxis(MAPS, 1, -1).copy()),
        (Similarity(RNG.normal(size=6)), VECTORS),
        (Similarity(RNG.normal(size=(2, 3))), VECTORS.reshape(2, 2, 3)),
        (Detection(1, (2, 2, 8, 8)).resolve(BOXES), BOXES),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, np.ndarray) else "",
)
def test_every_cotangent_is_the_gradient_of_its_value(aim: object, outputs: np.ndarray) -> None:
    expected = numerical_cotangent(aim, outputs)
    np.testing.assert_allclose(aim.cotangent(outputs), expected, atol=1e-8)  # type: ignore[attr-defined]


def test_values_by_hand() -> None:
    np.testing.assert_allclose(Segmentation(1, MASK).value(MAPS), MAPS[:, 1][:, MASK].mean(axis=1))
    np.testing.assert_allclose(Similarity(VECTORS[0]).value(VECTORS)[0], 1.0)
    equal = np.concatenate([BOXES[..., :4], np.ones((1, 3, 1))], axis=2)
    assert Detection(0, (0, 0, 4, 4)).resolve(equal).box == 0
    assert Detection(0, (4, 4, 9, 9)).resolve(equal).box == 1
    middle = np.array([[[2, 2, 4, 4, 1.0], [6, 6, 6, 6, 1.0]]])  # the first two boxes by centre and size
    assert Detection(0, (4, 4, 9, 9), corners="cxcywh").resolve(middle).box == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Similarity(np.ones(5)).value(VECTORS), "the reference has 5 numbers, the embedding 6"),
        (lambda: Similarity(np.zeros(6)).value(VECTORS), "with a vector of zeros is not defined"),
        (lambda: Segmentation(1, np.ones((2, 2))).value(MAPS), r"the mask has shape \(2, 2\), the output \(4, 5\)"),
        (lambda: Segmentation(1, np.zeros((4, 5))).value(MAPS), "the mask is empty"),
        (lambda: Segmentation(7).value(MAPS), "unknown class 7: there are 3 classes"),
        (lambda: Element((9,)).value(Z), r"unknown element \[9\] of an output of shape \[4\]"),
        (lambda: Detection(0, (50, 50, 60, 60)).resolve(BOXES), "no box overlaps the region"),
        (lambda: Element(3).value(Z), "unknown element 3 of an output"),  # type: ignore[arg-type]
        (lambda: Element((1.5,)).value(Z), "unknown element .1.5. of an output"),  # type: ignore[arg-type]
        (lambda: Segmentation("cat").value(MAPS), "unknown class cat: there are 3 classes"),  # type: ignore[arg-type]
        (lambda: Similarity(np.full(6, np.nan)).value(VECTORS), "the reference contains NaN or infinity"),
        (lambda: Detection(0, (1, 2)).resolve(BOXES), "cannot use the region .1, 2.; give .x0, y0, x1, y1."),  # type: ignore[arg-type]
        (lambda: Detection(0, (9, 9, 2, 2)).resolve(BOXES), "cannot use the region"),
    ],
)
def test_targets_that_cannot_be_used(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]
