"""Tests of values: everything that a backend computes, compared with the reference in NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import get_args

import numpy as np
import pytest

import xcam
from xcam.contract import Array, Layout, Model, Trace, differences, validation
from xcam.contract.probing import probed
from xcam.testing import reference
from xcam.testing.assertions import (
    Mistakes,
    axes,
    close,
    lost_paths,
    other_cotangents,
    other_steps,
    same,
    wrong_rows,
)
from xcam.testing.networks import Network
from xcam.testing.suite import (
    FixedCotangents,
    N,
    Suite,
    differentiates,
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


class Values(Suite):
    """The facts that a model states, and the values that it computes."""

    def test_model_states_its_input_and_output_activation(self, model: Model, network: Network) -> None:
        """The facts of the model are right."""
        assert isinstance(model, Model), (
            "the object returned by load() is not an xcam.contract.Model; add the missing members"
        )
        assert model.input.channels == network.input[0], (
            f"input.channels is {model.input.channels}, but the images have {network.input[0]}"
        )
        stated = model.output_activation
        kinds = set(stated.values()) if isinstance(stated, Mapping) else {stated}
        assert kinds == {network.activation}, (
            f"output_activation is {stated!r}, but the network ends in {network.activation!r}; cut it off, and name it there"
        )

    def test_layers_in_execution_order_with_their_shapes(self, model: Model, network: Network, x: Array) -> None:
        """The facts of every layer are right."""
        names = [layer.name for layer in model.layers]
        twice = sorted({name for name in names if names.count(name) > 1})
        assert not twice, f"layers {twice} are listed twice; give each layer a unique name"
        for name in network.explained:
            assert self.layer(name) in names, f"layer {self.layer(name)!r} is missing from layers: {names}; add it"
        known = [step.name for step in network.steps if self.layer(step.name) in names]
        for one in known:
            for other in known:
                right = names.index(self.layer(one)) < names.index(self.layer(other))
                assert right or not network.feeds(one, other), (
                    f"layers are not in execution order: {one} feeds {other}, and is listed after it ({names})"
                )
        values = reference.run(network, x)
        for name in known:
            layer = next(layer for layer in model.layers if layer.name == self.layer(name))
            expected = values[name].shape[1:]
            assert layer.shape == expected, (
                f"{name}: Layer.shape is {layer.shape}, expected {expected}{axes(layer.shape, expected, 0)}"
            )
            assert layer.is_output == (name in ends(network)), (
                f"{name}: Layer.is_output is {layer.is_output}; set it to True only for outputs, and for the logits of one"
            )
            one_token = name in ("attend", "norm2")  # only this token reaches the output: a backend may state either
            assert layer.reaches_output or layer.is_output or one_token, (
                f"{name}: Layer.reaches_output is False, but a path leads to an output; set it to True"
            )
            assert not layer.inner, (
                f"{name}: Layer.inner is True, but it is not part of another layer; set it to False"
            )
            assert len(expected) == 1 or (layer.layout == "tokens") == (len(expected) == 2), (
                f"{name}: Layer.layout is {layer.layout!r}, but its values are {_AXES[len(expected)]}"
            )
        listed = [layer for layer in model.layers if not layer.folds_batch]
        activations = model.activations(self.native_batch(model, x), [layer.name for layer in listed])
        for layer in listed:
            assert layer.layout in get_args(Layout), (
                f"{layer.name}: Layer.layout {layer.layout!r} is unknown; known: {', '.join(get_args(Layout))}"
            )
            shape = activations[layer.name].shape[1:]
            fits = len(shape) == len(layer.shape) and all(
                n in (None, m) for n, m in zip(layer.shape, shape, strict=True)
            )
            assert fits, (
                f"{layer.name}: Layer.shape is {layer.shape}, but activations() returns {shape} for each image"
            )

    def test_values_follow_the_image(self, model: Model, network: Network) -> None:
        """A change of the image changes each layer at the same position, in the row of its image."""
        # In a Trace, values are [N, C, *space], whatever the framework does.
        listed = {
            layer.name: replace(layer, layout="channels_first", batch_axis=0, order=None)
            for layer in model.layers
            if layer.has_space and layer.depends_on_input is not False and not layer.folds_batch
        }
        shape = self.native_batch(model, np.zeros((1, *network.input), np.float32)).shape[1:]
        seen = probed(listed, lambda x, names: [*model.activations(x, names).values()], model.input, shape, 2)
        for name, layer in seen.items():
            assert layer.depends_on_input is not False, (
                f"{name}: its values do not depend on the image; set Layer.depends_on_input to False, or return those of "
                "the call that reads the image"
            )
            assert not layer.folds_batch, (
                f"{name}: a change of one image appears in no single row: windows or frames are folded into the batch; set "
                "Layer.folds_batch to True"
            )
            assert layer.batch_axis == 0, (
                f"{name}: the axis of the batch is {layer.batch_axis}; return [N, C, *spatial]"
            )
            tokens = len(layer.shape) == 2
            in_order = layer.order is None and (layer.has_map or not tokens)
            assert in_order, (
                f"{name}: its tokens are not in row order; reorder them in activations(), trace() and resume()"
            )
            channels_first = layer.has_map and layer.layout == "channels_first"
            assert channels_first, f"{name}: a change of the image moves along its channels; return [N, C, *spatial]"

    def test_predict(self, model: Model, network: Network, x: Array) -> None:
        """Outputs of single images and of a batch."""
        for n in range(N):
            one = x[n : n + 1]
            same(model.predict(self.native_batch(model, one)), truth(network, one), f"predict of image {n} alone")
        label = (
            "predict of a batch of images that are correct alone (the result of one must not depend on the others)"
        )
        same(model.predict(self.native_batch(model, x)), truth(network, x), label)

    def test_activations_of_many_layers(self, model: Model, network: Network, x: Array) -> None:
        """Activations of several layers, in the requested order."""
        values = reference.run(network, x)
        for order in (network.explained, network.explained[::-1]):
            names = [self.layer(name) for name in order]
            result = model.activations(self.native_batch(model, x), names)
            assert list(result) == names, (
                f"activations() of {names} returned {list(result)}; return all of them, in the requested order"
            )
            alone = model.activations(self.native_batch(model, x[:1]), names)
            for step, name in zip(order, names, strict=True):
                others = other_steps(network, step, values)
                close(result[name], values[step], 1e-4, f"activations of {name}", mistakes=others)
                close(alone[name], values[step][:1], 1e-4, f"activations of {name} for one image")

    def test_trace_without_cotangents(self, model: Model, network: Network, x: Array) -> None:
        """Outputs and activations, by each name of a layer."""
        values = reference.run(network, x)
        for name in network.explained:
            aliases = next((layer.aliases for layer in model.layers if layer.name == self.layer(name)), ())
            for address in (self.layer(name), *aliases):
                label = f"trace at {name}" + ("" if address == self.layer(name) else f" by its alias {address!r}")
                try:
                    trace = model.trace(self.native_batch(model, x), address)
                except Exception as error:
                    raise AssertionError(f"{label} failed: {type(error).__name__}: {error}") from error
                same(trace.outputs, truth(network, x), f"outputs of {label}")
                others = other_steps(network, name, values)
                close(trace.activations, values[name], 1e-4, f"activations of {label}", mistakes=others)
                assert list(trace.gradients) == [], (
                    "trace() without cotangents returned gradients; return an empty list"
                )

    def test_gradients_for_several_cotangents(self, model: Model, network: Network, x: Array) -> None:
        """Every path from the layer to the outputs counts, and every output; paths that bypass the layer do not."""
        if not differentiates(model):
            pytest.skip("the backend does not declare gradients")
        for name in network.explained:
            fixed = [random_cotangents(network, x, seed) for seed in range(3)]
            cotangents = FixedCotangents(*fixed)
            trace = model.trace(self.native_batch(model, x), self.layer(name), cotangents)
            cotangents.check_use("trace")
            same(cotangents.calls[0], truth(network, x), "the outputs passed to cotangents()")
            assert len(trace.gradients) == 3, (
                f"{len(trace.gradients)} gradients for 3 cotangents; return one for each"
            )
            for m, result in enumerate(trace.gradients):
                slope = gradient(network, x, name, fixed[m])
                wrong = {**other_cotangents(network, x, name, fixed, m), **lost_paths(network, name, slope)}
                close(result, slope(()), 1e-3, f"gradient at {name}", mistakes=wrong)

    def test_a_batch_has_the_values_of_its_rows_alone(self, model: Model, network: Network, x: Array) -> None:
        """Outputs, activations and gradients of a row do not depend on the batch."""
        name = self.layer(network.explained[-1])
        able = differentiates(model)
        together = model.trace(self.native_batch(model, x), name, first_score if able else None)
        for n in range(N):
            row = slice(n, n + 1)
            cotangents = FixedCotangents(first(network, x[row])) if able else None
            alone = model.trace(self.native_batch(model, x[row]), name, cotangents)
            same(alone.outputs, truth(network, x[row]), f"outputs of trace of row {n} alone")
            close(alone.activations, together.activations[row], 1e-4, f"activations of row {n} alone")
            if able:
                close(alone.gradients[0], together.gradients[0][row], 1e-3, f"gradient of row {n} alone")

    def test_resume(self, model: Model, network: Network, x: Array) -> None:
        """Replacements, chosen rows, bypass values of the right row, and gradients at the replacement."""
        if "resume" not in model.capabilities:
            pytest.skip("the backend does not declare resume")
        rows = ROWS
        for name in network.explained:
            trace = model.trace(self.native_batch(model, x), self.layer(name))
            value, all_rows = reference.run(network, x)[name], list(range(N))
            same(
                model.resume(trace, trace.activations).outputs,
                truth(network, x),
                f"resume with the unchanged value at {name}",
                wrong_rows(network, x, all_rows, name, value),
            )
            factors = np.random.default_rng(1).uniform(0, 2, size=(len(rows), *trace.activations.shape[1:]))
            replacement = (trace.activations[rows] * factors).astype(np.float32)
            v = {key: value[rows] for key, value in random_cotangents(network, x, 4).items()}
            cotangents = FixedCotangents(v) if differentiates(model) else None
            with resumed_before():
                resumed = model.resume(trace, replacement, rows, cotangents)
            values = reference.run(network, x[rows], {name: replacement})
            wrong = wrong_rows(network, x, rows, name, replacement)
            same(resumed.outputs, reference.logits(network, values), f"outputs of resume at {name}", wrong)
            close(resumed.activations, replacement, 1e-6, f"activations of resume at {name}")
            if cotangents is not None:
                cotangents.check_use("resume")
                assert len(resumed.gradients) == 1, (
                    f"resume at {name} returned {len(resumed.gradients)} gradients for 1 cotangent; return one for each"
                )
                slope = gradient(network, x[rows], name, v, at=replacement)
                wrong = {
                    **other_cotangents(network, x[rows], name, [v], 0, replacement),
                    **lost_paths(network, name, slope),
                }
                close(resumed.gradients[0], slope(()), 1e-3, f"gradient of resume at {name}", mistakes=wrong)
            one = model.trace(self.native_batch(model, x[1:2]), self.layer(name))
            outputs = model.resume(one, replacement[3:]).outputs
            last = reference.run(network, x[[1, 1]], {name: replacement[3:]})
            same(outputs, reference.logits(network, last), f"resume of variants of one image at {name}, without rows")

    def test_gradients_by_differences(self, model: Model, network: Network, x: Array) -> None:
        """The mean gradient of each channel is the difference quotient of two resumed runs, apart from kinks between them."""
        if "resume" not in model.capabilities:
            pytest.skip("the backend does not declare resume")
        listed = {layer.name: layer for layer in model.layers}
        for step in network.explained:
            layer = listed[self.layer(step)]
            trace, v = model.trace(self.native_batch(model, x), layer.name), random_cotangents(network, x, 3)
            cotangents = FixedCotangents(v)(trace.outputs)
            result = differences.gradients(layer, trace, cotangents, validation.tail(model), model.layers)
            expected = gradient(network, x, step, v)(())
            space = tuple(range(2, expected.ndim))
            close(
                result.gradients[0].mean(axis=space),
                expected.mean(axis=space),
                0.1,
                f"mean gradient by differences at {step}",
            )

    def test_several_layers_in_one_pass(self, model: Model, network: Network, x: Array) -> None:
        """Each layer has the values and the gradients of a pass that is opened at it alone."""
        values, fixed = reference.run(network, x), [random_cotangents(network, x, seed) for seed in (2, 6)]
        for steps in (network.explained, network.explained[::-1]):
            names = [self.layer(step) for step in steps]
            cotangents = FixedCotangents(*fixed) if differentiates(model) else None
            traces = model.trace(self.native_batch(model, x), [*names, names[0]], cotangents)
            if cotangents is not None:
                cotangents.check_use("trace")
            assert isinstance(traces, list), (
                f"trace() of a list of layers returned {type(traces).__name__}; return a list"
            )
            count = len(steps) + 1
            assert len(traces) == count, (
                f"trace() of {count} layers, one of them twice, returned {len(traces)} traces"
            )
            for step, trace in zip([*steps, steps[0]], traces, strict=True):
                label = f"trace of {', '.join(steps)}: "
                same(trace.outputs, truth(network, x), f"{label}outputs of the trace at {step}")
                others = other_steps(network, step, values)
                close(trace.activations, values[step], 1e-4, f"{label}activations at {step}", mistakes=others)
                if cotangents is None:
                    continue
                assert len(trace.gradients) == 2, (
                    f"{label}{len(trace.gradients)} gradients at {step} for 2 cotangents; return one for each"
                )
                for m, result in enumerate(trace.gradients):
                    behind = [other for other in steps if network.feeds(step, other)]
                    stopped: Mistakes = {
                        f"it stops at {' and '.join(others)}; let gradients pass through the other layers": partial(
                            reference.gradient, network, x, step, fixed[m], constants={o: values[o] for o in others}
                        )
                        for others in ([behind] if behind else []) + [[other] for other in behind]
                    }
                    slope = gradient(network, x, step, fixed[m])
                    wrong: Mistakes = {**stopped, **lost_paths(network, step, slope)}
                    close(result, slope(()), 1e-3, f"{label}gradient at {step}", mistakes=wrong)
        for one in traces[:1] if "resume" in model.capabilities else ():
            same(model.resume(one, one.activations).outputs, truth(network, x), "resume of one of several traces")

    def test_resume_at_other_layers(self, model: Model, network: Network, x: Array) -> None:
        """The trace is at the layer in the resumed run: its value, its gradient, and once more the tail behind it."""
        if "resume" not in model.capabilities:
            pytest.skip("the backend does not declare resume")
        v, steps = {key: value[ROWS] for key, value in random_cotangents(network, x, 4).items()}, network.explained
        rng, clean = np.random.default_rng(1), reference.run(network, x)
        for name in steps:
            trace = model.trace(self.native_batch(model, x), self.layer(name))
            factors = rng.uniform(0, 2, size=(len(ROWS), *trace.activations.shape[1:]))
            constants = {name: (trace.activations[ROWS] * factors).astype(np.float32)}
            values = reference.run(network, x[ROWS], constants)
            at = [step for step in steps if step == name or network.avoids([name], step, network.outputs)]
            at += [step for step in steps if network.feeds(name, step) and step not in at]
            cotangents = FixedCotangents(v) if differentiates(model) else None
            resumed = model.resume(trace, constants[name], ROWS, cotangents, at=[self.layer(step) for step in at])
            assert isinstance(resumed, list), (
                f"resume() with a list as `at` returned {type(resumed).__name__}; return a list"
            )
            for step, one in zip(at, resumed, strict=True):
                label = f"resume at {step}, from changed values of {name}"
                wrong = wrong_rows(network, x, ROWS, name, constants[name])
                same(one.outputs, reference.logits(network, values), f"{label}: outputs", wrong)
                self._check_resumed(network, x, one, step, values, clean, label)
                if cotangents is None:
                    continue
                slope = partial(reference.gradient, network, x[ROWS], step, v)
                unchanged = {"it is the gradient of the clean run; differentiate the resumed one": slope}
                close(
                    one.gradients[0],
                    slope(constants=constants, at=constants.get(step)),
                    1e-3,
                    f"{label}: gradient",
                    mistakes=unchanged,
                )
            for step, earlier in zip(at, resumed, strict=True):
                if step == name or not network.feeds(name, step):
                    continue
                rows = [4, 0, 3]
                more = {
                    step: (
                        earlier.activations[rows] * rng.uniform(0, 2, size=earlier.activations[rows].shape)
                    ).astype(np.float32)
                }
                with resumed_before():
                    again = model.resume(earlier, more[step], rows)
                label = f"resume at {step}, of a trace that was resumed at {name}"
                x_rows = x[[ROWS[k] for k in rows]]
                fixed = {name: constants[name][rows], **more}
                expected = reference.logits(network, reference.run(network, x_rows, fixed))
                stale = {
                    "the values around the layer are those of the first, clean run; keep those of the resumed one": partial(
                        lambda x_rows, more: reference.logits(network, reference.run(network, x_rows, more)),
                        x_rows,
                        more,
                    )
                }
                same(again.outputs, expected, f"{label}: outputs", stale)
                close(again.activations, more[step], 1e-6, f"{label}: activations")
            *_, last = at
            alone = model.resume(trace, constants[name], ROWS, at=self.layer(last))
            self._check_resumed(network, x, alone, last, values, clean, f"resume at {last} alone, from {name}")

    @staticmethod
    def _check_resumed(
        network: Network,
        x: Array,
        trace: Trace,
        step: str,
        values: Mapping[str, Array],
        clean: Mapping[str, Array],
        label: str,
    ) -> None:
        """Compare the value at a layer with that of the resumed run."""
        wrong = {
            "it is the value of the clean run; return that of the resumed one": lambda: clean[step][ROWS],
            **other_steps(network, step, values),
        }
        close(trace.activations, values[step], 1e-4, f"{label}: activations", mistakes=wrong)

    def test_layers_that_a_path_avoids(self, model: Model, network: Network) -> None:
        """`bypassed` is True where a path from the input to the first output avoids the layer."""
        stated = {layer.name: layer.bypassed for layer in model.layers}
        if all(stated.values()):
            pytest.skip("the backend does not state which layers are cuts")
        for step in network.steps:
            if step.name in ends(network) or self.layer(step.name) not in stated:
                continue
            expected = network.avoids([step.name])
            assert stated[self.layer(step.name)] == expected, (
                f"{step.name}: Layer.bypassed is {not expected}, but "
                + (
                    "a path from the input to the first output avoids it"
                    if expected
                    else "every path leads through it"
                )
                + f"; set it to {expected}, or to True for all layers where the backend does not know the paths"
            )

    def test_hessian_vector_product(self, model: Model, network: Network, x: Array) -> None:
        """Hessian-vector products equal differences of gradients, for smooth networks."""
        if "hvp" not in model.capabilities:
            pytest.skip("the backend does not declare hvp")
        kinks = [step.name for step in network.steps if step.op in ("relu", "pool")]
        smooth = [name for name in network.explained if not any(network.feeds(name, kink) for kink in kinks)]
        for name in smooth:  # with kinks, differences of gradients are not second derivatives
            value = reference.run(network, x)[name]
            fixed = [random_cotangents(network, x, seed) for seed in (2, 6)]
            vectors = np.random.default_rng(3).normal(size=(2, *value.shape)).astype(np.float32)

            def product(v: Mapping[str, Array], vector: Array, value: Array = value, name: str = name) -> Array:
                step = 1e-4
                up, down = (reference.gradient(network, x, name, v, at=value + s * step * vector) for s in (1, -1))
                return (up - down) / (2 * step)

            cotangents = FixedCotangents(*fixed)
            result = model.hvp(self.native_batch(model, x), self.layer(name), cotangents, list(vectors))  # type: ignore[attr-defined]
            cotangents.check_use("hvp")
            assert len(result) == 2, (
                f"hvp at {name} returned {len(result)} products for 2 cotangents; return one for each"
            )
            for m in range(2):
                wrong = {
                    f"it is the product of cotangent {j} and vector {k}; use cotangent {m} and vector {m}": partial(
                        product, v, vector
                    )
                    for j, v in enumerate(fixed)
                    for k, vector in enumerate(vectors)
                }
                label = f"Hessian-vector product at {name}"
                close(result[m], product(fixed[m], vectors[m]), 1e-2, label, floor=1e-3, mistakes=wrong)

    def test_the_heatmap(self, model: Model, network: Network) -> None:
        """The heatmap of Grad-CAM for an image, compared with the formula on reference values."""
        image = np.random.default_rng(8).integers(0, 256, (*network.input[1:], 3), dtype=np.uint8)
        model.input = xcam.InputSpec(
            network.input[1:], layout=model.input.layout, preprocessing=xcam.Preprocessing("unit", scale=1 / 255)
        )
        name = network.explained[0]
        x = np.moveaxis(image / np.float32(255), -1, 0)[None]
        outputs = model.trace(self.native_batch(model, x), self.layer(name)).outputs
        same(outputs, truth(network, x), "outputs of trace of one image")
        a = reference.run(network, x)[name][0]
        output = next(iter(outputs)) if isinstance(outputs, Mapping) else None
        for index in range(2):
            v = {key: np.zeros_like(value) for key, value in truth(network, x).items()}
            next(iter(v.values()))[:, index] = 1
            g = reference.gradient(network, x, name, v)[0]
            cam = np.maximum(np.einsum("c,chw->hw", g.mean(axis=(1, 2)), a), 0)
            if cam.max() > 0:
                e = xcam.explain(model, image, layer=self.layer(name), target=xcam.ClassScore(index, output=output))
                expected = xcam.methods.maps.resize(cam / cam.max(), network.input[1:])
                tolerance = 1e-3 if differentiates(model) else 3e-2  # differences cross kinks
                close(e.heatmap, expected, tolerance, f"heatmap of class {index}")
