"""Every cotangent is the gradient of its value."""

from __future__ import annotations

import numpy as np
import pytest

from xcam import Classes, ClassScore, Detection, Element, Finer, InputError, ModelError, Segmentation, Similarity
from xcam.targets import class_index, difference, probabilities, several, target

Z = np.array([[0.5, -1.0, 2.0, 0.0], [3.0, 1.0, -2.0, 0.25]])


def slope(aim: ClassScore, z: np.ndarray) -> np.ndarray:
    """∂value/∂z by central differences, [N, K]."""
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
        (Classes((0, 2)), Z),
        (Classes((0, 2, 0), (1.0, -0.5, 2.0)), Z),
        (difference(2, 1), Z),
        (Finer(2, alpha=0.6, nearest=2), Z),
        (Finer(), Z),
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
    expected = np.zeros_like(outputs)
    for place in np.ndindex(outputs.shape[1:]):
        step = np.zeros_like(outputs)
        step[(slice(None), *place)] = 1e-6
        expected[(slice(None), *place)] = (aim.value(outputs + step) - aim.value(outputs - step)) / 2e-6  # type: ignore[attr-defined]
    np.testing.assert_allclose(aim.cotangent(outputs), expected, atol=1e-8)  # type: ignore[attr-defined]


def test_more_values_by_hand() -> None:
    np.testing.assert_allclose(difference(2, 1).value(Z), [3.0, -3.0])
    assert Finer(2, alpha=1.0, nearest=2).resolve(Z[:1]).indices == (2, 0, 3)  # 2.0 against 0.5 and 0.0
    np.testing.assert_allclose(Finer(2, nearest=2).value(Z[:1]), [2.0 - 0.25])
    np.testing.assert_allclose(Segmentation(1, MASK).value(MAPS), MAPS[:, 1][:, MASK].mean(axis=1))
    np.testing.assert_allclose(Similarity(VECTORS[0]).value(VECTORS)[0], 1.0)
    equal = np.concatenate([BOXES[..., :4], np.ones((1, 3, 1))], axis=2)
    assert Detection(0, (0, 0, 4, 4)).resolve(equal).box == 0
    assert Detection(0, (4, 4, 9, 9)).resolve(equal).box == 1
    middle = np.array([[[2, 2, 4, 4, 1.0], [6, 6, 6, 6, 1.0]]])  # the first two boxes by centre and size
    assert Detection(0, (4, 4, 9, 9), corners="cxcywh").resolve(middle).box == 1
    e = np.exp(Z[0] - Z[0].max())
    np.testing.assert_allclose(ClassScore(1, "log-probability", "softmax").value(Z)[0], np.log(e[1] / e.sum()))


def test_ranks() -> None:
    aims = several("top3")
    assert aims is not None
    assert [aim.resolve(Z[:1]).index for aim in aims] == [2, 0, 3]
    assert several("Top-2") is not None
    assert several("topaz") is None
    with pytest.raises(InputError, match="no class of rank 5: the model has 4 classes"):
        several("top5")[4].resolve(Z[:1])  # type: ignore[index]
    with pytest.raises(InputError, match="'top0' names no class"):
        several("top0")


NAMES = ["tiger cat", "tiger", "zebra", "Egyptian cat", "T-shirt", "topaz", "finer"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("zeb", 2),
        ("egyptian", 3),
        ("tiger-zebra", (1, 2)),
        ("T-shirt", 4),
        ("t-sh", 4),
        ("T-shirt-zebra", (4, 2)),
        ("1-2", (1, 2)),
        ("-1", -1),
        ("finer", 6),
    ],
)
def test_words(words: str, expected: int | tuple[int, int]) -> None:
    found = target(words, labels=NAMES)
    if isinstance(expected, int):
        assert isinstance(found, ClassScore)
        assert found.index == expected
    else:
        assert isinstance(found, Classes)
        assert (found.indices, found.weights) == (expected, (1.0, -1.0))


def test_finer_in_words() -> None:
    assert target("finer:zebra", labels=NAMES) == Finer(2)
    assert target("finer", labels=NAMES[:3]) == Finer(None)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: target("tig", labels=NAMES), "2 classes begin with 'tig': tiger cat .0., tiger .1.; say which"),
        (lambda: target("zebra-zeb", labels=NAMES), "the difference of class 2 and itself is zero"),
        (lambda: target("zebra-lion", labels=NAMES), "no class 'zebra-lion'"),
        (lambda: Similarity(np.ones(5)).value(VECTORS), "the reference has 5 numbers, the embedding 6"),
        (lambda: Similarity(np.zeros(6)).value(VECTORS), "a vector of zeros has no direction"),
        (lambda: Segmentation(1, np.ones((2, 2))).value(MAPS), r"the mask has shape \(2, 2\), the map \(4, 5\)"),
        (lambda: Segmentation(1, np.zeros((4, 5))).value(MAPS), "the mask is empty"),
        (lambda: Segmentation(7).value(MAPS), "no class 7: the map has 3 classes"),
        (lambda: Element((9,)).value(Z), r"no element \[9\] in an output of shape \[4\]"),
        (lambda: Detection(0, (50, 50, 60, 60)).resolve(BOXES), "no box meets the region"),
        (lambda: Finer(nearest=4).resolve(Z[:1]), "nearest is 4; give 1 to 3"),
        (lambda: Classes((0, 9)).resolve(Z[:1]), "no class 9"),
        (lambda: Classes(()).resolve(Z[:1]), "its indices are a tuple of whole numbers, one or more"),
        (lambda: Classes(("tiger",)).resolve(Z[:1]), "its indices are a tuple of whole numbers"),  # type: ignore[arg-type]
        (lambda: Classes((0, 1), (np.nan, 1.0)).resolve(Z[:1]), "are no numbers or cancel out"),
        (lambda: difference(1, -3).resolve(Z[:1]), r"the weights of classes \[1, -3\] are no numbers or cancel out"),
        (lambda: Finer(nearest=2.5).resolve(Z[:1]), "nearest is 2.5; give 1 to 3"),  # type: ignore[arg-type]
        (lambda: Finer(alpha=np.nan).resolve(Z[:1]), "alpha is nan"),
        (lambda: Element(3).value(Z), "no element 3 in an output"),  # type: ignore[arg-type]
        (lambda: Element((1.5,)).value(Z), "no element .1.5. in an output"),  # type: ignore[arg-type]
        (lambda: Segmentation("cat").value(MAPS), "no class cat: the map has 3 classes"),  # type: ignore[arg-type]
        (lambda: Similarity(np.full(6, np.nan)).value(VECTORS), "the reference has NaN or infinity"),
        (lambda: Detection(0, (1, 2)).resolve(BOXES), "is no region; give .x0, y0, x1, y1."),  # type: ignore[arg-type]
        (lambda: Detection(0, (9, 9, 2, 2)).resolve(BOXES), "is no region"),
        (lambda: several("top99999999999"), "give top1 to top1000"),
        (lambda: target("a-b-c", labels=["a", "b-c", "a-b", "c"]), "can mean 'a' less 'b-c' or 'a-b' less 'c'"),
        (lambda: target("tiger-zebra", "probability", labels=NAMES), "score 'probability' is that of one class"),
    ],
)
def test_targets_that_make_no_sense(make: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()  # type: ignore[operator]


def test_a_label_that_looks_like_several_classes_is_one() -> None:
    assert several("top3", ["top1", "Top3"]) is None
    assert several("top2", ["top1", "Top3"]) is not None
    assert several("top_3", ["x"]) is None


def test_the_score_reaches_a_class_that_was_given_as_a_target() -> None:
    assert target(ClassScore(1), "probability") == ClassScore(1, "probability")
    assert target(ClassScore(1, "log-probability"), "probability").score == "log-probability"  # type: ignore[attr-defined]


def test_half_precision() -> None:
    """1000 probabilities in float16 add up to 1 only when they are added in more."""
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


def test_what_the_outputs_are_is_fixed_on_the_clean_ones() -> None:
    """Logits that happen to be a distribution on a masked picture are logits still, and the other way round."""
    chance = np.array([[0.0, 0.25, 0.75, 0.0]])
    logits = ClassScore(2, "probability").resolve(Z[:1])
    np.testing.assert_allclose(logits.value(chance), probabilities(chance, "softmax")[:, 2])
    shares = ClassScore(2, "probability").resolve(chance)
    np.testing.assert_array_equal(shares.value(Z), Z[:, 2])
    sure = ClassScore(0, "log-probability").resolve(chance)
    assert np.isfinite(sure.value(chance)).all()
    assert np.isfinite(sure.cotangent(chance)).all()  # type: ignore[arg-type]
