"""Rows, gains and ranks of an evaluation, and its plain values for JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from xcam.evaluation.registry import get
from xcam.evaluation.scores import Scores


def scores(**columns: dict[str, list[float]]) -> Scores:
    names = list(next(iter(columns.values())))
    count = len(next(iter(next(iter(columns.values())).values())))
    return Scores(
        model="m",
        layer="l",
        images=tuple(f"{k}.png" for k in range(count)),
        targets=("cat",) * count,
        values={k: {name: np.array(v, float) for name, v in c.items()} for k, c in columns.items()},
        measures=tuple(get(name) for name in names),
    )


def test_the_gain_is_paired() -> None:
    """Each value is 0.1 better than that of random on the same image, though the values themselves vary widely."""
    floor = [0.1, 0.9, 0.5, 0.3] * 3
    result = scores(
        good={"deletion": [v - 0.1 for v in floor], "insertion": [v + 0.1 for v in floor]},
        random={"deletion": floor, "insertion": floor},
    )
    for name in ("deletion", "insertion"):
        row = result.row("good", name)
        assert row.gain == pytest.approx(0.1)
        assert (row.gain_low, row.gain_high) == pytest.approx((0.1, 0.1))
        assert row.above
        assert row.low < result.row("random", name).high, "the intervals of the means overlap"
    assert math.isnan(result.row("random", "deletion").gain)
    best, floor_ = result.ranking
    assert (best.method, best.mean_rank, best.above, best.below, best.of) == ("good", 1.0, 2, 0, 2)
    assert (floor_.method, floor_.mean_rank, floor_.above) == ("random", 2.0, 0)


def test_worse_than_random() -> None:
    result = scores(bad={"insertion": [0.1, 0.1, 0.2] * 4}, random={"insertion": [0.5, 0.6, 0.5] * 4})
    assert (result.ranking[-1].method, result.ranking[-1].below, result.ranking[-1].above) == ("bad", 1, 0)


def test_too_few_images_are_neither_better_nor_worse() -> None:
    for n, decided in ((9, False), (10, True)):
        result = scores(a={"insertion": [0.5] * n}, b={"insertion": [0.1] * n}, random={"insertion": [0.3] * n})
        assert (result.row("a", "insertion").above, result.row("b", "insertion").below) == (decided, decided)


def test_methods_are_ranked_on_the_images_that_all_have() -> None:
    """`a` is better on each image; only its mean is lower, because it has a value for the hard one."""
    result = scores(
        a={"insertion": [0.6, 0.1], "deletion": [np.nan, np.nan]},
        b={"insertion": [0.5, np.nan], "deletion": [0.1, 0.1]},
    )
    assert result.row("a", "insertion").mean < result.row("b", "insertion").mean
    assert [(rank.method, rank.mean_rank) for rank in result.ranking] == [("a", 1.0), ("b", 1.5)]


def test_measures_that_a_useless_map_can_win_do_not_rank() -> None:
    result = scores(
        empty={"complexity": [0.0, 0.0], "insertion": [0.1, 0.2]},
        full={"complexity": [0.9, 0.9], "insertion": [0.5, 0.6]},
    )
    assert [rank.method for rank in result.ranking] == ["full", "empty"]
    assert result.ranking[0].of == 1


def test_rows_are_sorted_from_best_to_worst() -> None:
    result = scores(a={"deletion": [1.0, 1.0]}, b={"deletion": [0.0, 0.0]}, c={"deletion": [np.nan, np.nan]})
    assert [row.method for row in result.table] == ["b", "a", "c"]
    assert [row.n for row in result.table] == [2, 2, 0]


def test_json_has_no_nan() -> None:
    result = scores(a={"deletion": [0.5, np.nan]}).to_dict()
    plain = json.loads(json.dumps(result, allow_nan=False))
    assert [p["values"]["a"]["deletion"] for p in plain["images"]] == [0.5, None]
    assert plain["table"][0]["low"] is None
    assert plain["ranking"][0]["method"] == "a"


def test_a_row_that_does_not_exist() -> None:
    with pytest.raises(KeyError, match="no row of 'a' by 'insertion'"):
        scores(a={"deletion": [0.5]}).row("a", "insertion")
