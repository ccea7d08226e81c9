"""xcam: where did this network look? Class activation maps for Keras, PyTorch and ONNX behind one API.

    import xcam
    e = xcam.explain("resnet50", "photo.jpg")   # or a file, or a live model
    e.save("cam.jpg")

Importing xcam imports no framework.
"""

from xcam.contract import Backend, InputSpec, Layer, Model, Trace
from xcam.errors import (
    BackendError,
    ContractError,
    InputError,
    ModelError,
    XcamError,
    XcamWarning,
    ZeroHeatmapWarning,
)
from xcam.explaining import explain
from xcam.explanation import Explanation
from xcam.exporting import export
from xcam.loading import load
from xcam.methods import method, methods
from xcam.plugins import BackendSpec, backends, hookimpl
from xcam.preprocessing import Preprocessing
from xcam.targets import ClassScore, Target

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "BackendError",
    "BackendSpec",
    "ClassScore",
    "ContractError",
    "Explanation",
    "InputError",
    "InputSpec",
    "Layer",
    "Model",
    "ModelError",
    "Preprocessing",
    "Target",
    "Trace",
    "XcamError",
    "XcamWarning",
    "ZeroHeatmapWarning",
    "backends",
    "explain",
    "export",
    "hookimpl",
    "load",
    "method",
    "methods",
]
