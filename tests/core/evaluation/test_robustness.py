"""Max-sensitivity, compared with values computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from xcam.errors import InputError
from xcam.evaluation.robustness import max_sensitivity

RAMP = np.arange(6, dtype=np.float32).reshape(1, 2, 3) / 5


def test_sensitivity_is_the_largest_relative_change() -> None:
    """The map's norm is 5; the second of three noises changes it by 0.5, the others by less."""
    heatmap = np.zeros((1, 2, 2), np.float32)
    heatmap[0, 0] = 3, 4
    moves = iter([0.1, 0.5, 0.2])
    x = np.float32([[[[0, 0], [0, 1]]]])

    def explained(x: Any, rows: Any) -> Any:
        moved = heatmap.copy()
        moved[0, 1, 1] = next(moves)
        return moved

    assert max_sensitivity(heatmap, x, explained, n=3) == pytest.approx(0.1)


def test_the_noise_is_within_its_radius_of_the_range_of_each_image() -> None:
    x = np.stack([np.linspace(0, 1, 64), np.linspace(-100, 100, 64)]).reshape(2, 1, 8, 8).astype(np.float32)
    seen: list[np.ndarray] = []

    def explained(changed: Any, rows: Any) -> Any:
        seen.append(changed - x)
        assert list(rows) == [0, 1]
        return changed[:, 0]

    result = max_sensitivity(x[:, 0], x, explained, n=4, radius=0.1)
    moved = np.abs(np.stack(seen)).max(axis=(0, 2, 3, 4))
    assert 0.09 < moved[0] <= 0.1 + 1e-6
    assert 18 < moved[1] <= 20 + 1e-4
    assert len({one.tobytes() for one in seen}) == 4
    repeated = max_sensitivity(x[:, 0], x, lambda changed, _: changed[:, 0], n=4, radius=0.1)
    np.testing.assert_array_equal(result, repeated)


def test_a_constant_map_has_zero_sensitivity_and_an_empty_map_or_a_flat_image_none() -> None:
    maps = np.stack([RAMP[0], 0 * RAMP[0], RAMP[0]])
    x = np.stack([np.stack([RAMP[0]] * 3)] * 2 + [np.ones((3, *RAMP[0].shape))]).astype(np.float32)
    np.testing.assert_array_equal(max_sensitivity(maps, x, lambda *_: maps), [0, np.nan, np.nan])


@pytest.mark.parametrize("options", [{"n": 0}, {"radius": 0.0}, {"radius": float("nan")}])
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        max_sensitivity(RAMP, RAMP[None], lambda *_: RAMP, **options)
