"""Traversal of graphs, and names of calls."""

from xcam.contract.graphs import call_names, reachable

INPUTS = {"out": ["sum"], "sum": ["conv", "skip"], "conv": ["x"], "skip": ["x"], "x": [], "other": ["x"]}


def test_ancestors_are_each_returned_once():
    assert list(reachable(["out"], INPUTS.__getitem__)) == ["out", "sum", "conv", "skip", "x"]
    assert set(reachable(["conv", "other"], INPUTS.__getitem__)) == {"conv", "other", "x"}


def test_the_walk_ends_at_a_stop_and_returns_it():
    assert set(reachable(["out"], INPUTS.__getitem__, stop={"conv", "skip"})) == {"out", "sum", "conv", "skip"}
    assert set(reachable(["conv"], INPUTS.__getitem__, stop={"conv"})) == {"conv"}


def test_a_cycle_ends():
    assert set(reachable([0], lambda n: [(n + 1) % 3])) == {0, 1, 2}


def test_the_last_call_has_the_plain_name():
    assert call_names(["conv", "relu", "conv", "relu", "relu"]) == ["conv#0", "relu#0", "conv", "relu#1", "relu"]
    assert call_names([]) == []
