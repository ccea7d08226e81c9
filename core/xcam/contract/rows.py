"""Rows of a batch: the row of a trace for each variant, and slices for models with a fixed batch size."""

from __future__ import annotations

from collections.abc import Sequence

from xcam.errors import InputError


def rows_of(rows: Sequence[int] | None, images: int, variants: int) -> list[int]:
    """Return the row of the trace for each variant that is passed to `resume`.

    Args:
        rows: as given to `resume`; None: all 0 when the trace has one row, else row k for variant k.
        images: number of rows of the trace.
        variants: number of variants.

    Raises:
        InputError: the rows do not fit.
    """
    result = [0] * variants if rows is None and images == 1 else list(range(images) if rows is None else rows)
    if len(result) != variants or not all(0 <= row < images for row in result):
        raise InputError(
            f"cannot use rows={result} for {variants} variants of {images} images; give one row for each variant"
        )
    return result


def batch_slices(count: int, batch: int | None, model: str) -> list[slice]:
    """Return the slices of `count` rows that a model of a fixed batch size runs one after another.

    Args:
        count: number of rows.
        batch: the model's batch size; None: any, one slice of all rows.
        model: the model's name, for the message.

    Raises:
        InputError: `count` is not a multiple of `batch`.
    """
    if batch is None:
        return [slice(0, count)]
    if count % batch:
        raise InputError(
            f"cannot run {model} on a batch of {count}: it takes batches of {batch}; export it with a dynamic batch, or "
            f"explain a multiple of {batch} images"
        )
    return [slice(start, start + batch) for start in range(0, count, batch)]
