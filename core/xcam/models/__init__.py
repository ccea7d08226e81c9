"""Models: opening them, their layers, class labels, export, and the demo network."""
