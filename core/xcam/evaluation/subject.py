"""A batch of pictures that one method has explained, and what a measure may ask of it. See xcam.evaluation.inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from xcam.contract import Array, Layer, Model, Outputs, Trace
from xcam.contract.preprocessing import PRESETS
from xcam.evaluation.inputs import Masks
from xcam.explanation import tokens
from xcam.explanation.context import MethodContext, cotangent, pick, stack
from xcam.explanation.explain import input_size
from xcam.explanation.result import Explanation
from xcam.explanation.tokens import Grid
from xcam.images import batches, reading
from xcam.methods import maps
from xcam.methods.registry import Method
from xcam.targets import ClassScore, Target


class Each(Sequence[Any]):
    """`make` of each item, when it is asked for: maps and masks of large pictures, all at once, would fill the memory."""

    def __init__(self, make: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self._make, self._items = make, items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, k: Any) -> Any:
        return Each(self._make, self._items[k]) if isinstance(k, slice) else self._make(self._items[k])


class Subject:
    """The pictures, their maps, and the model that made them."""

    def __init__(
        self,
        model: Model,
        layer: Layer,
        found: Sequence[Explanation],
        masks: Masks,
        explained: Callable[[Array, Sequence[int]], Array],
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        """`explained`: x in the model's own form, rows → maps [K, h, w], before ReLU.

        sizes: the pictures' own, where those in `found` are smaller.
        """
        self.masks = masks
        self._found, self._explained = found, explained
        empty = Trace(np.empty(0), np.empty(0))
        x = batch([e.image for e in found], model)
        self._supply = MethodContext(model, layer, Grid(), x, empty, [_scored(e) for e in found], 0)
        self._size = input_size(model.input)
        self._own = sizes or [(e.image.shape[0], e.image.shape[1]) for e in found]

    @cached_property
    def heatmap(self) -> Array:
        return self._wide(np.stack([e.cam for e in self._found]))

    @property
    def heatmaps(self) -> Sequence[Array]:
        return Each(
            lambda one: maps.resize(maps.normalize(one[0].positive[None])[0], one[1]),
            list(zip(self._found, self._own, strict=True)),
        )

    @property
    def x(self) -> Array:
        return self._supply.x

    def score(self, x: Array, rows: Sequence[int]) -> Array:
        return self._supply.forward(x, rows)

    @cached_property
    def clean(self) -> Array:
        return self.score(self.x, range(len(self.x)))

    @cached_property
    def _seen(self) -> Array:
        return self.x * self.heatmap[:, None].astype(self.x.dtype)

    @cached_property
    def masked(self) -> Array:
        seen = self.heatmap.any(axis=(1, 2))
        return np.where(seen, self.score(self._seen, range(len(self.x))), -np.inf)

    @cached_property
    def again(self) -> Array:
        return self.explain(self._seen, range(len(self.x)))

    def explain(self, x: Array, rows: Sequence[int]) -> Array:
        return self._wide(self._explained(self._supply._native(x), rows))

    def _wide(self, cams: Array) -> Array:
        """Maps as the layer has them → after ReLU, the highest place 1, at the size of the model's input."""
        wide = np.stack([maps.resize(cam, self._size) for cam in maps.relu(cams)])
        return maps.normalize(wide)  # behind the resizing, which lowers a peak between two places


def _scored(e: Explanation) -> Target:
    """What is measured on an explained picture: of a class its probability; else the target's own value."""
    if isinstance(e.target, ClassScore):
        return replace(e.target, score="probability").resolve(e.outputs[None])
    return e.target


def cams(
    model: Model, layer: Layer, x: Array, aims: Sequence[Target], method: Method, options: Mapping[str, Any]
) -> Array:
    """A method's maps [N, h, w] before ReLU, of a batch in the model's own form."""

    def cotangents(outputs: Outputs) -> list[Outputs]:
        return [stack([cotangent(aim, pick(outputs, [n])) for n, aim in enumerate(aims)])]

    try:
        trace = model.trace(x, layer.name, cotangents if "gradients" in method.inputs else None)
        grid = tokens.grid(layer, trace.activations.shape[-1], model.input, x.shape)
        return MethodContext(model, layer, grid, x, trace, aims, 0)(method, options)
    except MemoryError:
        if len(x) == 1:
            raise
    half = len(x) // 2
    return np.concatenate(
        [cams(model, layer, x[part], aims[part], method, options) for part in (slice(0, half), slice(half, None))]
    )


def batch(images: Sequence[reading.Image], model: Model) -> Array:
    """Pictures as the model takes them; `explain` has said already what it takes where the model does not say."""
    how = model.input.preprocessing or PRESETS["unit" if model.input.dtype.startswith("float") else "raw"]
    return batches.batch(images, model.input, input_size(model.input), how)
