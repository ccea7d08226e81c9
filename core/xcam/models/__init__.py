"""Models as users name them: loading, layers, labels, export, and the demo network."""
