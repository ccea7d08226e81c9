"""What is explained: a function of a model's outputs and its gradient with respect to them (its cotangent).

Written once, in NumPy, for every framework. A target of your own is any object with `value` and `cotangent`; one with
`resolve` besides is fixed on the outputs of the clean picture before it is used.
"""

from xcam.targets.classes import (
    Classes,
    ClassScore,
    Finer,
    Score,
    difference,
    is_distribution,
    probabilities,
    scores,
    sigmoid,
    softmax,
)
from xcam.targets.outputs import Detection, Element, Segmentation, Similarity
from xcam.targets.parsing import class_index, several, target
from xcam.targets.protocol import Target

__all__ = [
    "ClassScore",
    "Classes",
    "Detection",
    "Element",
    "Finer",
    "Score",
    "Segmentation",
    "Similarity",
    "Target",
    "class_index",
    "difference",
    "is_distribution",
    "probabilities",
    "scores",
    "several",
    "sigmoid",
    "softmax",
    "target",
]
