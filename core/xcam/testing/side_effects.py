"""The suite's manners: what a backend must keep, leave alone and let pass, whatever numbers it gives."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, get_args

import numpy as np

from xcam.contract import Array, Capability, Model, Outputs
from xcam.testing import reference
from xcam.testing.assertions import Mistakes, changed, close, same
from xcam.testing.networks import Network
from xcam.testing.suite import N, Suite, first, first_score, gradient, resumed_before, truth


class Manners(Suite):
    """Declared capabilities, the caller's arrays, the user's model, exceptions, threads."""

    def test_what_is_declared_is_there(self, model: Model, network: Network, x: Array) -> None:
        declared, known = set(model.capabilities), set(get_args(Capability))
        assert declared <= known, f"capabilities {sorted(declared - known)} are unknown; known: {sorted(known)}"
        name = self.layer(network.explained[0])
        given = self.native_batch(model, x)
        for capability in sorted(declared):
            try:
                if capability == "gradients":
                    model.trace(given, name, first_score)
                elif capability == "resume":
                    trace = model.trace(given, name)
                    model.resume(trace, trace.activations)
                elif capability == "hvp":
                    vector = np.ones_like(model.trace(given, name).activations)
                    model.hvp(given, name, first_score, [vector])  # type: ignore[attr-defined]
            except (NotImplementedError, AttributeError) as error:
                raise AssertionError(
                    f"{capability!r} is declared in capabilities, and is not there: {type(error).__name__}: {error}; "
                    "write it, or leave the word out"
                ) from error

    def test_arrays_stay_what_they_were(self, model: Model, network: Network, x: Array) -> None:
        """What the caller gave is not written to; what the caller got is not written to by later calls."""
        name = self.layer(network.explained[-1])
        given = self.native_batch(model, x)
        kept = given.copy()
        calls: dict[str, Callable[[Array], Mapping[str, Any]]] = {
            "trace()": lambda batch: vars(model.trace(batch, name, first_score)),
            "predict()": lambda batch: {"outputs": model.predict(batch)},
            "activations()": lambda batch: {"activations": model.activations(batch, [name])},
        }
        results, copies = {}, {}
        for what, call in calls.items():
            results[what] = {key: value for key, value in call(given).items() if key != "state"}
            copies[what] = deepcopy(results[what])
            assert np.array_equal(given, kept), f"{what} changed the batch that it was given; work on a copy"
        for call in calls.values():
            call(self.native_batch(model, x[::-1] + 1))
        for what, found in results.items():
            for key, value in found.items():
                assert _equal(value, copies[what][key]), (
                    f"the {key} of {what} changed in a later call: they are views of memory that is used again; "
                    "return copies"
                )
        trace = model.trace(given, name)
        if "resume" in model.capabilities:
            put = 2 * trace.activations
            twice = put.copy()
            model.resume(trace, put)
            assert np.array_equal(put, twice), "resume() changed the array of activations that it was given"
            with resumed_before():
                again = model.resume(trace, trace.activations).outputs
            told = "resume of itself, behind a resume on changed values: the first one spoiled the trace"
            same(again, truth(network, x), told)

    def test_the_users_model_stays_as_it_was(self, native: Any, network: Network, x: Array) -> None:
        before = self.snapshot(native)
        model = self.load(native, network)
        given, name = self.native_batch(model, x), self.layer(network.explained[-1])

        def resumed() -> None:
            trace = model.trace(given, name)
            model.resume(trace, trace.activations, cotangents=first_score)

        calls: dict[str, Callable[[], Any]] = {
            "load()": lambda: None,
            "layers": lambda: model.layers,
            "predict()": lambda: model.predict(given),
            "activations()": lambda: model.activations(given, [name]),
            "trace()": lambda: model.trace(given, name, first_score),
        }
        if "resume" in model.capabilities:
            calls["resume()"] = resumed
        for what, call in calls.items():
            call()
            now = self.snapshot(native)
            assert now == before, f"{what} left the user's model changed: {changed(before, now)}; put it back"

    def test_an_exception_in_seeds_reaches_the_caller_and_leaves_no_trace(
        self, native: Any, network: Network, x: Array
    ) -> None:
        before = self.snapshot(native)
        model = self.load(native, network)
        name = self.layer(network.explained[-1])
        given = self.native_batch(model, x)
        calls: dict[str, Callable[[Any], Any]] = {"trace()": lambda cotangents: model.trace(given, name, cotangents)}
        if "resume" in model.capabilities:
            trace = model.trace(given, name)
            calls["resume()"] = lambda cotangents: model.resume(trace, trace.activations, cotangents=cotangents)
        mine = KeyError("raised in cotangents")

        def fail(_: Outputs) -> list[Outputs]:
            raise mine

        for what, call in calls.items():
            got: BaseException | None = None
            try:
                call(fail)
            except Exception as error:
                got = error
            assert got is not None, f"cotangents raised {mine!r}, and {what} swallowed it; let it pass"
            assert got is mine, f"cotangents raised {mine!r}, and {what} raised {got!r} instead; let it pass as it is"
            now = self.snapshot(native)
            assert now == before, (
                f"an exception in cotangents left the user's model changed ({what}): {changed(before, now)}; "
                "put it back in a finally clause"
            )
        same(
            model.trace(given, name, first_score).outputs, truth(network, x), "trace after an exception in cotangents"
        )

    def test_threads_from_their_first_call_on(self, native: Any, network: Network, x: Array) -> None:
        """Eight threads, three batches, every layer and call: each thread gets what belongs to its own call."""
        model = self.load(native, network)
        names = network.explained
        slopes = {name: gradient(network, x, name, first(network, x))(()) for name in names}
        values, outputs = reference.run(network, x), truth(network, x)
        wrong: list[BaseException] = []
        start = threading.Barrier(8)

        def slow(said: Outputs) -> Sequence[Outputs]:
            time.sleep(1e-3)  # the other threads get their turn between the forward and the backward pass
            return first_score(said)

        def work(k: int) -> None:
            def mine(whole: Array) -> Array:
                return np.roll(whole, k, axis=0)

            def others(whole: Any) -> Mistakes:
                words = "it belongs to another thread's batch: what a call keeps must not stand on the model"
                return {f"{words} (batch {r})": lambda r=r: _rolled(whole, r) for r in range(N)}  # type: ignore[misc]

            given, said = self.native_batch(model, mine(x)), _rolled(outputs, k)
            for name in names[k % 2 :] + names[: k % 2]:
                same(model.predict(given), said, "predict", others(outputs))
                value = model.activations(given, [self.layer(name)])[self.layer(name)]
                close(value, mine(values[name]), 1e-4, f"activations of {name}", mistakes=others(values[name]))
                trace = model.trace(given, self.layer(name), slow)
                same(trace.outputs, said, f"outputs of trace at {name}", others(outputs))
                told = f"activations of trace at {name}"
                close(trace.activations, mine(values[name]), 1e-4, told, mistakes=others(values[name]))
                told = f"gradient at {name}"
                close(trace.gradients[0], mine(slopes[name]), 1e-3, told, mistakes=others(slopes[name]))
                if "resume" in model.capabilities:
                    again = model.resume(trace, trace.activations).outputs
                    same(again, said, f"resume at {name}", others(outputs))

        def beside_others(k: int) -> None:
            start.wait()
            try:
                work(k)
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=beside_others, args=(k,)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if wrong:
            work(0)  # what is wrong in one thread too is no matter of threads, and says so here
        assert not wrong, f"not safe for threads: {type(wrong[0]).__name__}: {wrong[0]}"


def _rolled(whole: Any, k: int) -> Any:
    """The rows of an array, or of each of a mapping's, moved on."""
    return {key: _rolled(v, k) for key, v in whole.items()} if isinstance(whole, Mapping) else np.roll(whole, k, 0)


def _equal(a: Any, b: Any) -> bool:
    """Whether arrays, or collections of them, are the same."""
    if isinstance(a, Mapping):
        return all(_equal(value, b[key]) for key, value in a.items())
    return all(map(np.array_equal, a, b)) if isinstance(a, list) else np.array_equal(a, b)
