"""From a Flax NNX module, a function, or `demo`, to a model behind the contract."""

from functools import cache
from typing import Any

import jax
from flax import nnx

from xcam import InputError, InputSpec
from xcam.models import demo
from xcam_jax import Function, layer
from xcam_jax.model import JaxModel


class JaxBackend:
    """JAX. See xcam.contract.Backend."""

    def load(
        self, source: Any, *, size: Any = None, device: Any = None, layout: Any = None, weights: Any = None
    ) -> Any:
        """`demo`, a live nnx.Module, a Function, or another callable that takes a batch."""
        if weights is not None:
            raise InputError(f"a model in JAX brings its own weights; leave weights={weights!r} out")
        try:
            where = jax.devices(device)[0] if device else None
        except RuntimeError as error:
            raise InputError(f"no device {device!r} here; JAX sees {', '.join(map(str, jax.devices()))}") from error
        if source == "demo":
            known = demo.network()
            spec = InputSpec(known.size, layout="channels_last", preprocessing=known.preprocessing, fixed=True)
            return JaxModel(Function(_demo, known.weights), "demo", spec, where, known.labels)
        function = source if isinstance(source, Function) else Function(source)
        if not callable(function.fn):
            raise InputError(f"a {type(function.fn).__name__} cannot be called; give a module or function of a batch")
        name = getattr(function.fn, "__name__", type(source).__name__)
        if isinstance(source, nnx.Module):
            function = naming(source)
        return JaxModel(function, name, InputSpec(size, function.channels, layout or "channels_last"), where)


def naming(module: nnx.Module) -> Function:
    """The module in evaluation mode, as a function that names what its submodules return. What is called is a copy."""
    definition, state = nnx.split(module)

    def call(state: Any, x: Any) -> Any:
        copy = nnx.merge(definition, state)
        copy.eval()
        for path, part in nnx.iter_modules(copy):
            if path and callable(part):
                part.xcam_name = ".".join(map(str, path))
                object.__setattr__(part, "__class__", _named(type(part)))
        return copy(x)

    inputs = [part.in_features for _, part in nnx.iter_modules(module) if isinstance(part, nnx.Conv)]
    return Function(call, state, min(inputs, default=3))


@cache
def _named(kind: type) -> type:
    """A subclass whose calls name what they return; of several values, the first."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        parts, tree = jax.tree.flatten(kind.__call__(self, *args, **kwargs))
        return tree.unflatten([layer(self.xcam_name, part, kind.__name__) for part in parts[:1]] + parts[1:])

    return type(kind.__name__, (kind,), {"__call__": call})


def _demo(params: Any, x: Any) -> Any:
    """The demo network. Its file keeps kernels as [out, in, *space]."""
    for step in demo.STEPS:
        kernel, bias = params.get(step.name, (None, None))
        match step:
            case demo.Conv():
                x = jax.lax.conv_general_dilated(
                    x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "OIHW", "NHWC")
                )
                x = jax.nn.relu(x + bias)
            case demo.Pool():
                x = nnx.max_pool(x, (2, 2), (2, 2))
            case demo.Mean():
                x = x.mean((1, 2))
            case demo.Dense():
                x = jax.nn.softmax(x @ kernel.T + bias)
        x = layer(step.name, x, type(step).__name__)
    return x
