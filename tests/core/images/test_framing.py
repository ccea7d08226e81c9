"""The location of an image on the input, and maps, points and boxes back to the image."""

import numpy as np
import pytest

from xcam import Fit, InputError
from xcam.images.framing import Frame, fitted, frame


@pytest.fixture
def image():
    """An image of 300×500 with a bright square in rows 120-160, columns 200-240."""
    image = np.full((300, 500, 3), 40, np.uint8)
    image[120:160, 200:240] = 240
    return image


def test_stretch_is_the_whole_image():
    f = frame((300, 500), (224, 224), None)
    assert f.is_whole
    assert f.scale == (224 / 300, 224 / 500)
    assert f.mask.all()


def test_crop():
    f = frame((300, 500), (224, 224), Fit("crop", resize=256))
    assert f.scale == (256 / 300, 426 / 500)  # torchvision: int(256 · 500 / 300)
    assert f.offset == (-16, -101)
    assert f.seen == (slice(19, 281), slice(119, 381))


def test_letterbox():
    f = frame((300, 500), (640, 640), Fit("letterbox"))
    assert f.scale == (384 / 300, 1.28)
    assert f.offset == (128, 0)
    assert f.mask.all()


@pytest.mark.parametrize("text", ["crop", "letterbox", "pad", "stretch"])
@pytest.mark.parametrize("like", ["torchvision", "timm", "transformers", "ultralytics", "keras"])
@pytest.mark.parametrize("size", [(64, 96), (96, 64), (80, 80)])
def test_square_is_where_the_frame_states(image, text, like, size):
    fit = Fit(text, like=like)
    f = frame(image.shape, size, fit)
    x = fitted(image, size, fit)
    assert x.shape == (*size, 3)
    rows, columns = np.nonzero(x[..., 0] > 140)
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(box, f.boxes_to_input([200, 120, 240, 160]), atol=0.8)
    np.testing.assert_allclose(f.boxes_to_image(box), [200, 120, 240, 160], atol=0.8 * 500 / min(size))


def test_map_of_the_input_returns_to_the_image(image):
    for fit in (
        Fit(),
        Fit("crop"),
        Fit("letterbox"),
        Fit("pad", centred=False),
        Fit("crop", crop_pct=0.8, like="keras"),
    ):
        x = fitted(image, (96, 96), fit)
        f = frame(image.shape, (96, 96), fit)
        back = f.map_to_image(x[..., 0].astype(np.float32))
        difference = np.abs(back - image[..., 0])[f.mask]
        assert np.mean(difference > 40) < 0.02
        assert not back[~f.mask].any()


def test_points_and_boxes():
    f = Frame((100, 200), (50, 50), (0.5, 0.25), (0, 10))
    np.testing.assert_array_equal(f.to_input([[20, 10], [200, 100]]), [[15, 5], [60, 50]])
    np.testing.assert_array_equal(f.to_image([15, 5]), [20, 10])
    np.testing.assert_array_equal(f.boxes_to_image([0, 0, 50, 50]), [0, 0, 160, 100])
    np.testing.assert_array_equal(f.boxes_to_image([0, 0, 50, 50], clip=False), [-40, 0, 160, 100])
    small = f.resized((50, 100))
    np.testing.assert_array_equal(small.to_input([10, 5]), f.to_input([20, 10]))


def test_an_image_of_an_extreme_ratio():
    with pytest.raises(InputError, match="choose fit letterbox or stretch"):
        frame((2, 20000), (224, 224), Fit("crop", crop_pct=0.1))
    thin = np.full((2, 900, 3), 200, np.uint8)
    x = fitted(thin, (32, 32), Fit("letterbox"))
    assert (x[15:17] == 200).all(axis=(1, 2)).sum() == 1  # one row, and the border
    assert (x[:15] == 114).all()
