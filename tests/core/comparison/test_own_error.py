"""The own error of layers in integers, against what rounding explains."""

from __future__ import annotations

import numpy as np
import pytest

import reduced
from xcam.comparison import alignment, own_error, precision_checks
from xcam.comparison.diagnosis import Diagnosis
from xcam.comparison.own_error import OwnError, Pair
from xcam.comparison.stretch import ComparedModel
from xcam.contract.quantization import Quantization, Stretch

X = reduced.batch()
PAIRS = [Pair(f"conv{k}", f"conv{k}") for k in range(1, 6)]


def compared(model: reduced.Chain) -> ComparedModel:
    return ComparedModel(model, model.input, X)  # type: ignore[arg-type]


def errors(**mistakes: object) -> list[OwnError]:
    first = reduced.chain()
    return own_error.own_errors(compared(first), compared(reduced.reduced(first, X, **mistakes)), PAIRS)


def test_rounding_explains_the_own_error_of_every_layer() -> None:
    for error in errors():
        assert 0.6 < error.ratio < 1.2
        assert error.reach == pytest.approx(1)
        assert error.per_tensor == pytest.approx(1)
        assert error.is_reduced
    assert own_error.outlier(errors()) is None


def test_a_mistake_changes_the_own_error_of_its_layer_only() -> None:
    changed, honest = errors(restored={3: 1.5}), errors()
    ratios = [a.added / b.added for a, b in zip(changed, honest, strict=True)]
    assert ratios[:2] + ratios[3:] == [1, 1, 1, 1]
    assert ratios[2] > 20
    assert own_error.outlier(changed) == 2


@pytest.mark.parametrize(
    "mistake",
    [
        {"ranges": {2: 0.5}},
        {"ranges": {2: 10}},
        {"ranges": {2: 2}},  # one bit is lost: the range is twice that of all other layers
        {"zero_points": {2: 10}},
        {"restored": {2: 2}},
    ],
)
def test_the_layer_with_a_mistake_stands_out(mistake: dict[str, dict[int, float]]) -> None:
    assert own_error.outlier(errors(**mistake)) == 1


def test_ranges_that_are_wide_at_all_layers_do_not_stand_out() -> None:
    wide = errors(ranges=dict.fromkeys(range(1, 6), 2))
    assert own_error.outlier(wide) is None
    assert own_error.typical(wide) > 1.2


def test_layers_in_float_are_compared_with_the_rounding_of_float() -> None:
    reference = np.random.default_rng(0).normal(size=(2, 4, 8, 8)).astype(np.float32)
    half = reference.astype(np.float16).astype(np.float32)
    as_half = own_error.measured(reference, Stretch(half), "float16", "float16")
    assert 0.2 < as_half.ratio < 1
    assert as_half.is_reduced
    as_single = own_error.measured(reference, Stretch(half), "float32", "int8")
    assert as_single.ratio > 100
    assert not as_single.is_reduced


def test_reach_with_a_range_for_each_channel_and_with_a_range_on_one_side() -> None:
    reference = np.stack([np.linspace(0, 51, 64), np.linspace(-1, 1, 64)])[None].astype(np.float32)
    each = Quantization("uint8", np.float32([0.2, 0.016]), np.uint8([0, 128]))
    assert precision_checks.reach(reference, each) == pytest.approx((1 + 1 / 2.032) / 2, rel=0.02)
    assert precision_checks.reach(-reference, Quantization("uint8", np.asarray(0.2), np.asarray(0))) == np.inf


def test_groups_of_bounded_memory_give_the_same_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = errors()
    monkeypatch.setattr(alignment, "BUDGET", 1)
    assert errors() == whole


def ranges(*reaches: float, ratio: float = 1.0) -> list[OwnError]:
    """Own errors of layers whose values reach so far, relative to their ranges; the last is measured as wide or narrow."""
    code = "narrow-range" if reaches[-1] > 1 else "wide-range"
    results = [OwnError(1.0, 1.0, 1.0, True, reach, (0.0, 0.0)) for reach in reaches[:-1]]
    return [*results, OwnError(ratio, 1.0, 1.0, True, reaches[-1], (0.0, 0.0), None, Diagnosis(code, ""))]


SEEN = (1.0, 1.0, 1.0, 1.0, 1.02, 1.05, 1.2, 1.3)
"""Images as the calibration saw them: no range is left over, and a few are somewhat too narrow."""
UNSEEN = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.3, 1.6)


@pytest.mark.parametrize(
    ("others", "reach", "ratio", "is_outlier"),
    [
        (SEEN, 0.51, 1.0, True),
        (SEEN, 0.8, 1.0, False),
        (SEEN, 2.1, 2.0, True),
        (SEEN, 1.5, 2.0, False),
        (UNSEEN, 0.45, 1.0, False),
        (UNSEEN, 0.1, 1.0, True),
        (UNSEEN, 2.1, 2.0, False),
        (UNSEEN, 8.0, 2.0, True),
    ],
)
def test_a_range_stands_out_where_it_differs_more_than_ranges_do(
    others: tuple[float, ...], reach: float, ratio: float, is_outlier: bool
) -> None:
    assert own_error.outlier(ranges(*others, reach, ratio=ratio)) == (len(others) if is_outlier else None)


def shifted(spare: tuple[float, float], unused: float | None, others: OwnError) -> int | None:
    cause = Diagnosis("wrong-zero-point", "")
    return own_error.outlier([others] * 4 + [OwnError(1.0, 1.0, 1.0, True, 1.0, spare, None, cause, unused)])


def test_a_shifted_range_stands_out_where_others_are_not_shifted() -> None:
    fitting = OwnError(1.0, 1.0, 1.0, True, 1.0, (0.2, -0.3))
    away = OwnError(1.0, 1.0, 1.0, True, 1.2, (4.0, -30.0))  # other images: ends differ by as many levels anyway
    assert shifted((10.0, -10.0), None, fitting) == 4
    assert shifted((10.0, -10.0), None, away) is None
    rectified = OwnError(1.0, 1.0, 1.0, True, 1.2, (0.0, -30.0), unused=0.0)
    assert shifted((10.0, 25.0), 10.0, rectified) == 4  # values of ReLU start at 0 on all images
    symmetric = OwnError(1.0, 1.0, 1.0, True, 1.0, (127.0, 0.0), unused=127.0)
    assert shifted((10.0, 25.0), 10.0, symmetric) is None
