"""Tests of side effects: declared capabilities, unchanged arrays and models, exceptions, and threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, get_args

import numpy as np
import pytest

from xcam.contract import Array, Capability, Model, Outputs
from xcam.testing import reference
from xcam.testing.assertions import Mistakes, changed, close, same
from xcam.testing.networks import Network
from xcam.testing.suite import N, Suite, differentiates, first, first_score, gradient, resumed_before, truth


class SideEffects(Suite):
    """Declared capabilities, the caller's arrays, the user's model, exceptions, threads."""

    def test_declared_capabilities_exist(self, model: Model, network: Network, x: Array) -> None:
        """Every declared capability works."""
        declared, known = set(model.capabilities), set(get_args(Capability))
        assert declared <= known, f"unknown capabilities {sorted(declared - known)}; known: {sorted(known)}"
        name = self.layer(network.explained[0])
        batch = self.native_batch(model, x)
        for capability in sorted(declared):
            try:
                if capability == "gradients":
                    model.trace(batch, name, first_score)
                elif capability == "resume":
                    trace = model.trace(batch, name)
                    model.resume(trace, trace.activations)
                elif capability == "hvp":
                    vector = np.ones_like(model.trace(batch, name).activations)
                    model.hvp(batch, name, first_score, [vector])  # type: ignore[attr-defined]
            except (NotImplementedError, AttributeError) as error:
                raise AssertionError(
                    f"{capability!r} is declared in capabilities, but does not work: {type(error).__name__}: {error}; "
                    "implement it, or remove it from capabilities"
                ) from error

    def test_arrays_are_unchanged(self, model: Model, network: Network, x: Array) -> None:
        """Arguments are not written to, and results are not written to by later calls."""
        name = self.layer(network.explained[-1])
        x_native = self.native_batch(model, x)
        x_copy = x_native.copy()
        cotangents = first_score if differentiates(model) else None
        calls: dict[str, Callable[[Array], Mapping[str, Any]]] = {
            "trace()": lambda batch: vars(model.trace(batch, name, cotangents)),
            "predict()": lambda batch: {"outputs": model.predict(batch)},
            "activations()": lambda batch: {"activations": model.activations(batch, [name])},
        }
        results, copies = {}, {}
        for method, call in calls.items():
            results[method] = {key: value for key, value in call(x_native).items() if key != "state"}
            copies[method] = deepcopy(results[method])
            assert np.array_equal(x_native, x_copy), f"{method} changed its batch; work on a copy"
        for call in calls.values():
            call(self.native_batch(model, x[::-1] + 1))
        for method, result in results.items():
            for key, value in result.items():
                assert _equal(value, copies[method][key]), (
                    f"the {key} of {method} changed in a later call: they are views of reused memory; return copies"
                )
        trace = model.trace(x_native, name)
        if "resume" in model.capabilities:
            replacement = 2 * trace.activations
            copy = replacement.copy()
            model.resume(trace, replacement)
            assert np.array_equal(replacement, copy), "resume() changed its array of activations; work on a copy"
            with resumed_before():
                outputs = model.resume(trace, trace.activations).outputs
            label = "resume with the unchanged value, after a resume with a replacement that changed the trace"
            same(outputs, truth(network, x), label)

    def test_the_users_model_is_unchanged(self, native: Any, network: Network, x: Array) -> None:
        """No call changes the user's model."""
        before = self.snapshot(native)
        model = self.load(native, network)
        batch, name = self.native_batch(model, x), self.layer(network.explained[-1])
        cotangents = first_score if differentiates(model) else None

        def resumed() -> None:
            trace = model.trace(batch, name)
            model.resume(trace, trace.activations, cotangents=cotangents)

        calls: dict[str, Callable[[], Any]] = {
            "load()": lambda: None,
            "layers": lambda: model.layers,
            "predict()": lambda: model.predict(batch),
            "activations()": lambda: model.activations(batch, [name]),
            "trace()": lambda: model.trace(batch, name, cotangents),
        }
        if "resume" in model.capabilities:
            calls["resume()"] = resumed
        for method, call in calls.items():
            call()
            now = self.snapshot(native)
            assert now == before, f"{method} left the user's model changed: {changed(before, now)}; restore it"

    def test_an_exception_in_cotangents_reaches_the_caller_and_changes_nothing(
        self, native: Any, network: Network, x: Array
    ) -> None:
        """An exception in cotangents() propagates unchanged, and the model is restored."""
        before = self.snapshot(native)
        model = self.load(native, network)
        if not differentiates(model):
            pytest.skip("the backend does not declare gradients")
        name = self.layer(network.explained[-1])
        batch = self.native_batch(model, x)
        calls: dict[str, Callable[[Any], Any]] = {"trace()": lambda cotangents: model.trace(batch, name, cotangents)}
        if "resume" in model.capabilities:
            trace = model.trace(batch, name)
            calls["resume()"] = lambda cotangents: model.resume(trace, trace.activations, cotangents=cotangents)
        expected = KeyError("raised in cotangents")

        def fail(_: Outputs) -> list[Outputs]:
            raise expected

        for method, call in calls.items():
            caught: BaseException | None = None
            try:
                call(fail)
            except Exception as error:
                caught = error
            assert caught is not None, (
                f"cotangents() raised {expected!r}, but {method} suppressed it; let it propagate"
            )
            assert caught is expected, (
                f"cotangents() raised {expected!r}, but {method} raised {caught!r} instead; let it propagate unchanged"
            )
            now = self.snapshot(native)
            assert now == before, (
                f"an exception in cotangents() left the user's model changed ({method}): {changed(before, now)}; "
                "restore it in a finally clause"
            )
        same(
            model.trace(batch, name, first_score).outputs,
            truth(network, x),
            "trace after an exception in cotangents()",
        )

    def test_threads_from_their_first_call_on(self, native: Any, network: Network, x: Array) -> None:
        """Eight threads, three batches, every layer and call: each thread gets the results of its own calls."""
        model = self.load(native, network)
        names, able = network.explained, differentiates(model)
        slopes = {name: gradient(network, x, name, first(network, x))(()) for name in names}
        values, outputs = reference.run(network, x), truth(network, x)
        wrong: list[BaseException] = []
        start = threading.Barrier(8)

        def slow(outputs: Outputs) -> Sequence[Outputs]:
            time.sleep(1e-3)  # other threads run between the forward and the backward pass
            return first_score(outputs)

        def work(k: int) -> None:
            def rolled(whole: Array) -> Array:
                return np.roll(whole, k, axis=0)

            def others(whole: Any) -> Mistakes:
                text = "it belongs to the batch of another thread; do not store the state of a call on the model"
                return {f"{text} (batch {r})": lambda r=r: _rolled(whole, r) for r in range(N)}  # type: ignore[misc]

            batch, expected = self.native_batch(model, rolled(x)), _rolled(outputs, k)
            for name in names[k % 2 :] + names[: k % 2]:
                same(model.predict(batch), expected, "predict", others(outputs))
                value = model.activations(batch, [self.layer(name)])[self.layer(name)]
                close(value, rolled(values[name]), 1e-4, f"activations of {name}", mistakes=others(values[name]))
                trace = model.trace(batch, self.layer(name), slow if able else None)
                same(trace.outputs, expected, f"outputs of trace at {name}", others(outputs))
                label = f"activations of trace at {name}"
                close(trace.activations, rolled(values[name]), 1e-4, label, mistakes=others(values[name]))
                if able:
                    label = f"gradient at {name}"
                    close(trace.gradients[0], rolled(slopes[name]), 1e-3, label, mistakes=others(slopes[name]))
                if "resume" in model.capabilities:
                    resumed = model.resume(trace, trace.activations).outputs
                    same(resumed, expected, f"resume at {name}", others(outputs))

        def concurrently(k: int) -> None:
            start.wait()
            try:
                work(k)
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=concurrently, args=(k,)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if wrong:
            work(0)  # a mistake that one thread alone shows is reported as such
        assert not wrong, f"not thread-safe: {type(wrong[0]).__name__}: {wrong[0]}"


def _rolled(whole: Any, k: int) -> Any:
    """Return an array, or each array of a mapping, with its rows rolled by k."""
    return {key: _rolled(v, k) for key, v in whole.items()} if isinstance(whole, Mapping) else np.roll(whole, k, 0)


def _equal(a: Any, b: Any) -> bool:
    """Return whether arrays, or collections of them, are equal."""
    if isinstance(a, Mapping):
        return all(_equal(value, b[key]) for key, value in a.items())
    return all(map(np.array_equal, a, b)) if isinstance(a, list) else np.array_equal(a, b)
