"""The contract's edge: whatever a backend hands over that it must not, one line says so, and whose plugin it is."""

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
from xcam import (
    BackendError,
    ContractError,
    InputError,
    InputSpec,
    Layer,
    ModelError,
    Preprocessing,
    Trace,
    checking,
    plugins,
)
from xcam.plugins import Registry, hookimpl

IMAGE = np.random.default_rng(3).integers(0, 256, (4, 6, 3), dtype=np.uint8)
X = np.random.default_rng(4).normal(size=(2, 3, 4, 6)).astype(np.float32)
RAW = InputSpec((4, 6), preprocessing=Preprocessing("raw"))
WHO = "backend 'fake' (xcam-fake 0.3)"


class Tensor:
    """What a framework has in place of an array."""

    def __init__(self, values: Any) -> None:
        self.shape, self.ndim, self.dtype = values.shape, values.ndim, values.dtype


Tensor.__module__ = "torch._tensor"


def point(value: str, version: str = "0.3", name: str = "fake") -> EntryPoint:
    """An entry point of the distribution xcam-NAME."""
    found = EntryPoint(name, value, "xcam")
    vars(found)["dist"] = SimpleNamespace(name=f"xcam-{name}", version=version)
    return found


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The fake is installed, as a third party's plugin."""
    registry = Registry([point("fake")])
    monkeypatch.setattr(plugins, "registry", lambda: registry)
    monkeypatch.setattr(xcam.loading, "registry", lambda: registry)
    return registry


@pytest.fixture
def model() -> FakeModel:
    made = FakeModel()
    made.input = RAW
    return made


def says(words: str) -> Any:
    """A ContractError that names the plugin, says what is wrong, and to whom to report it."""
    return pytest.raises(
        ContractError,
        match=rf"^{re.escape(WHO)} {words}; the contract asks for .*: report it to the plugin's authors$",
    )


def test_who_it_was() -> None:
    assert plugins.described("fake") == WHO
    assert plugins.described("not installed") == "backend 'not installed'"


SPOILS: list[tuple[Any, str]] = [
    (lambda t: None, r"trace\(\) returned None"),
    (lambda t: (t.outputs, t.activations), r"trace\(\) returned a tuple"),
    (
        lambda t: replace(t, activations=Tensor(t.activations)),
        "returned activations as a torch Tensor for 1 pictures",
    ),
    (
        lambda t: replace(t, activations=t.activations.astype(float)),
        r"returned activations as float64 \(1, 3, 4, 6\) .*",
    ),
    (
        lambda t: replace(t, activations=t.activations[0, 0]),
        r"returned activations as float32 \(4, 6\) for 1 pictures",
    ),
    (lambda t: replace(t, activations=t.activations[:0]), r"returned activations as float32 \(0, 3, 4, 6\) for 1 .*"),
    (
        lambda t: replace(t, activations=np.moveaxis(t.activations, 1, -1)),
        r"returned activations of layer 'features' as float32 \(1, 4, 6, 3\) \(channels last\?\), and lists it with the "
        r"shape \(3, 4, 6\)",
    ),
    (
        lambda t: replace(t, activations=t.activations[:, :2]),
        r"returned activations of layer 'features' as float32 \(1, 2, 4, 6\), and lists it with the shape \(3, 4, 6\)",
    ),
    (lambda t: replace(t, gradients=None), r"trace\(\) returned gradients as None"),
    (lambda t: replace(t, gradients=t.gradients[0]), r"trace\(\) returned gradients as float32 \(1, 3, 4, 6\)"),
    (lambda t: replace(t, gradients=[]), "returned 0 gradients for 1 cotangents"),
    (lambda t: replace(t, gradients=t.gradients * 2), "returned 2 gradients for 1 cotangents"),
    (lambda t: replace(t, gradients=[None]), r"returned gradients\[0\] as None for 1 pictures"),
    (
        lambda t: replace(t, gradients=[t.gradients[0][..., :5]]),
        r"returned gradients\[0\] as float32 \(1, 3, 4, 5\) .*",
    ),
    (lambda t: replace(t, gradients=[t.gradients[0].astype(np.float16)]), r"returned gradients\[0\] as float16 .*"),
    (lambda t: replace(t, outputs=list(t.outputs)), r"trace\(\): returned outputs as a list"),
    (lambda t: replace(t, outputs={}), r"trace\(\): the mapping of outputs is empty"),
    (lambda t: replace(t, outputs={"a": None}), r"trace\(\): returned output 'a' as None"),
]


@pytest.mark.parametrize(("spoil", "words"), SPOILS)
def test_a_trace(model: FakeModel, spoil: Any, words: str) -> None:
    model.spoil = spoil
    with says(words):
        xcam.explain(model, IMAGE)


def test_windows_that_are_folded_into_the_batch_are_the_layers_own(model: FakeModel) -> None:
    model.spoil = lambda t: replace(t, activations=np.concatenate([t.activations] * 3))
    with pytest.raises(
        InputError, match="layer 'features' gives 3 values for 1 pictures: windows or frames are folded"
    ):
        xcam.explain(model, IMAGE)


@pytest.mark.parametrize(("outputs", "kind"), [(Tensor(X), "a torch Tensor"), ("text", "'text'"), (3.5, "3.5")])
def test_what_seeds_are_given(model: FakeModel, outputs: Any, kind: str) -> None:
    model.spoil_outputs = lambda _: outputs
    with says(f"seeds: gave outputs as {kind}"):
        xcam.explain(model, IMAGE)


def test_seeds_that_are_not_asked(model: FakeModel) -> None:
    model.trace = lambda x, layer, seeds=None: FakeModel.trace(model, x, layer)  # type: ignore[method-assign]
    with says(r"trace\(\) never called `seeds`"):
        xcam.explain(model, IMAGE)


def test_predict(model: FakeModel) -> None:
    assert checking.predict(model, X).shape == (2, 2)
    model.spoil_outputs = lambda outputs: outputs.tolist()
    with says(r"predict\(\): returned outputs as a list"):
        checking.predict(model, X)
    model.spoil_outputs = lambda outputs: outputs[:1]
    with pytest.raises(ModelError, match=r"fake gives an output of shape \(1, 2\) for 2 pictures"):
        checking.predict(model, X)
    model.spoil_outputs = lambda outputs: np.array([None, "a"])
    with says(r"trace\(\): returned outputs as object \(2,\)"):
        xcam.explain(model, IMAGE, method="scorecam")


def test_activations_of_several_layers(model: FakeModel) -> None:
    good = model.activations(X, ["features", "pool"])
    for found, words in (
        (None, r"activations\(\) returned None"),
        ({"pool": good["pool"]}, r"activations\(\) left out 'features'"),
        (good | {"pool": Tensor(X)}, r"returned activations\(\) of 'pool' as a torch Tensor"),
        (good | {"pool": X.astype(int)}, r"returned activations\(\) of 'pool' as int64 \(2, 3, 4, 6\)"),
    ):
        model.activations = lambda *_, found=found: found  # type: ignore[method-assign]
        with says(words):
            checking.activations(model, X, ["features", "pool"])


def test_layers(model: FakeModel) -> None:
    for found, words in (
        (None, "layers is None"),
        (["features"], r"layers\[0\] is 'features'"),
        (iter([]), "layers is a .*"),
    ):
        model.layers = found
        with says(words):
            xcam.explain(model, IMAGE)
    model.layers = [Layer("features", "Conv", (3, 4, 6)), ("pool", "Pool", (3, 2, 3))]
    with says(r"layers\[1\] is a tuple"):
        xcam.explain(model, IMAGE)


class Bent(Quadratic):
    """Its answers to `resume` and `hvp` are spoiled."""

    backend = "fake"

    def __init__(self, spoil: Any, *more: str) -> None:
        super().__init__(capabilities={"gradients", "resume", *more})
        self.input = RAW
        self.spoil = spoil

    def resume(self, *given: Any, **more: Any) -> Trace:
        return self.spoil(super().resume(*given, **more))

    def hvp(self, x: Any, layer: str, seeds: Any, vectors: Any) -> Any:
        seeds(self.outputs(x))
        return self.spoil(list(vectors))


def raising(error: BaseException) -> Any:
    def spoil(_: Any) -> Any:
        raise error

    return spoil


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t: t.outputs, r"resume\(\) returned float64 \(\d+, 2\)"),
        (lambda t: replace(t, outputs=Tensor(t.outputs)), r"resume\(\): returned outputs as a torch Tensor"),
        (
            lambda t: replace(t, activations=t.activations[:1]),
            r"returned activations as float32 \(1, 3, 4, 6\) for .*",
        ),
        (
            raising(NotImplementedError("not yet")),
            "it declares 'resume', and has none: NotImplementedError: not yet",
        ),
    ],
)
def test_resume(spoil: Any, words: str) -> None:
    with says(words):
        xcam.explain(Bent(spoil), IMAGE, method="ablationcam")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda found: found[0], r"hvp\(\) returned float32 \(1, 3, 4, 6\) for 1 vectors"),
        (lambda found: [], r"hvp\(\) returned a list for 1 vectors"),
        (lambda found: [found[0][:, :2]], r"returned hvp\(\)\[0\] as float32 \(1, 2, 4, 6\)"),
        (lambda found: [Tensor(found[0])], r"returned hvp\(\)\[0\] as a torch Tensor"),
        (raising(NotImplementedError("not yet")), "it declares 'hvp', and has none: NotImplementedError: not yet"),
    ],
)
def test_hvp(spoil: Any, words: str) -> None:
    model = Bent(spoil, "hvp")
    model.resume = lambda *given, **more: Quadratic.resume(model, *given, **more)  # type: ignore[method-assign]
    with says(words):
        xcam.explain(model, IMAGE, method="shapleycam")


def test_what_a_target_raises_is_not_the_backends() -> None:
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
    made = Quadratic()
    parts = {name: getattr(made, name) for name in checking.PARTS}
    return SimpleNamespace(**{name: value for name, value in parts.items() if name != part})


def with_(**parts: Any) -> Any:
    made = Quadratic()
    for name, value in parts.items():
        setattr(made, name, value)
    return made


OPENED: list[tuple[Any, str]] = [
    (
        lambda: None,
        r"load\(\) returned None, which lacks name, backend, input, .*, predict, activations, trace, resume",
    ),
    (lambda: without("resume"), r"load\(\) returned a types SimpleNamespace, which lacks resume"),
    (lambda: with_(capabilities={"gradients", "speed"}), r"its model's capabilities are \{.*\}"),
    (lambda: with_(capabilities="gradients"), "its model's capabilities are 'gradients'"),
    (lambda: with_(capabilities=frozenset({"gradients", "hvp"})), "its model has no method hvp"),
    (lambda: with_(resume=None), "its model has no method resume"),
    (lambda: with_(input=(4, 6)), "its model's input is a tuple"),
    (lambda: with_(input=InputSpec((4, 6), layout="NHWC")), "its model's input is InputSpec.*'NHWC'.*"),  # type: ignore[arg-type]
    (lambda: with_(input=InputSpec([4, 6])), r"its model's input is InputSpec\(size=\[4, 6\].*"),  # type: ignore[arg-type]
    (lambda: with_(labels="cat"), "its model's labels are 'cat'"),
    (lambda: with_(labels=[1, 2]), "its model's labels are a list"),
    (lambda: with_(notes=None), "its model's notes are None"),
]


@pytest.mark.parametrize(("opened", "words"), OPENED)
def test_what_load_returns(monkeypatch: pytest.MonkeyPatch, opened: Any, words: str) -> None:
    made = opened()
    monkeypatch.setattr(fake.FakeBackend, "load", lambda *_, **__: made)
    with says(words):
        xcam.load(object(), "fake")


def test_a_model_whose_input_cannot_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fixed(FakeModel):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "input" and "calls" in vars(self):
                raise AttributeError("it is frozen")
            super().__setattr__(name, value)

    monkeypatch.setattr(fake.FakeBackend, "load", lambda *_, **__: Fixed())
    with pytest.raises(
        ContractError, match=r"\(xcam-fake 0\.3\): its model does not let `input` and `labels` be set"
    ):
        xcam.load(object(), "fake")


def test_opening_and_asking_for_parts_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A property may take its time: what `load` returned is checked without asking for `layers`."""

    class Slow(Quadratic):
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
    made = type(sys)(file)
    vars(made).update(parts)
    monkeypatch.setitem(sys.modules, file, made)
    return file


def light(monkeypatch: pytest.MonkeyPatch, file: str, **changes: Any) -> str:
    def xcam_backend() -> Any:
        return fake.spec(**changes)

    return module(monkeypatch, file, xcam_backend=hookimpl(xcam_backend))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"requires": "jax"}, "requires of fake_other is 'jax'; give a tuple of str: ('jax',)"),
        ({"suffixes": ".npz"}, "suffixes of fake_other is '.npz'; give a tuple of str"),
        ({"model_types": (int,)}, "model_types of fake_other is (<class 'int'>,)"),
        ({"name": ""}, "name of fake_other is ''; give a word"),
        ({"target": "fake.FakeBackend"}, "target of fake_other is 'fake.FakeBackend'; give package.module:Class"),
    ],
)
def test_a_spec(monkeypatch: pytest.MonkeyPatch, changes: Any, words: str) -> None:
    light(monkeypatch, "fake_other", **changes)
    registry = Registry([point("fake_other", name="other"), point("fake")])
    assert words in registry.plugins["other"].remedy
    assert (registry.plugins["other"].state, registry.plugins["fake"].state) == ("broken", "available")


@pytest.mark.parametrize(
    ("load", "words"),
    [
        (None, "fake_target:Backend has no method load()"),
        (
            lambda self, source: None,
            "load() of fake_target:Backend does not take what it is given: got an unexpected ",
        ),
        (
            lambda self, source, size: None,
            "does not take what it is given: got an unexpected keyword argument 'device'",
        ),
    ],
)
def test_a_target(monkeypatch: pytest.MonkeyPatch, load: Any, words: str) -> None:
    module(monkeypatch, "fake_target", Backend=type("Backend", (), {"load": load} if load else {}))
    registry = Registry([point(light(monkeypatch, "fake_light", target="fake_target:Backend"))])
    with pytest.raises(
        BackendError, match=r"installed but broken: BackendError: .*reinstall xcam-fake and"
    ) as caught:
        registry.load("fake")
    assert words in str(caught.value)


def test_a_plugin_that_leaves_the_interpreter_takes_no_other_down(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave() -> Any:
        sys.exit("no licence")

    leave.__name__ = "xcam_backend"
    module(monkeypatch, "fake_leaving", xcam_backend=hookimpl(leave))
    registry = Registry([point("fake_leaving", name="leaving"), point("fake")])
    assert registry.plugins["leaving"].remedy == "SystemExit: no licence"
    assert registry.plugins["fake"].state == "available"


def test_a_broken_plugin_takes_no_name_away(monkeypatch: pytest.MonkeyPatch) -> None:
    for points in ([point("no_such_module"), point("fake")], [point("fake"), point("no_such_module")]):
        registry = Registry(points)
        assert registry.plugins["fake"].state == "available"
        broken = registry.plugins["fake (no_such_module)"]
        assert broken.name == "fake (no_such_module)"
        assert broken.remedy == "ModuleNotFoundError: No module named 'no_such_module'"
