"""`RecordedModel`: the values, names, rows and errors that it adds to recordings and forward passes.

The model doubles its input [N, H, W, C]; its output is the sum of the cubes over space, for each channel.
"""

import contextlib

import numpy as np
import pytest

from xcam import InputError, InputSpec, Layer, ModelError
from xcam.contract.recorded import NoGradient, RecordedModel

LAYER = Layer("double", "Scale", (2, 3, 1), "channels_last", aliases=("twice",))


class Pass:
    def __init__(self, value, names):
        self.value, self.names = value, names

    @property
    def outputs(self):
        return {name: (self.value**3).sum((1, 2)) for name in self.names}

    def gradients(self, cotangents):
        for cotangent in cotangents:
            v = sum(cotangent.values())
            if not v.any():
                raise NoGradient
            yield (3 * self.value**2 * v[:, None, None, :]).astype(np.float32)

    def hvp(self, cotangents, vectors):
        for cotangent, vector in zip(cotangents, vectors, strict=True):
            v = sum(cotangent.values())
            yield (6 * self.value * v[:, None, None, :] * vector).astype(np.float32)

    def resumed(self, value, rows, differentiate):
        return Pass(value, self.names)


class Recorded:
    def __init__(self, names):
        self.current, self.batch = True, None
        self.layers = {"double": LAYER, "end": Layer("end", "Sum", (2,), is_output=True)}
        self.output_activations = dict.fromkeys(names, None) | {names[-1]: "softmax"}

    def predict(self, x):
        return Pass(2 * x, list(self.output_activations)).outputs

    def values(self, x, layers):
        result = {"double": 2 * x, "end": next(iter(self.predict(x).values()))}
        return [result.get(name, 2 * x) for name in layers]

    def forward(self, x, layer, differentiate):
        if layer == "end":
            raise NoGradient
        return Pass(2 * x, list(self.output_activations))


class Doubling(RecordedModel):
    backend = "doubling"
    capabilities = frozenset({"gradients", "resume"})

    def __init__(self, *names):
        super().__init__("net", InputSpec((3, 1), channels=2, layout="channels_last"))
        self.names, self.shapes, self.entered = names or ("scores",), [], 0

    def _record(self, shape, batch):
        assert self.entered == 1
        if shape[-1] != 2:
            raise TypeError("two channels, please")
        self.shapes.append(shape)
        return Recorded(self.names)

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
    assert [layer.name for layer in model.layers] == ["double", "end"]
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
    with pytest.raises(InputError, match="unknown layer 'dubble' in net; known: double, end"):
        Doubling().trace(batch(), "dubble")


def test_a_model_that_knows_why_a_layer_is_missing_says_it():
    class Explaining(Doubling):
        def explain_missing_layer(self, name):
            return "it was folded; choose 'double'" if name == "norm" else None

    with pytest.raises(InputError, match=r"^it was folded; choose 'double'$"):
        Explaining().trace(batch(), "norm")
    with pytest.raises(InputError, match="unknown layer 'x'"):
        Explaining().trace(batch(), "x")
