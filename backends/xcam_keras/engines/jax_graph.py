"""A forward pass as a jaxpr, and the cuts that are made in it.

The weights are arguments, so that new ones compile nothing anew. A cut is three runs of the jaxpr's equations: from the
input to the layer and to what passes the layer by; from there to the outputs; and the transpose of that (jax.vjp). Each
is compiled by jax.jit. The model itself is never changed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
from jax.extend.core import DropVar, Jaxpr, JaxprEqn, Var, get_opaque_trace_state

from xcam.contract import Array
from xcam_keras import calls
from xcam_keras.engines import NoGradient

INNER = ("jaxpr", "call_jaxpr")
"""Where an equation that calls a function keeps it."""


class Graph:
    """The forward pass for one batch size: equations, and which variable of theirs is what."""

    def __init__(self, model: keras.Model, shape: tuple[int | None, ...], dtype: str) -> None:
        variables = model.variables
        outputs: list[str] = []
        layers: dict[str, keras.layers.Layer] = {}

        def forward(weights: list[jax.Array], x: jax.Array) -> list[Any]:
            here = get_opaque_trace_state()
            seen: list[calls.Seen] = []

            def note(call: calls.Seen) -> Any:
                if get_opaque_trace_state() == here:  # not within a loop, whose values are not to be had outside
                    seen.append(call)
                return call.value

            with keras.StatelessScope(list(zip(variables, weights, strict=True))), calls.watching(note):
                value = model(x, training=False)
            said = calls.outputs(model, value, _is_float)
            named = calls.named(seen, lambda t: isinstance(t, jax.core.Tracer) and _is_float(t))
            outputs.extend(said)
            layers.update((name, call.layer) for name, call in named.items())
            return [*said.values(), *(call.value for call in named.values())]

        weights = [v.value for v in variables]
        closed = jax.make_jaxpr(forward)(weights, jax.ShapeDtypeStruct(shape, dtype))
        jaxpr = closed.jaxpr
        *inputs, self.x = jaxpr.invars
        self.roots: dict[Var, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        self.roots |= dict(zip(inputs, variables, strict=True))
        self.makers = _makers(jaxpr)
        ends = jaxpr.outvars[: len(outputs)]
        cut_off = [_logits(self.makers, var) for var in ends]
        self.outputs = [var for var, _ in cut_off]
        self.activations = {name: kind for name, (_, kind) in zip(outputs, cut_off, strict=True)}
        found = zip(layers, jaxpr.outvars[len(outputs) :], strict=True)
        self.layers = {name: var for name, var in found if isinstance(var, Var)}
        self.kinds = {name: layers[name] for name in self.layers}
        self.ends = {var for var in [*ends, *self.outputs] if isinstance(var, Var)}
        self.jaxpr = jaxpr
        self.reach = self.ancestors(self.outputs)
        self.from_x = self.following(self.x)
        self._made: dict[Any, Any] = {}
        self._lock = threading.RLock()

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` returns, made once for `key`."""
        with self._lock:
            if key not in self._made:
                self._made[key] = make()
            return self._made[key]

    def cut(self, name: str) -> Cut:
        """The cut at a layer's output. Raises NoGradient."""
        return self.once(("cut", self.layers[name]), lambda: Cut(self, self.layers[name]))

    def tensor(self, x: Array) -> jax.Array:
        """The input, as the graph takes it."""
        return jnp.asarray(x, self.x.aval.dtype)

    def run(self, feeds: Sequence[Var], fetches: Sequence[Any]) -> Callable[..., list[jax.Array]]:
        """A compiled function from the values of `feeds` to those of `fetches`."""
        part = _Part(self, feeds, fetches)
        compiled = jax.jit(part)
        return lambda *values: compiled(part.weights(), list(values))

    def ancestors(self, ends: Iterable[Any], stop: Iterable[Var] = ()) -> set[Var]:
        """What `ends` are computed from, and they themselves; not what only `stop` is computed from."""
        seen: set[Var] = set()
        stop = set(stop)
        todo = [var for var in ends if isinstance(var, Var)]
        while todo:
            var = todo.pop()
            if var not in seen:
                seen.add(var)
                if var in self.makers and var not in stop:
                    todo.extend(v for v in self.makers[var].invars if isinstance(v, Var))
        return seen

    def following(self, start: Var) -> set[Var]:
        """What is computed from `start`, and it itself."""
        found = {start}
        for equation in self.jaxpr.eqns:
            if any(isinstance(v, Var) and v in found for v in equation.invars):
                found.update(equation.outvars)
        return found


class _Part:
    """The equations that lead from some variables to others, as a function of weights and values."""

    def __init__(self, graph: Graph, feeds: Sequence[Var], fetches: Sequence[Any]) -> None:
        needed = graph.ancestors(fetches, stop=feeds)
        self.roots = {var: root for var, root in graph.roots.items() if var in needed and var not in feeds}
        made = needed - set(feeds)
        self._jaxpr = graph.jaxpr.replace(
            constvars=[],
            invars=[*self.roots, *feeds],
            outvars=list(fetches),
            eqns=[_without(e, feeds) for e in graph.jaxpr.eqns if any(var in made for var in e.outvars)],
        )

    def weights(self) -> list[Any]:
        """What the model's variables hold now."""
        return [root.value if isinstance(root, keras.Variable) else root for root in self.roots.values()]

    def __call__(self, weights: Sequence[Any], values: Sequence[Any]) -> list[Any]:
        return jax.core.eval_jaxpr(self._jaxpr, [], *weights, *values)


def _without(equation: JaxprEqn, feeds: Sequence[Var]) -> JaxprEqn:
    """The equation, what it makes of `feeds` dropped: those are given."""
    if not any(var in feeds for var in equation.outvars):
        return equation
    return equation.replace(outvars=[DropVar(var.aval) if var in feeds else var for var in equation.outvars])


class Cut:
    """A graph, cut open at one layer."""

    def __init__(self, graph: Graph, layer: Var) -> None:
        if layer not in graph.reach:
            raise NoGradient
        behind = graph.following(layer)
        ahead = graph.from_x - behind
        read = {
            v for e in graph.jaxpr.eqns for v in e.invars if isinstance(v, Var) and behind.intersection(e.outvars)
        }
        needed = graph.ancestors(graph.outputs, stop=[layer, *ahead])
        loose = {var for var in graph.outputs if isinstance(var, Var)}  # an output that the layer has no part in
        self.layer = layer
        self.frontier = [
            var for var in graph.from_x if var in ahead and var in needed and (var in read or var in loose)
        ]
        order = {var: i for i, var in enumerate([graph.x, *(v for e in graph.jaxpr.eqns for v in e.outvars)])}
        self.frontier.sort(key=order.__getitem__)
        self._head = _Part(graph, [graph.x], [layer, *self.frontier])
        self._tail = _Part(graph, [layer, *self.frontier], graph.outputs)
        self._x = graph.x
        self._graph = graph
        self._forward = jax.jit(self._run_forward, static_argnums=0)
        self._resume = jax.jit(self._run_tail, static_argnums=0)
        self.backward = jax.jit(lambda back, v: back(v)[0])

    def forward(self, differentiate: bool, x: jax.Array) -> Any:
        """From the input: outputs, the layer's value, what passes it by, and the transpose of the tail or None."""
        return self._forward(differentiate, self._head.weights(), self._tail.weights(), x)

    def resume(self, differentiate: bool, value: jax.Array, frontier: Sequence[jax.Array]) -> Any:
        """From the layer's value: outputs, and the transpose of the tail or None."""
        return self._resume(differentiate, self._tail.weights(), value, list(frontier))

    def side(self, x: jax.Array) -> list[jax.Array]:
        """What passes the layer by, from the input."""
        return self._graph.once(("side", self.layer), lambda: self._graph.run([self._x], self.frontier))(x)

    def _run_forward(self, differentiate: bool, head: list[Any], tail: list[Any], x: jax.Array) -> Any:
        value, *frontier = self._head(head, [x])
        outputs, back = self._run_tail(differentiate, tail, value, frontier)
        return outputs, value, frontier, back

    def _run_tail(self, differentiate: bool, weights: list[Any], value: jax.Array, frontier: list[Any]) -> Any:
        def tail(a: jax.Array) -> list[jax.Array]:
            return self._tail(weights, [a, *frontier])

        return jax.vjp(tail, value) if differentiate else (tail(value), None)


def _makers(jaxpr: Jaxpr) -> dict[Var, JaxprEqn]:
    return {var: equation for equation in jaxpr.eqns for var in equation.outvars}


def _logits(makers: Mapping[Var, JaxprEqn], output: Any) -> tuple[Any, str | None]:
    """What the softmax or sigmoid that makes the output is given, seen through casts between floats."""
    var = _uncast(makers, output)
    equation = makers.get(var) if isinstance(var, Var) else None
    if equation is None:
        return output, None
    if equation.primitive.name == "logistic":
        return equation.invars[0], "sigmoid"
    given = _softmaxed(makers, equation)
    if given is not None:
        return given, "softmax"
    for inner in (equation.params[key] for key in INNER if key in equation.params):
        inner = getattr(inner, "jaxpr", inner)
        found, kind = _logits(_makers(inner), inner.outvars[equation.outvars.index(var)])
        if kind and found in inner.invars:
            return equation.invars[inner.invars.index(found)], kind
    return output, None


def _softmaxed(makers: Mapping[Var, JaxprEqn], equation: JaxprEqn) -> Any:
    """z, where the equation is the last of exp(z − max z) / Σ exp(z − max z); else None."""
    if equation.primitive.name != "div":
        return None
    above = _uncast(makers, equation.invars[0])
    below = _through(makers, equation.invars[1], ("broadcast_in_dim", "reshape", "convert_element_type"))
    if not (_made_by(makers, above, "exp") and _made_by(makers, below, "reduce_sum")):
        return None
    if _uncast(makers, makers[below].invars[0]) is not above:
        return None
    power = makers[above].invars[0]
    if not _made_by(makers, power, "sub"):
        return power
    z, top = makers[power].invars
    top = _through(makers, top, ("stop_gradient", "broadcast_in_dim", "reshape", "convert_element_type", "max"))
    return z if _made_by(makers, top, "reduce_max") and makers[top].invars[0] is z else power


def _made_by(makers: Mapping[Var, JaxprEqn], var: Any, primitive: str) -> bool:
    return isinstance(var, Var) and var in makers and makers[var].primitive.name == primitive


def _through(makers: Mapping[Var, JaxprEqn], var: Any, primitives: Sequence[str]) -> Any:
    """The variable behind equations of these kinds; of the maximum with a number, the other one."""
    while isinstance(var, Var) and var in makers and makers[var].primitive.name in primitives:
        var = next((v for v in makers[var].invars if isinstance(v, Var)), None)
    return var


def _uncast(makers: Mapping[Var, JaxprEqn], var: Any) -> Any:
    while any(_made_by(makers, var, name) for name in ("convert_element_type", "copy")):
        if not _is_float(makers[var].invars[0].aval):
            break
        var = makers[var].invars[0]
    return var


def _is_float(value: Any) -> bool:
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating)
