"""Draw the figures of README and documentation: `python docs/make_pictures.py [FOLDER]`. Each run gives the same files.

demo.png is the figure of README; those under pictures/ belong to the explanation pages. All show the demo network on
scenes that were not used for training. White lines are the true outlines of the shapes.
"""

from __future__ import annotations

import runpy
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import xcam
from xcam.images import writing
from xcam.images.montage import tiled
from xcam.images.overlay import lookup_table, overlay
from xcam.methods import maps
from xcam.models import demo
from xcam.models.demo import scenes

GAP = 8
DOCS = Path(__file__).parent
SIDE = 160
COLOURS = "viridis"
SCENE = 18
"""Index of a held-out scene: a star and a ring, on a dark background with little structure."""
LAYERS = ("conv2", "conv3", "conv4", "conv5")
STAGES = ("", "scores", "conv5", "conv4")
"""The last layer whose weights are shuffled, from the end of the network."""
FEWER = {"sscam": {"n": 8}}
"""Options of methods whose defaults are too slow for a figure."""

Image = Any
held_out: Callable[[], list[scenes.Scene]] = runpy.run_path(str(DOCS / "make_figures.py"))["scenes_with_two"]


def file_name(method: str) -> str:
    """`gradcam++` → `gradcampp.png`."""
    return method.replace("+", "p") + ".png"


def captioned(image: Image, text: str) -> Image:
    """Return the image with a caption above it, black on white."""
    strip = np.full((34, image.shape[1], 3), 255, np.uint8)
    cv2.putText(strip, text, (4, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.62, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([strip, image])


def demo_sheet(model: xcam.Model, folder: Path) -> None:
    """demo.png: each image of the package, and below it the heatmap of the demo network."""
    columns = []
    for e in xcam.explain(model, demo.image_paths()):
        caption = f"{e.label} {e.scores[e.index]:.0%}"
        columns += [np.vstack([captioned(e.image, caption), e.overlay()]), np.full((546, GAP, 3), 255, np.uint8)]
    writing.write(folder / "demo.png", np.hstack(columns[:-1]))


def shown(image: Image) -> Image:
    """Return the image as it is drawn here: smaller, and without its noise, which would make the files large."""
    soft = cv2.GaussianBlur(image, (0, 0), 1.2)
    return cv2.resize(soft, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)


def tile(
    image: Image, heatmap: Any, shape: scenes.Shape | None = None, colours: str = COLOURS, near: bool = False
) -> Image:
    """Return a map of any size over the image, with the outline of a shape."""
    wide = shown(image)
    interpolation = cv2.INTER_NEAREST if near else cv2.INTER_LINEAR
    drawn = overlay(wide, cv2.resize(heatmap, (SIDE, SIDE), interpolation=interpolation), 0.6, colours)
    return outlined(drawn, shape) if shape else drawn


def outlined(image: Image, shape: scenes.Shape) -> Image:
    mask = cv2.resize(shape.mask.astype(np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(image.copy(), contours, -1, (255, 255, 255), 1)


def sheet(path: Path, tiles: Sequence[Image], captions: Sequence[str], columns: int, exact: bool = False) -> None:
    """Write tiles with captions. Unless `exact`, colours have 32 levels, so that the file is small."""
    drawn = tiled(tiles, captions, columns)
    drawn = drawn if exact else drawn & 0xF8 | 0x07
    cv2.imwrite(str(path), cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 9])


def methods(model: xcam.Model, scene: scenes.Scene, folder: Path) -> None:
    """For each method: both classes at the last layer, whose tail is linear, and at the layer before it."""
    for name in xcam.list_methods():
        tiles, captions = [], []
        for layer in ("conv5", "conv4"):
            labels = [shape.label for shape in scene.shapes]
            explanations = xcam.explain(
                model, scene.image, layer=layer, target=labels, method=name, method_options=FEWER.get(name)
            )
            for e, shape in zip(explanations, scene.shapes, strict=True):
                tiles.append(tile(e.image, e.heatmap, shape))
                captions.append(f"{e.label}, {layer}")
        sheet(folder / file_name(name), tiles, captions, 4)


def finer(model: xcam.Model, scene: scenes.Scene, folder: Path) -> None:
    """A class alone, and compared with the three classes whose logits are nearest."""
    tiles, captions = [], []
    for shape in scene.shapes:
        for target, suffix in ((shape.label, ""), (xcam.Finer(shape.label), " against 3")):
            e = xcam.explain(model, scene.image, layer="conv4", target=target)
            tiles.append(tile(e.image, e.heatmap, shape))
            captions.append(f"{demo.CLASSES[shape.label]}{suffix}")
    sheet(folder / "finercam.png", tiles, captions, 4)


def scene_itself(scene: scenes.Scene, folder: Path) -> None:
    plain = shown(scene.image)
    both = outlined(outlined(plain, scene.shapes[0]), scene.shapes[1])
    sheet(folder / "scene.png", [plain, both], ["the image", "the truth"], 2)


def scores(model: xcam.Model, scene: scenes.Scene, folder: Path) -> None:
    """Each class by its logit, its probability and its log-probability."""
    tiles, captions = [], []
    for shape in scene.shapes:
        for score in ("logit", "probability", "log-probability"):
            e = xcam.explain(model, scene.image, layer="conv5", target=shape.label, score=score)
            tiles.append(tile(e.image, e.heatmap, shape))
            captions.append(f"{e.label}: {score}")
    sheet(folder / "scores.png", tiles, captions, 3)


def empty(model: xcam.Model, folder: Path) -> None:
    """An image without a shape, and the class that is predicted."""
    rng = np.random.default_rng(77_002)
    image = [scenes.scene(rng, []).image for _ in range(42)][-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", xcam.ZeroHeatmapWarning)
        logit, p = (xcam.explain(model, image, layer="conv5", score=score) for score in ("logit", "probability"))
    signed = shown(logit.overlay(style="signed"))
    tiles = [shown(image), tile(image, logit.heatmap), signed, tile(image, p.heatmap)]
    captions = [f"{p.label} {p.scores[p.index]:.0%}", "its logit", "its logit, signed", "its probability"]
    sheet(folder / "empty.png", tiles, captions, 4)


def resolution(model: xcam.Model, scene: scenes.Scene, folder: Path) -> None:
    """The same map as square cells, and enlarged smoothly."""
    star = scene.shapes[1]
    e = xcam.explain(model, scene.image, layer="conv5", target=star.label)
    small = maps.normalize(e.positive[None])[0]
    tiles = [tile(e.image, small, star, near=True), tile(e.image, small, star)]
    sheet(folder / "resolution.png", tiles, ["16 x 16 values", "enlarged"], 2)


def magnitude(model: xcam.Model, scene: scenes.Scene, folder: Path) -> None:
    """A present and an absent class: each divided by its own maximum, then both by the same."""
    star = scene.shapes[1]
    present, absent = xcam.explain(
        model, scene.image, layer="conv5", target=[star.label, "square"], method="layercam"
    )
    largest = present.positive.max()
    tiles = [tile(e.image, maps.normalize(e.positive[None])[0]) for e in (present, absent)]
    tiles += [tile(e.image, e.positive / largest) for e in (present, absent)]
    captions = [f"{e.label} {e.scores[e.index]:.1%}" for e in (present, absent)]
    sheet(folder / "magnitude.png", tiles, [*captions, "the same scale", "the same scale"], 4)


def colours(model: xcam.Model, scene: scenes.Scene, folder: Path) -> None:
    """One map in three colour scales; below each the scale, and the lightness of its colours."""
    e = xcam.explain(model, scene.image, layer="conv5", target=scene.shapes[0].label)
    names, tiles = ("jet", "viridis", "inferno"), []
    for name in names:
        ramp = cv2.resize(lookup_table(name).transpose(1, 0, 2), (SIDE, 24), interpolation=cv2.INTER_NEAREST)
        light = cv2.cvtColor(ramp, cv2.COLOR_RGB2LAB)[..., :1].repeat(3, axis=2)
        tiles.append(np.vstack([tile(e.image, e.heatmap, colours=name), ramp, light]))
    sheet(folder / "colours.png", tiles, names, 3, exact=True)


def layers(model: xcam.Model, scene: scenes.Scene, folder: Path) -> None:
    """Three methods at four depths, for one class."""
    star, tiles, captions = scene.shapes[1], [], []
    for name in ("gradcam", "layercam", "hirescam"):
        for layer in LAYERS:
            e = xcam.explain(model, scene.image, layer=layer, target=star.label, method=name)
            tiles.append(tile(e.image, e.heatmap, star))
            captions.append(f"{name}, {layer}")
    sheet(folder / "layers.png", tiles, captions, len(LAYERS))


def randomised(model: Any, scene: scenes.Scene, folder: Path) -> None:
    """Weights shuffled from the end (Adebayo et al. 2018), and the maps of three methods."""
    star, tiles, captions = scene.shapes[1], [], []
    for name in ("gradcam", "eigencam", "random"):
        clean: Any = None
        for n, stage in enumerate(STAGES):
            other = model.with_shuffled_weights(model.parameter_layers[-n:]) if n else model
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", xcam.ZeroHeatmapWarning)
                e = xcam.explain(
                    other, scene.image, layer="conv5", target=star.label, method=name, score="probability"
                )
            clean = e.cam if clean is None else clean
            similarity = np.corrcoef(clean.ravel(), e.cam.ravel())[0, 1]
            tiles.append(tile(e.image, e.heatmap, star))
            captions.append(f"{stage}: {similarity:.2f}" if n else name)
    sheet(folder / "randomised.png", tiles, captions, len(STAGES))


def main(folder: Path = DOCS) -> None:
    model, scene = xcam.load("demo", "onnx"), held_out()[SCENE]
    inner = folder / "pictures"
    inner.mkdir(parents=True, exist_ok=True)
    demo_sheet(model, folder)
    scene_itself(scene, inner)
    empty(model, inner)
    for make in (methods, finer, scores, resolution, magnitude, colours, layers, randomised):
        make(model, scene, inner)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
