"""xcam: where did this network look? Class activation maps for Keras, PyTorch and ONNX behind one API.

    import xcam
    e = xcam.explain("resnet50", "photo.jpg")   # or a file, or a live model
    e.save("cam.jpg")

Importing xcam imports no framework.
"""

from xcam.comparison.blame.blame import blame
from xcam.comparison.blame.result import Blame
from xcam.comparison.compare import compare
from xcam.comparison.mending.repair import repair
from xcam.comparison.mending.result import Repair
from xcam.comparison.result import Comparison
from xcam.contract import Backend, InputSpec, Layer, Model, Trace
from xcam.contract.fit import Fit
from xcam.contract.plugins import BackendSpec, hookimpl, list_backends
from xcam.contract.preprocessing import Preprocessing
from xcam.dataset.batch import batch
from xcam.errors import (
    BackendError,
    ContractError,
    InputError,
    ModelError,
    OptionError,
    XcamError,
    XcamWarning,
    ZeroHeatmapWarning,
)
from xcam.evaluation.evaluate import evaluate
from xcam.evaluation.registry import list_measures
from xcam.evaluation.result import Evaluation
from xcam.explanation.explain import explain
from xcam.explanation.fusion import fuse
from xcam.explanation.grid import grid
from xcam.explanation.result import Explanation
from xcam.explanation.video import VideoExplanation, explain_video
from xcam.images.framing import Frame
from xcam.methods.registry import list_methods, method
from xcam.models.export import export
from xcam.models.load import load
from xcam.targets import (
    BoxScore,
    Classes,
    ClassScore,
    Detected,
    Detection,
    Element,
    Finer,
    Located,
    Segmentation,
    Similarity,
    Target,
    Task,
)

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "BackendError",
    "BackendSpec",
    "Blame",
    "BoxScore",
    "ClassScore",
    "Classes",
    "Comparison",
    "ContractError",
    "Detected",
    "Detection",
    "Element",
    "Evaluation",
    "Explanation",
    "Finer",
    "Fit",
    "Frame",
    "InputError",
    "InputSpec",
    "Layer",
    "Located",
    "Model",
    "ModelError",
    "OptionError",
    "Preprocessing",
    "Repair",
    "Segmentation",
    "Similarity",
    "Target",
    "Task",
    "Trace",
    "VideoExplanation",
    "XcamError",
    "XcamWarning",
    "ZeroHeatmapWarning",
    "batch",
    "blame",
    "compare",
    "evaluate",
    "explain",
    "explain_video",
    "export",
    "fuse",
    "grid",
    "hookimpl",
    "list_backends",
    "list_measures",
    "list_methods",
    "load",
    "method",
    "repair",
]
