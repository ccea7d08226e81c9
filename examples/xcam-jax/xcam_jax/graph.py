"""A model as equations (its jaxpr) for batches of one shape, and parts of them: the head and the tail of a layer."""

import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import DropVar, Jaxpr, JaxprEqn, Var
from jax.interpreters.partial_eval import dce_jaxpr

from xcam.contract.graphs import call_names, cuts
from xcam_jax import Function

STORAGE_ONLY = ("name", "convert_element_type", "broadcast_in_dim", "reshape")
_tracing = threading.Lock()


class Graph:
    """The equations, and the variables of layers and outputs.

    Attributes:
        layers: by name, in execution order, the variable and its kind.
        ends: the variable of each output, under the softmax or sigmoid that is cut off.
        activations: the softmax or sigmoid that is cut off each output, by name.
    """

    def __init__(self, model: Function, shape: tuple[int, ...]) -> None:
        names: list[str] = []

        def flat(params: Any, x: Any) -> list[Any]:
            outputs = model.fn(x) if params is None else model.fn(params, x)
            parts = dict(outputs if isinstance(outputs, Mapping) else enumerate(jax.tree.leaves(outputs)))
            names.extend(map(str, parts))
            return list(parts.values())

        with _tracing, jax.disable_jit():  # jitted functions are written out, with the names in them
            self.whole = jax.make_jaxpr(flat)(model.params, jax.ShapeDtypeStruct(shape, jnp.float32))
        self.producers = {id(var): eqn for eqn in self.whole.eqns for var in eqn.outvars}
        self.ends, kinds = zip(*map(self._end, self.whole.jaxpr.outvars), strict=True)
        self.activations = dict(zip(names, kinds, strict=True))
        named = [(eqn.params["name"], eqn.outvars[0]) for eqn in self.whole.eqns if eqn.primitive.name == "name"]
        named = [
            pair for pair in named if len(pair[1].aval.shape) > 1 and jnp.issubdtype(pair[1].aval.dtype, jnp.floating)
        ]
        self.layers = {}
        for call, (label, var) in zip(
            call_names([label.partition(":")[0] for label, _ in named]), named, strict=True
        ):
            self.layers[call] = var, label.partition(":")[2] or call

    @cached_property
    def cuts(self) -> set[Any]:
        """The variables through which every path from the input to the first output leads."""
        order = [*self.whole.jaxpr.invars, *(var for eqn in self.whole.eqns for var in eqn.outvars)]
        read = {var: _variables(eqn.invars) for eqn in self.whole.eqns for var in eqn.outvars}
        return cuts(order, lambda var: read.get(var, ()), self.whole.jaxpr.invars[-1], self.ends[0])

    def run(
        self,
        wanted: Sequence[Any],
        params: Any,
        x: Any,
        constants: Mapping[Any, Any],
        shifts: Mapping[Any, Any],
    ) -> list[Any]:
        """Return the values of variables.

        Args:
            wanted: the variables.
            params: the parameters.
            x: the input.
            constants: values of variables, used instead of those that are computed.
            shifts: numbers that are added to the values of variables.
        """
        values: dict[Any, Any] = {}

        def keep(variables: Sequence[Any], results: Sequence[Any]) -> None:
            for var, value in zip(variables, results, strict=True):
                values[var] = value + shifts[var] if var in shifts else value

        whole = self.whole.jaxpr
        keep([*whole.constvars, *whole.invars], [*self.whole.consts, *jax.tree.leaves(params), x])
        keep([*constants], [*constants.values()])
        for eqn in self.part(wanted, [*constants]).eqns:
            read, written = _variables(eqn.invars), [v for v in eqn.outvars if not isinstance(v, DropVar)]
            alone = whole.replace(constvars=[], invars=read, outvars=written, eqns=[eqn])
            keep(written, jax.core.eval_jaxpr(alone, [], *(values[var] for var in read)))
        return [values[var] for var in wanted]

    def part(self, wanted: Sequence[Any], constants: Sequence[Any] = ()) -> Jaxpr:
        """Return the equations that compute `wanted` from params and x, and from the variables `constants`."""
        whole = self.whole.jaxpr
        eqns = [eqn for eqn in whole.eqns if not any(var in constants for var in eqn.outvars)]
        inputs, info = [*whole.invars, *constants], whole.debug_info.with_unknown_names()
        part = Jaxpr(whole.constvars, inputs, [*wanted], eqns, debug_info=info)
        return dce_jaxpr(part, [True] * len(wanted), instantiate=True)[0]

    def is_output(self, var: Any) -> bool:
        """Return whether a layer's value is an output, or the logits under one."""
        return self._before(var)[:1] in [self._before(end)[:1] for end in (*self.whole.jaxpr.outvars, *self.ends)]

    def reaches_output(self, var: Any) -> bool:
        """Return whether a path leads from a layer to an output."""
        tail = self.part(self.ends, [var])
        return any(var is atom for atoms in (tail.outvars, *(eqn.invars for eqn in tail.eqns)) for atom in atoms)

    def _end(self, var: Any) -> tuple[Any, str | None]:
        """Return the variable under the softmax or sigmoid of an output, and which it is; else the output's, and None."""
        eqns: list[Any] = self._before(var)
        match [eqn.primitive.name for eqn in eqns]:
            case ["logistic", *_]:
                return eqns[0].invars[0], "sigmoid"
            case ["div", "exp", "sub"]:  # e / Σ e, where e = exp(z − max z)
                (_, total), (z, highest) = eqns[0].invars, eqns[2].invars
                rows = {total.aval.shape[-1:], highest.aval.shape[-1:]} == {(1,)}
                if rows and self._before(total)[1:2] == eqns[1:2]:
                    return z, "softmax"
        return var, None

    def _before(self, var: Any) -> list[JaxprEqn]:
        """Return the last three equations that compute a value, along first operands, the last one first."""
        equations: list[JaxprEqn] = []
        while len(equations) < 3 and (eqn := self.producers.get(id(var))):
            equations += [] if eqn.primitive.name in STORAGE_ONLY else [eqn]
            var = next(iter(eqn.invars), None)
        return equations


def _variables(atoms: Sequence[Any]) -> list[Any]:
    return [*dict.fromkeys(atom for atom in atoms if isinstance(atom, Var))]
