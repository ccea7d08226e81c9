"""Targets from text: labels, prefixes, differences, ranks."""

from __future__ import annotations

import numpy as np
import pytest

from xcam import Classes, ClassScore, Finer, InputError
from xcam.targets import class_index, several, target

Z = np.array([[0.5, -1.0, 2.0, 0.0], [3.0, 1.0, -2.0, 0.25]])
NAMES = ["tiger cat", "tiger", "zebra", "Egyptian cat", "T-shirt", "topaz", "finer"]


def test_labels_are_compared_without_case_and_underscores() -> None:
    names = ["tiger cat", "Tiger", "zebra", "crane", "crane", "x", "y", "z"]
    assert class_index("tiger", names) == 1
    assert class_index("Tiger_Cat", names) == 0
    assert class_index("7", names) == 7
    with pytest.raises(InputError, match="2 classes are called 'crane'; give the index: 3, 4"):
        class_index("crane", names)
    with pytest.raises(InputError, match="unknown class 'tigr'; nearest: tiger"):
        class_index("tigr", names)
    with pytest.raises(InputError, match="has no class labels"):
        class_index("tiger", None)


def test_values_that_are_not_targets() -> None:
    with pytest.raises(InputError, match=r"cannot use 1\.5 as a target"):
        target(1.5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown score 'p'"):
        target(1, score="p")  # type: ignore[arg-type]


def test_ranks() -> None:
    aims = several("top3")
    assert aims is not None
    assert [aim.resolve(Z[:1]).index for aim in aims] == [2, 0, 3]
    assert several("Top-2") is not None
    assert several("topaz") is None
    with pytest.raises(InputError, match="unknown class of rank 5: the model has 4 classes"):
        several("top5")[4].resolve(Z[:1])  # type: ignore[index]
    with pytest.raises(InputError, match="cannot use 'top0' as a target"):
        several("top0")


@pytest.mark.parametrize(
    ("text", "expected"),
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
def test_text(text: str, expected: int | tuple[int, int]) -> None:
    result = target(text, labels=NAMES)
    if isinstance(expected, int):
        assert isinstance(result, ClassScore)
        assert result.index == expected
    else:
        assert isinstance(result, Classes)
        assert (result.indices, result.weights) == (expected, (1.0, -1.0))


def test_finer_as_text() -> None:
    assert target("finer:zebra", labels=NAMES) == Finer(2)
    assert target("finer", labels=NAMES[:3]) == Finer(None)


def test_a_label_such_as_top3_is_one_class() -> None:
    assert several("top3", ["top1", "Top3"]) is None
    assert several("top2", ["top1", "Top3"]) is not None
    assert several("top_3", ["x"]) is None


def test_the_score_applies_to_a_class_score() -> None:
    assert target(ClassScore(1), "probability") == ClassScore(1, "probability")
    assert target(ClassScore(1, "log-probability"), "probability").score == "log-probability"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: target("tig", labels=NAMES),
            "2 classes begin with 'tig': tiger cat .0., tiger .1.; give the whole label",
        ),
        (lambda: target("zebra-zeb", labels=NAMES), "the difference of class 2 and itself is zero"),
        (lambda: target("zebra-lion", labels=NAMES), "unknown class 'zebra-lion'"),
        (lambda: several("top99999999999"), "give top1 to top1000"),
        (
            lambda: target("a-b-c", labels=["a", "b-c", "a-b", "c"]),
            "'a-b-c' is ambiguous: 'a' less 'b-c' or 'a-b' less 'c'",
        ),
        (lambda: target("tiger-zebra", "probability", labels=NAMES), "cannot use score='probability' for"),
    ],
)
def test_targets_that_cannot_be_used(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]
