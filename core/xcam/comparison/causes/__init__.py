"""Causes of a difference between two models, proven by undoing them."""

from xcam.comparison.causes.search import causes, scene_at

__all__ = ["causes", "scene_at"]
