"""Targets for other outputs than class scores: numbers, maps, embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from xcam.contract import Array, Outputs, like, one_output
from xcam.errors import InputError
from xcam.targets.classes import unknown_class


@dataclass(frozen=True)
class Element:
    """One number of an output, for regression, with the cotangent 1 at its position."""

    position: tuple[int, ...]
    """An index for each axis of the output except the batch."""
    output: str | None = None
    """The name of the output, for models with several; default: the first."""

    @property
    def name(self) -> str:
        """The name of the target."""
        return f"output [{', '.join(map(str, self.position))}]"

    def value(self, outputs: Outputs) -> Array:
        """Return the numbers [N]. Raises InputError for a position outside the output."""
        y = one_output(outputs, self.output)
        self._check(y)
        element: Any = (..., *self.position)
        return np.asarray(y[element])

    def cotangent(self, outputs: Outputs) -> Outputs:
        """Return ∂value/∂outputs, shaped like `outputs`."""
        y = one_output(outputs, self.output)
        self._check(y)
        slope = np.zeros_like(y)
        element: Any = (..., *self.position)
        slope[element] = 1
        return like(outputs, slope, self.output)

    def _check(self, y: Array) -> None:
        fits = (
            isinstance(self.position, tuple | list)
            and len(self.position) == y.ndim - 1
            and all(
                isinstance(i, int | np.integer) and -n <= i < n
                for i, n in zip(self.position, y.shape[1:], strict=True)
            )
        )
        if not fits:
            raise InputError(
                f"unknown element {np.asarray(self.position).tolist()} of an output of shape {list(y.shape[1:])}; give an index "
                "for each axis"
            )


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The mean logit of a class over a region, for semantic segmentation (Seg-Grad-CAM, Vinogradova et al. 2020)."""

    index: int
    """The class."""
    mask: Array | None = None
    """bool or weights [*space] of the output's spatial size; None for the whole map."""
    output: str | None = None
    """The name of the output [N, K, *space], for models with several; default: the first."""
    last: bool = False
    """Whether classes are on the last axis, [N, *space, K]."""

    @property
    def name(self) -> str:
        """The name of the target."""
        return f"class {self.index}{' over a mask' if self.mask is not None else ''}"

    def value(self, outputs: Outputs) -> Array:
        """Return the means [N]. Raises InputError."""
        z = self._logits(one_output(outputs, self.output))
        return np.asarray((z[:, self.index] * self._weights(z)).sum(axis=tuple(range(1, z.ndim - 1))))

    def cotangent(self, outputs: Outputs) -> Outputs:
        """Return ∂value/∂outputs, shaped like `outputs`."""
        z = self._logits(one_output(outputs, self.output))
        slope = np.zeros_like(z)
        slope[:, self.index] = self._weights(z)
        return like(outputs, np.moveaxis(slope, 1, -1) if self.last else slope, self.output)

    def _logits(self, z: Array) -> Array:
        """Return the logits [N, K, *space]."""
        if z.ndim < 3:
            raise InputError(
                f"cannot explain a segmentation: the output has shape {z.shape}, not [batch, classes, height, width]; "
                "give another output or target"
            )
        z = np.moveaxis(z, -1, 1) if self.last else z
        if not isinstance(self.index, int | np.integer) or not -z.shape[1] <= self.index < z.shape[1]:
            raise unknown_class(self.index, z.shape[1])
        return z

    def _weights(self, z: Array) -> Array:
        """Return the mask [*space] with the sum 1."""
        mask = np.ones(z.shape[2:]) if self.mask is None else np.asarray(self.mask, np.float64)
        if mask.shape != z.shape[2:]:
            raise InputError(f"the mask has shape {mask.shape}, the output {z.shape[2:]}; resize the mask")
        if not mask.sum() > 0:
            raise InputError("the mask is empty; give one with a positive sum")
        return np.asarray(mask / mask.sum(), z.dtype)


@dataclass(frozen=True, eq=False)
class Similarity:
    """The cosine similarity of an embedding y and a reference: the features that make two images similar.

    With unit vectors u = y/|y| and r the value is cos = ⟨u, r⟩, and the cotangent (r − cos·u)/|y|.
    """

    reference: Array
    """[D], for example the embedding of another image."""
    output: str | None = None
    """The name of the output, for models with several; default: the first."""
    name: str = "similarity"
    """The name of the target."""

    def value(self, outputs: Outputs) -> Array:
        """Return the cosines [N] in −1…1. Raises InputError."""
        unit, reference, _ = self._parts(outputs)
        return np.asarray(unit @ reference)

    def cotangent(self, outputs: Outputs) -> Outputs:
        """Return ∂value/∂outputs, shaped like `outputs`."""
        unit, reference, norm = self._parts(outputs)
        slope = (reference - (unit @ reference)[:, None] * unit) / norm
        y = one_output(outputs, self.output)
        return like(outputs, slope.reshape(y.shape).astype(y.dtype), self.output)

    def _parts(self, outputs: Outputs) -> tuple[Array, Array, Array]:
        """Return the unit vectors [N, D], the unit reference [D], and the norms [N, 1]."""
        y = one_output(outputs, self.output)
        flat = y.reshape(len(y), -1)
        reference = np.ravel(np.asarray(self.reference, flat.dtype))
        if reference.size != flat.shape[1]:
            raise InputError(
                f"the reference has {reference.size} numbers, the embedding {flat.shape[1]}; give a reference of that size"
            )
        if not np.isfinite(reference).all():
            raise InputError("the reference contains NaN or infinity; give finite numbers")
        size = float(np.linalg.norm(reference))
        norm = np.linalg.norm(flat, axis=1, keepdims=True)
        if not size > 0 or not (norm > 0).all():
            raise InputError(
                "the cosine similarity with a vector of zeros is not defined; give another reference or image"
            )
        return flat / norm, reference / size, norm
