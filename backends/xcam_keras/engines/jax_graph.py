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
from xcam.contract.graphs import cuts, reachable
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

    def cut(self, at: Sequence[str], constants: Sequence[str] = ()) -> Cut:
        """Return the cut at some layers, from the input on or from given values of other layers on."""
        cut: Cut = self._cache.get(("cut", *constants, "", *at), lambda: Cut(self, at, constants))
        return cut

    def passed(self, output: str) -> set[Var]:
        """Return the variables through which every path from the input to an output leads."""
        end = dict(zip(self.output_activations, self.outputs, strict=True))[output]
        order = [self.x, *self.makers]
        return cuts(order, lambda var: _inputs(self.makers[var]) if var in self.makers else (), self.x, end)

    def tensor(self, x: Array) -> jax.Array:
        """Return the input as the graph takes it."""
        return jnp.asarray(x, self.x.aval.dtype)

    def value(self, layer: str, value: Array) -> jax.Array:
        """Return a layer's value as the graph takes it."""
        return jnp.asarray(value, _aval(self.layers[layer]).dtype)

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

    def __call__(
        self, weights: Sequence[Any], values: Sequence[Any], shifts: Mapping[Var, Any] | None = None
    ) -> list[Any]:
        """Return the fetched values; `shifts` are added to the values of variables."""
        if not shifts:
            return jax.core.eval_jaxpr(self._jaxpr, [], *weights, *values)
        known: dict[Any, Any] = {}

        def keep(variables: Sequence[Any], results: Sequence[Any]) -> None:
            for var, value in zip(variables, results, strict=True):
                known[var] = value + shifts[var] if var in shifts else value

        keep(self._jaxpr.invars, [*weights, *values])
        for equation in self._jaxpr.eqns:
            inputs = list(dict.fromkeys(_inputs(equation)))
            wanted = [var for var in equation.outvars if not isinstance(var, DropVar)]
            alone = self._jaxpr.replace(constvars=[], invars=inputs, outvars=wanted, eqns=[equation])
            keep(wanted, jax.core.eval_jaxpr(alone, [], *(known[var] for var in inputs)))
        return [known[v] if isinstance(v, Var) else v.val for v in self._jaxpr.outvars]


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
    """A graph, cut open at some layers: from the input on, or from given values of other layers on.

    Attributes:
        at: the layers' variables by name.
        bypass: the variables that are not computed from the given ones, and that the tail reads.
        without_gradient: the name of a layer from which no gradient leads to an output; None: there is none.
        backward: the compiled product of the transpose and one cotangent for each output: the gradient of each of `at`.
    """

    def __init__(self, graph: Graph, at: Sequence[str], constants: Sequence[str]) -> None:
        self.graph, self._key = graph, (*constants, "", *at)
        self.at = {name: graph.layers[name] for name in at}
        fed = list(dict.fromkeys(graph.layers[name] for name in constants))
        self._starts = list(dict.fromkeys(self.at.values()))
        ends = [*graph.outputs, *self.at.values()]
        self.bypass = self._bypass(fed, ends) if constants else []
        self._part = _Part(graph, [*fed, *self.bypass] if constants else [graph.x], ends)
        self._run = jax.jit(self._run_part, static_argnums=0)
        self.backward = jax.jit(self._run_backward)
        makers = {var: equation for var, equation in graph.makers.items() if var not in fed}
        reached = _differentiable(makers, graph.outputs)
        self.without_gradient = next((name for name, var in self.at.items() if var not in reached), None)

    def _bypass(self, fed: Sequence[Var], ends: Sequence[Any]) -> list[Var]:
        graph = self.graph
        order = [graph.x, *(v for e in graph.jaxpr.eqns for v in e.outvars)]
        behind = {var for start in fed for var in graph.following(start)}
        for var in order:  # a layer that is not behind the given values is taken; what is computed from it is not
            if var in self._starts and var not in behind:
                behind |= graph.following(var) - {var}
        ahead = graph.from_x - behind - set(fed)
        read = {v for e in graph.jaxpr.eqns if not behind.isdisjoint(e.outvars) for v in _inputs(e)}
        read |= {var for var in ends if isinstance(var, Var)}  # an output that does not depend on the layer
        bypass = ahead & read & graph.ancestors(ends, stop=[*fed, *ahead])
        return [v for v in order if v in bypass]

    def run(self, differentiate: bool, values: Sequence[jax.Array]) -> Any:
        """Run from the input, or from the given and the bypass values; return outputs, the layers' values, the transpose.

        The transpose is None where gradients are not asked for.
        """
        return self._run(differentiate, self._part.weights(), list(values))

    def head(self, x: jax.Array) -> list[jax.Array]:
        """Return the bypass values for an input."""
        return self.graph.run(("head", self._key), [self.graph.x], self.bypass)(x)

    def _run_part(self, differentiate: bool, weights: list[Any], values: list[Any]) -> Any:
        count = len(self.graph.outputs)

        def part(shifts: list[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
            results = self._part(weights, values, dict(zip(self._starts, shifts, strict=False)))
            return results[:count], results[count:]

        if not differentiate:
            return *part([]), None
        zeros = [jnp.zeros(shape_of(var), _aval(var).dtype) for var in self._starts]
        outputs, transpose, layers = jax.vjp(part, zeros, has_aux=True)
        return outputs, layers, transpose

    def _run_backward(self, transpose: Any, v: list[jax.Array]) -> dict[str, jax.Array]:
        (gradients,) = transpose(v)
        return {name: gradients[self._starts.index(var)] for name, var in self.at.items()}


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
