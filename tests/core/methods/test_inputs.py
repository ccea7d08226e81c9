"""Variants run in batches, which are halved where memory runs out; ranges of options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from xcam import InputError
from xcam.methods import inputs


def make(part: slice) -> Any:
    return np.arange(part.start, part.stop, dtype=np.float32)


def test_variants_run_in_batches() -> None:
    sizes = []

    def run(variants: Any, rows: Sequence[int]) -> Any:
        assert list(rows) == [3] * len(variants)
        sizes.append(len(variants))
        return variants**2

    values = inputs.scored(run, 3, 10, make, 1, "squares", most=4)
    np.testing.assert_array_equal(values, np.arange(10.0) ** 2)
    assert sizes == [4, 4, 2]
    sizes.clear()
    inputs.scored(run, 3, 5, make, inputs.BYTES // 2, "squares")
    assert sizes == [2, 2, 1]
    assert list(inputs.batches(2, 10 * inputs.BYTES, 64)) == [slice(0, 1), slice(1, 2)]


@pytest.mark.parametrize("limit", [1, 3])
def test_a_batch_is_halved_where_memory_runs_out(limit: int) -> None:
    def run(variants: Any, rows: Sequence[int]) -> Any:
        if len(variants) > limit:
            raise MemoryError
        return 2 * variants

    np.testing.assert_array_equal(inputs.scored(run, 0, 9, make, 1, "doubles"), 2 * np.arange(9.0))


def test_one_variant_that_does_not_fit_is_an_error() -> None:
    def run(variants: Any, rows: Sequence[int]) -> Any:
        raise MemoryError

    with pytest.raises(MemoryError):
        inputs.scored(run, 0, 3, make, 1, "none")


def test_ranges() -> None:
    inputs.check(n=1, std=0.1, most=inputs.MOST)
    with pytest.raises(InputError, match="cannot use n=0; give a number above 0, at most 10000"):
        inputs.check(std=1.0, n=0)
    with pytest.raises(InputError, match="cannot use seed=-1; give 0 or more"):
        inputs.generator(-1)
    assert inputs.generator(4).random() == np.random.default_rng(4).random()
