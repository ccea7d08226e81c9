"""The size and the fit that the image processors of Hugging Face state."""

import pytest

from xcam import Fit
from xcam.contract.processors import facts


@pytest.mark.parametrize(
    ("processor", "size", "fit"),
    [
        ({"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 48}, "resample": 2},
         (32, 48), Fit("stretch", interpolation="bilinear", like="transformers")),
        ({"feature_extractor_type": "CLIPFeatureExtractor", "size": 36, "crop_size": 32, "do_center_crop": True, "resample": 3},
         (32, 32), Fit("crop", resize=36, interpolation="bicubic", like="transformers")),
        ({"image_processor_type": "ConvNextImageProcessorFast", "size": {"shortest_edge": 224}, "crop_pct": 0.875},
         (224, 224), Fit("crop", resize=256, interpolation="bilinear", like="transformers")),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}, "crop_pct": 0.875},
         (384, 384), Fit("stretch", interpolation="bilinear", like="transformers")),
        ({"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 224}, "do_center_crop": True,
          "crop_size": {"height": 224, "width": 224}, "resample": 3},
         (224, 224), Fit("crop", resize=256, interpolation="bicubic", like="transformers")),
        ({"image_processor_type": "DeiTImageProcessor", "size": {"height": 256, "width": 256}, "do_center_crop": True,
          "crop_size": {"height": 224, "width": 224}},
         (224, 224), Fit("stretch", resize=(256, 256), interpolation="bilinear", like="transformers")),
        ({"image_processor_type": "DetrImageProcessor", "size": {"shortest_edge": 800, "longest_edge": 1333}, "do_pad": True},
         None, Fit("pad", resize=800, longest=1333, fill="mean", centred=False, like="transformers")),
        ({"image_processor_type": "Owlv2ImageProcessor", "size": {"height": 960, "width": 960}, "do_pad": True},
         (960, 960), Fit("pad", centred=False, like="keras")),
        ({"image_processor_type": "ViTImageProcessor", "size": 32, "do_resize": False}, None, None),
        ({"do_normalize": False}, None, None),
    ],
)  # fmt: skip
def test_size_and_fit(processor, size, fit):
    stated = facts(processor)
    assert stated.get("size") == size
    assert stated.get("fit") == fit


def test_an_empty_processor_states_nothing():
    assert facts({}) == {}
