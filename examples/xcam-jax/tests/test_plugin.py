"""Differentiation and compiled programs, modules in training mode, messages, the demo."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xcam_jax
from flax import nnx

import xcam
from xcam.models import demo

X = np.random.default_rng(0).normal(size=(2, 6, 8, 3)).astype(np.float32)
W = np.random.default_rng(1).normal(size=(4, 3, 3, 3)).astype(np.float32)


def conv(x: Any, kernel: Any) -> Any:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "OIHW", "NHWC"))


@jax.custom_jvp
def undifferentiated(x: Any) -> Any:
    return x


@undifferentiated.defjvp
def _(primals: Any, tangents: Any) -> Any:
    raise AssertionError("differentiated")


def first_score(outputs: Any) -> list[Any]:
    return [np.eye(outputs.shape[1], dtype=np.float32)[[0] * len(outputs)]]


def residual(params: Any, x: Any) -> Any:
    """Three convolutions, and a path around the second."""
    a = xcam_jax.layer("a", undifferentiated(conv(x, params)))
    b = xcam_jax.layer("b", jnp.tanh(conv(a[..., :3], params)))
    return jax.nn.sigmoid(xcam_jax.layer("c", conv((a + b)[..., :3], params)).mean((1, 2)))


def test_nothing_ahead_of_the_layer_is_differentiated() -> None:
    model = xcam.load(xcam_jax.Function(residual, W), size=(6, 8))
    assert model.trace(X, "b", first_score).gradients[0].any()
    with pytest.raises(AssertionError, match="differentiated"):  # the guard does raise, where it is reached
        jax.grad(lambda x: residual(W, x).sum())(X)


def convolutions(model: Any, layer: str, grad: bool, value: Any) -> int:
    """Count the convolutions in the program that XLA runs."""
    recording = model._recording(X)
    constants = {} if value is None else {layer: value}
    program = recording.opened.lower((layer,), grad, recording.params, X, constants).compile().as_text()
    return program.count(" convolution(") + program.count("__conv")


def test_every_equation_runs_once_and_resume_runs_those_behind_the_layer() -> None:
    model = xcam.load(xcam_jax.Function(residual, W), size=(6, 8))
    value = jnp.ones((2, 6, 8, 4))
    assert convolutions(model, "b", False, None) == 3
    assert convolutions(model, "b", False, value) == 2  # `a` passes `b` by
    assert convolutions(model, "a", False, value) == 2
    assert convolutions(model, "c", False, value) == 0
    assert convolutions(model, "c", True, None) == 3


def test_a_sigmoid_is_cut_off() -> None:
    model = xcam.load(xcam_jax.Function(residual, W), size=(6, 8))
    assert model.output_activation == "sigmoid"
    np.testing.assert_allclose(1 / (1 + np.exp(-model.predict(X))), residual(W, X), rtol=1e-5)
    assert [(layer.name, layer.is_output, layer.reaches_output) for layer in model.layers] == [
        ("a", False, True),
        ("b", False, True),
        ("c", False, True),
    ]


def by_hand(z: Any) -> Any:
    return shared(jnp.exp(z - z.max(1, keepdims=True)))


def shared(e: Any) -> Any:
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (jax.nn.softmax, "softmax"),
        (by_hand, "softmax"),
        (lambda z: by_hand(z - jnp.arange(3.0)), "softmax"),
        (lambda z: shared(jnp.exp(z - jnp.arange(3.0))), None),  # no constant of a row: cut there, it would be lost
        (lambda z: jnp.exp(z - z.max(1, keepdims=True)) / jnp.exp(z).sum(1, keepdims=True), None),
        (lambda z: (e := jnp.exp(z - z.max(1, keepdims=True))) / e.sum(), None),
        (jax.nn.log_softmax, None),
        (lambda z: z / z.sum(1, keepdims=True), None),
    ],
)
def test_only_a_softmax_is_cut_off(end: Any, kind: str | None) -> None:
    model = xcam.load(xcam_jax.Function(lambda x: end(xcam_jax.layer("h", x).mean((1, 2)))), size=(6, 8))
    assert model.output_activation == kind
    outputs, expected = model.predict(X), end(X.mean((1, 2)))
    np.testing.assert_allclose(jax.nn.softmax(outputs) if kind else outputs, expected, rtol=1e-4, atol=1e-5)
    assert not kind or not np.allclose(outputs.sum(1), 1)


class Net(nnx.Module):
    """Parts that behave differently in training: a batch normalisation, a dropout. One layer is called twice."""

    def __init__(self, channels: int = 3) -> None:
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(channels, 4, (3, 3), rngs=rngs)
        self.same = nnx.Sequential(nnx.Conv(4, 4, (1, 1), rngs=rngs), nnx.relu)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.norm.mean[...], self.norm.var[...] = jnp.arange(4.0), 1 + jnp.arange(4.0)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(4, 5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = self.drop(self.norm(self.same(self.same(self.conv(x)))))
        return self.head(x.mean((1, 2)))


def variables(module: nnx.Module) -> list[bytes]:
    """Return weights, statistics, and the number of random numbers that were drawn."""
    leaves = jax.tree.leaves(nnx.state(module, (nnx.Param, nnx.BatchStat, nnx.RngCount)))
    return [np.asarray(value).tobytes() for value in leaves]


def test_a_module_in_training_mode_is_explained_in_evaluation_mode_and_stays_as_it_was() -> None:
    module = Net()
    module.train()
    definition, before = nnx.graphdef(module), variables(module)
    calls = {kind: kind.__call__ for kind in (Net, nnx.Conv, nnx.BatchNorm, nnx.Dropout)}
    model = xcam.load(module, size=(6, 8), preprocess="unit")
    xcam.explain(model, np.zeros((6, 8, 3), np.uint8), target=1)
    assert nnx.graphdef(module) == definition
    assert not module.drop.deterministic
    assert variables(module) == before
    assert calls == {kind: kind.__call__ for kind in calls}
    outputs = model.predict(X)
    module.eval()
    np.testing.assert_allclose(outputs, module(X), rtol=1e-5, atol=1e-6)


def test_layers_of_a_module_have_the_names_of_its_parts() -> None:
    layers = xcam.load(Net(), size=(6, 8)).layers
    assert [(layer.name, layer.kind, layer.shape) for layer in layers] == [
        ("conv", "Conv", (4, 6, 8)),
        ("same.layers.0#0", "Conv", (4, 6, 8)),
        ("same#0", "Sequential", (4, 6, 8)),
        ("same.layers.0", "Conv", (4, 6, 8)),
        ("same", "Sequential", (4, 6, 8)),
        ("norm", "BatchNorm", (4, 6, 8)),
        ("drop", "Dropout", (4, 6, 8)),
        ("head", "Linear", (5,)),
    ]
    assert layers[-1].is_output
    assert xcam.load(Net(channels=1), size=(6, 8)).input.channels == 1


def test_layer_is_the_identity() -> None:
    def named(x: Any) -> Any:
        return (xcam_jax.layer("square", x * x)).sum()

    assert named(np.arange(3.0)) == 5
    assert jax.jit(named)(np.arange(3.0)) == 5
    np.testing.assert_array_equal(jax.jit(jax.grad(named))(jnp.arange(3.0)), [0, 2, 4])
    np.testing.assert_array_equal(jax.vmap(named)(np.eye(2)), [1, 1])


def test_channels_first() -> None:
    """A function with channels first, as in Equinox, computes the same as its twin with channels last."""

    def first(x: Any) -> Any:
        return xcam_jax.layer("h", jnp.moveaxis(jnp.tanh(conv(jnp.moveaxis(x, 1, -1), W)), -1, 1)).sum((2, 3)) ** 2

    def last(x: Any) -> Any:
        return xcam_jax.layer("h", jnp.tanh(conv(x, W))).sum((1, 2)) ** 2

    one = xcam.load(xcam_jax.Function(first), size=(6, 8), layout="channels_first")
    other = xcam.load(xcam_jax.Function(last), size=(6, 8))
    a, b = one.trace(np.moveaxis(X, -1, 1), "h", first_score), other.trace(X, "h", first_score)
    assert one.layers[0].shape == other.layers[0].shape == (4, 6, 8)
    np.testing.assert_allclose(a.activations, b.activations, atol=1e-6)
    np.testing.assert_allclose(a.gradients[0], b.gradients[0], rtol=1e-5)
    np.testing.assert_allclose(
        one.resume(a, 2 * a.activations).outputs, other.resume(b, 2 * b.activations).outputs, rtol=1e-5
    )


def test_half_precision_comes_out_as_float32() -> None:
    def doubled(w: Any, x: Any) -> Any:
        h = xcam_jax.layer("h", conv(x.astype(jnp.bfloat16), w))
        return jax.lax.mul(h, jnp.full_like(h, 2)).mean((1, 2))  # mul takes two of one dtype alone

    model = xcam.load(xcam_jax.Function(doubled, W.astype("bfloat16")), size=(6, 8))
    trace = model.resume(model.trace(X, "h"), np.ones((2, 4, 6, 8), np.float32), cotangents=first_score)
    assert {trace.outputs.dtype, trace.activations.dtype, trace.gradients[0].dtype} == {np.dtype(np.float32)}
    np.testing.assert_allclose(trace.gradients[0][:, 0], 2 / 48, rtol=1e-2)
    np.testing.assert_allclose(trace.outputs, 2, rtol=1e-2)


def test_a_layer_that_reaches_no_output() -> None:
    def network(x: Any) -> Any:
        aside = xcam_jax.layer("aside", jnp.tanh(x))
        aside.sum()
        return xcam_jax.layer("h", x * 2).mean((1, 2))

    layers = xcam.load(xcam_jax.Function(network), size=(6, 8)).layers
    assert [(layer.name, layer.reaches_output) for layer in layers] == [("aside", False), ("h", True)]


def test_the_demo_network_looks_where_it_looks_in_onnx() -> None:
    image = demo.image_paths()[0]
    e, f = (xcam.explain(xcam.load("demo", name), image, layer="conv5") for name in ("jax", "onnx"))
    assert (e.backend, e.label, e.cam.shape) == ("jax", f.label, f.cam.shape)
    np.testing.assert_allclose(e.outputs, f.outputs, atol=1e-4 * np.abs(f.outputs).max())
    np.testing.assert_allclose(e.heatmap, f.heatmap, atol=1e-3)
    # By the second derivative here, by differences there: the same where the tail has no kinks.
    options: dict[str, Any] = {"method": "shapleycam", "score": "probability"}
    e, f = (xcam.explain(xcam.load("demo", name), image, layer="conv5", **options) for name in ("jax", "onnx"))
    assert e.heatmap.std() > 0.01
    np.testing.assert_allclose(e.heatmap, f.heatmap, atol=1e-3)


def test_a_factory_is_opened_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_jax_models.py").write_text(
        "from flax import nnx\n"
        "def build():\n"
        "    rngs = nnx.Rngs(0)\n"
        "    conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)\n"
        "    return nnx.Sequential(conv, nnx.relu, lambda x: x.mean((1, 2)), nnx.Linear(4, 5, rngs=rngs))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = xcam.load("my_jax_models:build", size=(6, 8))
    sys.modules.pop("my_jax_models")
    assert (model.backend, model.name) == ("jax", "Sequential")
    assert [layer.name for layer in model.layers] == ["layers.0", "layers.3"]


def test_exhausted_memory_is_a_memory_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = xcam.load(xcam_jax.Function(residual, W), size=(6, 8))

    def full(*_: Any) -> Any:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.")

    monkeypatch.setattr(model._recording(X), "opened", full)
    with pytest.raises(MemoryError, match="Out of memory allocating 8 bytes"):
        model.trace(X, "b")


WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no layer": (
        lambda x: x.mean((1, 2)),
        {},
        r"cannot explain <lambda>: it names no value; write h = xcam_jax\.layer\('conv5', h\)",
    ),
    "no function": (xcam_jax.Function(3), {}, "cannot call a int; give a module or function that takes a batch"),
    "no call": (nnx.Module(), {}, "cannot call a Module; give"),
    "size": (
        nnx.Sequential(lambda x: x.reshape(len(x), -1), nnx.Linear(144, 2, rngs=nnx.Rngs(0))),
        {"size": None},
        r"cannot run Sequential on an input of shape \[224, 224, 3\]: TypeError: .*; give another size=",
    ),
    "more arguments": (
        lambda x, train: x,
        {},
        r"shape \[6, 8, 3\]: TypeError: .* missing 1 required positional argument: 'train'; wrap it in a model",
    ),
    "device": (Net(), {"device": "abacus"}, "unknown device 'abacus'; JAX has: cpu:0"),
    "weights": (
        Net(),
        {"weights": "w.npz"},
        "cannot use weights='w.npz': a model in JAX contains its own weights; leave weights out",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_have_one_line_with_a_remedy(case: str) -> None:
    source, options, message = WRONG[case]
    with pytest.raises(xcam.XcamError, match=message) as caught:
        xcam.load(source, backend="jax", **{"size": (6, 8)} | options)
    assert "\n" not in str(caught.value)


def test_an_unknown_layer() -> None:
    model = xcam.load(Net(), size=(6, 8))
    with pytest.raises(xcam.InputError, match="unknown layer 'con' in Net; nearest: conv"):
        model.trace(X, "con")
