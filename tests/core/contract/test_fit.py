"""The text form of a fit, the defaults of its modes, and the values that it refuses."""

import pytest

from xcam import Fit, InputError
from xcam.contract.fit import parse


@pytest.mark.parametrize(
    ("text", "fit"),
    [
        ("stretch", Fit()),
        ("crop", Fit("crop", interpolation="bilinear", antialias=True, fill=(0, 0, 0), like="torchvision")),
        ("crop:0.875", Fit("crop", crop_pct=0.875)),
        ("crop:256", Fit("crop", resize=256)),
        ("crop:resize=256,interpolation=bicubic", Fit("crop", resize=256, interpolation="bicubic")),
        ("stretch:resize=256x300", Fit("stretch", resize=(256, 300))),
        ("letterbox", Fit("letterbox", interpolation="bilinear", antialias=False, fill=114, like="ultralytics")),
        ("letterbox:fill=0/128/255,centred=no", Fit("letterbox", fill=(0, 128, 255), centred=False)),
        ("pad:fill=mean,enlarge=no", Fit("pad", fill="mean", enlarge=False)),
        ("pad:resize=800,longest=1333,multiple=32", Fit("pad", resize=800, longest=1333, multiple=32)),
    ],
)
def test_text(text, fit):
    assert parse(text) == fit
    assert parse(str(fit)) == fit
    assert parse(fit) is fit


def test_text_has_only_what_differs_from_the_mode():
    assert str(Fit()) == "stretch"
    assert str(Fit("letterbox")) == "letterbox"
    assert str(Fit("letterbox", fill=0)) == "letterbox:fill=0"
    assert str(Fit("crop", crop_pct=0.95, interpolation="bicubic")) == "crop:crop_pct=0.95,interpolation=bicubic"


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("", "stretch"),
        ("letterboks", "letterbox"),
        ("crop:resise=256", "resize"),
        ("crop:1.5", "0.875"),
        ("crop:0.0", "0.875"),
        ("crop:crop_pct=nan", "0.875"),
        ("crop:0", "1 to 16384"),
        ("crop:-3", "1 to 16384"),
        ("crop:256,256", "give it once"),
        ("crop:256,0.875", "one of them"),
        ("crop:interpolation=cubic", "bicubic"),
        ("crop:like=tensorflow", "keras"),
        ("crop:resize=", "256"),
        ("crop:resize=2x3x4", "height, width"),
        ("stretch:256", "crop"),
        ("pad:fill=256", "255"),
        ("pad:fill=red", "114"),
        ("pad:fill=1x2", "255"),
        ("pad:centred=maybe", "yes or no"),
        ("pad:longest=9", "give resize"),
    ],
)
def test_refused_with_a_remedy(text, remedy):
    with pytest.raises(InputError) as error:
        parse(text)
    assert remedy in str(error.value)
    assert "\n" not in str(error.value)
