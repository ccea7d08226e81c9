"""The suite's tests of optional abilities (xcam.contract.abilities). A test is skipped where the backend lacks one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

import xcam
from xcam.contract import Array, Model
from xcam.contract.abilities import (
    DisablesSpinning,
    ExplainsMissingLayers,
    ExportsOnnx,
    ExportsSelfExplaining,
    NamesDefaultLayer,
    Randomizable,
    RunsStretches,
    supports,
)
from xcam.contract.outputs import one_output
from xcam.errors import BackendError, InputError
from xcam.testing import reference
from xcam.testing.assertions import changed, close, same
from xcam.testing.networks import NETWORKS
from xcam.testing.suite import Suite, first_score, truth

A = TypeVar("A")
X = np.random.default_rng(5).normal(size=(3, *NETWORKS["nested"].input)).astype(np.float32)
MISSING = "xcam-conformance-no-such-name"
NETWORK = NETWORKS["nested"]
"""One network is enough for all abilities; its layers have names in two parts."""


class Abilities(Suite):
    """Optional abilities, each checked where the model has it."""

    def test_onnx_export(self, tmp_path: Path) -> None:
        """The exported file computes the same outputs, and the same values under the same layer names."""
        native, model = self._able(ExportsOnnx)
        before, path = self.snapshot(native), tmp_path / "model.onnx"
        try:
            model.to_onnx(path)
        except BackendError as error:
            pytest.skip(f"to_onnx() needs more than is installed: {error}")
        self._unchanged(native, before, "to_onnx()")
        converted = self._read(path, "to_onnx()")
        self._same_outputs(converted, "the file that to_onnx() wrote")
        known = {name for layer in converted.layers for name in (layer.name, *layer.aliases)}
        values = reference.run(NETWORK, X)
        for step in NETWORK.explained:
            name = self.layer(step)
            assert name in known, f"to_onnx() lost the name of layer {name!r}: the file has {sorted(known)}"
            value = converted.activations(self.native_batch(converted, X), [name])[name]
            close(value, values[step], 1e-4, f"the file that to_onnx() wrote: activations of {name}")

    def test_self_explaining_export(self, tmp_path: Path) -> None:
        """The exported file computes the same outputs and names the layer."""
        native, model = self._able(ExportsSelfExplaining)
        before, path = self.snapshot(native), tmp_path / "model.onnx"
        name = self.layer(NETWORK.explained[0])
        model.export(path, name, "gradcam", {"xcam.version": "0"})
        self._unchanged(native, before, "export()")
        converted = self._read(path, "export()")
        self._same_outputs(converted, "the file that export() wrote")
        default = converted.default_layer if supports(converted, NamesDefaultLayer) else None
        names = [(layer.name, *layer.aliases) for layer in converted.layers]
        assert any(name in each and default in each for each in names), (
            f"the file that export() wrote names the layer {default!r}; export() was given {name!r}"
        )

    def test_shuffled_weights_leave_the_model_unchanged(self) -> None:
        """A copy has other outputs; the model and the user's object keep theirs."""
        native, model = self._able(Randomizable)
        before = self.snapshot(native)
        copy = model.with_shuffled_weights(list(model.parameter_layers))
        self._unchanged(native, before, "with_shuffled_weights()")
        self._same_outputs(model, "the model after with_shuffled_weights()")
        assert not _equal(copy.predict(self.native_batch(copy, X)), model.predict(self.native_batch(model, X))), (
            "with_shuffled_weights() returned a copy with the same outputs; shuffle the values of each learnt weight"
        )

    def test_shuffled_weights_follow_the_seed(self) -> None:
        """One seed gives one result, another seed another."""
        _, model = self._able(Randomizable)
        parts, batch = list(model.parameter_layers), self.native_batch(model, X)
        outputs = [model.with_shuffled_weights(parts, seed).predict(batch) for seed in (3, 3, 4)]
        assert _equal(outputs[0], outputs[1]), (
            "with_shuffled_weights() gave two results for one seed; draw from xcam.contract.shuffling alone"
        )
        assert not _equal(outputs[0], outputs[2]), "with_shuffled_weights() ignores its seed"

    def test_a_part_is_shuffled_alike_whatever_else_is(self) -> None:
        """Values before the last part depend only on the first part's weights."""
        _, model = self._able(Randomizable)
        names, batch = [layer.name for layer in model.layers], self.native_batch(model, X)
        *_, last = model.parameter_layers
        earliest = model.parameter_layers[0]
        assert earliest != last, f"parameter_layers is {list(model.parameter_layers)}; the network has more parts"

        def values(*parts: str) -> Mapping[str, Array]:
            return model.with_shuffled_weights(list(parts), 5).activations(batch, names)

        plain, behind = model.activations(batch, names), values(last)
        ahead = [name for name in names if _equal(plain[name], behind[name])]
        alone, both, reversed_ = values(earliest), values(earliest, last), values(last, earliest)
        assert any(not _equal(alone[name], plain[name]) for name in ahead), (
            f"parameter_layers is not in execution order: {earliest!r} changes no value before {last!r}"
        )
        for name in ahead:
            assert _equal(alone[name], both[name]), (
                f"{earliest!r} is shuffled differently when {last!r} is shuffled too; give each part a generator of its "
                "own, as xcam.contract.shuffling does"
            )
        for name in names:
            assert _equal(both[name], reversed_[name]), (
                "with_shuffled_weights() depends on the order of its parts; give each part a generator of its own"
            )

    def test_an_unknown_part_is_an_input_error(self) -> None:
        """The name of a part that does not exist is refused."""
        _, model = self._able(Randomizable)
        _raises(lambda: model.with_shuffled_weights([MISSING]), f"with_shuffled_weights([{MISSING!r}])")

    def test_the_default_layer_is_one_of_the_layers(self) -> None:
        """The default layer is a name or an alias of a listed layer, or None."""
        _, model = self._able(NamesDefaultLayer)
        known = {name for layer in model.layers for name in (layer.name, *layer.aliases)}
        name = model.default_layer
        assert name is None or name in known, f"default_layer is {name!r}, which is not one of the model's layers"

    def test_missing_layers_are_explained_in_one_line(self) -> None:
        """The reason is one line or None, and `trace` raises an error of xcam."""
        _, model = self._able(ExplainsMissingLayers)
        reason = model.explain_missing_layer(MISSING)
        assert reason is None or (isinstance(reason, str) and reason and "\n" not in reason), (
            f"explain_missing_layer() returned {reason!r}; return one line, or None where nothing is known"
        )
        _raises(lambda: model.trace(self.native_batch(model, X), MISSING), f"trace() of layer {MISSING!r}")

    def test_results_without_spinning(self) -> None:
        """The same outputs in sessions from before and after the call."""
        _, model = self._able(DisablesSpinning)
        name, batch = self.layer(NETWORK.explained[0]), self.native_batch(model, X)
        for call in ("its first", "a second"):
            model.predict(batch)
            model.disable_spinning()
            self._same_outputs(model, f"predict() after {call} disable_spinning()")
            outputs = model.trace(batch, name, first_score).outputs
            same(outputs, truth(NETWORK, X), f"trace() after {call} disable_spinning()")

    def test_a_stretch_begins_at_the_given_values(self) -> None:
        """From the model's own values a stretch gives the layer's own value; from other values, another one."""
        _, model = self._able(RunsStretches)
        names, batch = [self.layer(step) for step in NETWORK.explained], self.native_batch(model, X)
        values = model.activations(batch, names)
        sources = model.stretch_sources(names, names)
        results = model.stretches(batch, {name: values[name] for name in sources}, names)
        for name in names:
            close(results[name].value, values[name], 1e-4, f"stretches() from the model's own values: {name}")
        *_, last = names
        sources = model.stretch_sources([last], names[:-1])
        assert sources, f"stretch_sources() has none of {names[:-1]}, which are ahead of {last!r}"
        moved = model.stretches(batch, {name: 2 * values[name] for name in sources}, [last])[last].value
        assert not _equal(moved, values[last]), "stretches() does not compute a layer from the given values"

    def _able(self, ability: Callable[..., A]) -> tuple[Any, A]:
        """Return the live model and its xcam model; skip the test if that lacks an ability."""
        native = self.build(NETWORK)
        model = self.load(native, NETWORK)
        if not supports(model, ability):
            name = getattr(ability, "__name__", "")
            pytest.skip(f"backend {model.backend!r} does not implement {name} (xcam.contract.abilities)")
        return native, model

    def _unchanged(self, native: Any, before: Any, call: str) -> None:
        now = self.snapshot(native)
        assert now == before, f"{call} left the user's model changed: {changed(before, now)}; restore it"

    @staticmethod
    def _read(path: Path, call: str) -> Model:
        """Load an exported file with xcam's own ONNX backend."""
        assert path.is_file(), f"{call} wrote no file {path.name}"
        state = xcam.list_backends()["onnx"].state
        if state != "available":
            pytest.skip(f"the exported file cannot be read: backend 'onnx' is {state}")
        return xcam.load(path, backend="onnx")

    def _same_outputs(self, model: Model, subject: str) -> None:
        """Compare the only output, regardless of its name, with the reference."""
        (expected,) = truth(NETWORK, X).values()
        close(one_output(model.predict(self.native_batch(model, X))), expected, 1e-4, subject)


def _raises(call: Callable[[], object], subject: str) -> None:
    """Check that a call raises an InputError with the missing name in one line."""
    raised: Exception | None = None
    try:
        call()
    except Exception as error:
        raised = error
    assert raised is not None, f"{subject} raised nothing; raise an InputError that names it"
    fact = f"{subject} raised {type(raised).__name__}: {raised}"
    assert isinstance(raised, InputError), f"{fact}; raise an InputError"
    assert MISSING in str(raised), f"{fact}; name it in the message"
    assert "\n" not in str(raised), f"{fact}; write one line"


def _equal(a: Any, b: Any) -> bool:
    """Return whether outputs or values are equal to rounding."""
    return np.allclose(one_output(a), one_output(b), rtol=1e-5, atol=1e-6)
