"""The inputs of measures."""

from __future__ import annotations

from xcam.evaluation.explained import LazySequence


def test_a_lazy_sequence_is_a_sequence() -> None:
    calls: list[int] = []
    items = LazySequence(lambda k: calls.append(k) or 10 * k, [1, 2, 3])
    assert (len(items), calls) == (3, [])
    assert items[-1] == 30
    assert calls == [3]
    assert (list(items), list(items[1:])) == ([10, 20, 30], [20, 30])
