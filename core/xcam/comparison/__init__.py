"""Comparing models: the similarity of their heatmaps, and the layer at which they begin to differ."""

from xcam.comparison.data import Divergence, ImageComparison, Measures, Prediction, Step, Verdict
from xcam.comparison.diagnosis import Diagnosis

__all__ = ["Diagnosis", "Divergence", "ImageComparison", "Measures", "Prediction", "Step", "Verdict"]
