"""Explaining one image: from a model and an image to a heatmap."""
