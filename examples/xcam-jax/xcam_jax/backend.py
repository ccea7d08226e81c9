"""Load a Flax NNX module, a function or `demo` as a model behind the contract."""

from functools import cache
from typing import Any

import jax
from flax import nnx

from xcam import InputError, InputSpec
from xcam.contract.messages import own_weights, unknown_device
from xcam.models import demo
from xcam_jax import Function, layer
from xcam_jax.model import JaxModel


class JaxBackend:
    """The JAX backend. See xcam.contract.Backend."""

    def load(
        self, source: Any, *, size: Any = None, device: Any = None, layout: Any = None, weights: Any = None
    ) -> Any:
        """Load `demo`, a live nnx.Module, a Function, or another callable that takes a batch."""
        if weights is not None:
            raise own_weights("a model in JAX", weights)
        try:
            target = jax.devices(device)[0] if device else None
        except RuntimeError as error:
            raise unknown_device(device, "JAX", map(str, jax.devices())) from error
        if source == "demo":
            network = demo.network()
            spec = InputSpec(network.size, layout="channels_last", preprocessing=network.preprocessing, fixed=True)
            return JaxModel(Function(_demo, network.weights), "demo", spec, target, network.labels)
        function = source if isinstance(source, Function) else Function(source)
        if not callable(function.fn):
            raise InputError(
                f"cannot call a {type(function.fn).__name__}; give a module or function that takes a batch"
            )
        name = getattr(function.fn, "__name__", type(source).__name__)
        if isinstance(source, nnx.Module):
            function = naming(source)
        return JaxModel(function, name, InputSpec(size, function.channels, layout or "channels_last"), target)


def naming(module: nnx.Module) -> Function:
    """Return a copy of the module, in evaluation mode, as a function that names the values of its submodules."""
    definition, state = nnx.split(module)

    def call(state: Any, x: Any) -> Any:
        copy: Any = nnx.merge(definition, state)
        copy.eval()
        part: Any
        for path, part in nnx.iter_modules(copy):
            if path and callable(part):
                part.xcam_name = ".".join(map(str, path))
                object.__setattr__(part, "__class__", _named(type(part)))  # type: ignore[arg-type] # classes are hashable
        return copy(x)

    inputs = [part.in_features for _, part in nnx.iter_modules(module) if isinstance(part, nnx.Conv)]
    return Function(call, state, min(inputs, default=3))


@cache
def _named(kind: Any) -> type:
    """Return a subclass whose calls name the value that they return; of several values, the first."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        parts, tree = jax.tree.flatten(kind.__call__(self, *args, **kwargs))
        named = [layer(self.xcam_name, part, kind.__name__) for part in parts[:1]]
        return jax.tree.unflatten(tree, named + parts[1:])

    return type(kind.__name__, (kind,), {"__call__": call})


def _demo(params: Any, x: Any) -> Any:
    """The demo network. Its file stores kernels as [out, in, *space]."""
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
