"""Running a user's module without leaving a trace: modes, hooks and gradient state are as before, whatever happens."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Hook = Callable[[nn.Module, Any], Any]
"""(module, value) → what stands in for the value, or None."""


@dataclass
class _Held:
    count: int
    training: bool


_held: weakref.WeakKeyDictionary[nn.Module, _Held] = weakref.WeakKeyDictionary()
_lock = threading.Lock()
_eager = 0
_stance: Any = None


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Every module once. (Module.modules() does the same ten times slower, and each call of a model asks.)"""
    found = {model: None}
    for module in (queue := [model]):  # grows while it is walked
        for part in module._modules.values():
            if part is not None and part not in found:
                found[part] = None
                queue.append(part)
    return queue


@contextlib.contextmanager
def evaluation(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Every module in evaluation mode. The last of several threads to leave restores each module's own mode."""
    mine = []
    with _lock:
        for module in modules:
            if module.training or module in _held:
                held = _held.setdefault(module, _Held(0, module.training))
                held.count += 1
                module.training = False
                mine.append(module)
    try:
        yield
    finally:
        with _lock:
            for module in mine:
                held = _held[module]
                held.count -= 1
                if not held.count:
                    module.training = held.training
                    del _held[module]


@contextlib.contextmanager
def hooked(
    modules: Iterable[nn.Module], after: Hook, before: Callable[[nn.Module], None] | None = None
) -> Iterator[None]:
    """Call `after` behind the forward of each of `modules`, `before` ahead of it, in this thread alone.

    (torch's global hooks would leave the modules alone altogether, but fire twice where a part is compiled.)
    """
    thread = threading.get_ident()

    def post(module: nn.Module, _: Any, value: Any) -> Any:
        return after(module, value) if threading.get_ident() == thread else None

    def pre(module: nn.Module, _: Any) -> None:
        if before is not None and threading.get_ident() == thread:
            before(module)

    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(post).remove)
            if before is not None:
                stack.callback(module.register_forward_pre_hook(pre).remove)
        yield


@contextlib.contextmanager
def _eagerly() -> Iterator[None]:
    """Compiled parts run eagerly. The stance is one for all threads: the last to leave puts it back."""
    global _eager, _stance
    with _lock:
        if not _eager:
            _stance = torch.compiler.set_stance("force_eager")
            _stance.__enter__()
        _eager += 1
    try:
        yield
    finally:
        with _lock:
            _eager -= 1
            if not _eager:
                _stance.__exit__(None, None, None)


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, out of the caller's inference mode, compiled parts run eagerly."""
    modules = modules_of(model)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        if any(module._compiled_call_impl is not None or "_orig_mod" in module._modules for module in modules):
            stack.enter_context(_eagerly())
        stack.enter_context(evaluation(modules))
        yield


@contextlib.contextmanager
def running(model: nn.Module) -> Iterator[None]:
    """`undisturbed`; and memory that runs out is a MemoryError, for all backends alike."""
    try:
        with undisturbed(model):
            yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(str(error).splitlines()[0]) from error
    except RuntimeError as error:
        if "can't allocate memory" in str(error):
            raise MemoryError(str(error).splitlines()[0]) from error
        raise
