"""Class scores: values, cotangents, invalid classes."""

from __future__ import annotations

import re

import numpy as np
import pytest

from differences import numerical_cotangent
from xcam import Classes, ClassScore, Finer, InputError, ModelError
from xcam.targets import difference, probabilities, scores, target

Z = np.array([[0.5, -1.0, 2.0, 0.0], [3.0, 1.0, -2.0, 0.25]])


def slope(aim: ClassScore, z: np.ndarray) -> np.ndarray:
    """Return ∂value/∂z [N, K] by central differences."""
    out = np.zeros_like(z)
    for k in range(z.shape[1]):
        step = np.zeros_like(z)
        step[:, k] = 1e-5
        out[:, k] = (aim.value(z + step) - aim.value(z - step)) / 2e-5
    return out


@pytest.mark.parametrize("activation", [None, "softmax", "sigmoid"])
@pytest.mark.parametrize("score", ["logit", "probability", "log-probability"])
@pytest.mark.parametrize("index", [0, 2, -1])
def test_cotangent_is_the_gradient(index: int, score: str, activation: str | None) -> None:
    aim = ClassScore(index, score, activation).resolve(Z)
    np.testing.assert_allclose(aim.cotangent(Z), slope(aim, Z), atol=1e-9)


def test_values_by_hand() -> None:
    assert ClassScore(2).value(Z).tolist() == [2.0, -2.0]
    np.testing.assert_allclose(ClassScore(1, "probability", "sigmoid").value(Z)[0], 1 / (1 + np.e))
    e = np.exp(Z[0])
    np.testing.assert_allclose(ClassScore(0, "probability", "softmax").value(Z)[0], e[0] / e.sum())
    np.testing.assert_allclose(difference(2, 1).value(Z), [3.0, -3.0])
    assert Finer(2, alpha=1.0, nearest=2).resolve(Z[:1]).indices == (2, 0, 3)  # 2.0 against 0.5 and 0.0
    np.testing.assert_allclose(Finer(2, nearest=2).value(Z[:1]), [2.0 - 0.25])
    e = np.exp(Z[0] - Z[0].max())
    np.testing.assert_allclose(ClassScore(1, "log-probability", "softmax").value(Z)[0], np.log(e[1] / e.sum()))


@pytest.mark.parametrize(
    ("aim", "outputs"),
    [
        (Classes((0, 2)), Z),
        (Classes((0, 2, 0), (1.0, -0.5, 2.0)), Z),
        (difference(2, 1), Z),
        (Finer(2, alpha=0.6, nearest=2), Z),
        (Finer(), Z),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, np.ndarray) else "",
)
def test_every_cotangent_is_the_gradient_of_its_value(aim: object, outputs: np.ndarray) -> None:
    expected = numerical_cotangent(aim, outputs)
    np.testing.assert_allclose(aim.cotangent(outputs), expected, atol=1e-8)  # type: ignore[attr-defined]


def test_outputs_that_are_probabilities_are_unchanged() -> None:
    p = np.array([[0.1, 0.2, 0.7]])
    np.testing.assert_array_equal(probabilities(p, None), p)
    np.testing.assert_array_equal(ClassScore(2, "probability").cotangent(p), [[0, 0, 1]])


@pytest.mark.parametrize("y", [np.array([[0.0], [2.0]]), np.array([0.0, 2.0])])
def test_one_output_without_activation_is_the_logit_of_a_sigmoid(y: np.ndarray) -> None:
    p = 1 / (1 + np.exp(-2))
    np.testing.assert_allclose(probabilities(y, None), [[0.5, 0.5], [1 - p, p]])
    np.testing.assert_array_equal(scores(y), [[0, 0], [-2, 2]])


@pytest.mark.parametrize("shape", [(3, 1), (3,)])
@pytest.mark.parametrize("activation", [None, "sigmoid", "identity"])
@pytest.mark.parametrize("score", ["logit", "probability", "log-probability"])
def test_the_gradients_of_the_two_classes_of_one_output(
    score: str, activation: str | None, shape: tuple[int]
) -> None:
    y = np.array([0.3, 0.9, 0.5]).reshape(shape)
    zero, one = (ClassScore(index, score, activation).resolve(y[:1]) for index in (0, 1))
    for aim in (zero, one):
        np.testing.assert_allclose(aim.cotangent(y), numerical_cotangent(aim, y), atol=1e-8)
    if score != "log-probability":
        np.testing.assert_allclose(zero.cotangent(y), -np.asarray(one.cotangent(y)), rtol=1e-12)
    p = y.ravel() if activation == "identity" else 1 / (1 + np.exp(-y.ravel()))
    value = {"logit": y.ravel(), "probability": p, "log-probability": np.log(p)}[score]
    other = {"logit": 1 - p if activation == "identity" else -y.ravel(), "probability": 1 - p}
    np.testing.assert_allclose(one.value(y), value)
    np.testing.assert_allclose(zero.value(y), other.get(score, np.log(1 - p)))


def test_the_top_class_of_one_output_is_the_likelier() -> None:
    assert [ClassScore().resolve(np.array([[z]])).index for z in (-0.1, 0.1)] == [0, 1]
    assert [ClassScore(activation="identity").resolve(np.array([[p]])).index for p in (0.4, 0.6)] == [0, 1]
    assert ClassScore(rank=1).resolve(np.array([3.0])).index == 0
    np.testing.assert_array_equal(difference(0, 1).cotangent(np.array([[3.0]])), [[-2.0]])


def test_a_softmax_over_one_output_is_refused() -> None:
    with pytest.raises(ModelError, match="the softmax is over one output, and so always 1"):
        ClassScore(1, "probability", "softmax").resolve(np.array([[3.0]]))


@pytest.mark.parametrize(
    ("shape", "example"),
    [((1, 8, 4, 4), "xcam.Segmentation(0)"), ((1, 84, 40), "xcam.Detection(0, (x0, y0, x1, y1))")],
)
def test_an_output_without_class_scores_names_its_target(shape: tuple[int, ...], example: str) -> None:
    with pytest.raises(ModelError, match=re.escape(f"target={example}")):
        ClassScore(0).resolve(np.zeros(shape))


def test_no_overflow() -> None:
    z = np.array([[1e4, -1e4]])
    np.testing.assert_array_equal(probabilities(z, "softmax"), [[1, 0]])
    np.testing.assert_array_equal(probabilities(z, "sigmoid"), [[1, 0]])


def test_top_class_is_fixed_by_resolve() -> None:
    aim = target(None).resolve(Z[1:])  # type: ignore[attr-defined]
    assert aim.index == 0


def test_of_several_outputs_the_first_or_the_named_one_is_explained() -> None:
    outputs = {"a": Z, "b": Z[:, :2] + 1}
    result = ClassScore(1).resolve(outputs).cotangent(outputs)
    np.testing.assert_array_equal(result["a"], [[0, 1, 0, 0]] * 2)
    np.testing.assert_array_equal(result["b"], np.zeros((2, 2)))
    result = ClassScore(1, output="b").cotangent(outputs)
    np.testing.assert_array_equal(result["b"], [[0, 1]] * 2)


@pytest.mark.parametrize("index", [4, -5, 99])
def test_class_out_of_range(index: int) -> None:
    with pytest.raises(InputError, match=f"unknown class {index}: there are 4 classes; give 0 to 3"):
        ClassScore(index).resolve(Z)


def test_maps_are_not_class_scores() -> None:
    with pytest.raises(ModelError, match=r"shape \(1, 3, 4, 4\)"):
        ClassScore(0).resolve(np.zeros((1, 3, 4, 4)))


def test_half_precision() -> None:
    """1000 probabilities in float16 sum to 1 only with a wider accumulator."""
    z = np.random.default_rng(0).normal(size=(1, 1000)).astype(np.float16)
    p = probabilities(z, "softmax")
    assert p.dtype == np.float32
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-5)
    np.testing.assert_array_equal(probabilities(p.astype(np.float16), None), p.astype(np.float16).astype(np.float32))
    for score in ("logit", "probability", "log-probability"):
        aim = ClassScore(3, score).resolve(z)  # type: ignore[arg-type]
        wide = ClassScore(3, score, "softmax")  # type: ignore[arg-type]
        assert aim.cotangent(z).dtype == np.float16  # type: ignore[union-attr]
        np.testing.assert_allclose(aim.value(z), wide.value(z.astype(np.float64)), rtol=1e-3)
        np.testing.assert_allclose(aim.cotangent(z), wide.cotangent(z.astype(np.float64)), rtol=2e-3, atol=1e-7)


def test_the_activation_is_fixed_on_the_clean_outputs() -> None:
    """Logits that are a distribution for a masked image are still logits, and vice versa."""
    chance = np.array([[0.0, 0.25, 0.75, 0.0]])
    logits = ClassScore(2, "probability").resolve(Z[:1])
    np.testing.assert_allclose(logits.value(chance), probabilities(chance, "softmax")[:, 2])
    shares = ClassScore(2, "probability").resolve(chance)
    np.testing.assert_array_equal(shares.value(Z), Z[:, 2])
    sure = ClassScore(0, "log-probability").resolve(chance)
    assert np.isfinite(sure.value(chance)).all()
    assert np.isfinite(sure.cotangent(chance)).all()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Finer(nearest=4).resolve(Z[:1]), "cannot use nearest=4; give 1 to 3"),
        (lambda: Classes((0, 9)).resolve(Z[:1]), "unknown class 9"),
        (lambda: Classes(()).resolve(Z[:1]), "give a tuple of one or more integers as indices"),
        (lambda: Classes(("tiger",)).resolve(Z[:1]), "give a tuple of one or more integers as indices"),  # type: ignore[arg-type]
        (lambda: Classes((0, 1), (np.nan, 1.0)).resolve(Z[:1]), "they are not finite, or cancel out"),
        (
            lambda: difference(1, -3).resolve(Z[:1]),
            r"cannot use the weights of classes \[1, -3\]: they are not finite, or cancel out",
        ),
        (lambda: Finer(nearest=2.5).resolve(Z[:1]), "cannot use nearest=2.5; give 1 to 3"),  # type: ignore[arg-type]
        (lambda: Finer(alpha=np.nan).resolve(Z[:1]), "cannot use alpha=nan"),
    ],
)
def test_targets_that_cannot_be_used(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]
