"""What the suite's tests share: how a backend builds and opens a network, batches, cotangents, and the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import pytest

import xcam
from xcam.contract import Array, Model, Outputs
from xcam.testing import reference
from xcam.testing.assertions import Edges
from xcam.testing.networks import NETWORKS, Network

N = 3


class Suite:
    """What a backend's author says, and what every test is given."""

    def build(self, network: Network) -> Any:
        """The network as a live model of your framework, the way a user would write it."""
        raise NotImplementedError

    def load(self, native: Any, network: Network) -> Model:
        """The live model behind the contract. Overwrite it where the backend reads files alone."""
        return xcam.load(native, size=network.input[1:])

    def layer(self, name: str) -> str:
        """The address of a step of ours in your framework: `backbone/conv1`, `backbone.conv1`, …"""
        return name

    def snapshot(self, native: Any) -> Any:
        """Everything about a user's model that must stay as it was, comparable by ==; a mapping is told best."""
        raise NotImplementedError

    @pytest.fixture(params=NETWORKS)
    def network(self, request: pytest.FixtureRequest) -> Network:
        return NETWORKS[request.param]

    @pytest.fixture
    def native(self, network: Network) -> Any:
        return self.build(network)

    @pytest.fixture
    def model(self, native: Any, network: Network) -> Model:
        return self.load(native, network)

    @pytest.fixture
    def x(self, network: Network) -> Array:
        """A batch [N, C, H, W]."""
        return np.random.default_rng(5).normal(size=(N, *network.input)).astype(np.float32)

    @staticmethod
    def native_batch(model: Model, x: Array) -> Array:
        """A batch [N, C, H, W] in the model's own layout."""
        return np.ascontiguousarray(np.moveaxis(x, 1, -1)) if model.input.layout == "channels_last" else x


class FixedCotangents:
    """Cotangents: fixed cotangents by output name, handed over in the form that the outputs have; notes how it was used."""

    def __init__(self, *cotangents: Mapping[str, Array]) -> None:
        self.cotangents, self.copies = cotangents, deepcopy(cotangents)
        self.asked: list[Outputs] = []

    def __call__(self, outputs: Outputs) -> list[Outputs]:
        self.asked.append(outputs)
        if not isinstance(outputs, Mapping):
            return [next(iter(v.values())) for v in self.cotangents]
        return [dict(reversed(list(v.items()))) for v in self.cotangents]  # by name, in whatever order

    def used_well(self, what: str) -> None:
        count = len(self.asked)
        assert count == 1, (
            f"cotangents was called {count} times in one {what}(); call it once, and keep the cotangents that it returns"
        )
        for v, copy in zip(self.cotangents, self.copies, strict=True):
            assert all(np.array_equal(v[name], copy[name]) for name in v), (
                f"{what}() wrote to a cotangent that cotangents returned; work on a copy"
            )


def gradient(
    network: Network, x: Array, name: str, v: Mapping[str, Array], at: Array | None = None
) -> Callable[[Edges], Array]:
    """The true gradient at a layer; with edges, what it would be without them."""
    return partial(reference.gradient, network, x, name, v, at)


@contextmanager
def resumed_before() -> Iterator[None]:
    """Around a `resume` of a trace from which one went well."""
    try:
        yield
    except Exception as error:
        raise AssertionError(
            f"the second resume() of one trace failed: {type(error).__name__}: {error}; Trace.state must serve many"
        ) from error


def ends(network: Network) -> set[str]:
    """The steps whose values are outputs, and those whose values are the logits under one."""
    under = {name for step in network.steps if step.op == "softmax" for name in step.inputs}
    return {*network.outputs, *under}


def truth(network: Network, x: Array) -> dict[str, Array]:
    return reference.logits(network, reference.run(network, x))


def random_cotangents(network: Network, x: Array, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=value.shape).astype(np.float32) for name, value in truth(network, x).items()}


def first_score(outputs: Outputs) -> Sequence[Outputs]:
    """The cotangent of class 0 of the first output."""
    z = xcam.contract.one_output(outputs)
    v = np.zeros_like(z)
    v[:, 0] = 1
    return [xcam.contract.like(outputs, v)]


def first(network: Network, x: Array) -> dict[str, Array]:
    v = {name: np.zeros_like(value) for name, value in truth(network, x).items()}
    next(iter(v.values()))[:, 0] = 1
    return v
