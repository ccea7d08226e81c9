"""The ranges of quantised values."""

from __future__ import annotations

import numpy as np
import pytest

from xcam.contract.quantization import Quantization, QuantizedWeights, levels


@pytest.mark.parametrize(
    ("dtype", "ends"),
    [("int8", (-128, 127)), ("uint8", (0, 255)), ("int4", (-8, 7)), ("uint4", (0, 15)), ("int16", (-32768, 32767))],
)
def test_levels(dtype: str, ends: tuple[int, int]) -> None:
    assert levels(dtype) == ends


def test_another_type_has_no_levels() -> None:
    with pytest.raises(ValueError, match="'float16' is not a type of integers"):
        levels("float16")


def test_the_range_of_each_channel() -> None:
    quantization = Quantization("uint8", np.float32([0.5, 2.0]), np.uint8([10, 0]))
    np.testing.assert_array_equal(quantization.low, [-5, 0])
    np.testing.assert_array_equal(quantization.high, [122.5, 510])


def test_one_scale_for_several_channels() -> None:
    largest = np.float32([1, 2])
    assert QuantizedWeights("w", "int8", np.asarray(0.1), largest).per_tensor
    assert not QuantizedWeights("w", "int8", np.float32([0.1, 0.2]), largest).per_tensor
    assert not QuantizedWeights("w", "int8", np.asarray(0.1), largest[:1]).per_tensor
