"""Shared parts of the suite: building and loading networks, batches, cotangents, and reference values."""

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
    """The methods that a backend's author defines, and the fixtures of the tests."""

    def build(self, network: Network) -> Any:
        """Return the network as a live model of your framework, as a user would write it."""
        raise NotImplementedError

    def load(self, native: Any, network: Network) -> Model:
        """Return the live model as an xcam model. Override it if the backend reads only files."""
        return xcam.load(native, size=network.input[1:])

    def layer(self, name: str) -> str:
        """Return the name of a step in your framework: `backbone/conv1` or `backbone.conv1`."""
        return name

    def snapshot(self, native: Any) -> Any:
        """Return the state of a user's model that must not change, comparable by ==; a mapping gives the best messages."""
        raise NotImplementedError

    @pytest.fixture(params=NETWORKS)
    def network(self, request: pytest.FixtureRequest) -> Network:
        """Each of the suite's networks."""
        return NETWORKS[request.param]

    @pytest.fixture
    def native(self, network: Network) -> Any:
        """The network in the framework."""
        return self.build(network)

    @pytest.fixture
    def model(self, native: Any, network: Network) -> Model:
        """The network as an xcam model."""
        return self.load(native, network)

    @pytest.fixture
    def x(self, network: Network) -> Array:
        """A batch [N, C, H, W]."""
        return np.random.default_rng(5).normal(size=(N, *network.input)).astype(np.float32)

    @staticmethod
    def native_batch(model: Model, x: Array) -> Array:
        """Convert a batch [N, C, H, W] to the model's own layout."""
        return np.ascontiguousarray(np.moveaxis(x, 1, -1)) if model.input.layout == "channels_last" else x


class FixedCotangents:
    """A cotangent function: returns fixed cotangents in the form of the outputs, and records its calls."""

    def __init__(self, *cotangents: Mapping[str, Array]) -> None:
        self.cotangents, self.copies = cotangents, deepcopy(cotangents)
        self.calls: list[Outputs] = []

    def __call__(self, outputs: Outputs) -> list[Outputs]:
        """Record the outputs and return the fixed cotangents."""
        self.calls.append(outputs)
        if not isinstance(outputs, Mapping):
            return [next(iter(v.values())) for v in self.cotangents]
        return [dict(reversed(list(v.items()))) for v in self.cotangents]  # by name, in another order

    def check_use(self, method: str) -> None:
        """Assert that it was called once, and that its cotangents are unchanged."""
        count = len(self.calls)
        assert count == 1, (
            f"cotangents was called {count} times in one {method}(); call it once, and keep the cotangents that it returns"
        )
        for v, copy in zip(self.cotangents, self.copies, strict=True):
            assert all(np.array_equal(v[name], copy[name]) for name in v), (
                f"{method}() wrote to a cotangent that cotangents() returned; work on a copy"
            )


def gradient(
    network: Network, x: Array, name: str, v: Mapping[str, Array], at: Array | None = None
) -> Callable[[Edges], Array]:
    """Return a function that computes the reference gradient at a layer, without given edges."""
    return partial(reference.gradient, network, x, name, v, at)


@contextmanager
def resumed_before() -> Iterator[None]:
    """Explain an exception in a second `resume` of a trace."""
    try:
        yield
    except Exception as error:
        raise AssertionError(
            f"the second resume() of one trace failed: {type(error).__name__}: {error}; keep Trace.state usable for any number of calls"
        ) from error


def differentiates(model: Model) -> bool:
    """Return whether the backend declares gradients. Where it does not, the core computes them by differences."""
    return "gradients" in model.capabilities


def ends(network: Network) -> set[str]:
    """Return the steps whose values are outputs, or the logits of one."""
    logits = {name for step in network.steps if step.op == "softmax" for name in step.inputs}
    return {*network.outputs, *logits}


def truth(network: Network, x: Array) -> dict[str, Array]:
    """Return the reference outputs (logits) by name."""
    return reference.logits(network, reference.run(network, x))


def random_cotangents(network: Network, x: Array, seed: int) -> dict[str, Array]:
    """Return a random cotangent by output name."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=value.shape).astype(np.float32) for name, value in truth(network, x).items()}


def first_score(outputs: Outputs) -> Sequence[Outputs]:
    """Return the cotangent of class 0 of the first output, in the form of the outputs."""
    z = xcam.contract.one_output(outputs)
    v = np.zeros_like(z)
    v[:, 0] = 1
    return [xcam.contract.like(outputs, v)]


def first(network: Network, x: Array) -> dict[str, Array]:
    """Return the cotangent of class 0 of the first output, by output name."""
    v = {name: np.zeros_like(value) for name, value in truth(network, x).items()}
    next(iter(v.values()))[:, 0] = 1
    return v
