"""The scaling that a module computes itself: seen at its first part with a kernel, in a run that ends there."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from xcam.contract import Array, InputSpec, scaling
from xcam.contract.preprocessing import Preprocessing
from xcam_torch.guard import device_and_dtype, modules_of, random_state, undisturbed
from xcam_torch.outputs import first_float, float32


class _Reached(BaseException):
    """Ends a run at the first part with a kernel. A module's own code may catch `Exception`."""


def computed(module: nn.Module, spec: InputSpec, batch: int | None = None) -> Preprocessing | None:
    """Return the preprocessing that the module's own scaling needs: see xcam.contract.scaling.computed.

    Args:
        module: the module; it is not changed.
        spec: its input.
        batch: the batch size that it is fixed to; None: any.
    """
    try:
        kernels = [part for part in modules_of(module) if part is not module and _has_kernel(part)]
        device, dtype = device_and_dtype(module)

        def reach(x: Array) -> Array | None:
            tensor = torch.from_numpy(np.repeat(x.astype(np.float32), batch or 1, 0)).to(device, dtype)
            return _reaching(module, kernels, tensor)

        with undisturbed(module), random_state(module):
            return scaling.computed(spec, reach) if kernels else None
    except (Exception, SystemExit):  # it does not run on such an input
        return None


def _reaching(module: nn.Module, kernels: list[nn.Module], x: Tensor) -> Array | None:
    """Return the value that the first part with a kernel receives."""
    received: list[Tensor | None] = []
    thread = threading.get_ident()

    def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
        if threading.get_ident() == thread:
            received.append(first_float([args, kwargs]))
            raise _Reached

    with contextlib.ExitStack() as stack:
        for part in kernels:
            stack.callback(part.register_forward_pre_hook(enter, with_kwargs=True).remove)
        with contextlib.suppress(_Reached):
            module(x)
    return float32(received[0]) if received and received[0] is not None else None


def _has_kernel(module: nn.Module) -> bool:
    """Return whether a module is a convolution, or linear, or a leaf with a weight of several axes."""
    if isinstance(module, torch.jit.ScriptModule):  # it takes no hooks
        return False
    if isinstance(module, _ConvNd | nn.Linear):
        return True
    if module._modules or isinstance(module, nn.LayerNorm):
        return False
    return any(p is not None and sum(n != 1 for n in p.shape) > 1 for p in module._parameters.values())
