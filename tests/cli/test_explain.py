"""`xcam explain` on the command line: images, JSON, and one line for an error."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

import xcam
from systems import named_pipes
from typed import Result
from xcam.images import reading, writing
from xcam.models import demo


def test_json_is_one_document_and_names_class_score_layer_output(run: Callable[..., Result], image: Path) -> None:
    result = run("-b", "keras", "-m", "demo", "-l", "conv4", image, "--json", "--score", "probability")
    assert (result.status, result.err) == (0, "")
    document = json.loads(result.out)
    assert document["layer"] == "conv4"
    assert document["class"] == demo.CLASSES[document["index"]]
    assert document["score"] == pytest.approx(document["probability"], abs=1e-6)
    assert document["top"][0]["class"] == document["class"]
    assert Path(document["output"]).name == "scene.cam.jpg"
    assert Path(document["output"]).is_file()


def test_options_reach_the_map_and_the_drawing(run: Callable[..., Result], image: Path, tmp_path: Path) -> None:
    arguments = ["-b", "keras", "-m", "demo", "-t", "ring", "--method", "layercam", "--normalize", "minmax"]
    arguments += ["--colormap", "viridis", "--alpha", "0.3", "--blend", "add", "-l", "conv4"]
    assert run(*arguments, "-o", "a.png", image).status == 0
    e = xcam.explain(
        xcam.load("demo", "keras"), image, layer="conv4", target="ring", method="layercam", normalize="minmax"
    )
    np.testing.assert_array_equal(reading.read(tmp_path / "a.png"), e.overlay(0.3, "viridis", "add"))
    assert run(*arguments, "-o", "a.npz", image).status == 0
    with np.load(tmp_path / "a.npz") as arrays:
        np.testing.assert_allclose(arrays["cam"], e.cam, atol=1e-6)


def test_the_fit_is_printed_with_the_part_that_was_seen(run: Callable[..., Result], tmp_path: Path) -> None:
    writing.write(tmp_path / "wide.png", np.full((100, 300, 3), 90, np.uint8))
    arguments = ["-b", "onnx", "-m", "demo", "wide.png", "--preprocess", "tf"]
    cropped = run(*arguments, "--fit", "crop:0.8")
    assert (cropped.status, cropped.out.count("fit: crop:crop_pct=0.8; seen: x 110–190, y 10–90 of 300×100")) == (
        0,
        1,
    )
    assert "fit: letterbox\n" in run(*arguments, "--fit", "letterbox").out
    document = json.loads(run(*arguments, "--fit", "crop:0.8", "--json").out)
    assert (document["fit"], document["seen"]) == ("crop:crop_pct=0.8", [110, 10, 190, 90])
    stretched = run(*arguments)
    assert "fit" not in stretched.out
    document = json.loads(run(*arguments, "--json").out)
    assert (document["fit"], document["seen"]) == (None, [0, 0, 300, 100])
    for text in ("crob", "crop:0", "letterbox:fill=red", "pad:resize=x"):
        result = run(*arguments, "--fit", text)
        assert (result.status, result.out) == (2, "")
        assert result.err.startswith("xcam: ")
        assert result.err.count("\n") == 1


def test_several_classes_and_images(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    result = run("-m", "demo", "-b", "keras", "-t", "disc", "-t", "1", "-o", "out", "--json", *demo.image_paths()[:3])
    assert result.status == 0, result.err
    document = json.loads(result.out)
    assert [row["index"] for row in document] == [0, 1] * 3
    assert len(list((tmp_path / "out").iterdir())) == 6
    assert all(Path(row["output"]).is_file() for row in document)


def test_an_existing_output_is_replaced_and_the_default_is_next_to_the_image(
    run: Callable[..., Result], image: Path
) -> None:
    path = image.with_name("scene.cam.jpg")
    path.write_bytes(b"old")
    assert run("-m", "demo", "-b", "keras", image).status == 0
    assert reading.read(path).shape == reading.read(image).shape


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.png"], "cannot read absent.png: no such file"),
        (["."], ".: it is a directory; give an image in it"),
        (["text.jpg"], "text.jpg: empty, truncated, or not an image"),
        (["cut.jpg"], "cut.jpg: empty, truncated, or not an image"),
        (["one.png"], "one.png: 1×1 pixels are too few"),
        (["-l", "conv9", "scene.png"], "unknown layer 'conv9' in demo; nearest: conv"),
        (["-l", "scores", "scene.png"], "layer 'scores': it has no spatial axes"),
        (["-t", "hexagon", "scene.png"], "unknown class 'hexagon'; known: disc"),
        (["-t", "6", "scene.png"], "unknown class 6: there are 6 classes; give 0 to 5"),
        (["-m", "text.keras", "scene.png"], "cannot load text.keras"),
        (["-m", "absent.keras", "scene.png"], "no such model file: absent.keras"),
        (["-m", "resnet-fifty", "scene.png"], "unknown model 'resnet-fifty' in keras.applications"),
        (["-o", "none/a.png", "scene.png"], "folder none does not exist"),
        (["-o", "a.gif", "scene.png"], "unknown format '.gif'; use .jpg, .png, .npz or .npy"),
        (["-o", "scene.png", "scene.png"], "would be overwritten; choose another -o"),
        (["-o", "a.png", "scene.png", "scene.png"], "2 images cannot all be written to a.png"),
        (["scene.png", "scene.png"], "two maps would be written to"),
        (["--method", "gradcan", "scene.png"], "unknown method 'gradcan'; nearest: gradcam"),
        (["--colormap", "jett", "scene.png"], "unknown colormap 'jett'; nearest: jet"),
        (["--preprocess", "cafe", "scene.png"], "unknown preprocessing 'cafe'; known: caffe"),
        (["--size", "10y", "scene.png"], "'10y' is not a size; give HEIGHTxWIDTH"),
        (["--size", "64x64", "scene.png"], "demo takes images of 128×128, not 64×64"),
        (["--labels", "absent.txt", "scene.png"], "cannot read absent.txt: no such file"),
        (["--device", "tpu", "scene.png"], "unknown device 'tpu'"),
        (["--weights", "w.h5", "-m", "vgg16", "scene.png"], "cannot read weights from w.h5: no such file"),
        (["-b", "kears", "scene.png"], "unknown backend 'kears'"),
        (["--alpha", "2", "scene.png"], "2.0 is not in the range"),
        ([], "Missing argument"),
        (["-t", "top7", "scene.png"], "the model has 6 classes; give top6 or less"),
        (["-t", "top99999999999", "scene.png"], "give top1 to top1000"),
        (["-t", "disc-disc", "scene.png"], "the difference of class 0 and itself is zero"),
        (["-t", "disc-ring", "--score", "probability", "scene.png"], "cannot use score='probability' for"),
        (["-t", "0", "-t", "0", "scene.png"], "class '0' is given twice"),
        (["-l", "conv5", "-l", "conv5", "scene.png"], "layer 'conv5' is given twice"),
        (["--fuse", "mean", "scene.png"], "--fuse needs two layers or more"),
        (
            ["--fuse", "mean", "--signed", "-l", "conv4", "-l", "conv5", "scene.png"],
            "--fuse does not apply to signed maps",
        ),
        (
            ["--signed", "--style", "contour", "scene.png"],
            "--style signed, which contradicts --style contour; leave one out",
        ),
        (["--signed", "--normalize", "none", "scene.png"], "--normalize does not apply to signed maps"),
        (["--style", "contour", "--alpha", "0.3", "scene.png"], "alpha has no effect on style 'contour'"),
        (["--method", "iscam", "-O", "n=2.5", "scene.png"], "n='2.5' of method 'iscam' is invalid; give an integer"),
        (["--method", "iscam", "-O", "n=2", "-O", "n=3", "scene.png"], "option 'n' is given twice"),
        (["--method", "fem", "-O", "k=nan", "scene.png"], "k=nan of method 'fem' is invalid; give a finite number"),
        (
            ["--method", "gradcam", "-O", "n=3", "scene.png"],
            "method 'gradcam' has no option 'n'; its options: eigen_smooth",
        ),
        (["--method", "random", "-O", "seed=-1", "scene.png"], "cannot use seed=-1; give 0 or more"),
        (
            ["--method", "scorecam", "-O", "max_channels=999", "scene.png"],
            "or at most 64, the number of channels",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2_and_writes_nothing(
    run: Callable[..., Result], image: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "text.keras").write_text("not a model")
    (tmp_path / "cut.jpg").write_bytes(cv2.imencode(".jpg", reading.read(image))[1].tobytes()[:3000])
    (tmp_path / "one.png").write_bytes(cv2.imencode(".png", np.zeros((1, 1, 3), np.uint8))[1].tobytes())
    before = sorted(tmp_path.iterdir())
    backend = [] if "-b" in arguments else ["-b", "keras"]
    model = [] if "-m" in arguments else ["-m", "demo"]
    result = run(*backend, *model, *arguments)
    assert message in result.err
    assert result.status == 2
    assert result.out == ""
    assert "Traceback" not in result.err
    assert len(result.err.splitlines()) == 1, result.err
    assert result.err.startswith("xcam: ")
    assert sorted(tmp_path.iterdir()) == before


def test_a_zero_heatmap_is_written_with_a_warning(run: Callable[..., Result], tmp_path: Path) -> None:
    from xcam_keras.backend import keras

    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3, name="c", bias_initializer="zeros")])
    model.add(keras.layers.GlobalAveragePooling2D())
    model.add(keras.layers.Dense(2))
    model.save(tmp_path / "m.keras")
    writing.write(tmp_path / "black.png", np.zeros((8, 8, 3), np.uint8))
    result = run("-m", "m.keras", "--preprocess", "raw", "black.png")
    assert result.status == 0
    assert "xcam: warning: the heatmap of black.png is zero everywhere at layer 'c': every activation" in result.err
    np.testing.assert_allclose(reading.read(tmp_path / "black.cam.jpg")[4, 4], [0, 0, 64], atol=4)


def test_files_written_before_a_failure_are_reported(run: Callable[..., Result], image: Path) -> None:
    names = [f"{n}.png" for n in range(9)]
    for name in names:
        shutil.copy(image, image.with_name(name))
    image.with_name("8.png").write_bytes(image.read_bytes()[:500])
    result = run("-m", "demo", "-b", "keras", "--json", *names)
    assert result.status == 2
    assert "8.png: empty, truncated, or not an image" in result.err
    assert [Path(row["output"]).name for row in json.loads(result.out)] == [f"{n}.cam.jpg" for n in range(8)]


@named_pipes
def test_pipes_are_refused(run: Callable[..., Result], image: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert "pipe.png: it is not a regular file; give an image" in run("-m", "demo", "-b", "keras", "pipe.png").err
    result = run("-m", "demo", "-b", "keras", "-o", "pipe.png", image)
    assert "it is write-protected, or not a regular file" in result.err
    assert (tmp_path / "pipe.png").is_fifo()


def test_a_difference_of_classes_is_printed_with_its_value_and_the_probabilities(
    run: Callable[..., Result], image: Path
) -> None:
    arguments = ["-b", "onnx", "-m", "demo", image]
    one = json.loads(run(*arguments, "--json").out)
    two = json.loads(run(*arguments, "--json", "-t", "disc-ring").out)
    assert (two["class"], two["index"], two["probability"]) == ("disc-ring", None, None)
    assert two["top"] == one["top"]
    assert 0 < two["top"][0]["probability"] <= 1
    shown = run(*arguments, "-t", "disc-ring").out
    assert f"→ {two['score']:7.4g}  disc-ring" in shown
    assert f"{one['probability']:7.2%}  {one['class']}" in shown
    assert f"{two['score']:7.4g}  disc-ring: gradcam" in run(*arguments, "-t", "disc-ring", "--grid").out


def test_no_classes_are_listed_for_an_embedding(run: Callable[..., Result], image: Path) -> None:
    result = run("-m", "onnx:demo", "-t", f"like:{image}", image)
    assert result.status == 0
    assert "→       1  like scene.png" in result.out
    assert "%" not in result.out
    assert json.loads(run("-m", "onnx:demo", "-t", f"like:{image}", "--json", image).out)["top"] == []


@pytest.fixture
def signals(tmp_path: Path) -> Callable[[], None]:
    """Write my_signals.py with a model of signals, and signal.npy, many.npz and batch.npy."""
    (tmp_path / "my_signals.py").write_text(SIGNALS)
    rng = np.random.default_rng(0)
    np.save(tmp_path / "signal.npy", rng.normal(size=(2, 50)).astype(np.float32))
    np.savez(tmp_path / "many.npz", first=rng.normal(size=(2, 60)), second=rng.normal(size=(2, 70)))
    np.save(tmp_path / "batch.npy", rng.normal(size=(3, 2, 50)))
    return lambda: None


SIGNALS = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(2, 4, 5), nn.Tanh(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3))
"""


def test_arrays_from_files(run: Callable[..., Result], signals: object, tmp_path: Path) -> None:
    result = run("-m", "my_signals:build", "--method", "hirescam", "signal.npy", "many.npz:second", "--json")
    assert (result.status, result.err) == (0, "")
    first, second = json.loads(result.out)
    assert (first["image"], first["output"]) == ("signal.npy", "signal.cam.jpg")
    assert (second["image"], second["output"]) == ("many.npz:second", "many.second.cam.jpg")
    assert (first["heatmap_shape"], first["cam_shape"]) == ([50], [46])
    assert (second["heatmap_shape"], second["cam_shape"]) == ([70], [66])
    for target in ("a.npz", "a.npy", "a.png"):
        assert run("-m", "my_signals:build", "--method", "hirescam", "signal.npy", "-o", target).status == 0
    with np.load("a.npz") as saved:
        heatmap, cam = saved["heatmap"], saved["cam"]
    np.testing.assert_array_equal(np.load("a.npy"), heatmap)
    e = xcam.explain("my_signals:build", np.load("signal.npy"), method="hirescam")
    np.testing.assert_allclose(cam, e.cam, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(reading.read("a.png"), e.overlay())
    assert run("-m", "my_signals:build", "signal.npy", "many.npz:first", "--report", "r.html", "-t", "0").status == 0
    assert run("-m", "my_signals:build", "signal.npy", "-t", "0", "-t", "1", "--grid", "-o", "grid.png").status == 0
    assert (tmp_path / "grid.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["many.npz"], "many.npz has 2 arrays (first, second); give one by its name: many.npz:first"),
        (["many.npz:third"], "many.npz has no array 'third'; known: first, second"),
        (["batch.npy"], "batch.npy is a batch of 3 inputs, and one is expected; save each row in a file"),
        (["none.npy"], "cannot read none.npy: no such file"),
        (
            ["scene.png"],
            "the model takes signals, not images; give `explain` an array as it takes it, or its .npy file",
        ),
        (["signal.npy", "--method", "all", "-o", "a.npy"], "a.npy holds one map"),
        (["signal.npy", "-o", "signal.npy"], "would be overwritten"),
    ],
)
def test_arrays_that_cannot_be_explained(
    run: Callable[..., Result], signals: object, image: Path, arguments: list[str], message: str
) -> None:
    result = run("-m", "my_signals:build", *arguments)
    assert (result.status, result.out) == (2, "")
    assert message in result.err
    assert result.err.count("\n") == 1
