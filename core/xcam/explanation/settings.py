"""The options of an explanation, checked before the work begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from xcam.errors import InputError
from xcam.methods import maps, registry
from xcam.methods.maps import Normalize
from xcam.methods.registry import Method
from xcam.targets import Score

BATCH = 8
"""Images in one forward pass: more gain little on a CPU, and cost memory."""


@dataclass(frozen=True)
class Settings:
    """The checked options of `explain` that do not depend on the model."""

    method: Method
    method_options: Mapping[str, Any]
    score: Score
    normalize: Normalize
    augment: bool
    batch: int


def settings(
    method: str,
    method_options: Mapping[str, Any] | None = None,
    score: Score = "logit",
    normalize: Normalize = "max",
    augment: bool = False,
    batch: int = BATCH,
) -> Settings:
    """Check the options of `explain`. Raises InputError."""
    registered = registry.get(str(method))
    if method_options is not None and not isinstance(method_options, Mapping):
        raise InputError(f"cannot use method_options={method_options!r}; give a mapping of names to values")
    options = dict(registered.checked(method_options or {}))
    maps.normalize(np.zeros((1, 1, 1)), normalize)
    if not isinstance(augment, bool):
        raise InputError(f"cannot use augment={augment!r}; give True or False")
    if batch < 1:
        raise InputError(f"cannot use batch={batch}: the batch size must be at least 1; give a positive integer")
    return Settings(registered, options, score, normalize, augment, batch)
