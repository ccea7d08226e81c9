"""The target `like:other.jpg`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import xcam
from xcam.errors import InputError
from xcam.images.resizing import resize

RANDOM = np.random.default_rng(4)
IMAGE, OTHER = RANDOM.integers(0, 256, (2, 12, 10, 3), dtype=np.uint8)


@pytest.fixture
def encoder() -> Any:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()


def test_the_score_is_the_cosine_to_the_other_image_prepared_alike(encoder: Any, tmp_path: Path) -> None:
    path = tmp_path / "other.png"
    cv2.imwrite(str(path), OTHER[..., ::-1])
    model = xcam.load(encoder, preprocess="tf", size=(8, 8))

    def embedded(image: Any) -> torch.Tensor:
        x = resize(image, (8, 8)) / 127.5 - 1
        return encoder(torch.from_numpy(np.moveaxis(x, -1, 0)[None].astype(np.float32))).detach()  # type: ignore[no-any-return]

    score = float(nn.functional.cosine_similarity(embedded(IMAGE), embedded(OTHER)))
    for e in (
        xcam.explain(model, IMAGE, target=f"like:{path}"),
        xcam.explain(model, [OTHER, IMAGE], target=f"Like: {path}")[1],
        xcam.compare([model, model], IMAGE, target=f"like:{path}").images[0].explanations[1],
    ):
        assert e.score == pytest.approx(score, abs=1e-5)
        assert e.label == "like other.png"
    assert xcam.explain(model, OTHER, target=f"like:{path}").score == pytest.approx(1, abs=1e-5)
    cam = xcam.explain(model, IMAGE, target=xcam.Similarity(embedded(OTHER)[0].numpy())).cam
    np.testing.assert_allclose(xcam.explain(model, IMAGE, target=f"like:{path}").cam, cam, atol=1e-6)


def test_a_missing_image_is_refused_and_a_label_of_that_name_is_a_class(encoder: Any) -> None:
    model = xcam.load(encoder, preprocess="tf", size=(8, 8), labels=["like:me", "b", "c", "d"])
    assert xcam.explain(model, IMAGE, target="like:me").index == 0
    with pytest.raises(InputError, match=r"cannot read none\.png: no such file"):
        xcam.explain(model, IMAGE, target="like:none.png")
    with pytest.raises(InputError, match=r"give an image, as in like:other\.jpg"):
        xcam.explain(model, IMAGE, target="like: ")
