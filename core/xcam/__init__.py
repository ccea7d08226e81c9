"""xcam: where did this network look? Class activation maps for Keras, PyTorch and ONNX behind one API.

    import xcam
    e = xcam.explain("resnet50", "photo.jpg")   # or a file, or a live model
    e.save("cam.jpg")

Importing xcam imports no framework.
"""

from xcam.batching import batch
from xcam.comparing import compare
from xcam.comparison import Comparison
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
from xcam.evaluating import evaluate
from xcam.evaluation import measures
from xcam.evaluation.result import Evaluation
from xcam.explaining import explain
from xcam.explanation import Explanation
from xcam.exporting import export
from xcam.fusing import fuse
from xcam.loading import load
from xcam.methods import method, methods
from xcam.montage import grid
from xcam.plugins import BackendSpec, backends, hookimpl
from xcam.preprocessing import Preprocessing
from xcam.targets import Classes, ClassScore, Detection, Element, Finer, Segmentation, Similarity, Target

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "BackendError",
    "BackendSpec",
    "ClassScore",
    "Classes",
    "Comparison",
    "ContractError",
    "Detection",
    "Element",
    "Evaluation",
    "Explanation",
    "Finer",
    "InputError",
    "InputSpec",
    "Layer",
    "Model",
    "ModelError",
    "Preprocessing",
    "Segmentation",
    "Similarity",
    "Target",
    "Trace",
    "XcamError",
    "XcamWarning",
    "ZeroHeatmapWarning",
    "backends",
    "batch",
    "compare",
    "evaluate",
    "explain",
    "export",
    "fuse",
    "grid",
    "hookimpl",
    "load",
    "measures",
    "method",
    "methods",
]
