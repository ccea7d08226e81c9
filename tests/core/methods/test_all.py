"""Properties of all methods: determinism, independent rows, degenerate activations, costs, options."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xcam
from quadratic import Quadratic
from quadratic_cams import batch, cam
from xcam import BackendError, InputError
from xcam.methods.registry import list_methods


@pytest.mark.parametrize("space", [(6,), (4, 6), (6, 3), (3, 4, 2)], ids=str)
@pytest.mark.parametrize("name", list_methods())
def test_shape_determinism_and_independent_rows(name: str, space: tuple[int, ...]) -> None:
    model, x = Quadratic(space), batch(*space)
    result = cam(name, model, x)
    assert result.shape == (2, *space)
    assert np.isfinite(result).all()
    np.testing.assert_array_equal(result, cam(name, model, x))
    for row in range(2):
        np.testing.assert_allclose(cam(name, model, x[row : row + 1])[0], result[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["zero", "constant", "negative", "one dead channel", "tiny"])
@pytest.mark.parametrize("name", list_methods())
def test_no_nan_for_degenerate_activations(name: str, kind: str) -> None:
    x = {
        "zero": np.zeros((1, 3, 4, 6)),
        "constant": np.full((1, 3, 4, 6), 2.5),
        "negative": -np.abs(batch(4, 6, n=1)),
        "one dead channel": batch(4, 6, n=1) * np.array([1, 0, 1])[:, None, None],
        "tiny": 1e-20 * batch(4, 6, n=1),
    }[kind].astype(np.float32)
    with np.errstate(all="raise", under="ignore"):
        assert np.isfinite(cam(name, Quadratic(), x)).all()


@pytest.mark.parametrize("name", ["eigencam", "eigengradcam", "fem", "gradcam++", "xgradcam"])
def test_zero_activations_give_zero(name: str) -> None:
    assert not cam(name, Quadratic(), np.zeros((1, 3, 4, 6), np.float32)).any()


def test_costs() -> None:
    """Ablation-CAM and Recipro-CAM run the tail, Score-CAM the whole model once for each channel."""
    for name, passes, tails in (("ablationcam", 1, 3), ("reciprocam", 1, 24), ("scorecam", 1 + 1 + 3, 0)):
        model = Quadratic()
        cam(name, model, batch(4, 6, n=1))
        assert (model.passes, model.tails) == (passes, tails), name


def test_the_error_for_a_missing_capability_lists_methods_that_work() -> None:
    model = Quadratic(capabilities=())
    image = np.zeros((4, 6, 3), np.uint8)
    with pytest.raises(
        BackendError, match="needs gradients, which backend 'quadratic' does not have; these work: eigencam"
    ):
        xcam.explain(model, image)
    with pytest.raises(BackendError, match="method 'ablationcam' needs resume"):
        xcam.explain(model, image, method="ablationcam")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("iscam", {"n": 0}, "cannot use n=0; give a number above 0"),
        ("iscam", {"n": 10**12}, "cannot use n=1000000000000; give a number above 0, at most 10000"),
        ("sscam", {"std": float("nan")}, "cannot use std=nan"),
        ("random", {"seed": -1}, "cannot use seed=-1; give 0 or more"),
        ("scorecam", {"max_channels": 4}, "cannot use max_channels=4; give 0 for all, or at most 3"),
        ("smoothgradcam++", {"std": -1}, "cannot use std=-1; give a number above 0"),
        ("sscam", {"n": -3}, "cannot use n=-3"),
        ("scorecam", {"max_channels": -1}, "cannot use max_channels=-1; give 0 for all"),
        ("scorecam", {"baseline": "grey"}, "unknown baseline 'grey'; known: zero, none"),
    ],
)
def test_options_out_of_range(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cam(name, Quadratic(), batch(4, 6), **options)
