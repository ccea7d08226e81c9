"""What tests of the Keras backend say in the words of the engine that Keras runs on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

ENGINE = keras.backend.backend()


def gradient(function: Callable[[Any], Any], at: np.ndarray) -> np.ndarray:
    """Of a function from one array to a number, in Keras' operations: by the engine's own means, without xcam."""
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
    """What the engine raises when memory runs out."""
    if ENGINE == "tensorflow":
        import tensorflow as tf

        return tf.errors.ResourceExhaustedError(None, None, text)
    if ENGINE == "torch":
        import torch

        return torch.OutOfMemoryError(text)
    import jax

    return jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {text}")
