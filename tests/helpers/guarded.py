"""Records which convolutions of a torch module a backward pass leads through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def differentiated(module: nn.Module) -> Iterator[set[str]]:
    """Record the modules whose values a gradient arrives at."""
    seen: set[str] = set()

    def hook(name: str) -> Any:
        def after(_: Any, __: Any, value: Any) -> None:
            if value.requires_grad:
                value.register_hook(lambda _: seen.add(name))

        return after

    handles = [part.register_forward_hook(hook(name)) for name, part in module.named_modules() if name]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
