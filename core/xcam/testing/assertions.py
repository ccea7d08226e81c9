"""Holding what a backend returned against the truth, and saying what is wrong in words that its author can act on.

A wrong array is often another array that is right: the gradient of a network that has lost a path, the values of another
layer, the same with its axes exchanged. These are tried, and the one that fits is named.
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
"""What it looks like in words → what it would be then; made when something is wrong, not before."""


def close(
    found: Any, expected: Array, tolerance: float, what: str, floor: float = 1e-3, mistakes: Mistakes | None = None
) -> None:
    """float32, the same shape, and within `tolerance` of the largest magnitude; else a message that says what differs."""
    assert isinstance(found, np.ndarray), (
        f"{what}: a {_kind(found)}, not a NumPy array; convert it in the backend, and move it to the CPU first"
    )
    assert found.dtype == np.float32, f"{what}: {found.dtype}, not float32; end with astype(np.float32)"
    if found.shape != expected.shape:
        raise AssertionError(
            f"{what}: shape {found.shape}, expected {expected.shape}{axes(found.shape, expected.shape)}"
        )
    scale = max(float(np.abs(expected).max()), floor)

    def off(other: Array) -> float:
        return float(np.abs(found - other).max()) / scale

    if off(expected) <= tolerance:
        return
    hints = [*_multiples(found, expected), *(mistakes or {}).items()]
    hint = next((f": {words}" for words, make in hints if _fits(off, make(), found.shape, tolerance)), "")
    raise AssertionError(f"{what}: relative error {off(expected):.2g}, allowed {tolerance:g}{hint}")


def same(found: Any, expected: Mapping[str, Array], what: str, mistakes: Mistakes | None = None) -> None:
    """Outputs, by name and in order when there are several, equal to the reference. `mistakes` give them by name."""
    if len(expected) == 1 and not isinstance(found, Mapping):
        (name,) = expected
        found = {name: found}
    assert isinstance(found, Mapping), f"{what}: one {_kind(found)}, expected a mapping with outputs {list(expected)}"
    assert set(found) == set(expected), f"{what}: outputs are {list(found)}, expected {list(expected)}"
    assert list(found) == list(expected), (
        f"{what}: outputs are in the order {list(found)}, the network's is {list(expected)}; a target reads the first"
    )
    for name, value in expected.items():
        others: dict[str, Callable[[], Any]] = {
            words: lambda make=make, name=name: make()[name]  # type: ignore[misc]
            for words, make in (mistakes or {}).items()
        }
        others["these are probabilities: a softmax is still on; cut it off, and say so in `activation`"] = (
            lambda value=value: reference.OPS["softmax"](value)  # type: ignore[misc]
        )
        close(found[name], value, 1e-4, f"{what}: {name}", mistakes=others)


def changed(before: Any, after: Any, where: str = "snapshot") -> str:
    """The first place at which two snapshots differ."""
    if isinstance(before, Mapping) and isinstance(after, Mapping) and set(before) == set(after):
        pairs = [(f"{where}[{key!r}]", value, after[key]) for key, value in before.items()]
    elif isinstance(before, list | tuple) and isinstance(after, list | tuple) and len(before) == len(after):
        pairs = [(f"{where}[{k}]", *pair) for k, pair in enumerate(zip(before, after, strict=True))]
    else:
        return f"{where} was {_short(before)}, is {_short(after)}"
    return next((changed(old, new, place) for place, old, new in pairs if old != new), where)


def lost_paths(network: Network, layer: str, truth: Callable[[Edges], Any]) -> Mistakes:
    """What a gradient is when one or two of the ways from the layer to the outputs are forgotten."""
    forks = network.forks(layer)
    found: dict[str, Callable[[], Any]] = {}
    for lost in (*combinations(forks, 1), *combinations(forks, 2)):
        words = " and ".join(f"{source} → {reader}" for source, reader in lost)
        found[
            f"the skip path is missing: it is what comes without {words}; add up the gradients of all steps that read a value"
        ] = partial(truth, lost)
    return found


def other_steps(network: Network, layer: str, values: Mapping[str, Array]) -> Mistakes:
    """The values of other steps, in place of a layer's own."""
    found = {}
    for step in network.steps:
        hint = ", which reads it: was it written over in place?" if layer in step.inputs else ""
        found[f"it is the value of {step.name}{hint}"] = partial(values.__getitem__, step.name)
    return found


def other_cotangents(
    network: Network, x: Array, layer: str, given: Sequence[Mapping[str, Array]], m: int, at: Array | None = None
) -> Mistakes:
    """What gradient m is when cotangents are exchanged, added up, left out in part, or not those of the logits."""

    def truth(*cotangents: Mapping[str, Array]) -> Any:
        return lambda: np.sum([reference.gradient(network, x, layer, v, at) for v in cotangents], axis=0)

    v = given[m]
    found: dict[str, Callable[[], Any]] = {}
    for k, other in enumerate(given):
        words = f"it belongs to cotangent {k}, not to {m}; give one gradient for each, in the order of the cotangents"
        found |= {words: truth(other)} if k != m else {}
    if len(given) > 1:
        found["it is the sum over all cotangents; give one gradient for each"] = truth(*given)
    for name in v if len(v) > 1 else ():
        words = (
            f"it is what comes without output {name!r}: use its cotangent too, and add up the gradients of all paths"
        )
        found[words] = truth({key: np.zeros_like(a) if key == name else a for key, a in v.items()})
    if network.activation == "softmax":
        z = reference.logits(network, reference.run(network, x, None if at is None else {layer: at}))
        (p,), (w,) = map(reference.OPS["softmax"], z.values()), v.values()
        words = "it is the gradient of probabilities: the softmax is cut off, so differentiate the logits under it"
        found[words] = truth(dict.fromkeys(v, p * (w - (w * p).sum(axis=1, keepdims=True))))
    return found


def wrong_rows(network: Network, x: Array, rows: list[int], layer: str, put: Array) -> Mistakes:
    """What `resume` says when values that pass the layer by are lost, stale, or another picture's."""
    whole, own = reference.run(network, x), reference.run(network, x[rows])
    beside, forks = network.beside(layer), [edge for edge in network.forks(layer) if edge[0] == layer]

    def said(values: Mapping[tuple[str, str], Array]) -> Any:
        return lambda: reference.logits(network, reference.run(network, x[rows], {layer: put}, values))

    found = {}
    if beside:
        for taken in ([0] * len(rows), [k % len(x) for k in range(len(rows))]):
            words = "`rows` is ignored: values that pass the layer by are another picture's; take row rows[k] of them"
            found[f"{words} ({taken} was taken for {rows})"] = said({edge: whole[edge[0]][taken] for edge in beside})
    for edge in beside:
        words = f"the skip path is missing: it is what comes when {edge[0]} → {edge[1]} carries nothing"
        found[f"{words}; keep its value in Trace.state"] = said({edge: np.zeros_like(own[edge[0]])})
    for edge in forks:
        words = f"the skip path {edge[0]} → {edge[1]} carries the old value of the layer, not the changed one"
        found[words] = said({edge: own[layer]})
    found["it is what the unchanged values give: the changed ones are not used"] = lambda: reference.logits(
        network, own
    )
    return found


def _multiples(found: Array, expected: Array) -> list[tuple[str, Callable[[], Any]]]:
    """The factor that fits best, where it is not a special one."""
    whole = float((expected * expected).sum())
    factor = float((found * expected).sum()) / whole if whole > 0 else 1.0
    if not np.isfinite(factor) or abs(factor) < 1e-6:
        return [("it is zero", lambda: np.zeros_like(expected))]
    n = len(expected)
    rows = " (the batch has that many rows: a sum or a mean over it?)"
    hint = rows if n > 1 and any(abs(factor - r) < 0.01 * r for r in (n, 1 / n)) else ""
    words = f"it is {factor:.3g} times what it should be{hint}"
    return [(words, lambda: factor * expected)]


def _fits(off: Callable[[Array], float], other: Any, shape: tuple[int, ...], tolerance: float) -> bool:
    return np.shape(other) == shape and off(other) <= tolerance


def axes(shape: tuple[int | None, ...], wanted: tuple[int, ...], batch: int = 1) -> str:
    """Which axes look exchanged or lost, where some do. batch: how many axes stand ahead of the channels."""
    if batch and wanted[0] == 1 and shape == wanted[1:]:
        return ": the batch's axis is gone; one picture is a batch too"
    if len(shape) != len(wanted) or sorted(map(str, shape)) != sorted(map(str, wanted)):
        return " (channels first)"
    first, rest = wanted[:batch], wanted[batch:]
    if shape == (*first, *rest[1:], rest[0]):
        return ": the axes look exchanged: channels last; move them to the front"
    if shape == (*first, rest[0], *rest[:0:-1]):
        return ": the axes look exchanged: height and width"
    return ": the axes look exchanged (channels first)"


def _kind(value: Any) -> str:
    return f"{type(value).__module__.partition('.')[0]} {type(value).__name__}".removeprefix("builtins ")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 120 else f"{text[:100]} …"
