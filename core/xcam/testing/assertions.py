"""Comparisons of a backend's results with the reference, and messages that name the mistake and its remedy.

A wrong array often equals another array: the gradient of a network that has lost a path, the values of another layer, the
right array with its axes exchanged. These are computed, and the one that fits is named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from xcam.contract import Array
from xcam.testing import reference
from xcam.testing.networks import Network

Edges = tuple[tuple[str, str], ...]
Mistakes = Mapping[str, Callable[[], Any]]
"""Description of a mistake → the array it would give; computed only after a failure."""


def close(
    result: Any, expected: Array, tolerance: float, label: str, floor: float = 1e-3, mistakes: Mistakes | None = None
) -> None:
    """Assert that an array is float32, has the expected shape, and is close to the expected values.

    Args:
        result: The array of the backend.
        expected: The array of the reference.
        tolerance: The largest error, relative to the largest magnitude of `expected`.
        label: The name of the array in the message.
        floor: The smallest magnitude that errors are relative to.
        mistakes: Mistakes to look for after a failure.
    """
    assert isinstance(result, np.ndarray), (
        f"{label}: a {_kind(result)}, not a NumPy array; convert it in the backend, after moving it to the CPU"
    )
    assert result.dtype == np.float32, f"{label}: {result.dtype}, not float32; convert it with astype(np.float32)"
    if result.shape != expected.shape:
        raise AssertionError(
            f"{label}: shape {result.shape}, expected {expected.shape}{axes(result.shape, expected.shape)}"
        )
    scale = max(float(np.abs(expected).max()), floor)

    def error(other: Array) -> float:
        return float(np.abs(result - other).max()) / scale

    if error(expected) <= tolerance:
        return
    candidates = [*_multiples(result, expected), *(mistakes or {}).items()]
    hint = next((f": {text}" for text, compute in candidates if _fits(error, compute(), result.shape, tolerance)), "")
    raise AssertionError(f"{label}: relative error {error(expected):.2g}, allowed {tolerance:g}{hint}")


def same(result: Any, expected: Mapping[str, Array], label: str, mistakes: Mistakes | None = None) -> None:
    """Assert that outputs equal those of the reference, by name and in order where there are several.

    Args:
        result: The outputs of the backend.
        expected: The outputs of the reference, by name.
        label: The name of the outputs in the message.
        mistakes: Mistakes to look for after a failure; each gives outputs by name.
    """
    if len(expected) == 1 and not isinstance(result, Mapping):
        (name,) = expected
        result = {name: result}
    assert isinstance(result, Mapping), (
        f"{label}: one {_kind(result)}, expected a mapping with outputs {list(expected)}"
    )
    assert set(result) == set(expected), f"{label}: outputs are {list(result)}, expected {list(expected)}"
    assert list(result) == list(expected), (
        f"{label}: outputs are in the order {list(result)}, those of the network {list(expected)}; a target reads the first"
    )
    for name, value in expected.items():
        others: dict[str, Callable[[], Any]] = {
            text: lambda compute=compute, name=name: compute()[name]  # type: ignore[misc]
            for text, compute in (mistakes or {}).items()
        }
        others["these are probabilities: cut the softmax off, and name it in `output_activation`"] = (
            lambda value=value: reference.OPS["softmax"](value)  # type: ignore[misc]
        )
        close(result[name], value, 1e-4, f"{label}: {name}", mistakes=others)


def changed(before: Any, after: Any, name: str = "snapshot") -> str:
    """Return the first difference of two snapshots, as text."""
    if isinstance(before, Mapping) and isinstance(after, Mapping) and set(before) == set(after):
        pairs = [(f"{name}[{key!r}]", value, after[key]) for key, value in before.items()]
    elif isinstance(before, list | tuple) and isinstance(after, list | tuple) and len(before) == len(after):
        pairs = [(f"{name}[{k}]", *pair) for k, pair in enumerate(zip(before, after, strict=True))]
    else:
        return f"{name} was {_short(before)}, is {_short(after)}"
    return next((changed(old, new, item) for item, old, new in pairs if old != new), name)


def lost_paths(network: Network, layer: str, gradient: Callable[[Edges], Any]) -> Mistakes:
    """Return the gradients without one or two of the paths from the layer to the outputs."""
    forks = network.forks(layer)
    result: dict[str, Callable[[], Any]] = {}
    for lost in (*combinations(forks, 1), *combinations(forks, 2)):
        paths = " and ".join(f"{source} → {reader}" for source, reader in lost)
        result[
            f"the skip path is missing: it is the gradient without {paths}; add up the gradients of all steps that read a value"
        ] = partial(gradient, lost)
    return result


def other_steps(network: Network, layer: str, values: Mapping[str, Array]) -> Mistakes:
    """Return the values of other steps, instead of those of the layer."""
    result = {}
    for step in network.steps:
        hint = ", which reads it: was it overwritten in place?" if layer in step.inputs else ""
        result[f"it is the value of {step.name}{hint}"] = partial(values.__getitem__, step.name)
    return result


def other_cotangents(
    network: Network, x: Array, layer: str, cotangents: Sequence[Mapping[str, Array]], m: int, at: Array | None = None
) -> Mistakes:
    """Return gradient m with cotangents exchanged, summed, left out in part, or not those of the logits."""

    def gradient(*summed: Mapping[str, Array]) -> Any:
        return lambda: np.sum([reference.gradient(network, x, layer, v, at) for v in summed], axis=0)

    v = cotangents[m]
    result: dict[str, Callable[[], Any]] = {}
    for k, other in enumerate(cotangents):
        text = (
            f"it belongs to cotangent {k}, not to {m}; return one gradient for each, in the order of the cotangents"
        )
        result |= {text: gradient(other)} if k != m else {}
    if len(cotangents) > 1:
        result["it is the sum over all cotangents; return one gradient for each"] = gradient(*cotangents)
    for name in v if len(v) > 1 else ():
        text = f"it is the gradient without output {name!r}; use its cotangent too, and add up the gradients of all paths"
        result[text] = gradient({key: np.zeros_like(a) if key == name else a for key, a in v.items()})
    if network.activation == "softmax":
        z = reference.logits(network, reference.run(network, x, None if at is None else {layer: at}))
        (p,), (w,) = map(reference.OPS["softmax"], z.values()), v.values()
        text = "it is the gradient of probabilities; the softmax is cut off, so differentiate the logits before it"
        result[text] = gradient(dict.fromkeys(v, p * (w - (w * p).sum(axis=1, keepdims=True))))
    return result


def wrong_rows(network: Network, x: Array, rows: list[int], layer: str, replacement: Array) -> Mistakes:
    """Return the outputs of `resume` with bypass values that are lost, stale, or those of another image."""
    all_values, row_values = reference.run(network, x), reference.run(network, x[rows])
    bypass, forks = network.bypass(layer), [edge for edge in network.forks(layer) if edge[0] == layer]

    def outputs(cut: Mapping[tuple[str, str], Array]) -> Any:
        return lambda: reference.logits(network, reference.run(network, x[rows], {layer: replacement}, cut))

    result = {}
    if bypass:
        for wrong in ([0] * len(rows), [k % len(x) for k in range(len(rows))]):
            text = "`rows` is ignored: the bypass values are those of another image; use row rows[k] of them"
            result[f"{text} ({wrong} instead of {rows})"] = outputs({e: all_values[e[0]][wrong] for e in bypass})
    for edge in bypass:
        text = f"the skip path is missing: it is the output with {edge[0]} → {edge[1]} set to zero"
        result[f"{text}; keep its value in Trace.state"] = outputs({edge: np.zeros_like(row_values[edge[0]])})
    for edge in forks:
        text = (
            f"the skip path {edge[0]} → {edge[1]} has the old value of the layer; use the replacement on every path"
        )
        result[text] = outputs({edge: row_values[layer]})
    result["it is the output for the unchanged values; use the replacement"] = lambda: reference.logits(
        network, row_values
    )
    return result


def _multiples(result: Array, expected: Array) -> list[tuple[str, Callable[[], Any]]]:
    """Return the multiple of the expected array that fits best, or zero."""
    norm = float((expected * expected).sum())
    factor = float((result * expected).sum()) / norm if norm > 0 else 1.0
    if not np.isfinite(factor) or abs(factor) < 1e-6:
        return [("it is zero", lambda: np.zeros_like(expected))]
    n = len(expected)
    rows = " (the batch has that many rows: a sum or a mean over it?)"
    hint = rows if n > 1 and any(abs(factor - r) < 0.01 * r for r in (n, 1 / n)) else ""
    return [(f"it is {factor:.3g} times the expected value{hint}", lambda: factor * expected)]


def _fits(error: Callable[[Array], float], other: Any, shape: tuple[int, ...], tolerance: float) -> bool:
    return np.shape(other) == shape and error(other) <= tolerance


def axes(shape: tuple[int | None, ...], expected: tuple[int, ...], batch: int = 1) -> str:
    """Return which axes are exchanged or missing, as text.

    Args:
        shape: The shape of the backend's array.
        expected: The expected shape.
        batch: The number of axes before the channels.
    """
    if batch and expected[0] == 1 and shape == expected[1:]:
        return ": the batch axis is missing; keep it for a single image too"
    if len(shape) != len(expected) or sorted(map(str, shape)) != sorted(map(str, expected)):
        return " (channels first)"
    first, rest = expected[:batch], expected[batch:]
    if shape == (*first, *rest[1:], rest[0]):
        return ": the axes are exchanged: channels last; move them to the front"
    if shape == (*first, rest[0], *rest[:0:-1]):
        return ": the axes are exchanged: height and width; transpose them"
    return ": the axes are exchanged (expected channels first)"


def _kind(value: Any) -> str:
    return f"{type(value).__module__.partition('.')[0]} {type(value).__name__}".removeprefix("builtins ")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 120 else f"{text[:100]} …"
