"""`RecordedModel`: the values, names, rows and errors that it adds to recordings and forward passes.

The model doubles its input [N, H, W, C]; its output is the sum of the cubes over space, for each channel.
"""

import contextlib
from dataclasses import replace

import numpy as np
import pytest

from xcam import InputError, InputSpec, Layer, ModelError
from xcam.contract.recorded import NoGradient, RecordedModel

LAYER = Layer("double", "Scale", (2, 3, 1), "channels_last", aliases=("twice",))


NEXT = Layer("next", "Add", (2, 3, 1), "channels_last")


class Pass:
    """double = 2·x, next = double + skip·x, output = Σ next³, with `given` values as constants."""

    def __init__(self, recorded, x, layers, constants=()):
        self.recorded, self.x, self.layers, self.constants = recorded, x, layers, dict(constants)
        double = self.constants.get("double", 2 * x)
        self.values = {"double": double, "next": self.constants.get("next", double + recorded.skip * x)}

    def value(self, layer):
        return self.values[layer]

    @property
    def outputs(self):
        return {name: (self.values["next"] ** 3).sum((1, 2)) for name in self.recorded.output_activations}

    def gradients(self, cotangents):
        for cotangent in cotangents:
            v = sum(cotangent.values())
            if not v.any():
                raise NoGradient
            if "next" in self.constants and "double" in self.layers:
                raise NoGradient("double")
            yield dict.fromkeys(self.layers, (3 * self.values["next"] ** 2 * v[:, None, None, :]).astype(np.float32))

    def hvp(self, layer, cotangents, vectors):
        for cotangent, vector in zip(cotangents, vectors, strict=True):
            v = sum(cotangent.values())
            yield (6 * self.values["next"] * v[:, None, None, :] * vector).astype(np.float32)

    def resumed(self, values, rows, at, differentiate):
        assert not self.constants, "a resumed pass is not resumed: the pass from the input is"
        return Pass(self.recorded, self.x[rows], at, values)


class Recorded:
    def __init__(self, names, skip, batch):
        self.current, self.batch, self.skip = True, batch, skip
        self.layers = {"double": LAYER, "next": NEXT, "end": Layer("end", "Sum", (2,), is_output=True)}
        self.output_activations = dict.fromkeys(names, None) | {names[-1]: "softmax"}
        self.passes = []

    def predict(self, x):
        return Pass(self, x, []).outputs

    def values(self, x, layers):
        one = Pass(self, x, [])
        result = one.values | {"end": next(iter(one.outputs.values()))}
        return [result.get(name, 2 * x) for name in layers]

    def forward(self, x, layers, differentiate):
        if "end" in layers:
            raise NoGradient("end")
        self.passes.append((len(x), list(layers)))
        return Pass(self, x, layers)


class Doubling(RecordedModel):
    backend = "doubling"
    capabilities = frozenset({"gradients", "resume"})

    def __init__(self, *names, skip=0, batch=None):
        super().__init__("net", InputSpec((3, 1), channels=2, layout="channels_last"))
        self.names, self.shapes, self.entered, self.skip, self.batch = names or ("scores",), [], 0, skip, batch

    def _record(self, shape, batch):
        assert self.entered == 1
        if shape[-1] != 2:
            raise TypeError("two channels, please")
        self.shapes.append(shape)
        return Recorded(self.names, self.skip, self.batch)

    @contextlib.contextmanager
    def _running(self):
        self.entered += 1
        try:
            yield
        finally:
            self.entered -= 1


def batch(n=2):
    return np.arange(n * 6, dtype=np.float32).reshape(n, 3, 1, 2)


def test_one_output_is_an_array_and_several_are_named():
    expected = (8 * batch() ** 3).sum((1, 2))
    assert np.array_equal(Doubling().predict(batch()), expected)
    assert Doubling().output_activation == "softmax"
    several = Doubling("scores", "mask")
    assert list(several.predict(batch())) == ["scores", "mask"]
    assert several.output_activation == {"scores": None, "mask": "softmax"}


def test_values_are_channels_first():
    values = Doubling().activations(batch(), ["end", "twice"])
    assert list(values) == ["end", "twice"]
    assert Doubling().activations(batch(), []) == {}
    assert np.array_equal(values["twice"], np.moveaxis(2 * batch(), -1, 1))
    assert values["end"].shape == (2, 2)


def test_the_gradient_of_each_cotangent():
    model, calls = Doubling(), []

    def cotangents(outputs):
        assert model.entered == 0, "the caller's function runs in the framework's state"
        calls.append(outputs)
        return [np.eye(2, dtype=np.float32)[[k, k]] for k in (0, 1)]

    trace = model.trace(batch(), "double", cotangents)
    value = np.moveaxis(2 * batch(), -1, 1)
    assert np.array_equal(trace.activations, value)
    assert len(calls) == 1
    for k in (0, 1):
        expected = np.zeros_like(value)
        expected[:, k] = 3 * value[:, k] ** 2
        assert np.array_equal(trace.gradients[k], expected)
        assert trace.gradients[k].flags.c_contiguous


def test_the_product_of_the_hessian_with_each_vector():
    model, calls = Doubling(), []
    value = np.moveaxis(2 * batch(), -1, 1)
    vectors = [np.random.default_rng(k).normal(size=value.shape).astype(np.float32) for k in (0, 1)]

    def cotangents(outputs):
        assert model.entered == 0
        calls.append(outputs)
        return [np.full_like(outputs, k) for k in (1, 2)]

    products = model._hvp(batch(), "twice", cotangents, vectors)
    assert len(calls) == 1
    for k, vector, product in zip((1, 2), vectors, products, strict=True):
        np.testing.assert_allclose(product, 6 * value * k * vector, rtol=1e-6)
        assert product.flags.c_contiguous


def test_a_cotangent_by_name_and_as_an_array():
    model, v = Doubling("scores", "mask"), np.ones((2, 2), np.float32)
    plain, named = model.trace(batch(), "double", lambda outputs: [v, {"mask": 2 * v}]).gradients
    assert np.array_equal(2 * plain, named)


def test_resume_runs_the_replacement():
    model = Doubling()
    replacement = np.arange(18, dtype=np.float32).reshape(3, 2, 3, 1)
    trace = model.trace(batch(1), "double")
    resumed = model.resume(trace, replacement, cotangents=lambda outputs: [np.ones_like(outputs)])
    assert np.array_equal(resumed.outputs, (replacement**3).sum((2, 3)))
    assert np.array_equal(resumed.gradients[0], 3 * replacement**2)
    assert np.array_equal(resumed.activations, replacement)
    assert not np.shares_memory(resumed.activations, replacement)


def test_rows_are_those_of_the_trace_that_is_resumed():
    model = Doubling()
    resumed = model.resume(model.trace(batch(2), "double"), np.zeros((3, 2, 3, 1), np.float32), rows=[0, 1, 1])
    with pytest.raises(InputError, match="for 1 variants of 3 images"):
        model.resume(resumed, np.zeros((1, 2, 3, 1), np.float32))


def ones(outputs):
    return [np.ones_like(outputs), 2 * np.ones_like(outputs)]


@pytest.mark.parametrize("fixed", [None, 1], ids=["any batch", "batch of one"])
def test_several_layers_are_opened_in_one_pass(fixed):
    model = Doubling(skip=1, batch=fixed)
    assert model.trace(batch(), []) == []
    next_, double, alias = model.trace(batch(), ["next", "double", "twice"], ones)
    x = np.moveaxis(batch(), -1, 1)
    assert np.array_equal(next_.activations, 3 * x)
    assert np.array_equal(double.activations, 2 * x)
    assert alias is double, "one layer, one Trace"
    assert model._recordings.latest.recording.passes == (
        [(2, ["next", "double"])] if not fixed else [(1, ["next", "double"])] * 2
    )
    for trace in (next_, double):
        assert [np.array_equal(g, k * 27 * x**2) for k, g in enumerate(trace.gradients, 1)] == [True, True]


@pytest.mark.parametrize("fixed", [None, 1], ids=["any batch", "batch of one"])
def test_a_resumed_trace_is_at_its_layer_and_is_resumed_with_the_values_of_its_run(fixed):
    model = Doubling(skip=1, batch=fixed)
    x = np.moveaxis(batch(), -1, 1)
    trace, rows = model.trace(batch(), "double"), [1, 0, 1]
    changed = np.random.default_rng(0).normal(size=(3, 2, 3, 1)).astype(np.float32)
    resumed = model.resume(trace, changed, rows, ones, at="next")
    assert np.array_equal(resumed.activations, changed + x[rows])
    assert np.array_equal(resumed.outputs, ((changed + x[rows]) ** 3).sum((2, 3)))
    np.testing.assert_allclose(resumed.gradients[1], 6 * (changed + x[rows]) ** 2, rtol=1e-6)
    again, other = model.resume(resumed, changed[:2], [2, 0], at=["next", "twice"])
    assert np.array_equal(again.activations, changed[:2])
    assert np.array_equal(other.activations, changed[[2, 0]]), "the value that was given to the run"
    assert np.array_equal(again.outputs, (changed[:2] ** 3).sum((2, 3)))
    whole = model.resume(other, 0 * changed[:2], [1, 0], at="next")
    assert np.array_equal(whole.activations, changed[[1, 0]]), "its value is given: it follows nothing"
    assert model.resume(trace, changed, rows, at=[]) == []
    same = model.resume(trace, changed, rows, at=["twice"])[0]
    assert np.array_equal(same.activations, changed)


def test_the_error_names_the_layer_without_a_gradient():
    model = Doubling()
    trace = model.trace(batch(), "next")
    with pytest.raises(ModelError, match="cannot differentiate net at layer 'double'"):
        model.resume(trace, trace.activations, cotangents=ones, at=["next", "double"])
    with pytest.raises(InputError, match="unknown layer 'no' in net"):
        model.resume(trace, trace.activations, at="no")


@pytest.mark.parametrize("large", [False, True])
def test_float16_scales_the_gradients_of_all_layers(large, monkeypatch):
    """A gradient that is too large with the scale is computed without it."""
    model, asked = Doubling(), []
    model.predict(batch())
    recording = model._recordings.latest.recording
    recording.layers = recording.layers | {"double": replace(LAYER, dtype="float16")}
    plain = Pass.gradients

    def gradients(self, cotangents):
        asked.append([float(next(iter(v.values())).flat[0]) for v in cotangents])
        for each in plain(self, cotangents):
            scaled = asked[-1][0] >= 1024
            yield {
                name: np.full_like(g, np.inf) if large and scaled and name == "double" else g
                for name, g in each.items()
            }

    monkeypatch.setattr(Pass, "gradients", gradients)
    next_, double = model.trace(batch(), ["next", "double"], lambda outputs: [np.ones_like(outputs)])
    expected = 3 * np.moveaxis(2 * batch(), -1, 1) ** 2
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(double.gradients[0], expected, rtol=1e-6)
    np.testing.assert_allclose(next_.gradients[0], expected, rtol=1e-6)
    assert asked == ([[1024.0], [1.0]] if large else [[1024.0]])


def test_an_exception_of_the_cotangents_reaches_the_caller():
    error = NoGradient("the caller's own")

    def cotangents(outputs):
        raise error

    with pytest.raises(NoGradient) as caught:
        Doubling().trace(batch(), "double", cotangents)
    assert caught.value is error


@pytest.mark.parametrize("call", ["trace", "cotangent"])
def test_a_layer_that_cannot_be_differentiated(call):
    name, value = ("end", 1) if call == "trace" else ("double", 0)
    with pytest.raises(ModelError, match=f"cannot differentiate net at layer '{name}'"):
        Doubling().trace(batch(), name, lambda outputs: [np.full_like(outputs, value)])


def test_the_error_names_the_next_layer_with_a_gradient():
    model = Doubling()
    model.predict(batch())
    recording = model._recordings.latest.recording
    others = {
        "detached": Layer("detached", "Scale", (2, 3, 1), differentiable=False),
        "unread": Layer("unread", "Scale", (2, 3, 1), reaches_output=False),
        "vector": Layer("vector", "Scale", (2,)),
        "next": Layer("next", "Scale", (2, 3, 1)),
    }
    recording.layers = {"double": LAYER, **others, "end": recording.layers["end"]}
    zero = lambda outputs: [np.zeros_like(outputs)]  # noqa: E731
    with pytest.raises(
        ModelError, match="choose layer 'next', the next one with a gradient, or a method that needs no"
    ):
        model.trace(batch(), "double", zero)
    with pytest.raises(ModelError, match="choose a method that needs no gradient: eigencam"):
        model.trace(batch(), "end", zero)


def test_each_shape_is_recorded_once():
    model = Doubling()
    assert [layer.name for layer in model.layers] == ["double", "next", "end"]
    model.predict(batch())
    model.predict(batch(1))
    model.predict(np.zeros((1, 5, 5, 2), np.float32))
    assert model.shapes == [(3, 1, 2), (5, 5, 2)]


def test_a_changed_model_is_recorded_again():
    model = Doubling()
    model.predict(batch())
    model._recording().current = False
    assert model.predict(batch()) is not None
    assert len(model.shapes) == 2


def test_the_first_run_on_a_wrong_input_says_how_it_failed():
    with pytest.raises(
        ModelError,
        match=r"cannot run net on an input of shape \[3, 1, 5\]: TypeError: two channels, please; give another size=",
    ):
        Doubling().predict(np.zeros((1, 3, 1, 5), np.float32))


def test_an_unknown_layer_is_named_with_those_that_are_known():
    with pytest.raises(InputError, match="unknown layer 'dubble' in net; known: double, next, end"):
        Doubling().trace(batch(), "dubble")


def test_a_model_that_knows_why_a_layer_is_missing_says_it():
    class Explaining(Doubling):
        def explain_missing_layer(self, name):
            return "it was folded; choose 'double'" if name == "norm" else None

    with pytest.raises(InputError, match=r"^it was folded; choose 'double'$"):
        Explaining().trace(batch(), "norm")
    with pytest.raises(InputError, match="unknown layer 'x'"):
        Explaining().trace(batch(), "x")
