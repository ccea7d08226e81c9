"""The Keras backend: activations and gradients for a named layer of a Keras 3 model."""
