"""Shuffling of weights: values, seeds and messages."""

import zlib

import numpy as np
import pytest

from xcam import InputError, ModelError
from xcam.contract.shuffling import cannot_copy, shuffled, to_shuffle


def weights():
    return {"conv": [np.arange(6.0).reshape(2, 3), np.arange(3.0)], "dense": [10 + np.arange(4.0)]}


def result(parts, seed=0):
    return [shuffled(value, generator).tolist() for value, generator in to_shuffle(weights(), parts, seed, "net")]


def test_values_are_exchanged_within_each_weight():
    first, second, third = result(["conv", "dense"])
    assert sorted(np.ravel(first)) == [0, 1, 2, 3, 4, 5]
    assert np.shape(first) == (2, 3)
    assert sorted(second) == [0, 1, 2]
    assert sorted(third) == [10, 11, 12, 13]
    assert first != weights()["conv"][0].tolist()


def test_the_order_is_drawn_from_the_seed_and_the_name():
    order = np.random.default_rng([3, zlib.crc32(b"dense")]).permutation(4)
    assert result(["dense"], 3) == [(10 + order).tolist()]


def test_a_part_does_not_depend_on_the_other_parts():
    assert result(["dense", "conv"]) == result(["dense"]) + result(["conv"])
    assert result(["conv", "conv"]) == result(["conv"])


def test_another_seed_gives_another_order():
    assert result(["conv"], 0) != result(["conv"], 1)


def test_an_unknown_part_is_refused_before_anything_is_shuffled():
    with pytest.raises(InputError, match="unknown part 'pool' in net: no weights to shuffle; known: conv, dense"):
        next(to_shuffle(weights(), ["conv", "pool"], 0, "net"))


def test_a_model_that_cannot_be_copied():
    error = cannot_copy("net", TypeError("a lock"), "give a functional model")
    assert isinstance(error, ModelError)
    assert str(error) == (
        "cannot shuffle the weights of net: it cannot be copied (TypeError: a lock); give a functional model, or leave "
        "the randomisation test out"
    )
