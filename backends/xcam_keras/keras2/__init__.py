"""Models that Keras 2 wrote, rebuilt as models of Keras 3 with the same numbers."""
