"""Reading of images and masks: formats, orientation, alpha, damaged files."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from xcam import InputError
from xcam.images import reading, writing

RED = np.zeros((20, 30, 3), np.uint8)
RED[:, :15, 0] = 250  # the left half is red, RGB


def save(path: Path, bgr: np.ndarray) -> Path:
    path.write_bytes(cv2.imencode(path.suffix, bgr)[1].tobytes())
    return path


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tiff"])
def test_every_format_is_read_as_rgb(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"größe 画像{suffix}"
    writing.write(path, RED)
    image = reading.read(path)
    assert image.shape == (20, 30, 3)
    assert abs(int(image[10, 4, 0]) - 250) <= 6
    assert image[10, 4, 1:].max() <= 10
    assert image[10, 26].max() <= 10


def test_the_suffix_jfif_is_jpeg(tmp_path: Path) -> None:
    writing.write(tmp_path / "a.jpg", RED)
    path = (tmp_path / "a.jpg").rename(tmp_path / "a.jfif")
    assert reading.read(path).shape == (20, 30, 3)


def exif(orientation: int) -> bytes:
    """Return an APP1 segment with an orientation only."""
    tiff = b"MM\x00\x2a" + struct.pack(">I", 8) + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)
    body = b"Exif\x00\x00" + tiff
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


@pytest.mark.parametrize(
    ("orientation", "shape", "red"),
    [(1, (20, 30), (10, 4)), (3, (20, 30), (10, 26)), (6, (30, 20), (4, 10)), (8, (30, 20), (26, 10))],
)
def test_exif_orientation_is_applied(
    tmp_path: Path, orientation: int, shape: tuple[int, int], red: tuple[int, int]
) -> None:
    data = cv2.imencode(".jpg", RED[..., ::-1])[1].tobytes()
    path = tmp_path / "turned.jpg"
    path.write_bytes(data[:2] + exif(orientation) + data[2:])
    image = reading.read(path)
    assert image.shape[:2] == shape
    assert image[red][0] > 200


def test_grey_16_bit_and_alpha(tmp_path: Path) -> None:
    grey = save(tmp_path / "grey.png", np.full((4, 5), 100, np.uint8))
    np.testing.assert_array_equal(reading.read(grey), np.full((4, 5, 3), 100))
    deep = save(tmp_path / "deep.png", np.full((4, 5, 3), 0x8000, np.uint16))
    assert abs(int(reading.read(deep)[0, 0, 0]) - 128) <= 1
    bgra = np.zeros((4, 5, 4), np.uint8)
    bgra[..., 2], bgra[..., 3] = 200, 51  # red at a fifth
    clear = save(tmp_path / "clear.png", bgra)
    np.testing.assert_array_equal(reading.read(clear)[0, 0], [244, 204, 204])
    np.testing.assert_array_equal(reading.read(save(tmp_path / "clear.tiff", bgra))[0, 0], [244, 204, 204])
    deep_clear = save(tmp_path / "deep_clear.png", bgra.astype(np.uint16) * 257)
    np.testing.assert_allclose(reading.read(deep_clear)[0, 0], [244, 204, 204], atol=1)


def test_the_memory_for_a_large_image_with_alpha(tmp_path: Path) -> None:
    bgra = np.random.default_rng(0).integers(0, 256, (2000, 1000, 4), np.uint8)
    bgra[..., 3] |= 0x80  # no transparent rows, which would be equal
    path = save(tmp_path / "large.png", bgra)
    tracemalloc.start()
    image = reading.read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    alpha = bgra[..., 3:] / 255
    np.testing.assert_allclose(image, 255 - alpha * (255 - bgra[..., 2::-1].astype(float)), atol=0.51)
    assert peak < path.stat().st_size + 4 * image.nbytes  # the file, OpenCV's array, the image, and a strip


def test_alpha_of_an_image_that_is_turned_is_ignored(tmp_path: Path) -> None:
    bgra = np.zeros((4, 6, 4), np.uint8)
    bgra[..., 2], bgra[..., 3] = 200, 51
    bgra[:, 3:, 2] = 90
    data = cv2.imencode(".png", bgra)[1].tobytes()
    body = exif(6)[10:]
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
    path = tmp_path / "turned.png"
    path.write_bytes(data[:33] + chunk + data[33:])
    image = reading.read(path)
    assert image.shape == (6, 4, 3)
    assert image[0, 0].tolist() == [200, 0, 0]
    assert image[5, 0].tolist() == [90, 0, 0]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tiff"])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_a_truncated_image_is_refused_in_one_line(
    tmp_path: Path, suffix: str, part: float, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / f"a{suffix}"
    writing.write(whole, np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8))
    data = whole.read_bytes()
    broken = tmp_path / f"b{suffix}"
    broken.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(InputError, match="empty, truncated, or not an image"):
        reading.read(broken)
    assert capfd.readouterr().err == ""


def test_a_damaged_png_is_refused_and_one_with_trailing_bytes_is_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(cv2.imencode(".png", RED)[1].tobytes())
    path = tmp_path / "a.png"
    path.write_bytes(bytes(data) + b"x" * 9000)
    assert reading.read(path).shape == (20, 30, 3)
    data[60] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="empty, truncated, or not an image"):
        reading.read(path)
    huge = bytearray(cv2.imencode(".png", RED)[1].tobytes())
    huge[16:24] = struct.pack(">II", 60_000, 60_000)
    huge[29:33] = struct.pack(">I", zlib.crc32(huge[12:29]))
    path.write_bytes(huge)
    with pytest.raises(InputError, match="empty, truncated, or not an image"):
        reading.read(path)
    assert capfd.readouterr().err == ""


def test_files_that_are_not_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        reading.read(tmp_path / "absent.jpg")
    with pytest.raises(InputError, match=": it is a directory; give an image in it"):
        reading.read(tmp_path)
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(InputError, match="not an image"):
        reading.read(tmp_path / "text.jpg")
    one = save(tmp_path / "one.png", np.zeros((1, 1, 3), np.uint8))
    with pytest.raises(InputError, match="1×1 pixels are too few"):
        reading.read(one)


@pytest.mark.parametrize("image", [np.zeros((4, 4)), np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), 3])
def test_arrays_that_are_not_images(image: object) -> None:
    with pytest.raises(InputError, match=r"give a path, or RGB as uint8 \[H, W, 3\]"):
        reading.check(image)


OBJECT = np.zeros((20, 30), bool)
OBJECT[2:9, 3:14] = True


def painted(colour: int, outside: int, clear: int = 0, dtype: type = np.uint8) -> np.ndarray:
    """Return BGRA: the object opaque in one colour, the rest in another colour with the alpha `clear`."""
    bgra = np.full((*OBJECT.shape, 4), outside, dtype)
    bgra[..., 3] = clear
    bgra[OBJECT] = [colour, colour, colour, np.iinfo(dtype).max]
    return bgra


@pytest.mark.parametrize(
    ("suffix", "bgr"),
    [
        (".png", OBJECT * np.uint8(1)),
        (".png", OBJECT * np.uint16(7)),
        (".png", OBJECT[..., None] * np.uint16([0, 0, 256])),
        (".tiff", OBJECT * np.int32(70_000)),
        (".tiff", OBJECT * np.float32(0.2)),
        (".png", painted(255, 0)),
        (".png", painted(255, 255)),  # white everywhere: only alpha differs
        (".png", painted(0, 255)),  # black on transparent white
        (".png", painted(9, 0, clear=255)),  # opaque everywhere: the colours differ
        (".png", painted(255, 0, dtype=np.uint16)),
        (".webp", painted(255, 255)),
        (".jpg", OBJECT * np.uint8(255)),
        (".jpg", OBJECT[..., None] * np.uint8([0, 0, 255])),
    ],
)
def test_the_object_of_a_mask(tmp_path: Path, suffix: str, bgr: np.ndarray) -> None:
    np.testing.assert_array_equal(reading.mask(save(tmp_path / f"m{suffix}", bgr)), OBJECT)


def test_masks_without_object_and_without_background(tmp_path: Path) -> None:
    black = painted(0, 0, clear=255)
    assert not reading.mask(save(tmp_path / "black.png", black)).any()
    assert not reading.mask(save(tmp_path / "clear.png", np.zeros_like(black))).any()
    assert reading.mask(save(tmp_path / "white.png", np.full_like(black, 255))).all()


def test_a_black_part_of_an_opaque_object_is_background(tmp_path: Path) -> None:
    bgra = painted(255, 255)
    bgra[2:9, 3:5, :3] = 0  # opaque and black, next to white
    expected = OBJECT.copy()
    expected[:, 3:5] = False
    np.testing.assert_array_equal(reading.mask(save(tmp_path / "m.png", bgra)), expected)


@pytest.mark.parametrize(
    ("suffix", "quality"), [(".jpg", [cv2.IMWRITE_JPEG_QUALITY, 40]), (".webp", [cv2.IMWRITE_WEBP_QUALITY, 1])]
)
def test_noise_of_lossy_compression_is_background(tmp_path: Path, suffix: str, quality: list[int]) -> None:
    path = tmp_path / f"m{suffix}"
    path.write_bytes(cv2.imencode(suffix, OBJECT[..., None] * np.uint8([255] * 3), quality)[1].tobytes())
    assert (reading.read(path).any(axis=2) & ~OBJECT).sum() > 20  # not black, and not in the object
    edge = cv2.morphologyEx(OBJECT.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3))) != 0
    assert not (reading.mask(path) ^ OBJECT)[~edge].any()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_a_mask_is_turned_upright(tmp_path: Path, suffix: str, orientation: int, turns: int) -> None:
    tiff = np.frombuffer(exif(orientation)[10:], np.uint8)
    for name, bgr in (("alpha", painted(255, 255)), ("grey", OBJECT[..., None] * np.uint8([255] * 3))):
        if (name, suffix) == ("alpha", ".jpg"):
            continue
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(cv2.imencodeWithMetadata(suffix, bgr, [cv2.IMAGE_METADATA_EXIF], [tiff])[1].tobytes())
        np.testing.assert_array_equal(reading.mask(path), np.rot90(OBJECT, turns))
        assert reading.read(path).shape[:2] == np.rot90(OBJECT, turns).shape


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tiff"])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_a_truncated_mask_is_refused(
    tmp_path: Path, suffix: str, part: float, capfd: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8)
    path = save(tmp_path / f"m{suffix}", noise)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(InputError, match="empty, truncated, or not an image"):
        reading.mask(path)
    assert capfd.readouterr().err == ""


def test_mask_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        reading.mask(tmp_path / "none.png")
    with pytest.raises(InputError, match="it is a directory; give a mask in it"):
        reading.mask(tmp_path)
    with pytest.raises(InputError, match=r"m.tiff: it contains NaN; give numbers"):
        reading.mask(save(tmp_path / "m.tiff", np.full((4, 5), np.nan, np.float32)))


def test_a_video_is_named_as_one(tmp_path: Path) -> None:
    (tmp_path / "clip.MP4").write_bytes(b"video")
    with pytest.raises(InputError, match=r"clip\.MP4 as an image: it is a video, which only `xcam explain` takes"):
        reading.read(tmp_path / "clip.MP4")
