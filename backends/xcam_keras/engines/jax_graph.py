"""A forward pass as a jaxpr, and the cuts in it.

The weights are arguments, so that new ones need no new compilation. A cut consists of three functions of the jaxpr's
equations: one from the input to the layer and the bypass values, one from there to the outputs, and the transpose of
the latter (jax.vjp). Each is compiled by jax.jit. The model itself is never changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax.extend.core import DropVar, Jaxpr, JaxprEqn, Var, get_opaque_trace_state

from xcam.contract.caches import BoundedCache
from xcam.contract.graphs import reachable
from xcam.contract.outputs import cut_activation
from xcam.contract.types import Array
from xcam_keras import calls

INNER = ("jaxpr", "call_jaxpr")
"""Parameters in which an equation that calls a function stores the function."""
STORAGE_ONLY = ("convert_element_type", "copy")
"""Operations that only change how a value is stored."""
STEPS = ("stop_gradient", "round", "floor", "ceil", "sign")
"""Operations whose gradient is zero everywhere."""
CALLS = ("jit", "pjit", "closed_call", "checkpoint")
"""Operations that call a function, through which gradients pass as through its equations."""
BROADCAST = ("broadcast_in_dim", "reshape", "convert_element_type")


class Graph:
    """The forward pass for one batch size: equations, and the variables of the input, the layers and the outputs."""

    def __init__(self, model: keras.Model, shape: tuple[int, ...], dtype: str) -> None:
        variables = model.variables
        outputs: list[str] = []
        layers: dict[str, calls.Call] = {}

        def forward(weights: list[jax.Array], x: jax.Array) -> list[Any]:
            state = get_opaque_trace_state()
            seen: list[calls.Call] = []

            def note(call: calls.Call) -> Any:
                if get_opaque_trace_state() == state:  # values within a loop do not exist outside of it
                    seen.append(call)
                return call.value

            with keras.StatelessScope(list(zip(variables, weights, strict=True))), calls.watching(note):
                value = model(x, training=False)
            tensors = calls.float_outputs(model, value, _is_float)
            named = calls.named(seen, lambda t: isinstance(t, jax.core.Tracer) and _is_float(t))
            outputs.extend(tensors)
            layers.update((name, replace(call, value=None)) for name, call in named.items())
            return [*tensors.values(), *(call.value for call in named.values())]

        weights = [v.value for v in variables]
        closed = jax.make_jaxpr(forward)(weights, jax.ShapeDtypeStruct(shape, dtype))
        jaxpr = closed.jaxpr
        *inputs, self.x = jaxpr.invars
        self.roots: dict[Var, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        self.roots |= dict(zip(inputs, variables, strict=True))
        self.makers = _makers(jaxpr)
        ends = jaxpr.outvars[: len(outputs)]
        logits = [_logits(self.makers, var) for var in ends]
        self.outputs = [var for var, _ in logits]
        self.output_activations = {name: kind for name, (_, kind) in zip(outputs, logits, strict=True)}
        values = zip(layers, jaxpr.outvars[len(outputs) :], strict=True)
        self.layers = {name: var for name, var in values if isinstance(var, Var)}
        self.calls = {name: layers[name] for name in self.layers}
        self.ends = {var for var in [*ends, *self.outputs] if isinstance(var, Var)}
        self.jaxpr = jaxpr
        self.with_gradient = _differentiable(self.makers, self.outputs)
        self.from_x = self.following(self.x)
        self._cache: BoundedCache[Any, Any] = BoundedCache()

    def cut(self, name: str) -> Cut:
        """Return the cut at a layer's output."""
        layer = self.layers[name]
        cut: Cut = self._cache.get(("cut", layer), lambda: Cut(self, layer))
        return cut

    def tensor(self, x: Array) -> jax.Array:
        """Return the input as the graph takes it."""
        return jnp.asarray(x, self.x.aval.dtype)

    def named(self, outputs: Sequence[jax.Array]) -> dict[str, Array]:
        """Return outputs by name."""
        return dict(zip(self.output_activations, map(float32, outputs), strict=True))

    def run(self, key: Any, feeds: Sequence[Var], fetches: Sequence[Any]) -> Callable[..., list[jax.Array]]:
        """Return the compiled function from the values of `feeds` to those of `fetches`, compiled once for `key`."""

        def compiled() -> Callable[..., list[jax.Array]]:
            part = _Part(self, feeds, fetches)
            function = jax.jit(part)
            return lambda *values: function(part.weights(), list(values))

        result: Callable[..., list[jax.Array]] = self._cache.get(("run", key), compiled)
        return result

    def token_shares(self, names: Sequence[str], x: Array) -> dict[str, dict[str, float]]:
        """Return for each output the share of each layer's tokens at which its gradient arrives, for an input."""
        variables = {self.layers[name]: name for name in names}
        outputs = {
            name: v for name, v in zip(self.output_activations, self.outputs, strict=True) if isinstance(v, Var)
        }
        zeros = {name: jnp.zeros(shape_of(var), _aval(var).dtype) for var, name in variables.items()}

        def run(values: dict[Any, Any], perturbations: dict[str, jax.Array]) -> list[jax.Array]:
            for equation in self.jaxpr.eqns:
                inputs = _inputs(equation)
                alone = self.jaxpr.replace(constvars=[], invars=inputs, outvars=equation.outvars, eqns=[equation])
                results = jax.core.eval_jaxpr(alone, [], *(values[var] for var in inputs))
                for var, value in zip(equation.outvars, results, strict=True):
                    values[var] = value + perturbations[variables[var]] if var in variables else value
            return [values[v] for v in outputs.values()]

        @jax.jit
        def shares(weights: list[Any], x: jax.Array) -> dict[str, dict[str, jax.Array]]:
            known: dict[Any, Any] = {self.x: x, **dict(zip(self.roots, weights, strict=True))}
            results, transpose = jax.vjp(lambda perturbations: run(known, perturbations), zeros)
            of_outputs = {}
            for k, output in enumerate(outputs):
                cotangents = [jnp.zeros_like(z) for z in results]
                mixture = 1 + jax.random.uniform(jax.random.key(0), results[k].shape)
                cotangents[k] = mixture.astype(results[k].dtype)
                (gradients,) = transpose(cotangents)
                of_outputs[output] = {name: (g != 0).any(-1).mean() for name, g in gradients.items()}
            return of_outputs

        weights = [root.value if isinstance(root, keras.Variable) else root for root in self.roots.values()]
        return {  # a layer and its last part are one variable
            output: {name: float(of_output[variables[self.layers[name]]]) for name in names}
            for output, of_output in shares(weights, self.tensor(x)).items()
        }

    def ancestors(self, ends: Iterable[Any], stop: Iterable[Var] = ()) -> set[Var]:
        """Return `ends` and the variables that they are computed from, except those that only `stop` needs."""
        starts = [var for var in ends if isinstance(var, Var)]
        return set(reachable(starts, lambda var: _inputs(self.makers[var]) if var in self.makers else (), set(stop)))

    def following(self, start: Var) -> set[Var]:
        """Return the variables that are computed from `start`, and `start`."""
        result = {start}
        for equation in self.jaxpr.eqns:
            if not result.isdisjoint(_inputs(equation)):
                result.update(equation.outvars)
        return result


class _Part:
    """The equations that lead from some variables to others, as a function of weights and values."""

    def __init__(self, graph: Graph, feeds: Sequence[Var], fetches: Sequence[Any]) -> None:
        needed = graph.ancestors(fetches, stop=feeds)
        self.roots = {var: root for var, root in graph.roots.items() if var in needed and var not in feeds}
        computed = needed - set(feeds)
        self._jaxpr = graph.jaxpr.replace(
            constvars=[],
            invars=[*self.roots, *feeds],
            outvars=list(fetches),
            eqns=[_without(e, feeds) for e in graph.jaxpr.eqns if not computed.isdisjoint(e.outvars)],
        )

    def weights(self) -> list[Any]:
        """Return the current values of the model's variables."""
        return [root.value if isinstance(root, keras.Variable) else root for root in self.roots.values()]

    def __call__(self, weights: Sequence[Any], values: Sequence[Any]) -> list[Any]:
        return jax.core.eval_jaxpr(self._jaxpr, [], *weights, *values)


def _without(equation: JaxprEqn, feeds: Sequence[Var]) -> JaxprEqn:
    """Return the equation with its results among `feeds` dropped: their values are fed."""
    if not any(var in feeds for var in equation.outvars):
        return equation
    outvars = [DropVar(var.aval) if var in feeds else var for var in equation.outvars]
    result: JaxprEqn = equation.replace(outvars=outvars)
    return result


def _inputs(equation: JaxprEqn) -> list[Var]:
    return [v for v in equation.invars if isinstance(v, Var)]


class Cut:
    """A graph, cut open at one layer.

    Attributes:
        layer: the layer's variable.
        bypass: the variables that are computed from the input, but not from the layer, and that the tail reads.
        backward: the compiled product of the tail's transpose and one cotangent for each output.
    """

    def __init__(self, graph: Graph, layer: Var) -> None:
        behind = graph.following(layer)
        ahead = graph.from_x - behind
        read = {v for e in graph.jaxpr.eqns if not behind.isdisjoint(e.outvars) for v in _inputs(e)}
        read |= {var for var in graph.outputs if isinstance(var, Var)}  # an output that does not depend on the layer
        bypass = ahead & read & graph.ancestors(graph.outputs, stop=[layer, *ahead])
        self.layer = layer
        self.bypass = [v for v in [graph.x, *(v for e in graph.jaxpr.eqns for v in e.outvars)] if v in bypass]
        self.graph = graph
        self._head = _Part(graph, [graph.x], [layer, *self.bypass])
        self._tail = _Part(graph, [layer, *self.bypass], graph.outputs)
        self._forward = jax.jit(self._run_forward, static_argnums=0)
        self._resume = jax.jit(self._run_tail, static_argnums=0)
        self.backward = jax.jit(lambda transpose, v: transpose(v)[0])

    def forward(self, differentiate: bool, x: jax.Array) -> Any:
        """Run from the input; return outputs, the layer's value, bypass values, and the tail's transpose or None."""
        return self._forward(differentiate, self._head.weights(), self._tail.weights(), x)

    def resume(self, differentiate: bool, value: jax.Array, bypass: Sequence[jax.Array]) -> Any:
        """Run from the layer's value; return outputs, and the tail's transpose or None."""
        return self._resume(differentiate, self._tail.weights(), value, list(bypass))

    def head(self, x: jax.Array) -> list[jax.Array]:
        """Return the bypass values for an input."""
        return self.graph.run(("head", self.layer), [self.graph.x], self.bypass)(x)

    def _run_forward(self, differentiate: bool, head: list[Any], tail: list[Any], x: jax.Array) -> Any:
        value, *bypass = self._head(head, [x])
        outputs, transpose = self._run_tail(differentiate, tail, value, bypass)
        return outputs, value, bypass, transpose

    def _run_tail(self, differentiate: bool, weights: list[Any], value: jax.Array, bypass: list[Any]) -> Any:
        def tail(a: jax.Array) -> list[jax.Array]:
            return self._tail(weights, [a, *bypass])

        return jax.vjp(tail, value) if differentiate else (tail(value), None)


def _makers(jaxpr: Jaxpr) -> dict[Var, JaxprEqn]:
    return {var: equation for equation in jaxpr.eqns for var in equation.outvars}


def _differentiable(makers: Mapping[Var, JaxprEqn], ends: Iterable[Any]) -> set[Var]:
    """Return `ends` and the variables to which a gradient leads from them."""

    def sources(var: Var) -> list[Var]:
        equation = makers.get(var)
        if equation is None or equation.primitive.name in STEPS:
            return []
        inputs = [v for v in _inputs(equation) if _is_float(v.aval)]
        inner = equation.params.get("jaxpr") if equation.primitive.name in CALLS else None
        if inner is None:
            return inputs
        inner = getattr(inner, "jaxpr", inner)
        reached = _differentiable(_makers(inner), [inner.outvars[equation.outvars.index(var)]])
        pairs = zip(inner.invars, equation.invars, strict=True)
        return [outside for inside, outside in pairs if inside in reached and isinstance(outside, Var)]

    return set(reachable([var for var in ends if isinstance(var, Var) and _is_float(var.aval)], sources))


def _logits(makers: Mapping[Any, JaxprEqn], output: Any) -> tuple[Any, str | None]:
    """Return the input of the softmax or sigmoid that computes the output, and its name; else the output and None."""
    return cut_activation(output, partial(_activation_of, makers))


def _activation_of(makers: Mapping[Any, JaxprEqn], var: Any) -> tuple[str | None, Any] | None:
    """See xcam.contract.outputs.cut_activation."""
    equation = makers.get(var) if isinstance(var, Var) else None
    if equation is None:
        return None
    source = equation.invars[0] if equation.invars else None
    if equation.primitive.name in STORAGE_ONLY:
        return (None, source) if source is not None and _is_float(source.aval) else None
    if equation.primitive.name == "logistic":
        return "sigmoid", source
    softmax_input = _softmax_input(makers, equation)
    if softmax_input is not None:
        return "softmax", softmax_input
    for inner in (equation.params[key] for key in INNER if key in equation.params):
        inner = getattr(inner, "jaxpr", inner)
        logits, kind = _logits(_makers(inner), inner.outvars[equation.outvars.index(var)])
        if kind and logits in inner.invars:
            return kind, equation.invars[inner.invars.index(logits)]
    return None


def _softmax_input(makers: Mapping[Any, JaxprEqn], equation: JaxprEqn) -> Any:
    """Return z where the equation is the last of exp(z − max z) / Σ exp(z − max z); else None."""
    if equation.primitive.name != "div":
        return None
    above = _through(makers, equation.invars[0], STORAGE_ONLY)
    below = _through(makers, equation.invars[1], BROADCAST)
    if not (_made_by(makers, above, "exp") and _made_by(makers, below, "reduce_sum")):
        return None
    if _through(makers, makers[below].invars[0], STORAGE_ONLY) is not above:
        return None
    power = makers[above].invars[0]
    if not _made_by(makers, power, "sub"):
        return power
    z, top = makers[power].invars
    top = _through(makers, top, ("stop_gradient", "max", *BROADCAST))
    return z if _made_by(makers, top, "reduce_max") and makers[top].invars[0] is z else power


def _made_by(makers: Mapping[Any, JaxprEqn], var: Any, primitive: str) -> bool:
    return isinstance(var, Var) and var in makers and makers[var].primitive.name == primitive


def _through(makers: Mapping[Any, JaxprEqn], var: Any, primitives: Sequence[str]) -> Any:
    """Return the variable behind equations of these kinds; of the maximum with a number, the other operand."""
    while isinstance(var, Var) and var in makers and makers[var].primitive.name in primitives:
        var = next(iter(_inputs(makers[var])), None)
    return var


def _is_float(value: Any) -> bool:
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating)


def shape_of(var: Var) -> tuple[int, ...]:
    """Return the shape of a variable's value."""
    return tuple(_aval(var).shape)


def _aval(var: Var) -> Any:
    return var.aval


def float32(tensor: jax.Array) -> Array:
    """Return a float32 NumPy copy."""
    return np.array(tensor, np.float32)
