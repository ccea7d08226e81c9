"""The conformance suite: every promise of the contract, checked on every network, with a message that says what is wrong.

What it cannot see from outside, and a backend's own tests must: that nothing before the layer is differentiated.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

import xcam
from xcam.contract import Array, Model, Outputs
from xcam.testing import reference
from xcam.testing.networks import NETWORKS, Network

N = 3


class Conformance:
    """Subclass it, and say how a network is built in your framework. pytest does the rest."""

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
        """Everything about a user's model that must stay as it was, comparable by ==."""
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

    def test_model_says_what_it_is(self, model: Model, network: Network) -> None:
        assert isinstance(model, Model), "the object that load() returned lacks a part of xcam.contract.Model"
        assert model.input.channels == network.input[0]
        said = model.activation
        kinds = set(said.values()) if isinstance(said, Mapping) else {said}
        assert kinds == {network.activation}, f"activation is {said!r}; the network ends in {network.activation!r}"

    def test_layers_in_execution_order_with_their_shapes(self, model: Model, network: Network, x: Array) -> None:
        names = [layer.name for layer in model.layers]
        for name in network.explained:
            assert self.layer(name) in names, f"layers are {names}: {self.layer(name)!r} is not among them"
        for first in network.explained:
            for second in network.explained:
                right = names.index(self.layer(first)) < names.index(self.layer(second))
                assert right or not network.feeds(first, second), (
                    f"{first} runs ahead of {second}, but stands behind it"
                )
        values = reference.run(network, x)
        for name in network.explained:
            found = next(layer for layer in model.layers if layer.name == self.layer(name))
            assert found.shape == values[name].shape[1:], (
                f"{name}: shape {found.shape}, channels first: {values[name].shape[1:]}"
            )
            assert found.reaches_output or name == "norm2", f"{name} reaches an output"

    def test_predict(self, model: Model, network: Network, x: Array) -> None:
        same(model.predict(self._native(model, x)), _truth(network, x), "predict")

    def test_activations_of_many_layers(self, model: Model, network: Network, x: Array) -> None:
        names = [self.layer(name) for name in network.explained]
        found = model.activations(self._native(model, x), names)
        assert list(found) == names, f"activations of {names} came as {list(found)}"
        values = reference.run(network, x)
        for ours, name in zip(network.explained, names, strict=True):
            close(found[name], values[ours], 1e-4, f"activations of {name}")

    def test_trace_without_seeds(self, model: Model, network: Network, x: Array) -> None:
        values = reference.run(network, x)
        for name in network.explained:
            trace = model.trace(self._native(model, x), self.layer(name))
            same(trace.outputs, _truth(network, x), f"outputs of trace at {name}")
            close(trace.activations, values[name], 1e-4, f"activations of trace at {name}")
            assert list(trace.gradients) == [], "no seeds were given, and there are gradients"

    def test_gradients_for_several_cotangents(self, model: Model, network: Network, x: Array) -> None:
        """Every path from the layer to the outputs counts, those around it do not; every output counts."""
        for name in network.explained:
            cotangents = [_cotangents(network, x, seed) for seed in range(3)]
            seeds = Cotangents(*cotangents)
            trace = model.trace(self._native(model, x), self.layer(name), seeds)
            asked = seeds.asked
            assert len(asked) == 1, f"seeds was called {len(asked)} times in one trace"
            same(asked[0], _truth(network, x), "what seeds was given")
            assert len(trace.gradients) == 3, f"{len(trace.gradients)} gradients for 3 cotangents"
            for v, found in zip(cotangents, trace.gradients, strict=True):
                close(found, reference.gradient(network, x, name, v), 1e-3, f"gradient at {name}")

    def test_a_batch_gives_what_its_rows_give_alone(self, model: Model, network: Network, x: Array) -> None:
        name = self.layer(network.explained[-1])
        together = model.trace(self._native(model, x), name, _first_score)
        for n in range(N):
            alone = model.trace(self._native(model, x[n : n + 1]), name, _first_score)
            close(alone.activations[0], together.activations[n], 1e-4, f"activations of row {n} alone")
            close(alone.gradients[0][0], together.gradients[0][n], 1e-3, f"gradient of row {n} alone")

    def test_resume(self, model: Model, network: Network, x: Array) -> None:
        """Changed values, rows chosen, skip connections taken from the right row; gradients there too."""
        if "resume" not in model.capabilities:
            pytest.skip("the backend declares no resume")
        rows = [2, 0, 2, 1, 1]
        for name in network.explained:
            trace = model.trace(self._native(model, x), self.layer(name))
            same(model.resume(trace, trace.activations).outputs, _truth(network, x), f"resume of itself at {name}")
            factors = np.random.default_rng(1).uniform(0, 2, size=(len(rows), *trace.activations.shape[1:]))
            changed = (trace.activations[rows] * factors).astype(np.float32)
            v = _cotangents(network, x, 4)
            v = {key: value[rows] for key, value in v.items()}
            again = model.resume(trace, changed, rows, Cotangents(v))
            values = reference.run(network, x[rows], {name: changed})
            same(again.outputs, reference.logits(network, values), f"outputs of resume at {name}")
            close(again.activations, changed, 1e-6, f"activations of resume at {name}")
            expected = reference.gradient(network, x[rows], name, v, at=changed)
            close(again.gradients[0], expected, 1e-3, f"gradient of resume at {name}")
            one = model.trace(self._native(model, x[1:2]), self.layer(name))
            found = model.resume(one, changed[3:]).outputs
            last = reference.run(network, x[[1, 1]], {name: changed[3:]})
            same(
                found, reference.logits(network, last), f"resume of one picture's variants at {name}, rows not given"
            )

    def test_hessian_vector_product(self, model: Model, network: Network, x: Array) -> None:
        if "hvp" not in model.capabilities:
            pytest.skip("the backend declares no hvp")
        kinks = [step.name for step in network.steps if step.op in ("relu", "pool")]
        smooth = [name for name in network.explained if not any(network.feeds(name, kink) for kink in kinks)]
        for name in smooth:  # elsewhere differences of gradients are no second derivatives
            value = reference.run(network, x)[name]
            v = _cotangents(network, x, 2)
            along = np.random.default_rng(3).normal(size=value.shape)
            step = 1e-4
            up, down = (reference.gradient(network, x, name, v, at=value + s * step * along) for s in (1, -1))
            found = model.hvp(  # type: ignore[attr-defined]
                self._native(model, x),
                self.layer(name),
                Cotangents(v),
                [along.astype(np.float32)],
            )
            close(found[0], (up - down) / (2 * step), 1e-2, f"Hessian-vector product at {name}", floor=1e-3)

    def test_an_exception_in_seeds_reaches_the_caller_and_leaves_no_trace(
        self, native: Any, network: Network, x: Array
    ) -> None:
        before = self.snapshot(native)
        model = self.load(native, network)
        mine = KeyError("raised in seeds")

        def fail(_: Outputs) -> list[Outputs]:
            raise mine

        name = self.layer(network.explained[-1])
        with pytest.raises(KeyError) as caught:
            model.trace(self._native(model, x), name, fail)
        assert caught.value is mine, f"seeds raised {mine!r}, the caller got {caught.value!r}"
        model.trace(self._native(model, x), name, _first_score)
        assert self.snapshot(native) == before, "the user's model is not as it was"

    def test_threads_from_their_first_call_on(self, native: Any, network: Network, x: Array) -> None:
        model = self.load(native, network)
        truth = {name: reference.gradient(network, x, name, _first(network, x)) for name in network.explained}
        wrong: list[str] = []

        def work(k: int) -> None:
            order = network.explained[k % 2 :] + network.explained[: k % 2]
            try:
                for name in order:
                    trace = model.trace(self._native(model, x), self.layer(name), _first_score)
                    close(trace.gradients[0], truth[name], 1e-3, f"gradient at {name} in thread {k}")
                    if "resume" in model.capabilities:
                        again = model.resume(trace, trace.activations).outputs
                        same(again, _truth(network, x), f"resume at {name} in thread {k}")
            except BaseException as error:
                wrong.append(f"{type(error).__name__}: {error}")

        threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong, f"not safe for threads: {wrong[0]}"

    def test_the_heatmap(self, model: Model, network: Network) -> None:
        """The whole way: a picture, Grad-CAM, a heatmap, against the formula on NumPy's own values."""
        image = np.random.default_rng(8).integers(0, 256, (*network.input[1:], 3), dtype=np.uint8)
        model.input = xcam.InputSpec(
            network.input[1:], layout=model.input.layout, preprocessing=xcam.Preprocessing("unit", scale=1 / 255)
        )
        name = network.explained[0]
        x = np.moveaxis(image / np.float32(255), -1, 0)[None]
        a = reference.run(network, x)[name][0]
        for index in range(2):
            v = {key: np.zeros_like(value) for key, value in _truth(network, x).items()}
            next(iter(v.values()))[:, index] = 1
            g = reference.gradient(network, x, name, v)[0]
            cam = np.maximum(np.einsum("c,chw->hw", g.mean(axis=(1, 2)), a), 0)
            if cam.max() > 0:
                e = xcam.explain(model, image, self.layer(name), target=index)
                expected = xcam.maps.resize(cam / cam.max(), network.input[1:])
                close(e.heatmap, expected, 1e-3, f"heatmap of class {index}")

    @staticmethod
    def _native(model: Model, x: Array) -> Array:
        """A batch [N, C, H, W] in the model's own layout."""
        return np.ascontiguousarray(np.moveaxis(x, 1, -1)) if model.input.layout == "channels_last" else x


class Cotangents:
    """Seeds: fixed cotangents by output name, handed over in the form that the outputs have; notes what it was asked."""

    def __init__(self, *cotangents: Mapping[str, Array]) -> None:
        self.cotangents = cotangents
        self.asked: list[Outputs] = []

    def __call__(self, outputs: Outputs) -> list[Outputs]:
        self.asked.append(outputs)
        if not isinstance(outputs, Mapping):
            return [next(iter(v.values())) for v in self.cotangents]
        return [dict(reversed(list(v.items()))) for v in self.cotangents]  # by name, in whatever order


def close(found: Array, expected: Array, tolerance: float, what: str, floor: float = 1e-3) -> None:
    """float32, the same shape, and within `tolerance` of the largest magnitude; else a message that says what differs."""
    assert isinstance(found, np.ndarray), f"{what}: {type(found).__name__}, not a NumPy array"
    assert found.dtype == np.float32, f"{what}: {found.dtype}, not float32"
    assert found.shape == expected.shape, f"{what}: shape {found.shape}, expected {expected.shape} (channels first)"
    scale = max(float(np.abs(expected).max()), floor)
    error = float(np.abs(found - expected).max()) / scale
    if error <= tolerance:
        return
    hint = ""
    for factor in (2.0, 0.5, -1.0, float(len(expected)), 1 / len(expected)):
        if np.abs(found - factor * expected).max() / scale <= tolerance:
            hint = f": it is {factor:g} times what it should be"
    raise AssertionError(f"{what}: relative error {error:.2g}, allowed {tolerance:g}{hint}")


def same(found: Outputs, expected: Mapping[str, Array], what: str) -> None:
    """Outputs, by name when there are several, equal to the reference."""
    if len(expected) == 1 and not isinstance(found, Mapping):
        (name,) = expected
        found = {name: found}
    assert isinstance(found, Mapping), f"{what}: one array, expected outputs by name: {list(expected)}"
    assert set(found) == set(expected), f"{what}: outputs are {list(found)}, expected {list(expected)}"
    for name, value in expected.items():
        softmaxed = value.ndim == 2 and np.allclose(found[name].sum(axis=1), 1, atol=1e-4)
        note = " (is a softmax still on?)" if softmaxed and not np.allclose(value.sum(axis=1), 1, atol=1e-2) else ""
        close(found[name], value, 1e-4, f"{what}: {name}{note}")


def _truth(network: Network, x: Array) -> dict[str, Array]:
    return reference.logits(network, reference.run(network, x))


def _cotangents(network: Network, x: Array, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=value.shape).astype(np.float32) for name, value in _truth(network, x).items()}


def _first_score(outputs: Outputs) -> Sequence[Outputs]:
    """The cotangent of class 0 of the first output."""
    z = xcam.contract.one_output(outputs)
    v = np.zeros_like(z)
    v[:, 0] = 1
    return [xcam.contract.like(outputs, v)]


def _first(network: Network, x: Array) -> dict[str, Array]:
    v = {name: np.zeros_like(value) for name, value in _truth(network, x).items()}
    next(iter(v.values()))[:, 0] = 1
    return v
