"""The conformance suite of xcam: for Flax NNX modules in training mode, and for functions that name their values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xcam_jax
from flax import nnx

from xcam.testing import Conformance, Network, Step


def conv(x: Any, kernel: Any, bias: Any) -> Any:
    """Channels last; the kernel is [out, in, k, k]."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "OIHW", "NHWC")) + bias


def tokens(x: Any, first: Any) -> Any:
    """[N, H, W, C] → [N, 1 + H·W, C], the class token first."""
    positions = x.reshape(len(x), -1, x.shape[-1])
    return jnp.concatenate([jnp.broadcast_to(first, (len(x), 1, len(first))), positions], axis=1)


def norm(x: Any, scale: Any, shift: Any) -> Any:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + 1e-6) * scale + shift


def attend(x: Any, wq: Any, wk: Any, wv: Any) -> Any:
    """x + softmax(q·kᵀ/√C)·v."""
    q, k, v = (x @ w.T for w in (wq, wk, wv))
    return x + jax.nn.softmax(q @ k.swapaxes(1, 2) / np.sqrt(x.shape[-1])) @ v


OPS: dict[str, Callable[..., Any]] = {
    "conv": conv,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "pool": lambda x: nnx.max_pool(x, (2, 2), (2, 2)),
    "mean": lambda x: x.mean((1, 2)),
    "dense": lambda x, kernel, bias: x @ kernel.T + bias,
    "add": jnp.add,
    "concat": lambda *values: jnp.concatenate(values, axis=-1),
    "softmax": jax.nn.softmax,
    "tokens": tokens,
    "norm": norm,
    "attend": attend,
    "first": lambda x: x[:, 0],
}


class Part(nnx.Module):
    """A step without a layer of Flax's own."""

    def __init__(self, step: Step) -> None:
        self.op = step.op
        self.weights = nnx.List([nnx.Param(jnp.asarray(w)) for w in step.weights])

    def __call__(self, *values: Any) -> Any:
        return OPS[self.op](*values, *(w[...] for w in self.weights))


def part(step: Step) -> nnx.Module:
    """Return the step as a layer of Flax where it has one."""
    rngs = nnx.Rngs(0)
    match step.op, step.weights:
        case "conv", (kernel, bias):
            layer: Any = nnx.Conv(kernel.shape[1], len(bias), kernel.shape[2:], rngs=rngs)
            layer.kernel[...], layer.bias[...] = kernel.transpose(2, 3, 1, 0), bias
        case "dense", (kernel, bias):
            layer = nnx.Linear(kernel.shape[1], len(bias), rngs=rngs)
            layer.kernel[...], layer.bias[...] = kernel.T, bias
        case "norm", (scale, shift):
            layer = nnx.LayerNorm(len(scale), rngs=rngs)
            layer.scale[...], layer.bias[...] = scale, shift
        case _:
            layer = Part(step)
    return layer


class Parts(nnx.Module):
    """Steps under their names; those of a scope are a nested module."""

    def __init__(self, steps: tuple[Step, ...], scope: str = "") -> None:
        self.steps, self.scope = steps, scope
        for name in {step.name.removeprefix(scope) for step in steps}:
            inner, slash, _ = name.partition("/")
            if slash:
                inside = tuple(step for step in steps if step.name.startswith(f"{scope}{inner}/"))
                setattr(self, inner, Parts(inside, f"{scope}{inner}/"))
            else:
                setattr(self, name, part(next(step for step in steps if step.name == scope + name)))

    def __call__(self, values: dict[str, Any]) -> dict[str, Any]:
        values, entered = dict(values), set()
        for step in self.steps:
            inner, slash, _ = step.name.removeprefix(self.scope).partition("/")
            if not slash:
                values[step.name] = getattr(self, inner)(*(values[name] for name in step.inputs))
            elif inner not in entered:
                entered.add(inner)
                values |= getattr(self, inner)(values)
        return values


class Net(nnx.Module):
    def __init__(self, network: Network) -> None:
        self.outputs, self.parts = network.outputs, Parts(network.steps)

    @nnx.jit
    def __call__(self, x: Any) -> Any:
        values = self.parts({"x": x})
        outputs = {name: values[name] for name in self.outputs}
        return outputs if len(outputs) > 1 else next(iter(outputs.values()))


class TestModules(Conformance):
    def build(self, network: Network) -> nnx.Module:
        model = Net(network)
        model.train()
        return model

    def layer(self, name: str) -> str:
        return "parts." + name.replace("/", ".")

    def snapshot(self, native: nnx.Module) -> Any:
        return snapshot(native)


def snapshot(native: nnx.Module) -> Any:
    """Return the structure with its static attributes, the weights, and the functions that calls of its classes run."""
    definition, state = nnx.split(native)
    calls = [(type(part), type(part).__call__) for _, part in nnx.iter_modules(native) if callable(part)]
    return definition, [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)], calls


class TestFunctions(Conformance):
    """jitted, its weights in a dict."""

    def build(self, network: Network) -> xcam_jax.Function:
        @jax.jit
        def call(params: dict[str, Any], x: Any) -> Any:
            values = {"x": x}
            for step in network.steps:
                value = OPS[step.op](*(values[name] for name in step.inputs), *params[step.name])
                values[step.name] = xcam_jax.layer(step.name, value)
            return {name: values[name] for name in network.outputs}

        return xcam_jax.Function(call, {step.name: step.weights for step in network.steps})

    def snapshot(self, native: xcam_jax.Function) -> Any:
        return native.fn, [leaf.tobytes() for leaf in jax.tree.leaves(native.params)]
