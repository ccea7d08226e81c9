"""The locations of two models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from xcam import Layer
from xcam.comparison.alignment import LayerSample, Match
from xcam.comparison.blame import locations


def sample(name: str, value: float, **facts: bool) -> LayerSample:
    return LayerSample(Layer(name, "Conv", (2, 3, 3), **facts), np.full((1, 2, 9), value, np.float32), (2, 3, 3))


def match(i: int, j: int) -> Match:
    return Match(i, j, 0.0, firsts=(i,), seconds=(j,))


def found(*samples: LayerSample, **changes: tuple[int, ...]) -> list[locations.Location]:
    matches = [match(k, k) for k in range(len(samples))]
    if changes:
        matches = [replace(m, order=changes.get(samples[m.first].layer.name)) for m in matches]
    return locations.pairs((samples, samples), matches)


def names(result: list[locations.Location]) -> list[str]:
    return [location.second.name for location in result]


def test_of_several_layers_of_one_value_one_is_the_location() -> None:
    samples = sample("conv", 1, bypassed=True), sample("block", 1), sample("block.relu", 1)
    one = Match(0, 0, 0.0, firsts=(0, 1, 2), seconds=(0, 1, 2))
    (location,) = locations.pairs((samples, samples), [one])
    assert (location.second.name, location.positions, location.names) == (
        "block",
        (1, 1),
        ("conv", "block", "block.relu"),
    )
    (location,) = locations.pairs((samples, samples), [one], ("block", "block.relu"))
    assert (location.first.name, location.second.name) == ("block", "block.relu")


def test_a_layer_that_cannot_be_swapped_is_left_out() -> None:
    one = sample("one", 1)
    others = [
        sample("output", 2, is_output=True),
        sample("windows", 3, folds_batch=True),
        sample("constant", 4, depends_on_input=False),
        sample("loose", 5, reaches_output=False),
    ]
    assert names(found(one, *others)) == ["one"]
    assert names(found(one, sample("turned", 6), turned=(1, 0))) == ["one"]


def test_cuts_are_not_bypassed_in_either_model_and_keep_the_order_of_both() -> None:
    a, b, c = sample("a", 1), sample("b", 2, bypassed=True), sample("c", 3)
    assert names(locations.cuts(found(a, b, c))) == ["a", "c"]
    crossed = locations.pairs(((a, c), (c, a)), [match(0, 1), match(1, 0)])
    assert names(locations.cuts(crossed)) == ["a"]


def test_thinning_keeps_both_ends_of_the_largest_stretches() -> None:
    cuts = found(*(sample(f"l{k}", k) for k in range(6)))
    scores = [0.0, 0.1, 0.0, -5.0, 0.0, 0.0, 3.0]  # the last stretch ends at the output
    assert names(locations.thinned(cuts, scores, 3)) == ["l2", "l3", "l5"]
    assert names(locations.thinned(cuts, scores, 6)) == names(cuts)
