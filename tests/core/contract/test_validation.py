"""Validation: each value that a backend must not return is one line that names the mistake and the plugin."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fake
import xcam
from fake import FakeModel
from quadratic import Quadratic
from xcam import BackendError, ContractError, InputError, InputSpec, Layer, ModelError, Preprocessing, Trace
from xcam.contract import plugins, validation
from xcam.contract.model_validation import MEMBERS
from xcam.contract.plugins import Registry, hookimpl

IMAGE = np.random.default_rng(3).integers(0, 256, (4, 6, 3), dtype=np.uint8)
X = np.random.default_rng(4).normal(size=(2, 3, 4, 6)).astype(np.float32)
RAW = InputSpec((4, 6), preprocessing=Preprocessing("raw"))
WHO = "backend 'fake' (xcam-fake 0.3)"


class Tensor:
    """A framework's own kind of array."""

    def __init__(self, values: Any) -> None:
        self.shape, self.ndim, self.dtype = values.shape, values.ndim, values.dtype


Tensor.__module__ = "torch._tensor"


def point(value: str, version: str = "0.3", name: str = "fake") -> EntryPoint:
    """An entry point of the distribution xcam-NAME."""
    result = EntryPoint(name, value, "xcam")
    vars(result)["dist"] = SimpleNamespace(name=f"xcam-{name}", version=version)
    return result


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The fake is installed, as a third party's plugin."""
    registry = Registry([point("fake")])
    monkeypatch.setattr(plugins, "registry", lambda: registry)
    monkeypatch.setattr(xcam.models.load, "registry", lambda: registry)
    return registry


@pytest.fixture
def model() -> FakeModel:
    model_ = FakeModel()
    model_.input = RAW
    return model_


def reports(message: str) -> Any:
    """Expect a ContractError that names the plugin, the mistake, and to whom to report it."""
    return pytest.raises(
        ContractError,
        match=rf"^{re.escape(WHO)} {message}; the contract requires .*: report it to the plugin's authors$",
    )


def test_the_name_of_a_backend_in_messages() -> None:
    assert plugins.described("fake") == WHO
    assert plugins.described("not installed") == "backend 'not installed'"


def moved(trace: Trace, change: Any) -> Trace:
    """Activations and gradients changed alike."""
    return replace(
        trace, activations=change(trace.activations), gradients=[change(gradient) for gradient in trace.gradients]
    )


SPOILS: list[tuple[Any, str]] = [
    (lambda t: None, r"trace\(\) returned None"),
    (lambda t: (t.outputs, t.activations), r"trace\(\) returned a tuple"),
    (
        lambda t: replace(t, activations=Tensor(t.activations)),
        "returned activations as a torch Tensor for 1 images",
    ),
    (
        lambda t: replace(t, activations=t.activations.astype(float)),
        r"returned activations as float64 \(1, 3, 4, 6\) .*",
    ),
    (
        lambda t: replace(t, activations=t.activations[0, 0]),
        r"returned activations as float32 \(4, 6\) for 1 images",
    ),
    (lambda t: replace(t, activations=t.activations[:0]), r"returned activations as float32 \(0, 3, 4, 6\) for 1 .*"),
    (
        lambda t: moved(t, lambda a: np.moveaxis(a, 1, -1)),
        r"returned activations of layer 'features' as float32 \(1, 4, 6, 3\) \(channels last\?\), and lists it with the "
        r"shape \(3, 4, 6\)",
    ),
    (
        lambda t: replace(t, activations=t.activations[:, :2], gradients=[g[:, :2] for g in t.gradients]),
        r"returned activations of layer 'features' as float32 \(1, 2, 4, 6\), and lists it with the shape \(3, 4, 6\)",
    ),
    (
        lambda t: moved(t, lambda a: a.swapaxes(2, 3)),
        r"returned activations of layer 'features' as float32 \(1, 3, 6, 4\), and lists it with the shape \(3, 4, 6\)",
    ),
    (
        lambda t: moved(t, lambda a: a.reshape(1, 3, 24)),
        r"returned activations of layer 'features' as float32 \(1, 3, 24\), and lists it with the shape \(3, 4, 6\)",
    ),
    (lambda t: moved(t, lambda a: a[0]), r"returned activations as float32 \(3, 4, 6\) for 1 images"),
    (
        lambda t: replace(t, activations=np.ma.masked_less(t.activations, 0)),
        "returned activations as a numpy MaskedArray for 1 images",
    ),
    (lambda t: replace(t, gradients=None), r"trace\(\) returned gradients as None"),
    (lambda t: replace(t, gradients=t.gradients[0]), r"trace\(\) returned gradients as float32 \(1, 3, 4, 6\)"),
    (lambda t: replace(t, gradients=[]), "returned 0 gradients for 1 cotangents"),
    (lambda t: replace(t, gradients=t.gradients * 2), "returned 2 gradients for 1 cotangents"),
    (lambda t: replace(t, gradients=[None]), r"returned gradients\[0\] as None for 1 images"),
    (
        lambda t: replace(t, gradients=[t.gradients[0][..., :5]]),
        r"returned gradients\[0\] as float32 \(1, 3, 4, 5\) .*",
    ),
    (lambda t: replace(t, gradients=[t.gradients[0].astype(np.float16)]), r"returned gradients\[0\] as float16 .*"),
    (lambda t: replace(t, outputs=list(t.outputs)), r"trace\(\): returned outputs as a list"),
    (lambda t: replace(t, outputs={}), r"trace\(\): the mapping of outputs is empty"),
    (lambda t: replace(t, outputs={"a": None}), r"trace\(\): returned output 'a' as None"),
    (lambda t: replace(t, outputs=t.outputs > 0), r"trace\(\): returned outputs as bool \(1, 2\)"),
    (lambda t: replace(t, outputs=t.outputs.astype(int)), r"trace\(\): returned outputs as int64 \(1, 2\)"),
    (
        lambda t: replace(t, outputs=np.ma.masked_less(t.outputs, 0)),
        r"trace\(\): returned outputs as a numpy MaskedArray",
    ),
    (
        lambda t: replace(t, outputs=t.outputs[0]),
        r"trace\(\): returned outputs of shape \(2,\), where `cotangents` was given \(1, 2\)",
    ),
    (
        lambda t: replace(t, outputs={"a": t.outputs}),
        r"trace\(\): returned outputs of shape \{'a': \(1, 2\)\}, where `cotangents` was given \(1, 2\)",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILS)
def test_a_trace(model: FakeModel, spoil: Any, message: str) -> None:
    model.spoil = spoil
    with reports(message):
        xcam.explain(model, IMAGE)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda t: moved(t, lambda a: a[0]),
            r"returned activations of layer 'features' as float32 \(3, 4, 6\) \(no batch axis\?\), and lists it .*",
        ),
        (
            lambda t: replace(t, outputs=t.outputs[:1]),
            r"trace\(\): returned outputs of shape \(1, 2\), where `cotangents` was given \(3, 2\)",
        ),
    ],
)
def test_a_trace_of_three_images(model: FakeModel, spoil: Any, message: str) -> None:
    model.spoil = spoil
    with reports(message):
        xcam.explain(model, [IMAGE] * 3)


def test_outputs_without_rows_where_no_cotangents_see_them(model: FakeModel) -> None:
    model.spoil = lambda t: replace(t, outputs=t.outputs[0])
    with pytest.raises(ModelError, match=r"cannot explain fake: an output has the shape \(2,\) for 1 images"):
        validation.trace(model, X[:1], model.layers[0])


@pytest.mark.parametrize(
    ("activation", "message"),
    [
        ("Softmax", "its model's output_activation is 'Softmax'"),
        (7, "its model's output_activation is 7"),
        ({}, r"its model's output_activation is \{\}"),
        ({"a": None, "b": "relu"}, r"its model's output_activation is \{'a': None, 'b': 'relu'\}"),
        (
            {"a": "softmax", "c": None},
            r"its model's output_activation is \{.*'c'.*\} for outputs of shape \{'a': \(1, 2\), 'b': \(1, 2\)\}",
        ),
        ({"b": "softmax", "a": None}, r"its model's output_activation is \{'b'.*\} for outputs of shape \{'a'.*"),
    ],
)
@pytest.mark.parametrize("method", ["gradcam", "scorecam"])
def test_the_output_activation(model: FakeModel, activation: Any, message: str, method: str) -> None:
    model.output_activation = activation
    model.spoil_outputs = lambda outputs: {"a": outputs, "b": outputs}
    with reports(message):
        xcam.explain(model, IMAGE, method=method)


def test_the_output_activation_of_a_single_output(model: FakeModel) -> None:
    model.output_activation = {"scores": "softmax"}
    assert validation.trace(model, X, model.layers[0]).outputs.shape == (2, 2)  # type: ignore[union-attr]
    model.output_activation["more"] = None
    with reports(r"its model's output_activation is .* for outputs of shape \(2, 2\)"):
        validation.trace(model, X, model.layers[0])


def test_windows_folded_into_the_batch_are_not_a_fault_of_the_backend(model: FakeModel) -> None:
    model.spoil = lambda t: replace(t, activations=np.concatenate([t.activations] * 3))
    with pytest.raises(
        InputError,
        match="cannot explain layer 'features': it has 3 values for 1 images, as windows or frames are folded",
    ):
        xcam.explain(model, IMAGE)


@pytest.mark.parametrize(("outputs", "kind"), [(Tensor(X), "a torch Tensor"), ("text", "'text'"), (3.5, "3.5")])
def test_the_outputs_that_cotangents_are_given(model: FakeModel, outputs: Any, kind: str) -> None:
    model.spoil_outputs = lambda _: outputs
    with reports(f"cotangents: gave outputs as {kind}"):
        xcam.explain(model, IMAGE)


def test_cotangents_that_are_never_called(model: FakeModel) -> None:
    model.trace = lambda x, layer, cotangents=None: FakeModel.trace(model, x, layer)  # type: ignore[method-assign]
    with reports(r"trace\(\) never called `cotangents`"):
        xcam.explain(model, IMAGE)


def test_predict(model: FakeModel) -> None:
    assert validation.predict(model, X).shape == (2, 2)
    model.spoil_outputs = lambda outputs: outputs.tolist()
    with reports(r"predict\(\): returned outputs as a list"):
        validation.predict(model, X)
    model.spoil_outputs = lambda outputs: outputs[:1]
    with pytest.raises(ModelError, match=r"cannot explain fake: an output has the shape \(1, 2\) for 2 images"):
        validation.predict(model, X)
    model.spoil_outputs = lambda outputs: np.array([None, "a"])
    with reports(r"trace\(\): returned outputs as object \(2,\)"):
        xcam.explain(model, IMAGE, method="scorecam")


def test_a_model_that_exits_on_masked_images(model: FakeModel) -> None:
    model.predict = lambda x: raising(SystemExit(3))(x)  # type: ignore[method-assign]
    with pytest.raises(ModelError, match=r"fake fails on a batch of 1 changed .*: SystemExit: 3; choose"):
        xcam.explain(model, IMAGE, method="scorecam")


def test_activations_of_several_layers(model: FakeModel) -> None:
    good = model.activations(X, ["features", "pool", "scores"])
    assert set(validation.activations(model, X, list(good))) == set(good)
    for result, message in (
        (None, r"activations\(\) returned None"),
        ({"pool": good["pool"]}, r"activations\(\) left out 'features', 'scores'"),
        (good | {"pool": Tensor(X)}, r"returned activations\(\) of 'pool' as a torch Tensor"),
        (good | {"pool": X.astype(int)}, r"returned activations\(\) of 'pool' as int64 \(2, 3, 4, 6\)"),
        (
            good | {"features": X[:1]},
            r"returned activations\(\) of 'features' as float32 \(1, 3, 4, 6\) for 2 images",
        ),
        (good | {"features": X[0]}, r"returned activations\(\) of 'features' as float32 \(3, 4, 6\) for 2 images"),
        *(
            (
                good | {"features": spoilt},
                rf"returned activations\(\) of 'features' as float32 {message}, and lists it with the shape \(3, 4, 6\)",
            )
            for spoilt, message in (
                (np.moveaxis(X, 1, -1), r"\(2, 4, 6, 3\) \(channels last\?\)"),
                (X.swapaxes(2, 3), r"\(2, 3, 6, 4\)"),
                (X.reshape(2, 3, 24), r"\(2, 3, 24\)"),
            )
        ),
        (
            good | {"scores": X[:, 0, 0, :3]},
            r"returned activations\(\) of 'scores' as float32 \(2, 3\), and lists it with the shape \(2,\)",
        ),
    ):
        model.activations = lambda *_, result=result: result  # type: ignore[method-assign]
        with reports(message):
            validation.activations(model, X, ["features", "pool", "scores"])


def test_values_of_another_size_than_the_list_has(model: FakeModel) -> None:
    """A model that takes any size lists the shapes of one; and rows of vectors may be positions."""
    model.input = replace(RAW, size=None)
    turned = X.swapaxes(2, 3)
    layer = replace(model.layers[0], shape=(3, None, 4))
    model.layers = [*model.layers, replace(layer, name="open"), replace(layer, name="folded", folds_batch=True)]
    places = X.reshape(2, 3, 24)[:, :2].transpose(0, 2, 1).reshape(48, 2)
    result = {"features": turned, "scores": places, "open": X, "folded": np.concatenate([X, X])}
    model.activations = lambda *_: result  # type: ignore[method-assign]
    assert validation.activations(model, turned, list(result)) is result
    model.input = replace(RAW, size=(4, 6))
    assert validation.activations(model, turned, ["features"]) is result
    model.spoil = lambda t: moved(t, lambda a: a)
    assert validation.trace(model, turned, model.layers[0]).activations.shape == (2, 3, 6, 4)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": None},
        {"kind": None},
        {"shape": None},
        {"shape": "3"},
        {"shape": ("3", "4", "6")},
        {"layout": "NCHW"},
        {"aliases": "conv"},
    ],
)
def test_the_fields_of_a_layer(model: FakeModel, changes: Any) -> None:
    model.layers = [model.layers[0], replace(model.layers[1], **changes)]
    part, value = next(iter(changes.items()))
    with reports(rf"layers\[1\] is Layer\(.*{part}={re.escape(repr(value))}.*\)"):
        xcam.explain(model, IMAGE)
    model.layers = [replace(model.layers[0], shape=[np.int64(3), None, 6], aliases=["conv"])]
    assert validation.layers(model) == model.layers


class Failing(FakeModel):
    """A part of it is a property that fails."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        super().__init__()

    @property
    def layers(self) -> Any:
        raise self.error

    @layers.setter
    def layers(self, value: Any) -> None:
        pass


def test_members_that_fail(model: FakeModel) -> None:
    for error, message in ((RuntimeError("no\nlist"), "RuntimeError: no"), (SystemExit(3), "SystemExit: 3")):
        with reports(f"its model's layers failed: {message}"):
            validation.layers(Failing(error))
    for passing in (ModelError("the user's"), MemoryError(), KeyboardInterrupt()):
        with pytest.raises(type(passing)):
            validation.layers(Failing(passing))


@pytest.mark.parametrize(
    ("explain", "message"),
    [
        (lambda name: raising(ValueError(name))(name), r"explain_missing_layer\(\) failed: ValueError: conv9"),
        (lambda name: 5, r"explain_missing_layer\(\) returned 5"),
    ],
)
def test_explanations_of_a_missing_layer(model: FakeModel, explain: Any, message: str) -> None:
    assert validation.explain_missing_layer(model, "conv9") is None
    model.explain_missing_layer = lambda name: f"{name} was folded"  # type: ignore[attr-defined]
    assert validation.explain_missing_layer(model, "conv9") == "conv9 was folded"
    model.explain_missing_layer = explain  # type: ignore[attr-defined]
    with reports(message):
        validation.explain_missing_layer(model, "conv9")


def test_layers(model: FakeModel) -> None:
    for result, message in (
        (None, "layers is None"),
        (["features"], r"layers\[0\] is 'features'"),
        (iter([]), "layers is a .*"),
    ):
        model.layers = result
        with reports(message):
            xcam.explain(model, IMAGE)
    model.layers = [Layer("features", "Conv", (3, 4, 6)), ("pool", "Pool", (3, 2, 3))]
    with reports(r"layers\[1\] is a tuple"):
        xcam.explain(model, IMAGE)


class Bent(Quadratic):
    """A model with wrong results of `resume` and `hvp`."""

    backend = "fake"

    def __init__(self, spoil: Any, *kwargs: str) -> None:
        super().__init__(capabilities={"gradients", "resume", *kwargs})
        self.input = RAW
        self.spoil = spoil

    def resume(self, *args: Any, **kwargs: Any) -> Trace:
        return self.spoil(super().resume(*args, **kwargs))

    def hvp(self, x: Any, layer: str, cotangents: Any, vectors: Any) -> Any:
        cotangents(self.outputs(x))
        return self.spoil(list(vectors))


def raising(error: BaseException) -> Any:
    def spoil(_: Any) -> Any:
        raise error

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.outputs, r"resume\(\) returned float64 \(\d+, 2\)"),
        (lambda t: replace(t, outputs=Tensor(t.outputs)), r"resume\(\): returned outputs as a torch Tensor"),
        (
            lambda t: replace(t, activations=t.activations[:1]),
            r"returned activations as float32 \(1, 3, 4, 6\) for .*",
        ),
        (
            lambda t: replace(t, outputs=t.outputs[:1]),
            r"resume\(\): returned outputs of shape \(1, 2\) for 3 variants",
        ),
        (
            lambda t: replace(t, outputs=np.concatenate([t.outputs] * 2)),
            r"resume\(\): returned outputs of shape \(6, 2\) for 3 variants",
        ),
        (
            raising(NotImplementedError("not yet")),
            "it declares 'resume', and does not implement it: NotImplementedError: not yet",
        ),
    ],
)
def test_resume(spoil: Any, message: str) -> None:
    with reports(message):
        xcam.explain(Bent(spoil), IMAGE, method="ablationcam")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda result: result[0], r"hvp\(\) returned float32 \(1, 3, 4, 6\) for 1 vectors"),
        (lambda result: [], r"hvp\(\) returned a list for 1 vectors"),
        (lambda result: [result[0][:, :2]], r"returned hvp\(\)\[0\] as float32 \(1, 2, 4, 6\)"),
        (lambda result: [Tensor(result[0])], r"returned hvp\(\)\[0\] as a torch Tensor"),
        (
            raising(NotImplementedError("not yet")),
            "it declares 'hvp', and does not implement it: NotImplementedError: not yet",
        ),
    ],
)
def test_hvp(spoil: Any, message: str) -> None:
    model = Bent(spoil, "hvp")
    model.resume = lambda *args, **kwargs: Quadratic.resume(model, *args, **kwargs)  # type: ignore[method-assign]
    with reports(message):
        xcam.explain(model, IMAGE, method="shapleycam")


def test_an_error_of_the_target_is_not_the_backends() -> None:
    class Unwritten:
        def value(self, outputs: Any) -> Any:
            return outputs[:, 0]

        def cotangent(self, outputs: Any) -> Any:
            raise NotImplementedError("mine")

    model = Quadratic()
    model.input = RAW
    with pytest.raises(NotImplementedError, match=r"^mine$"):
        xcam.explain(model, IMAGE, target=Unwritten())


def without(part: str) -> Any:
    """A model that lacks a part."""
    model_ = Quadratic()
    parts = {name: getattr(model_, name) for name in MEMBERS} | {"backend": "fake"}
    return SimpleNamespace(**{name: value for name, value in parts.items() if name != part})


def with_(**parts: Any) -> Any:
    model_ = Quadratic()
    for name, value in {"backend": "fake", **parts}.items():
        setattr(model_, name, value)
    return model_


OPENED: list[tuple[Any, str]] = [
    (
        lambda: None,
        r"load\(\) returned None, which lacks name, backend, input, .*, predict, activations, trace, resume",
    ),
    (lambda: without("resume"), r"load\(\) returned a types SimpleNamespace, which lacks resume"),
    (lambda: with_(capabilities={"gradients", "speed"}), r"its model's capabilities are \{.*\}"),
    (lambda: with_(capabilities="gradients"), "its model's capabilities are 'gradients'"),
    (lambda: with_(capabilities=frozenset({"gradients", "hvp"})), "its model lacks the method hvp"),
    (lambda: with_(resume=None), "its model lacks the method resume"),
    (lambda: with_(input=(4, 6)), "its model's input is a tuple"),
    (lambda: with_(input=InputSpec((4, 6), layout="NHWC")), "its model's input is InputSpec.*'NHWC'.*"),  # type: ignore[arg-type]
    (lambda: with_(input=InputSpec([4, 6])), r"its model's input is InputSpec\(size=\[4, 6\].*"),  # type: ignore[arg-type]
    *(
        (lambda changes=changes: with_(input=replace(RAW, **changes)), r"its model's input is InputSpec\(size=.*")  # type: ignore[misc]
        for changes in (
            {"size": (0, 8)},
            {"channels": "3"},
            {"channels": -1},
            {"channels": None},
            {"dtype": "torch.float32"},
            {"dtype": None},
            {"dtype": "object"},
            {"preprocessing": "tf"},
        )
    ),
    (lambda: with_(backend="onnx"), "its model's backend is 'onnx'"),
    (lambda: with_(backend=None), "its model's backend is None"),
    (lambda: with_(name=None), "its model's name is None"),
    (
        lambda: with_(trace=lambda x: None),
        r"its model's trace\(\) does not take the arguments that it is given: too many positional arguments",
    ),
    (
        lambda: with_(resume=lambda trace, activations: None),
        r"its model's resume\(\) does not take the arguments that it is given: too many positional arguments",
    ),
    (
        lambda: with_(predict=lambda x, mode: None),
        r"its model's predict\(\) does not take the arguments that it is given: missing a required argument: 'mode'",
    ),
    (
        lambda: with_(hvp=lambda x: None, capabilities={"hvp"}),
        r"its model's hvp\(\) does not take the arguments that it is given: too many positional arguments",
    ),
    (
        lambda: type("Lazy", (Quadratic,), {"labels": property(raising(SystemExit(3))), "backend": "fake"})(),
        "its model's labels failed: SystemExit: 3",
    ),
    (lambda: with_(labels="cat"), "its model's labels are 'cat'"),
    (lambda: with_(labels=[1, 2]), "its model's labels are a list"),
    (lambda: with_(notes=None), "its model's notes are None"),
]


@pytest.mark.parametrize(("opened", "message"), OPENED)
def test_the_result_of_load(monkeypatch: pytest.MonkeyPatch, opened: Any, message: str) -> None:
    model_ = opened()
    monkeypatch.setattr(fake.FakeBackend, "load", lambda *_, **__: model_)
    with reports(message):
        xcam.load(object(), "fake")


def test_a_model_whose_input_cannot_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fixed(FakeModel):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "input" and "calls" in vars(self):
                raise AttributeError("it is frozen")
            super().__setattr__(name, value)

    monkeypatch.setattr(fake.FakeBackend, "load", lambda *_, **__: Fixed())
    with pytest.raises(ContractError, match=r"\(xcam-fake 0\.3\): `input` and `labels` of its model cannot be set"):
        xcam.load(object(), "fake")


def test_loading_evaluates_no_property(monkeypatch: pytest.MonkeyPatch) -> None:
    """A property may take its time: what `load` returned is checked without asking for `layers`."""

    class Slow(Quadratic):
        backend = "fake"

        @property
        def layers(self) -> Any:
            raise AssertionError("asked for the layers")

        @layers.setter
        def layers(self, value: Any) -> None:
            pass

    monkeypatch.setattr(fake.FakeBackend, "load", lambda *_, **__: Slow())
    opened = xcam.load(object(), "fake", labels=["a", "b"], size=(8, 8))
    assert type(opened) is Slow
    assert opened.labels == ["a", "b"]
    opened.input = RAW
    assert opened.input.size == (4, 6)


def module(monkeypatch: pytest.MonkeyPatch, file: str, **parts: Any) -> str:
    model_ = type(sys)(file)
    vars(model_).update(parts)
    monkeypatch.setitem(sys.modules, file, model_)
    return file


def light(monkeypatch: pytest.MonkeyPatch, file: str, **changes: Any) -> str:
    def xcam_backend() -> Any:
        return fake.spec(**changes)

    return module(monkeypatch, file, xcam_backend=hookimpl(xcam_backend))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"requires": "jax"}, "requires of its BackendSpec is 'jax'; give a tuple of str: ('jax',)"),
        ({"suffixes": ".npz"}, "suffixes of its BackendSpec is '.npz'; give a tuple of str"),
        ({"model_types": (int,)}, "model_types of its BackendSpec is (<class 'int'>,)"),
        ({"name": ""}, "name of its BackendSpec is ''; give a str that is not empty"),
        ({"suffixes": ("npz",)}, "suffixes of its BackendSpec is 'npz'; give suffixes that begin with a dot"),
        ({"suffixes": (".npz", ".")}, "suffixes of its BackendSpec is '.'"),
        ({"remedy": ["x"]}, "remedy of its BackendSpec is ['x']; give a str or None"),
        ({"extra": 3}, "extra of its BackendSpec is 3; give a str or None"),
        ({"default_model": 5}, "default_model of its BackendSpec is 5; give a str or None"),
        ({"zoo": "yes"}, "zoo of its BackendSpec is 'yes'; give True or False"),
        (
            {"target": "fake.FakeBackend"},
            "target of its BackendSpec is 'fake.FakeBackend'; give package.module:Class",
        ),
    ],
)
def test_a_spec(monkeypatch: pytest.MonkeyPatch, changes: Any, message: str) -> None:
    light(monkeypatch, "fake_other", **changes)
    registry = Registry([point("fake_other", name="other"), point("fake")])
    assert message in registry.plugins["other"].remedy
    assert (registry.plugins["other"].state, registry.plugins["fake"].state) == ("broken", "available")


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (None, "cannot use fake_target:Backend: it lacks the method load()"),
        (
            lambda self, source: None,
            "cannot use fake_target:Backend: load() does not take the arguments that it is given: got an unexpected ",
        ),
        (
            lambda self, source, size: None,
            "does not take the arguments that it is given: got an unexpected keyword argument 'device'",
        ),
    ],
)
def test_a_target(monkeypatch: pytest.MonkeyPatch, load: Any, message: str) -> None:
    module(monkeypatch, "fake_target", Backend=type("Backend", (), {"load": load} if load else {}))
    registry = Registry([point(light(monkeypatch, "fake_light", target="fake_target:Backend"))])
    with pytest.raises(
        BackendError, match=r"installed but broken: BackendError: .*reinstall xcam-fake and"
    ) as caught:
        registry.load("fake")
    assert message in str(caught.value)


class Panic(BaseException):
    """An error of compiled code."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SystemExit("no licence"), "SystemExit: no licence"),
        (GeneratorExit("x"), "GeneratorExit: x"),
        (Panic("of Rust\nat line 3"), "Panic: of Rust"),
    ],
)
def test_a_plugin_that_exits_does_not_affect_the_others(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, message: str
) -> None:
    def xcam_backend() -> Any:
        raise error

    module(monkeypatch, "fake_leaving", xcam_backend=hookimpl(xcam_backend))
    points = [
        point("fake_leaving", name="leaving"),
        point(light(monkeypatch, "fake_light", name="late", target="fake_target:Backend"), name="late"),
    ]
    registry = Registry([*points, point("fake")])
    assert registry.plugins["leaving"].remedy == message
    assert registry.plugins["fake"].state == "available"
    module(monkeypatch, "fake_target", Backend=lambda: raising(error)(None))
    with pytest.raises(BackendError, match=f"'late': it is installed but broken: {message}; reinstall"):
        registry.load("late")


def test_a_plugin_that_is_interrupted_is_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def xcam_backend() -> Any:
        raise KeyboardInterrupt

    module(monkeypatch, "fake_leaving", xcam_backend=hookimpl(xcam_backend))
    with pytest.raises(KeyboardInterrupt):
        Registry([point("fake_leaving")])


def test_xcams_own_backends_keep_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the order on sys.path of a third party's plugin of the same name."""
    light(monkeypatch, "fake_third", target="third:B")
    first, other = point("fake", name="explain"), point("fake_third", name="onnx")
    for points in ([first, other], [other, first]):
        registry = Registry(points)
        assert registry.plugins["fake"].distribution == "xcam-explain"
        assert registry.plugins["fake"].state == "available"
        assert registry.plugins["fake (fake_third)"].remedy == (
            "BackendError: cannot register fake_third: the name 'fake' is already used by xcam-explain; "
            "uninstall one of them"
        )


def test_a_broken_plugin_does_not_take_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for points in ([point("no_such_module"), point("fake")], [point("fake"), point("no_such_module")]):
        registry = Registry(points)
        assert registry.plugins["fake"].state == "available"
        broken = registry.plugins["fake (no_such_module)"]
        assert broken.name == "fake (no_such_module)"
        assert broken.remedy == "ModuleNotFoundError: No module named 'no_such_module'"
