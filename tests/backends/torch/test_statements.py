"""The facts that timm, Hugging Face, torchvision and ultralytics state of their models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import nn

import xcam
from xcam.contract.preprocessing import PRESETS
from xcam.contract.processors import facts as of_processor
from xcam.models import labels
from xcam_torch.statements import known, of_torchvision

PIXEL = np.array([10, 100, 200])
TIMM = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "input_size": (3, 288, 288), "num_classes": 1000}
MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]


def module(**attributes: Any) -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for name, value in attributes.items():
        object.__setattr__(net, name, value)
    return net


def test_a_live_module_of_timm_states_its_size_and_scaling() -> None:
    model = xcam.load(module(pretrained_cfg=TIMM))
    assert (model.input.size, model.input.preprocessing, model.labels) == ((288, 288), PRESETS["torch"], None)
    assert not model.input.fixed
    assert xcam.load(module(pretrained_cfg=TIMM), size=(64, 96)).input.size == (64, 96)
    tested = module(pretrained_cfg=TIMM | {"test_input_size": (3, 320, 352)}, num_classes=1000)
    assert known(tested)["size"] == (320, 352)
    assert known(tested)["labels"] == labels.imagenet()
    assert "labels" not in known(module(pretrained_cfg=TIMM | {"num_classes": 21841}, num_classes=1000))
    assert known(module(pretrained_cfg=SimpleNamespace(**TIMM)))["size"] == (288, 288)


def test_a_module_of_timm_that_was_built_for_another_size_or_for_grey() -> None:
    patches = SimpleNamespace(img_size=(96, 128), in_chans=1)
    facts = known(module(pretrained_cfg=TIMM, patch_embed=patches))
    assert facts["size"] == (96, 128)
    np.testing.assert_allclose(facts["preprocessing"](np.array([100])), (100 / 255 - 0.449) / 0.226, rtol=1e-5)
    assert known(module(pretrained_cfg=TIMM, patch_embed=SimpleNamespace(img_size=None)))["size"] == (288, 288)


@pytest.mark.parametrize(
    ("processor", "size", "expected"),
    [
        ({"size": 32, "image_mean": MEAN, "image_std": STD}, (32, 32), (PIXEL / 255 - MEAN) / STD),
        ({"size": {"height": 32, "width": 48}, "do_normalize": False}, (32, 48), PIXEL / 255),
        ({"do_rescale": False, "image_mean": MEAN, "image_std": STD}, None, (PIXEL - MEAN) / STD),
        ({"do_rescale": False, "do_normalize": False}, None, PIXEL),
        ({"size": {"shortest_edge": 48}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True}, (32, 32), PIXEL / 255),
        ({"size": {"shortest_edge": 48}, "crop_size": {"height": 32, "width": 32}}, (48, 48), PIXEL / 255),
        ({"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False}, None, PIXEL / 127.5 - 1),
        ({"include_top": True, "image_mean": MEAN, "image_std": STD}, None, (PIXEL / 255 - MEAN) / np.square(STD)),
        ({"include_top": True, "do_normalize": False, "image_std": STD}, None, PIXEL / 255 / STD),
        ({"do_flip_channel_order": True, "image_mean": MEAN, "image_std": STD}, None, PIXEL[::-1] / 255),
    ],
)  # fmt: skip
def test_a_processor_of_hugging_face(processor: dict[str, Any], size: Any, expected: Any) -> None:
    facts = of_processor(processor)
    assert facts.get("size") == size
    np.testing.assert_allclose(facts["preprocessing"](PIXEL), expected, rtol=1e-5)


def test_a_live_model_of_hugging_face_states_the_processor_of_its_folder(tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    live = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    assert xcam.load(live).input.preprocessing is None
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_processor_type": "ViTImageProcessor", "image_mean": [0.1], "image_std": [0.4], "size": 32}'
    )
    spec = xcam.load(live).input
    assert spec.size == (32, 32)
    assert spec.preprocessing is not None
    np.testing.assert_allclose(spec.preprocessing(PIXEL), (PIXEL / 255 - 0.1) / 0.4, rtol=1e-5)


def test_the_wrapper_of_timm_in_hugging_face() -> None:
    inner = module(pretrained_cfg=TIMM | {"input_size": (3, 96, 96)}, num_classes=2)
    config = SimpleNamespace(id2label={0: "cat", 1: "dog"})
    facts = known(module(config=config, timm_model=inner))
    fit = xcam.Fit("crop", crop_pct=0.875, interpolation="bicubic", fill="mean", like="timm")
    assert facts == {"preprocessing": PRESETS["torch"], "size": (96, 96), "fit": fit, "labels": ["cat", "dog"]}
    stated = {
        "input_size": (3, 64, 64),
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "crop_mode": "squash",
        "crop_pct": 1.0,
    }
    config = SimpleNamespace(id2label={0: "cat", 1: "dog"}, pretrained_cfg=stated)  # that of the folder
    facts = known(module(config=config, timm_model=inner))
    assert facts["size"] == (64, 64)
    assert facts["fit"].mode == "stretch"


def test_the_transforms_of_torchvision() -> None:
    def weights(**transforms: Any) -> Any:
        return SimpleNamespace(transforms=lambda: SimpleNamespace(**transforms), meta={"categories": ["a", "b"]})

    classes = of_torchvision(
        weights(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop_size=[240], resize_size=[255])
    )
    fit = xcam.Fit("crop", resize=255)
    assert classes == {"preprocessing": PRESETS["torch"], "size": (240, 240), "labels": ["a", "b"], "fit": fit}
    segmentation = of_torchvision(weights(mean=(0.5,) * 3, std=(0.5,) * 3, resize_size=[520]))
    assert segmentation["size"] is None  # it follows from the image
    assert segmentation["fit"] == xcam.Fit("pad", resize=520, like="torchvision")
    assert of_torchvision(weights()) == {
        "preprocessing": PRESETS["unit"],
        "size": None,
        "labels": ["a", "b"],
        "fit": None,
    }


def test_a_network_of_ultralytics_takes_0_to_1() -> None:
    facts = known(module(names={1: "dog", 0: "cat"}, stride=32, yaml={}, args={"imgsz": 64}))
    fit = xcam.Fit("letterbox")
    assert facts == {"preprocessing": PRESETS["unit"], "labels": ["cat", "dog"], "size": (64, 64), "fit": fit}
    numbers = known(module(names={0: "0", 1: "1"}, stride=32, yaml={}, args=SimpleNamespace(imgsz=[64, 32])))
    assert numbers == {"preprocessing": PRESETS["unit"], "fit": fit}
    assert known(module(names={0: "cat"})) == {}
