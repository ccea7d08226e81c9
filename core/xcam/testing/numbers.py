"""The suite's numbers: every value that a backend gives, held against NumPy's own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import get_args

import numpy as np
import pytest

import xcam
from xcam.contract import Array, Layout, Model
from xcam.testing import reference
from xcam.testing.assertions import axes, close, lost_paths, other_cotangents, other_steps, same, wrong_rows
from xcam.testing.networks import Network
from xcam.testing.suite import (
    FixedCotangents,
    N,
    Suite,
    ends,
    first,
    first_score,
    gradient,
    random_cotangents,
    resumed_before,
    truth,
)

ROWS = [2, 0, 2, 1, 1]
_AXES = {2: "tokens, [N, C, T]", 3: "a map, [N, C, H, W]"}


class Numbers(Suite):
    """What the model says of itself, and what it computes."""

    def test_model_says_what_it_is(self, model: Model, network: Network) -> None:
        assert isinstance(model, Model), "the object that load() returned lacks a part of xcam.contract.Model"
        assert model.input.channels == network.input[0], (
            f"input.channels is {model.input.channels}, pictures have {network.input[0]}"
        )
        said = model.output_activation
        kinds = set(said.values()) if isinstance(said, Mapping) else {said}
        assert kinds == {network.activation}, (
            f"output_activation is {said!r}; the network ends in {network.activation!r}: cut it off, and say so"
        )

    def test_layers_in_execution_order_with_their_shapes(self, model: Model, network: Network, x: Array) -> None:
        names = [layer.name for layer in model.layers]
        twice = sorted({name for name in names if names.count(name) > 1})
        assert not twice, f"layers {twice} are listed twice; an address is one layer's own"
        for name in network.explained:
            assert self.layer(name) in names, f"layers are {names}: {self.layer(name)!r} is not among them"
        known = [step.name for step in network.steps if self.layer(step.name) in names]
        for one in known:
            for other in known:
                right = names.index(self.layer(one)) < names.index(self.layer(other))
                assert right or not network.feeds(one, other), (
                    f"layers are not in execution order: {one} feeds {other}, and is listed behind it ({names})"
                )
        values = reference.run(network, x)
        for name in known:
            found = next(layer for layer in model.layers if layer.name == self.layer(name))
            wanted = values[name].shape[1:]
            assert found.shape == wanted, (
                f"{name}: Layer.shape is {found.shape}, expected {wanted}{axes(found.shape, wanted, 0)}"
            )
            assert found.is_output == (name in ends(network)), (
                f"{name}: Layer.is_output is {found.is_output}; it is True of outputs and of the logits under one, alone"
            )
            one_token = name in ("attend", "norm2")  # alone reaches the output: a backend may say either
            assert found.reaches_output or found.is_output or one_token, (
                f"{name}: Layer.reaches_output is False, and it does"
            )
            assert not found.inner, f"{name}: Layer.inner is True, and it is a layer of its own"
            assert len(wanted) == 1 or (found.layout == "tokens") == (len(wanted) == 2), (
                f"{name}: Layer.layout is {found.layout!r}, and its values are {_AXES[len(wanted)]}"
            )
        listed = [layer for layer in model.layers if not layer.folds_batch]
        given = model.activations(self.native_batch(model, x), [layer.name for layer in listed])
        for layer in listed:
            assert layer.layout in get_args(Layout), (
                f"{layer.name}: Layer.layout {layer.layout!r} is unknown; known: {', '.join(get_args(Layout))}"
            )
            shape = given[layer.name].shape[1:]
            fits = len(shape) == len(layer.shape) and all(
                n in (None, m) for n, m in zip(layer.shape, shape, strict=True)
            )
            assert fits, f"{layer.name}: Layer.shape is {layer.shape}, activations() gives {shape} for each picture"

    def test_predict(self, model: Model, network: Network, x: Array) -> None:
        for n in range(N):
            one = x[n : n + 1]
            same(model.predict(self.native_batch(model, one)), truth(network, one), f"predict of picture {n} alone")
        told = "predict of a batch, whose pictures alone are right (what one is given may not depend on the others)"
        same(model.predict(self.native_batch(model, x)), truth(network, x), told)

    def test_activations_of_many_layers(self, model: Model, network: Network, x: Array) -> None:
        values = reference.run(network, x)
        for order in (network.explained, network.explained[::-1]):
            names = [self.layer(name) for name in order]
            found = model.activations(self.native_batch(model, x), names)
            assert list(found) == names, (
                f"activations() was asked for {names} and returned {list(found)}: give all of them, in the order asked"
            )
            alone = model.activations(self.native_batch(model, x[:1]), names)
            for ours, name in zip(order, names, strict=True):
                others = other_steps(network, ours, values)
                close(found[name], values[ours], 1e-4, f"activations of {name}", mistakes=others)
                close(alone[name], values[ours][:1], 1e-4, f"activations of {name} for one picture")

    def test_trace_without_seeds(self, model: Model, network: Network, x: Array) -> None:
        values = reference.run(network, x)
        for name in network.explained:
            aliases = next((layer.aliases for layer in model.layers if layer.name == self.layer(name)), ())
            for address in (self.layer(name), *aliases):
                told = f"trace at {name}" + ("" if address == self.layer(name) else f" by its alias {address!r}")
                try:
                    trace = model.trace(self.native_batch(model, x), address)
                except Exception as error:
                    raise AssertionError(f"{told} failed: {type(error).__name__}: {error}") from error
                same(trace.outputs, truth(network, x), f"outputs of {told}")
                others = other_steps(network, name, values)
                close(trace.activations, values[name], 1e-4, f"activations of {told}", mistakes=others)
                assert list(trace.gradients) == [], "no cotangents were given, and there are gradients"

    def test_gradients_for_several_cotangents(self, model: Model, network: Network, x: Array) -> None:
        """Every path from the layer to the outputs counts, those around it do not; every output counts."""
        for name in network.explained:
            given = [random_cotangents(network, x, seed) for seed in range(3)]
            cotangents = FixedCotangents(*given)
            trace = model.trace(self.native_batch(model, x), self.layer(name), cotangents)
            cotangents.used_well("trace")
            same(cotangents.asked[0], truth(network, x), "what cotangents was given")
            assert len(trace.gradients) == 3, f"{len(trace.gradients)} gradients for 3 cotangents; one for each"
            for m, found in enumerate(trace.gradients):
                slope = gradient(network, x, name, given[m])
                wrong = {**other_cotangents(network, x, name, given, m), **lost_paths(network, name, slope)}
                close(found, slope(()), 1e-3, f"gradient at {name}", mistakes=wrong)

    def test_a_batch_gives_what_its_rows_give_alone(self, model: Model, network: Network, x: Array) -> None:
        name = self.layer(network.explained[-1])
        together = model.trace(self.native_batch(model, x), name, first_score)
        for n in range(N):
            row = slice(n, n + 1)
            alone = model.trace(self.native_batch(model, x[row]), name, FixedCotangents(first(network, x[row])))
            same(alone.outputs, truth(network, x[row]), f"outputs of trace of row {n} alone")
            close(alone.activations, together.activations[row], 1e-4, f"activations of row {n} alone")
            close(alone.gradients[0], together.gradients[0][row], 1e-3, f"gradient of row {n} alone")

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
            v = {key: value[rows] for key, value in random_cotangents(network, x, 4).items()}
            cotangents = FixedCotangents(v)
            with resumed_before():
                again = model.resume(trace, put, rows, cotangents)
            values = reference.run(network, x[rows], {name: put})
            wrong = wrong_rows(network, x, rows, name, put)
            same(again.outputs, reference.logits(network, values), f"outputs of resume at {name}", wrong)
            close(again.activations, put, 1e-6, f"activations of resume at {name}")
            cotangents.used_well("resume")
            assert len(again.gradients) == 1, (
                f"resume at {name} gives {len(again.gradients)} gradients for 1 cotangent"
            )
            slope = gradient(network, x[rows], name, v, at=put)
            wrong = {**other_cotangents(network, x[rows], name, [v], 0, put), **lost_paths(network, name, slope)}
            close(again.gradients[0], slope(()), 1e-3, f"gradient of resume at {name}", mistakes=wrong)
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
            given = [random_cotangents(network, x, seed) for seed in (2, 6)]
            along = np.random.default_rng(3).normal(size=(2, *value.shape)).astype(np.float32)

            def product(v: Mapping[str, Array], vector: Array, value: Array = value, name: str = name) -> Array:
                step = 1e-4
                up, down = (reference.gradient(network, x, name, v, at=value + s * step * vector) for s in (1, -1))
                return (up - down) / (2 * step)

            cotangents = FixedCotangents(*given)
            found = model.hvp(self.native_batch(model, x), self.layer(name), cotangents, list(along))  # type: ignore[attr-defined]
            cotangents.used_well("hvp")
            assert len(found) == 2, f"hvp at {name} gives {len(found)} products for 2 cotangents; one for each"
            for m in range(2):
                wrong = {
                    f"it is the product of cotangent {j} and vector {k}, not of {m} and {m}": partial(
                        product, v, vector
                    )
                    for j, v in enumerate(given)
                    for k, vector in enumerate(along)
                }
                told = f"Hessian-vector product at {name}"
                close(found[m], product(given[m], along[m]), 1e-2, told, floor=1e-3, mistakes=wrong)

    def test_the_heatmap(self, model: Model, network: Network) -> None:
        """The whole way: a picture, Grad-CAM, a heatmap, against the formula on NumPy's own values."""
        image = np.random.default_rng(8).integers(0, 256, (*network.input[1:], 3), dtype=np.uint8)
        model.input = xcam.InputSpec(
            network.input[1:], layout=model.input.layout, preprocessing=xcam.Preprocessing("unit", scale=1 / 255)
        )
        name = network.explained[0]
        x = np.moveaxis(image / np.float32(255), -1, 0)[None]
        said = model.trace(self.native_batch(model, x), self.layer(name)).outputs
        same(said, truth(network, x), "outputs of trace of one picture")
        a = reference.run(network, x)[name][0]
        for index in range(2):
            v = {key: np.zeros_like(value) for key, value in truth(network, x).items()}
            next(iter(v.values()))[:, index] = 1
            g = reference.gradient(network, x, name, v)[0]
            cam = np.maximum(np.einsum("c,chw->hw", g.mean(axis=(1, 2)), a), 0)
            if cam.max() > 0:
                e = xcam.explain(model, image, layer=self.layer(name), target=index)
                expected = xcam.methods.maps.resize(cam / cam.max(), network.input[1:])
                close(e.heatmap, expected, 1e-3, f"heatmap of class {index}")
