"""The search on sets of parts whose fewest members are known."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pytest

from xcam.comparison.mending import search

PLACES = [f"p{k}" for k in range(20)]


@pytest.mark.parametrize("needed", [["p0"], ["p3"], ["p0", "p11"], ["p2", "p3", "p19"], PLACES])
def test_only_needed_parts_are_left(needed: list[str]) -> None:
    calls = []

    def test(names: Collection[str]) -> bool:
        calls.append(len(names))
        return set(needed) <= set(names)

    count = search.shortest(PLACES, test)
    assert count == PLACES.index(needed[-1]) + 1
    assert search.reduced(PLACES[:count], test) == needed
    assert len(calls) <= 80


def test_few_parts_need_few_runs() -> None:
    calls = []

    def test(names: Collection[str]) -> bool:
        calls.append(names)
        return "p1" in names

    assert search.shortest(PLACES, test) == 2
    assert len(calls) <= 4


def test_none_where_all_parts_do_not_suffice() -> None:
    assert search.shortest(PLACES, lambda _: False) is None


def test_harm_is_1_where_the_correlation_lost_is_that_of_equivalent_and_where_the_next_class_leads() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(1, 1, 40, 40))
    noise = rng.normal(size=values.shape)
    outputs = np.array([[4.0, 1.0, 0.0]])
    harm = search.Harm(outputs, values, None)
    assert harm(outputs, values) == pytest.approx(0, abs=1e-9)
    assert harm(np.array([[2.0, 2.0, 0.0]]), values) == pytest.approx(1)
    assert harm(np.array([[2.5, 1.0, 0.0]]), values) == pytest.approx(0.5)
    scaled = values + 0.1425 * noise  # correlation 0.99
    assert harm(outputs, scaled) == pytest.approx(1, rel=0.1)


def test_harm_follows_the_channels_that_the_gradient_weights() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(1, 2, 8, 8))
    gradients = np.zeros(values.shape)
    gradients[:, 0] = 1
    harm = search.Harm(np.ones((1, 1)), values, gradients)
    changed = values.copy()
    changed[:, 1] += rng.normal(size=(8, 8))
    assert harm(np.ones((1, 1)), changed) == pytest.approx(0, abs=1e-9)
    changed[:, 0] += rng.normal(size=(8, 8))
    assert harm(np.ones((1, 1)), changed) > 1
