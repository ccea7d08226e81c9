"""Shuffling of weights for the model-parameter randomisation test (Adebayo et al. 2018).

Values are permuted within each learnt weight, which keeps their distribution. Running statistics (of a batch norm) are
not shuffled.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from xcam.contract.types import Array
from xcam.errors import InputError, ModelError, first_line, nearest

W = TypeVar("W")


def to_shuffle(
    weights: Mapping[str, Sequence[W]], parts: Sequence[str], seed: int, model: str
) -> Iterator[tuple[W, np.random.Generator]]:
    """Yield each learnt weight of `parts` with the random generator that shuffles it.

    Each part has its own generator, seeded by `seed` and the part's name. The result for a part does not depend on the
    order of `parts` or on the other parts. `shuffled` uses up one permutation; a backend whose arrays are not NumPy's
    takes `generator.permutation(size)` itself, once for each weight.

    Args:
        weights: the learnt weights of each part, in a fixed order.
        parts: names of the parts to shuffle.
        seed: seed of all generators.
        model: the model's name, for the message.

    Raises:
        InputError: a part has no learnt weights.
    """
    for part in parts:
        if part not in weights:
            raise InputError(f"unknown part {part!r} in {model}: no weights to shuffle; {nearest(part, weights)}")
    for part in dict.fromkeys(parts):
        generator = np.random.default_rng([seed, zlib.crc32(part.encode())])
        for weight in weights[part]:
            yield weight, generator


def shuffled(value: Array, generator: np.random.Generator) -> Array:
    """Return an array of the same shape and values, in an order drawn from `generator`."""
    return value.ravel()[generator.permutation(value.size)].reshape(value.shape)


def cannot_copy(model: str, error: BaseException, remedy: str) -> ModelError:
    """Return the error for a model whose weights cannot be shuffled because it cannot be copied."""
    return ModelError(
        f"cannot shuffle the weights of {model}: it cannot be copied ({first_line(error)}); {remedy}, or leave the "
        "randomisation test out"
    )
