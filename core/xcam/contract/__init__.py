"""The contract between the core and a backend, and the helpers that backends share.

The types are importable from here; presets, plugins, validation and the helpers are in separate modules.
"""

from xcam.contract.outputs import like, one_output
from xcam.contract.rows import rows_of
from xcam.contract.types import (
    DEFAULT_SIZE,
    Activation,
    Array,
    Backend,
    Capability,
    Cotangents,
    InputSpec,
    Layer,
    Layout,
    Model,
    Names,
    Outputs,
    Trace,
)

__all__ = [
    "DEFAULT_SIZE",
    "Activation",
    "Array",
    "Backend",
    "Capability",
    "Cotangents",
    "InputSpec",
    "Layer",
    "Layout",
    "Model",
    "Names",
    "Outputs",
    "Trace",
    "like",
    "one_output",
    "rows_of",
]
