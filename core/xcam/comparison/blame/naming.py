"""Which stretches are named: those whose local error is more than rounding, or more than their precision explains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from xcam.comparison import own_error
from xcam.comparison.divergence import JUMP, ROUNDING, SUSPECT
from xcam.comparison.own_error import OwnError
from xcam.contract import Array

USUAL = 0.25
"""The quantile of the local errors that counts as the usual one, as many stretches may be faulty."""
FEW = 4
"""The number of errors from which most of them show what is usual."""


def threshold(errors: Sequence[float], differs: bool) -> float:
    """Return the local error above which a stretch of two float models is named.

    Args:
        errors: The local error of each stretch.
        differs: Whether heatmaps or class scores are known to differ: smaller errors count where none is larger.
    """
    known = _known(errors)
    result = max(ROUNDING, JUMP * _usual(known))
    if differs and not (known > result).any():
        return max(SUSPECT, JUMP * float(np.median(known)) if len(known) else 0.0)
    return result


def is_even(errors: Sequence[float]) -> bool:
    """Return whether almost every stretch adds more than rounding, as a model of reduced precision does."""
    known = _known(errors)
    return len(known) >= FEW and _usual(known) > ROUNDING


def _known(errors: Sequence[float]) -> Array:
    """Return the errors without zeros, which layers without arithmetic have; all errors where few are left."""
    finite = np.asarray([value for value in errors if np.isfinite(value)])
    return finite[finite > 0] if (finite > 0).sum() >= FEW else finite


def _usual(errors: Array) -> float:
    return float(np.quantile(errors, USUAL, method="lower")) if len(errors) else 0.0


def outliers(errors: Sequence[OwnError]) -> list[int]:
    """Return the indices of all layers of a model of reduced precision whose own error their precision does not explain."""
    rest, results = list(errors), []
    while (index := own_error.outlier(rest)) is not None and index not in results:
        results.append(index)
        rest[index] = replace(
            rest[index], added=rest[index].expected, reach=None, spare=None, per_tensor=None, cause=None
        )
    return sorted(results)
