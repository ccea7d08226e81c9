"""Every cotangent is the gradient of its value."""

from __future__ import annotations

import numpy as np
import pytest

from xcam import ClassScore, InputError, ModelError
from xcam.targets import class_index, probabilities, target

Z = np.array([[0.5, -1.0, 2.0, 0.0], [3.0, 1.0, -2.0, 0.25]])


def difference(aim: ClassScore, z: np.ndarray) -> np.ndarray:
    """∂value/∂z by central differences, [N, K]."""
    out = np.zeros_like(z)
    for k in range(z.shape[1]):
        step = np.zeros_like(z)
        step[:, k] = 1e-5
        out[:, k] = (aim.value(z + step) - aim.value(z - step)) / 2e-5
    return out


@pytest.mark.parametrize("activation", [None, "softmax", "sigmoid"])
@pytest.mark.parametrize("score", ["logit", "probability"])
@pytest.mark.parametrize("index", [0, 2, -1])
def test_cotangent_is_the_gradient(index: int, score: str, activation: str | None) -> None:
    aim = ClassScore(index, score, activation).resolve(Z)
    np.testing.assert_allclose(aim.cotangent(Z), difference(aim, Z), atol=1e-9)


def test_values_by_hand() -> None:
    assert ClassScore(2).value(Z).tolist() == [2.0, -2.0]
    np.testing.assert_allclose(ClassScore(1, "probability", "sigmoid").value(Z)[0], 1 / (1 + np.e))
    e = np.exp(Z[0])
    np.testing.assert_allclose(ClassScore(0, "probability", "softmax").value(Z)[0], e[0] / e.sum())


def test_outputs_that_are_probabilities_already_are_left_alone() -> None:
    p = np.array([[0.1, 0.2, 0.7]])
    np.testing.assert_array_equal(probabilities(p, None), p)
    np.testing.assert_array_equal(ClassScore(2, "probability").cotangent(p), [[0, 0, 1]])


def test_one_output_without_activation_is_the_logit_of_a_sigmoid() -> None:
    np.testing.assert_allclose(probabilities(np.array([[0.0], [2.0]]), None)[:, 0], [0.5, 1 / (1 + np.exp(-2))])


def test_no_overflow() -> None:
    z = np.array([[1e4, -1e4]])
    np.testing.assert_array_equal(probabilities(z, "softmax"), [[1, 0]])
    np.testing.assert_array_equal(probabilities(z, "sigmoid"), [[1, 0]])


def test_top_class_is_fixed_by_resolve() -> None:
    aim = target(None).resolve(Z[1:])  # type: ignore[attr-defined]
    assert aim.index == 0


def test_several_outputs_the_first_is_explained_or_the_named_one() -> None:
    said = {"a": Z, "b": Z[:, :2] + 1}
    found = ClassScore(1).resolve(said).cotangent(said)
    np.testing.assert_array_equal(found["a"], [[0, 1, 0, 0]] * 2)
    np.testing.assert_array_equal(found["b"], np.zeros((2, 2)))
    found = ClassScore(1, output="b").cotangent(said)
    np.testing.assert_array_equal(found["b"], [[0, 1]] * 2)


@pytest.mark.parametrize("index", [4, -5, 99])
def test_class_out_of_range(index: int) -> None:
    with pytest.raises(InputError, match=f"no class {index}: the model has 4 classes, 0 to 3"):
        ClassScore(index).resolve(Z)


def test_dense_outputs_are_no_class_scores() -> None:
    with pytest.raises(ModelError, match=r"shape \(1, 3, 4, 4\)"):
        ClassScore(0).resolve(np.zeros((1, 3, 4, 4)))


def test_labels_are_compared_without_case_and_underscores() -> None:
    names = ["tiger cat", "Tiger", "zebra", "crane", "crane", "x", "y", "z"]
    assert class_index("tiger", names) == 1
    assert class_index("Tiger_Cat", names) == 0
    assert class_index("7", names) == 7
    with pytest.raises(InputError, match="2 classes are called 'crane'; give the index: 3, 4"):
        class_index("crane", names)
    with pytest.raises(InputError, match="no class 'tigr'; nearest: tiger"):
        class_index("tigr", names)
    with pytest.raises(InputError, match="has no class names"):
        class_index("tiger", None)


def test_what_is_no_target() -> None:
    with pytest.raises(InputError, match=r"1\.5 is no target"):
        target(1.5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no score 'p'"):
        target(1, score="p")  # type: ignore[arg-type]
