"""Helpers of the Keras tests that depend on the engine that Keras runs on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

ENGINE = keras.backend.backend()


def gradient(function: Callable[[Any], Any], at: np.ndarray) -> np.ndarray:
    """Return the gradient of a function from an array to a number, in Keras' operations, by the engine alone."""
    if ENGINE == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            a = tf.constant(at)
            tape.watch(a)
            score = function(a)
        return tape.gradient(score, a).numpy()
    if ENGINE == "torch":
        import torch

        a = torch.tensor(at, requires_grad=True)
        return torch.autograd.grad(function(a), a)[0].numpy()
    import jax

    return np.asarray(jax.grad(function)(at))


def out_of_memory(text: str) -> Exception:
    """Return the engine's error for exhausted memory."""
    if ENGINE == "tensorflow":
        import tensorflow as tf

        return tf.errors.ResourceExhaustedError(None, None, text)
    if ENGINE == "torch":
        import torch

        return torch.OutOfMemoryError(text)
    import jax

    return jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {text}")
