"""Run a user's module and leave it unchanged: modes, hooks and gradient state are restored, after an exception too."""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import nn
from torch.utils import checkpoint

from xcam.contract.messages import out_of_memory

Hook = Callable[[nn.Module, Any], Any]
"""(module, value) → the value that replaces it, or None."""

OBSERVER = "observer_enabled"
"""The buffer of a torch.ao.quantization.FakeQuantize that switches its observer."""


@dataclass
class _Mode:
    threads: int
    training: bool
    observes: bool
    """Whether a fake quantisation takes its range from the values that it meets, in evaluation mode too."""


_modes: weakref.WeakKeyDictionary[nn.Module, _Mode] = weakref.WeakKeyDictionary()
_lock = threading.Lock()
_eager_threads = 0
_stance: Any = None


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Return every module once.

    Module.modules() does the same ten times slower, and it is needed in each call of a model.
    """
    modules = {model: None}
    queue = [model]
    for module in queue:  # grows during the loop; no function is called for a module, as that takes most of the time
        for part in module._modules.values():
            if part is not None and part not in modules:
                modules[part] = None
                queue.append(part)
    return queue


def unwrapped(module: Any) -> tuple[Any, str]:
    """Return a module without the wrappers for several devices and for compilation, and the name of its class."""
    name = getattr(module, "original_name", type(module).__name__)
    while isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel) or hasattr(module, "_orig_mod"):
        module = module.module if hasattr(module, "module") else module._orig_mod
        name = type(module).__name__
    return module, name


def device_and_dtype(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Return the device and the type of a module's first float parameter or buffer."""
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.float32


def random_state(module: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Return a context that restores torch's random states, of the CPU and of the module's devices, when it ends."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    devices = {tensor.device.index or 0 for tensor in tensors if tensor.device.type == "cuda"}
    context: contextlib.AbstractContextManager[None] = torch.random.fork_rng(sorted(devices))
    return context


@contextlib.contextmanager
def evaluation(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Set every module to evaluation mode. The last of several threads to leave restores each module's own mode.

    The ranges of fake quantisations remain those of their training: otherwise each image would change them.
    """
    changed = []
    with _lock:
        for module in modules:
            observes = OBSERVER in module._buffers and bool(module._buffers[OBSERVER])
            if module.training or observes or module in _modes:
                mode = _modes.setdefault(module, _Mode(0, module.training, observes))
                mode.threads += 1
                module.training = False
                _observe(module, mode, False)
                changed.append(module)
    try:
        yield
    finally:
        with _lock:
            for module in changed:
                mode = _modes[module]
                mode.threads -= 1
                if not mode.threads:
                    module.training = mode.training
                    _observe(module, mode, True)
                    del _modes[module]


def _observe(module: nn.Module, mode: _Mode, enabled: bool) -> None:
    """Switch the observer of a fake quantisation, where it was on."""
    if mode.observes:
        cast(torch.Tensor, module._buffers[OBSERVER]).fill_(enabled)


@contextlib.contextmanager
def hooked(
    modules: Iterable[nn.Module], after: Hook, before: Callable[[nn.Module, Any], None] | None = None
) -> Iterator[None]:
    """Call `after` at the end of the forward of each of `modules`, in this thread alone, and `before` at its start.

    (torch's global hooks would not touch the modules, but run twice where a part is compiled.)
    """
    thread = threading.get_ident()

    def post(module: nn.Module, _: Any, value: Any) -> Any:
        return after(module, value) if threading.get_ident() == thread else None

    def pre(module: nn.Module, arguments: Any) -> None:
        if before is not None and threading.get_ident() == thread:
            before(module, arguments)

    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.callback(nn.Module.register_forward_hook(module, post).remove)
            if before is not None:
                stack.callback(nn.Module.register_forward_pre_hook(module, pre).remove)
        yield


@contextlib.contextmanager
def _eagerly() -> Iterator[None]:
    """Run compiled parts eagerly. torch's stance is global; the last thread to leave restores it."""
    global _eager_threads, _stance
    with _lock:
        if not _eager_threads:
            _stance = torch.compiler.set_stance("force_eager")
            _stance.__enter__()
        _eager_threads += 1
    try:
        yield
    finally:
        with _lock:
            _eager_threads -= 1
            if not _eager_threads:
                _stance.__exit__(None, None, None)


class _NoCheckpoints:
    """A replacement of torch's reentrant checkpoints, which allow gradients neither inside nor before them.

    In threads that run a model for xcam their function is called directly; others have their checkpoints.
    """

    original: Any = checkpoint.CheckpointFunction
    threads: ClassVar[Counter[int]] = Counter()

    @classmethod
    def apply(cls, function: Callable[..., Any], preserve: Any, *arguments: Any) -> Any:
        if cls.threads[threading.get_ident()]:
            return function(*arguments)
        return cls.original.apply(function, preserve, *arguments)


@contextlib.contextmanager
def _without_checkpoints() -> Iterator[None]:
    """Run the function of a reentrant checkpoint directly, in this thread. The last thread to leave restores torch's."""
    thread, module = threading.get_ident(), cast(Any, checkpoint)
    with _lock:
        _NoCheckpoints.threads[thread] += 1
        module.CheckpointFunction = _NoCheckpoints
    try:
        yield
    finally:
        with _lock:
            _NoCheckpoints.threads[thread] -= 1
            if not +_NoCheckpoints.threads:
                module.CheckpointFunction = _NoCheckpoints.original


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, outside the caller's inference mode, compiled parts run eagerly."""
    modules = modules_of(model)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_without_checkpoints())
        if any(module._compiled_call_impl is not None or "_orig_mod" in module._modules for module in modules):
            stack.enter_context(_eagerly())
        stack.enter_context(evaluation(modules))
        yield


@contextlib.contextmanager
def running(model: nn.Module) -> Iterator[None]:
    """`undisturbed`, with exhausted memory as a MemoryError."""
    with out_of_memory(torch.OutOfMemoryError, signs=["can't allocate memory"]), undisturbed(model):
        yield
