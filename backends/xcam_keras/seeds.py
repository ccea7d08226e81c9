"""The random states that a call of a Keras model may change: the model's generators, Keras' global one, the engine's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras
from keras.src.backend.common.global_state import get_global_attribute

from xcam_keras.engine import engine


@contextlib.contextmanager
def kept(model: keras.Model) -> Iterator[None]:
    """Restore all of them at the end. Generators are variables of the layers that draw from them."""
    states = [v for v in model.variables if v.name == "seed_generator_state"]
    generator = get_global_attribute("global_seed_generator")
    states += [generator.state] if generator is not None else []
    values = [keras.ops.convert_to_numpy(state.value) for state in states]
    with engine().random_state():
        try:
            yield
        finally:
            for state, value in zip(states, values, strict=True):
                state.assign(value)
