"""A model as equations (its jaxpr) for batches of one shape, and parts of them: what makes a value, what follows one."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxpr_as_fun
from jax.interpreters.partial_eval import dce_jaxpr

from xcam_jax import Function

HANDED_ON = ("name", "convert_element_type", "broadcast_in_dim", "reshape")
_tracing = threading.Lock()


class Graph:
    """layers: by name, in execution order, the variable and its kind. ends: the outputs' variables, each under the
    softmax or sigmoid that `activations` says, by the output's name."""

    def __init__(self, model: Function, shape: tuple[int, ...]) -> None:
        names: list[str] = []

        def flat(params: Any, x: Any) -> list[Any]:
            said = model.fn(x) if params is None else model.fn(params, x)
            parts = dict(said if isinstance(said, Mapping) else enumerate(jax.tree.leaves(said)))
            names.extend(map(str, parts))
            return list(parts.values())

        with _tracing, jax.disable_jit():  # so that jitted functions are written out, and the names in them found
            self.whole = jax.make_jaxpr(flat)(model.params, jax.ShapeDtypeStruct(shape, jnp.float32))
        self.made = {id(var): eqn for eqn in self.whole.eqns for var in eqn.outvars}
        self.ends, kinds = zip(*map(self._end, self.whole.jaxpr.outvars), strict=True)
        self.activations = dict(zip(names, kinds, strict=True))
        named = [(eqn.params["name"], eqn.outvars[0]) for eqn in self.whole.eqns if eqn.primitive.name == "name"]
        named = [
            pair for pair in named if len(pair[1].aval.shape) > 1 and jnp.issubdtype(pair[1].aval.dtype, jnp.floating)
        ]
        words, self.layers = [word for word, _ in named], {}
        for k, (word, var) in enumerate(named):
            name, _, kind = word.partition(":")
            name += f"#{words[:k].count(word)}" if word in words[k + 1 :] else ""  # the last call has no number
            self.layers[name] = var, kind or name

    def run(self, wanted: Sequence[Any], params: Any, x: Any, given: Any = None, *value: Any) -> list[Any]:
        """The values of variables; with `value` in place of what makes the variable `given`."""
        function = jaxpr_as_fun(ClosedJaxpr(self.part(wanted, given), self.whole.consts))
        return function(*jax.tree.leaves(params), x, *value)

    def part(self, wanted: Sequence[Any], given: Any = None) -> Jaxpr:
        """The equations that make `wanted` from params and x, and from the variable `given` if there is one."""
        whole = self.whole.jaxpr
        eqns = [eqn for eqn in whole.eqns if given not in eqn.outvars]
        inputs, info = [*whole.invars, *([given] if given else [])], whole.debug_info.with_unknown_names()
        part = Jaxpr(whole.constvars, inputs, [*wanted], eqns, debug_info=info)
        return dce_jaxpr(part, [True] * len(wanted), instantiate=True)[0]

    def is_output(self, var: Any) -> bool:
        """A layer's value is an output, or the logits under one."""
        return self._before(var)[:1] in [self._before(end)[:1] for end in (*self.whole.jaxpr.outvars, *self.ends)]

    def reaches_output(self, var: Any) -> bool:
        """Some path leads from a layer to an output."""
        tail = self.part(self.ends, var)
        return any(var is atom for atoms in (tail.outvars, *(eqn.invars for eqn in tail.eqns)) for atom in atoms)

    def _end(self, var: Any) -> tuple[Any, str | None]:
        """The variable under the softmax or sigmoid that made an output, and which it is; else its own, and None."""
        eqns = self._before(var)
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
        """The last three equations that led to a value, along first operands, the last one first."""
        found: list[JaxprEqn] = []
        while len(found) < 3 and (eqn := self.made.get(id(var))):
            found += [] if eqn.primitive.name in HANDED_ON else [eqn]
            var = next(iter(eqn.invars), None)
        return found
