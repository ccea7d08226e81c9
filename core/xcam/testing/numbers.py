"""The suite's numbers: every value that a backend gives, held against NumPy's own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

import xcam
from xcam.contract import Array, Model
from xcam.testing import reference
from xcam.testing.judging import axes, close, lost_paths, same, wrong_rows
from xcam.testing.networks import Network
from xcam.testing.suite import Cotangents, N, Suite, asked_once, cotangents, first_score, gradient, truth

ROWS = [2, 0, 2, 1, 1]


class Numbers(Suite):
    """What the model says of itself, and what it computes."""

    def test_model_says_what_it_is(self, model: Model, network: Network) -> None:
        assert isinstance(model, Model), "the object that load() returned lacks a part of xcam.contract.Model"
        assert model.input.channels == network.input[0], (
            f"input.channels is {model.input.channels}, pictures have {network.input[0]}"
        )
        said = model.activation
        kinds = set(said.values()) if isinstance(said, Mapping) else {said}
        assert kinds == {network.activation}, (
            f"activation is {said!r}; the network ends in {network.activation!r}: cut it off, and say so"
        )

    def test_layers_in_execution_order_with_their_shapes(self, model: Model, network: Network, x: Array) -> None:
        names = [layer.name for layer in model.layers]
        twice = sorted({name for name in names if names.count(name) > 1})
        assert not twice, f"layers {twice} are listed twice; an address is one layer's own"
        for name in network.explained:
            assert self.layer(name) in names, f"layers are {names}: {self.layer(name)!r} is not among them"
        for first in network.explained:
            for second in network.explained:
                right = names.index(self.layer(first)) < names.index(self.layer(second))
                assert right or not network.feeds(first, second), (
                    f"layers are not in execution order: {first} feeds {second}, and is listed behind it ({names})"
                )
        values = reference.run(network, x)
        for name in network.explained:
            found = next(layer for layer in model.layers if layer.name == self.layer(name))
            wanted = values[name].shape[1:]
            assert found.shape == wanted, (
                f"{name}: Layer.shape is {found.shape}, expected {wanted}{axes(found.shape, wanted, 0)}"
            )
            assert found.reaches_output or name == "norm2", f"{name}: Layer.reaches_output is False, and it does"
            assert not found.is_output, f"{name}: Layer.is_output is True, and it is no output"

    def test_predict(self, model: Model, network: Network, x: Array) -> None:
        same(model.predict(self.native_batch(model, x)), truth(network, x), "predict")

    def test_activations_of_many_layers(self, model: Model, network: Network, x: Array) -> None:
        values = reference.run(network, x)
        for order in (network.explained, network.explained[::-1]):
            names = [self.layer(name) for name in order]
            found = model.activations(self.native_batch(model, x), names)
            assert list(found) == names, (
                f"activations() was asked for {names} and returned {list(found)}: give all of them, in the order asked"
            )
            others = {f"it is the value of {other}": lambda other=other: values[other] for other in network.explained}
            for ours, name in zip(order, names, strict=True):
                close(found[name], values[ours], 1e-4, f"activations of {name}", mistakes=others)

    def test_trace_without_seeds(self, model: Model, network: Network, x: Array) -> None:
        values = reference.run(network, x)
        for name in network.explained:
            trace = model.trace(self.native_batch(model, x), self.layer(name))
            same(trace.outputs, truth(network, x), f"outputs of trace at {name}")
            close(trace.activations, values[name], 1e-4, f"activations of trace at {name}")
            assert list(trace.gradients) == [], "no seeds were given, and there are gradients"

    def test_gradients_for_several_cotangents(self, model: Model, network: Network, x: Array) -> None:
        """Every path from the layer to the outputs counts, those around it do not; every output counts."""
        for name in network.explained:
            given = [cotangents(network, x, seed) for seed in range(3)]
            seeds = Cotangents(*given)
            trace = model.trace(self.native_batch(model, x), self.layer(name), seeds)
            asked_once(seeds, "trace")
            same(seeds.asked[0], truth(network, x), "what seeds was given")
            assert len(trace.gradients) == 3, f"{len(trace.gradients)} gradients for 3 cotangents; one for each"
            for v, found in zip(given, trace.gradients, strict=True):
                slope = gradient(network, x, name, v)
                close(found, slope(()), 1e-3, f"gradient at {name}", mistakes=lost_paths(network, name, slope))

    def test_a_batch_gives_what_its_rows_give_alone(self, model: Model, network: Network, x: Array) -> None:
        name = self.layer(network.explained[-1])
        together = model.trace(self.native_batch(model, x), name, first_score)
        for n in range(N):
            alone = model.trace(self.native_batch(model, x[n : n + 1]), name, first_score)
            close(alone.activations[0], together.activations[n], 1e-4, f"activations of row {n} alone")
            close(alone.gradients[0][0], together.gradients[0][n], 1e-3, f"gradient of row {n} alone")

    def test_resume(self, model: Model, network: Network, x: Array) -> None:
        """Changed values, rows chosen, skip connections taken from the right row; gradients there too."""
        if "resume" not in model.capabilities:
            pytest.skip("the backend declares no resume")
        rows = ROWS
        for name in network.explained:
            trace = model.trace(self.native_batch(model, x), self.layer(name))
            itself, every = reference.run(network, x)[name], list(range(N))
            same(
                model.resume(trace, trace.activations).outputs,
                truth(network, x),
                f"resume of itself at {name}",
                wrong_rows(network, x, every, name, itself),
            )
            factors = np.random.default_rng(1).uniform(0, 2, size=(len(rows), *trace.activations.shape[1:]))
            put = (trace.activations[rows] * factors).astype(np.float32)
            v = {key: value[rows] for key, value in cotangents(network, x, 4).items()}
            seeds = Cotangents(v)
            again = model.resume(trace, put, rows, seeds)
            values = reference.run(network, x[rows], {name: put})
            wrong = wrong_rows(network, x, rows, name, put)
            same(again.outputs, reference.logits(network, values), f"outputs of resume at {name}", wrong)
            close(again.activations, put, 1e-6, f"activations of resume at {name}")
            asked_once(seeds, "resume")
            assert len(again.gradients) == 1, (
                f"resume at {name} gives {len(again.gradients)} gradients for 1 cotangent"
            )
            slope = gradient(network, x[rows], name, v, at=put)
            paths = lost_paths(network, name, slope)
            close(again.gradients[0], slope(()), 1e-3, f"gradient of resume at {name}", mistakes=paths)
            one = model.trace(self.native_batch(model, x[1:2]), self.layer(name))
            found = model.resume(one, put[3:]).outputs
            last = reference.run(network, x[[1, 1]], {name: put[3:]})
            wanted = reference.logits(network, last)
            same(found, wanted, f"resume of one picture's variants at {name}, rows not given")

    def test_hessian_vector_product(self, model: Model, network: Network, x: Array) -> None:
        if "hvp" not in model.capabilities:
            pytest.skip("the backend declares no hvp")
        kinks = [step.name for step in network.steps if step.op in ("relu", "pool")]
        smooth = [name for name in network.explained if not any(network.feeds(name, kink) for kink in kinks)]
        for name in smooth:  # elsewhere differences of gradients are no second derivatives
            value = reference.run(network, x)[name]
            v = cotangents(network, x, 2)
            along = np.random.default_rng(3).normal(size=value.shape)
            step = 1e-4
            up, down = (reference.gradient(network, x, name, v, at=value + s * step * along) for s in (1, -1))
            found = model.hvp(  # type: ignore[attr-defined]
                self.native_batch(model, x),
                self.layer(name),
                Cotangents(v),
                [along.astype(np.float32)],
            )
            close(found[0], (up - down) / (2 * step), 1e-2, f"Hessian-vector product at {name}", floor=1e-3)

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
            v = {key: np.zeros_like(value) for key, value in truth(network, x).items()}
            next(iter(v.values()))[:, index] = 1
            g = reference.gradient(network, x, name, v)[0]
            cam = np.maximum(np.einsum("c,chw->hw", g.mean(axis=(1, 2)), a), 0)
            if cam.max() > 0:
                e = xcam.explain(model, image, self.layer(name), target=index)
                expected = xcam.maps.resize(cam / cam.max(), network.input[1:])
                close(e.heatmap, expected, 1e-3, f"heatmap of class {index}")
