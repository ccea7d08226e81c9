"""xcam for JAX: unmodified Flax NNX modules, and functions whose values are named with `layer`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def layer(name: str, value: Any, kind: str = "") -> Any:
    """Return `value` itself, as a layer for xcam. It is the identity, under jit, grad and vmap too."""
    from jax.ad_checkpoint import checkpoint_name  # here: xcam reads plugin.py, and so this file, without JAX

    return checkpoint_name(value, f"{name}:{kind}" if kind else name)


@dataclass(frozen=True)
class Function:
    """`fn(params, x)`, or `fn(x)` without params. x: [N, H, W, channels]; returns scores, or a dict or tuple of them."""

    fn: Callable[..., Any]
    params: Any = None
    channels: int = 3
