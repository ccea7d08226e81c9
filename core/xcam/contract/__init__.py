"""The contract between the core and a backend, and the helpers that backends share.

The types are importable from here; presets, plugins, validation and the helpers are in modules of their own.
"""

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
    Outputs,
    Trace,
    like,
    one_output,
    rows_of,
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
    "Outputs",
    "Trace",
    "like",
    "one_output",
    "rows_of",
]
