"""`evaluate` on a model in NumPy: the inputs of measures, reading of images, failures, and messages."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xcam
from fake import FakeModel
from xcam import InputError, XcamError
from xcam.errors import BackendError
from xcam.evaluation.registry import list_measures
from xcam.images import writing

SIZE = (4, 6)


class Model(FakeModel):
    """A model of unscaled pixels: the score of `cat` is the red channel, that of `dog` the green one."""

    def __init__(self) -> None:
        super().__init__(weights=[[0.05, 0], [0, 0.05], [0, 0]])
        self.input = xcam.InputSpec(SIZE, preprocessing=xcam.Preprocessing("raw"))


def spots(*red: tuple[int, int], green: tuple[int, int] | None = None, size: tuple[int, int] = SIZE) -> np.ndarray:
    image = np.zeros((*size, 3), np.uint8)
    for y, x in red:
        image[y, x, 0] = 240
    if green:
        image[(*green, 1)] = 120
    return image


def evaluate(images: Any, **options: Any) -> Any:
    return xcam.evaluate(Model(), images, layer="features", **options)


def probability(image: np.ndarray, index: int) -> float:
    z = 0.05 * image[..., :2].mean(axis=(0, 1))
    return float(np.exp(z[index]) / np.exp(z).sum())


def test_drop_and_increase_are_those_of_the_probability() -> None:
    """The map is the red channel: the image seen through it keeps red and loses green, so `cat` becomes likelier."""
    image = spots((1, 2), green=(3, 3))
    result = evaluate([image], floor=False, measures=["average-drop", "increase"], target="cat")
    assert result.row("gradcam", "increase").mean == 1
    assert result.row("gradcam", "average-drop").mean == 0
    dogs = evaluate([image], floor=False, measures=["average-drop", "increase"], target="dog", methods=["hirescam"])
    assert dogs.row("hirescam", "increase").mean == 1
    wrong = evaluate([image], methods={"random": {"seed": 1}}, floor=False, measures=["average-drop"], target="cat")
    assert wrong.row("random", "average-drop").mean == pytest.approx(0.2097, abs=1e-4)


def test_an_empty_map_shows_nothing_of_the_image() -> None:
    """By the formulas alone it would win, where black makes the class likelier."""
    image = spots((1, 2), green=(3, 3))
    names = ["average-drop", "increase", "adcc", "sensitivity"]
    result = evaluate([image], methods={"random": {"seed": 3}}, floor=False, measures=names, target="dog")
    assert "random is zero everywhere on 1 of 1 images" in result.notes
    assert [result.row("random", name).mean for name in names[:3]] == [1, 0, 0]
    assert result.row("random", "sensitivity").n == 0


def test_deletion_follows_the_probability_curve() -> None:
    """Two red pixels, replaced by black one after the other; 24 steps, one for each pixel."""
    image = spots((0, 0), (2, 5), green=(3, 3))
    result = evaluate([image], floor=False, measures={"deletion": {"steps": 24, "baseline": "zero"}}, target="cat")
    one, none = (probability(spots(*red, green=(3, 3)), 0) for red in ([(2, 5)], []))
    end = probability(spots(), 0)
    value = result.values["gradcam"]["deletion"][0]
    # The seed decides when the green pixel is removed: at the first or at the last of the other 22.
    at_once, at_last = (
        (probability(image, 0) / 2 + one + none + 20.5 * v + end * 0.5 + 1e-9) / 24 for v in (end, none)
    )
    low, high = sorted((at_once, at_last))
    assert low - 0.01 <= value <= high + 0.01


def test_all_methods_explain_the_class_of_the_first() -> None:
    images = [spots((1, 1)), spots((1, 1), (2, 2), green=(0, 0))]
    result = evaluate(images, methods=["gradcam", "hirescam"], measures=["complexity"], target=[None, "dog"])
    assert result.targets == ("cat", "dog")
    assert result.methods == ("gradcam", "hirescam", "random")
    # gradcam and hirescam are equal for this model, for both classes.
    np.testing.assert_allclose(result.values["gradcam"]["complexity"], [1 / 24, 1 / 24], atol=1e-6)
    np.testing.assert_allclose(result.values["hirescam"]["complexity"], [1 / 24, 1 / 24], atol=1e-6)


def test_boxes_masks_and_images_without_either() -> None:
    image = spots((1, 2), (1, 3))
    mask = np.zeros(SIZE, np.uint8)
    mask[1, 2] = 255
    result = evaluate(
        [image] * 4,
        floor=False,
        measures=["energy", "pointing"],
        boxes=[(2, 1, 3, 2), [(2, 1, 3, 2), (3, 1, 4, 2)], None, None],
        masks=[None, None, mask, None],
    )
    np.testing.assert_allclose(result.values["gradcam"]["energy"], [0.5, 1, 0.5, np.nan], atol=1e-6)
    assert result.row("gradcam", "pointing").n == 3


def test_a_box_is_in_pixels_of_the_image_not_of_the_model_input() -> None:
    image = np.kron(spots((1, 2)), np.ones((10, 10, 1), np.uint8))
    result = evaluate([image], floor=False, measures=["pointing"], boxes=[(20, 10, 30, 20)], target="cat")
    assert result.row("gradcam", "pointing").mean == 1
    missed = evaluate([image], floor=False, measures=["pointing"], boxes=[(40, 30, 50, 40)], target="cat")
    assert missed.row("gradcam", "pointing").mean == 0


def test_a_mask_from_a_file(tmp_path: Path) -> None:
    mask = np.zeros((*SIZE, 3), np.uint8)
    mask[1, 2] = 255
    writing.write(tmp_path / "mask.png", mask)
    result = evaluate([spots((1, 2))], floor=False, measures=["energy"], masks=[tmp_path / "mask.png"])
    assert result.row("gradcam", "energy").mean == pytest.approx(1)


def test_the_default_measures() -> None:
    every = evaluate([spots((1, 1))] * 2, floor=False)
    names = [m.name for m in every.measures]
    assert names == [n for n, m in list_measures().items() if m.default and "masks" not in m.inputs]
    assert "pointing" not in names
    assert {"pointing", "energy"} <= {m.name for m in evaluate([spots((1, 1))], boxes=[(0, 0, 2, 2)]).measures}


def test_random_draws_new_weights_for_each_image_and_is_reproducible() -> None:
    images = [spots((1, 1), green=(2, 2))] * 6
    first, second = (evaluate(images, measures=["complexity", "coherency"]) for _ in range(2))
    values = first.values["random"]["complexity"]
    assert len(set(values.tolist())) > 1
    np.testing.assert_array_equal(values, second.values["random"]["complexity"])
    np.testing.assert_array_equal(
        first.values["random"]["coherency"], np.ones(6) * first.values["random"]["coherency"]
    )
    assert len(set(evaluate(images, measures=["complexity"], seed=50).values["random"]["complexity"])) > 1


def test_images_are_read_a_few_at_a_time() -> None:
    ahead = []
    done: list[int] = []

    class Watched(Model):
        def trace(self, *args: Any) -> Any:
            done.append(len(args[0]))
            return super().trace(*args)

    def images() -> Iterator[np.ndarray]:
        for k in range(20):
            ahead.append(k - sum(done))
            yield spots((k % 4, k % 6))

    result = xcam.evaluate(Watched(), images(), layer="features", measures=["complexity"], floor=False)
    assert len(result.images) == 20
    assert max(ahead) < xcam.explanation.explain.BATCH
    assert result.images[0] == "image 1"


def test_an_image_that_fails_is_listed_and_the_others_are_measured(tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not an image")
    result = evaluate(
        [spots((1, 1)), bad, spots((2, 2))], measures=["complexity"], boxes=[None, (0, 0, 99, 99), None]
    )
    assert result.images == ("image 1", "image 3")
    assert [path for path, _ in result.failed] == [str(bad)]
    assert all(len(v) == 2 for columns in result.values.values() for v in columns.values())


def test_an_image_on_which_the_model_fails_does_not_affect_its_batch() -> None:
    class Fragile(Model):
        def trace(self, x: Any, *args: Any) -> Any:
            if x[:, 2].max() > 0:
                raise ValueError("blue")
            return super().trace(x, *args)

    blue = spots((1, 1))
    blue[0, 0, 2] = 9
    result = xcam.evaluate(Fragile(), [spots((1, 1)), blue], layer="features", measures=["complexity"])
    assert result.images == ("image 1",)
    assert result.failed[0][0] == "image 2"
    assert "blue" in result.failed[0][1]


def test_a_missing_package_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.sparse.linalg", None)
    with pytest.raises(BackendError, match="measure 'road' needs scipy"):
        evaluate([spots((1, 1))])


def test_an_empty_map_is_noted_once() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = evaluate([spots((1, 1)), spots(green=(1, 1))], target="cat", measures=["complexity"], floor=False)
    assert result.notes == ("gradcam is zero everywhere on 1 of 2 images",)


def test_a_target_other_than_a_class_is_measured_by_its_value() -> None:
    result = evaluate(
        [spots((1, 1))], floor=False, measures=["average-drop"], target=xcam.Classes((0, 1), (1.0, -1.0))
    )
    assert result.row("gradcam", "average-drop").mean == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methodes": ["gradcam"]}, "evaluate() has no option 'methodes'; nearest: methods"),
        ({"methods": ["gradcan"]}, "unknown method 'gradcan'"),
        ({"methods": [], "floor": False}, "no method is named"),
        ({"methods": {"gradcam": {"m": 1}}}, "has no option 'm'"),
        ({"measures": ["deletoin"]}, "unknown measure 'deletoin'; nearest: deletion"),
        ({"measures": []}, "no measure is named"),
        ({"measures": {"deletion": {"stride": 2}}}, "measure 'deletion' has no option 'stride'; its options: steps"),
        ({"measures": {"deletion": {"steps": 0.5}}}, "steps=0.5 of measure 'deletion' is invalid; give an integer"),
        ({"measures": ["pointing"]}, "measure 'pointing' needs the location of the object; give boxes= or masks="),
        ({"boxes": [(0, 0, 1, 1)] * 3}, "3 boxes for 2 images"),
        (
            {"boxes": [(0, 0, 7, 4)] * 2},
            "the box 0, 0, 7, 4 of image 1 is empty, or not within the image's 6×4 pixels",
        ),
        ({"boxes": [(2, 2, 2, 3)] * 2}, "is empty, or not within"),
        ({"boxes": [(0, 0, float("nan"), 1)] * 2}, "not within the image's"),
        ({"boxes": ["no", "no"]}, "give four numbers"),
        ({"masks": [np.ones((3, 3))] * 2}, "the mask of image 1 is 3×3, the image 6×4"),
        ({"target": [0]}, "1 targets for 2 images"),
        ({"target": 9}, "unknown class 9"),
        ({"target": "top2"}, "several targets for one image"),
        ({"level": 95}, "cannot use level=95"),
        ({"seed": -1}, "cannot use seed=-1"),
        ({"seed": 0.5}, "cannot use seed=0.5"),
        ({"measures": {"road": {"noise": -1.0}}}, "cannot use noise=-1"),
        ({"stages": 0}, "cannot use stages=0"),
        ({"layer": "nowhere"}, "unknown layer 'nowhere'"),
        ({"measures": ["randomization"]}, "the randomisation test shuffles weights, which backend 'fake' cannot do"),
    ],
)
def test_the_message_for_bad_input_is_one_line(options: dict[str, Any], message: str) -> None:
    images = [spots((1, 1)), spots((2, 2))]
    with pytest.raises(XcamError) as caught:
        xcam.evaluate(Model(), images, **({"layer": "features"} | options))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_error_of_all_images_is_raised_after_the_first_ones() -> None:
    rest = iter([spots((1, 1))] * 1000)
    with pytest.raises(InputError, match="cannot use steps=0"):
        evaluate(rest, measures={"deletion": {"steps": 0}})
    assert sum(1 for _ in rest) > 900


def test_a_generator_and_fewer_targets_than_images() -> None:
    images = (spots((1, 1)) for _ in range(2))
    with pytest.raises(InputError, match="1 targets, and there are more images"):
        evaluate(images, target=[0])


def test_the_randomisation_test_reads_the_images_again() -> None:
    asked: list[Any] = []

    class Shuffled(Model):
        parameter_layers = ("first", "second", "third")

        def with_shuffled_weights(self, parts: Any, seed: int) -> Any:
            asked.append((parts, seed))
            return Model()

    images = [spots((1, 1)), spots((2, 2))]
    model = Shuffled()
    result = xcam.evaluate(model, images, layer="features", measures=["randomization"], stages=2, seed=4, floor=False)
    assert asked == [(["second", "third"], 4), (["first", "second", "third"], 4)]
    assert result.row("gradcam", "randomization").mean == pytest.approx(1)
    with pytest.raises(InputError, match="several times; give a list"):
        xcam.evaluate(model, iter(images), layer="features", measures=["randomization"])
    with pytest.raises(BackendError, match="cannot do"):
        evaluate(iter(images), measures=["randomization"])


def test_the_randomisation_test_of_images_in_several_sizes() -> None:
    """Maps of one size are compared with those of the same size, and the values are in the order of the images."""

    class Shuffled(Model):
        parameter_layers = ("first",)

        def __init__(self, weights: Any = None) -> None:
            super().__init__()
            self.weights = self.weights if weights is None else np.float32(weights)
            self.input = xcam.InputSpec((4, None), preprocessing=xcam.Preprocessing("raw"), fixed=True)

        def with_shuffled_weights(self, parts: Any, seed: int) -> Any:
            return Shuffled([[0, 0.05], [0.03, 0], [0.02, 0]])

    images = [
        np.random.default_rng(k).integers(0, 256, (4, w, 3), dtype=np.uint8) for k, w in enumerate((6, 12, 6, 8))
    ]
    options: dict[str, Any] = {"layer": "features", "measures": ["randomization"], "floor": False, "target": 0}
    together = xcam.evaluate(Shuffled(), images, **options).values["gradcam"]["randomization"]
    alone = [xcam.evaluate(Shuffled(), [one], **options).values["gradcam"]["randomization"][0] for one in images]
    np.testing.assert_allclose(together, alone)
    assert len({*np.round(alone, 6)}) == 4


class Watched(Model):
    """A model that records every attribute that is set after the construction, and every request to change a setting."""

    parameter_layers = ("first", "second")

    def __init__(self) -> None:
        super().__init__()
        self.changes: list[str] = []

    def __setattr__(self, name: str, value: Any) -> None:
        if "changes" in vars(self):
            self.changes.append(name)
        super().__setattr__(name, value)

    def disable_spinning(self) -> None:
        self.changes.append("disable_spinning()")

    def with_shuffled_weights(self, layers: Any, seed: int) -> Any:
        return Model()


def test_the_arguments_are_left_unchanged() -> None:
    model = Watched()
    images = [spots((1, 1)), spots((2, 2), green=(0, 0))]
    masks = [image[..., 0] > 0 for image in images]
    boxes = [[(0, 0, 2, 2)], None]
    methods: dict[str, dict[str, Any]] = {"gradcam": {}}
    measures: dict[str, dict[str, Any]] = {name: {} for name in list_measures()} | {"deletion": {"steps": 4}}
    arguments = {"images": images, "masks": masks, "boxes": boxes, "methods": methods, "measures": measures}
    copies = copy.deepcopy(arguments)
    xcam.evaluate(model, layer="features", **arguments)
    assert model.changes == []
    for name, value in arguments.items():
        np.testing.assert_equal(value, copies[name], err_msg=name)


@pytest.mark.parametrize("count", [1, 3])
def test_a_generator_and_another_number_of_boxes(count: int) -> None:
    with pytest.raises(InputError, match=f"{count} boxes for 2 images"):
        evaluate((spots((1, 1)) for _ in range(2)), measures=["energy"], boxes=[(0, 0, 2, 2)] * count)
