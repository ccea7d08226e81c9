"""Fitted images, compared with those of Pillow, torchvision, timm, transformers, ultralytics and Keras."""

from pathlib import Path

import numpy as np
import pytest

from xcam.contract.fit import parse
from xcam.images.framing import fitted, fitted_size

with np.load(Path(__file__).parents[2] / "golden" / "fit.npz") as content:
    GOLDEN = {name: content[name] for name in content.files}
NAMES = [name for name in GOLDEN if name[0].isdigit()]
LIBRARIES = ("pillow", "torchvision", "timm", "transformers", "ultralytics", "keras")


@pytest.mark.parametrize("library", LIBRARIES)
def test_within_one_grey_level(library):
    names = [name for name in NAMES if name.split("/")[1] == library]
    assert len(names) >= 8
    for name in names:
        number, _, text, size = name.replace("/102/", "|102|").split("/")
        image, expected = GOLDEN[f"images/{number}"], GOLDEN[name].astype(int)
        fit = parse(text.replace("|", "/"))
        wanted = fitted_size(image.shape, fit) if size == "any" else tuple(map(int, size.split("x")))
        result = fitted(image, wanted, fit)
        assert result.shape == expected.shape, name
        error = np.abs(result - expected)
        is_tensor = library == "torchvision" and "like=" in text  # computed with weights of 16 bits
        assert np.mean(error > 1) <= 2e-3 * is_tensor, name
        assert error.max() <= 1 + is_tensor, name
        if library in ("pillow", "timm", "ultralytics"):
            assert not error.any(), name
