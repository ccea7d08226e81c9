"""Targets: differentiable functions of a model's outputs, with their gradients (cotangents), in NumPy.

A target is any object with `value` and `cotangent`. If it also has `resolve`, that method is called once with the
outputs for the clean image, and the target that it returns is used from then on.
"""

from xcam.targets.classes import (
    Classes,
    ClassScore,
    Finer,
    Score,
    difference,
    has_classes,
    is_distribution,
    is_single,
    probabilities,
    scores,
    sigmoid,
    softmax,
)
from xcam.targets.detection import Detection
from xcam.targets.outputs import Element, Segmentation, Similarity
from xcam.targets.parsing import class_index, several, target
from xcam.targets.protocol import Target, read_outputs
from xcam.targets.regions import BoxScore, Detected, Located
from xcam.targets.tasks import Task, recognised, statement

__all__ = [
    "BoxScore",
    "ClassScore",
    "Classes",
    "Detected",
    "Detection",
    "Element",
    "Finer",
    "Located",
    "Score",
    "Segmentation",
    "Similarity",
    "Target",
    "Task",
    "class_index",
    "difference",
    "has_classes",
    "is_distribution",
    "is_single",
    "probabilities",
    "read_outputs",
    "recognised",
    "scores",
    "several",
    "sigmoid",
    "softmax",
    "statement",
    "target",
]
