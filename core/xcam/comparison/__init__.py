"""Comparing models: similarity of heatmaps, and the layer at which they diverge."""
