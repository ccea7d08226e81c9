"""Means, intervals, places, and what an evaluation makes of them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from xcam.evaluation import ranking
from xcam.evaluation.registry import get
from xcam.evaluation.result import Evaluation

VALUES = np.random.default_rng(3).normal(2, 1, 60)


def test_the_interval_is_the_percentile_bootstrap_of_scipy() -> None:
    low, high = ranking.interval(VALUES, 0.95, resamples=20_000)
    expected = stats.bootstrap((VALUES,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.02)
    assert low < VALUES.mean() < high
    wide = ranking.interval(VALUES, 0.99)
    assert wide[0] < low
    assert wide[1] > high


def test_the_same_seed_gives_the_same_interval_however_many_are_drawn_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = ranking.interval(VALUES, seed=7)
    assert whole != ranking.interval(VALUES, seed=8)
    monkeypatch.setattr(ranking, "CELLS", 1000)
    assert ranking.interval(VALUES, seed=7) == whole


def test_what_is_not_known_is_left_out() -> None:
    with_gaps = np.concatenate([VALUES, [np.nan] * 5])
    assert ranking.interval(with_gaps) == ranking.interval(VALUES)
    assert ranking.mean(with_gaps) == pytest.approx(VALUES.mean())
    assert all(math.isnan(v) for v in (*ranking.interval(VALUES[:1]), ranking.mean(np.array([np.nan]))))


def test_places() -> None:
    means = np.array([0.2, 0.9, np.nan, 0.5, 0.5])
    np.testing.assert_array_equal(ranking.places(means, "higher"), [4, 1, np.nan, 2.5, 2.5])
    np.testing.assert_array_equal(ranking.places(means, "lower"), [1, 4, np.nan, 2.5, 2.5])


def evaluation(**columns: dict[str, list[float]]) -> Evaluation:
    names = list(next(iter(columns.values())))
    count = len(next(iter(next(iter(columns.values())).values())))
    return Evaluation(
        model="m",
        layer="l",
        pictures=tuple(f"{k}.png" for k in range(count)),
        targets=("cat",) * count,
        values={k: {name: np.array(v, float) for name, v in c.items()} for k, c in columns.items()},
        measures=tuple(get(name) for name in names),
    )


def test_the_gain_is_that_of_pairs() -> None:
    """Each value is 0.1 better than random's on the same picture: no doubt, though the values are far apart."""
    floor = [0.1, 0.9, 0.5, 0.3] * 3
    found = evaluation(
        good={"deletion": [v - 0.1 for v in floor], "insertion": [v + 0.1 for v in floor]},
        random={"deletion": floor, "insertion": floor},
    )
    for name in ("deletion", "insertion"):
        row = found.row("good", name)
        assert row.gain == pytest.approx(0.1)
        assert (row.gain_low, row.gain_high) == pytest.approx((0.1, 0.1))
        assert row.above
        assert row.low < found.row("random", name).high, "the intervals themselves do overlap"
    assert math.isnan(found.row("random", "deletion").gain)
    best, floor_ = found.ranking
    assert (best.method, best.place, best.above, best.below, best.of) == ("good", 1.0, 2, 0, 2)
    assert (floor_.method, floor_.place, floor_.above) == ("random", 2.0, 0)


def test_worse_than_random_is_told_too() -> None:
    found = evaluation(bad={"insertion": [0.1, 0.1, 0.2] * 4}, random={"insertion": [0.5, 0.6, 0.5] * 4})
    assert (found.ranking[-1].method, found.ranking[-1].below, found.ranking[-1].above) == ("bad", 1, 0)


def test_few_pictures_say_nothing_of_better_or_worse() -> None:
    for n, said in ((9, False), (10, True)):
        found = evaluation(a={"insertion": [0.5] * n}, b={"insertion": [0.1] * n}, random={"insertion": [0.3] * n})
        assert (found.row("a", "insertion").above, found.row("b", "insertion").below) == (said, said)


def test_methods_are_ranked_by_the_pictures_that_all_have() -> None:
    """`a` is better on each picture; its mean alone is lower, because it has a value of the hard one."""
    found = evaluation(
        a={"insertion": [0.6, 0.1], "deletion": [np.nan, np.nan]},
        b={"insertion": [0.5, np.nan], "deletion": [0.1, 0.1]},
    )
    assert found.row("a", "insertion").mean < found.row("b", "insertion").mean
    assert [(rank.method, rank.place) for rank in found.ranking] == [("a", 1.0), ("b", 1.5)]


def test_measures_that_a_useless_map_is_best_at_do_not_rank() -> None:
    found = evaluation(
        empty={"complexity": [0.0, 0.0], "insertion": [0.1, 0.2]},
        full={"complexity": [0.9, 0.9], "insertion": [0.5, 0.6]},
    )
    assert [rank.method for rank in found.ranking] == ["full", "empty"]
    assert found.ranking[0].of == 1


def test_rows_are_sorted_by_what_is_better() -> None:
    found = evaluation(a={"deletion": [1.0, 1.0]}, b={"deletion": [0.0, 0.0]}, c={"deletion": [np.nan, np.nan]})
    assert [row.method for row in found.table] == ["b", "a", "c"]
    assert [row.n for row in found.table] == [2, 2, 0]


def test_json_has_no_nan() -> None:
    found = evaluation(a={"deletion": [0.5, np.nan]}).to_dict()
    said = json.loads(json.dumps(found, allow_nan=False))
    assert [p["values"]["a"]["deletion"] for p in said["pictures"]] == [0.5, None]
    assert said["table"][0]["low"] is None
    assert said["ranking"][0]["method"] == "a"


def test_a_row_that_is_not_there() -> None:
    with pytest.raises(KeyError, match="insertion"):
        evaluation(a={"deletion": [0.5]}).row("a", "insertion")
