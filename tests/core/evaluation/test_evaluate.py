"""`evaluate` on a model in NumPy: what it supplies to the measures, reads, leaves out and refuses."""

from __future__ import annotations

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
    """Pixels as they are: the class `cat` is the red channel, `dog` the green one; nothing else counts."""

    def __init__(self) -> None:
        super().__init__(weights=[[0.05, 0], [0, 0.05], [0, 0]])
        self.input = xcam.InputSpec(SIZE, preprocessing=xcam.Preprocessing("raw"))


def picture(*red: tuple[int, int], green: tuple[int, int] | None = None, size: tuple[int, int] = SIZE) -> np.ndarray:
    found = np.zeros((*size, 3), np.uint8)
    for y, x in red:
        found[y, x, 0] = 240
    if green:
        found[(*green, 1)] = 120
    return found


def evaluate(images: Any, *given: Any, **options: Any) -> Any:
    return xcam.evaluate(Model(), images, *given, layer="features", **options)


def probability(image: np.ndarray, index: int) -> float:
    z = 0.05 * image[..., :2].mean(axis=(0, 1))
    return float(np.exp(z[index]) / np.exp(z).sum())


def test_drop_and_increase_are_those_of_the_probability() -> None:
    """The map is red itself, so that the picture seen through it keeps red and loses green: `cat` becomes likelier."""
    image = picture((1, 2), green=(3, 3))
    found = evaluate([image], floor=False, measures=["average-drop", "increase"], target="cat")
    assert found.row("gradcam", "increase").mean == 1
    assert found.row("gradcam", "average-drop").mean == 0
    dogs = evaluate([image], floor=False, measures=["average-drop", "increase"], target="dog", methods=["hirescam"])
    assert dogs.row("hirescam", "increase").mean == 1
    wrong = evaluate([image], {"random": {"seed": 1}}, floor=False, measures=["average-drop"], target="cat")
    assert wrong.row("random", "average-drop").mean == pytest.approx(0.2097, abs=1e-4)


def test_through_an_empty_map_nothing_is_seen() -> None:
    """By the formulas alone it would be best at both, where black makes the class likelier."""
    image = picture((1, 2), green=(3, 3))
    names = ["average-drop", "increase", "adcc", "sensitivity"]
    found = evaluate([image], {"random": {"seed": 3}}, floor=False, measures=names, target="dog")
    assert "random is zero everywhere on 1 of 1 pictures" in found.notes
    assert [found.row("random", name).mean for name in names[:3]] == [1, 0, 0]
    assert found.row("random", "sensitivity").n == 0


def test_deletion_follows_the_probability_curve() -> None:
    """Two red places, taken away one after the other, with black in their place; 24 steps, a place for each."""
    image = picture((0, 0), (2, 5), green=(3, 3))
    found = evaluate([image], floor=False, measures={"deletion": {"steps": 24, "baseline": "zero"}}, target="cat")
    one, none = (probability(picture(*red, green=(3, 3)), 0) for red in ([(2, 5)], []))
    end = probability(picture(), 0)
    value = found.values["gradcam"]["deletion"][0]
    # Where among the other 22 places green goes, the seed decides: between at once, and at the end.
    at_once, at_last = (
        (probability(image, 0) / 2 + one + none + 20.5 * v + end * 0.5 + 1e-9) / 24 for v in (end, none)
    )
    low, high = sorted((at_once, at_last))
    assert low - 0.01 <= value <= high + 0.01


def test_all_methods_explain_the_class_of_the_first() -> None:
    images = [picture((1, 1)), picture((1, 1), (2, 2), green=(0, 0))]
    found = evaluate(images, ["gradcam", "hirescam"], measures=["complexity"], target=[None, "dog"])
    assert found.targets == ("cat", "dog")
    assert found.methods == ("gradcam", "hirescam", "random")
    # gradcam and hirescam agree on this model, for both classes.
    np.testing.assert_allclose(found.values["gradcam"]["complexity"], [1 / 24, 1 / 24], atol=1e-6)
    np.testing.assert_allclose(found.values["hirescam"]["complexity"], [1 / 24, 1 / 24], atol=1e-6)


def test_boxes_masks_and_pictures_of_which_nothing_is_known() -> None:
    image = picture((1, 2), (1, 3))
    mask = np.zeros(SIZE, np.uint8)
    mask[1, 2] = 255
    found = evaluate(
        [image] * 4,
        floor=False,
        measures=["energy", "pointing"],
        boxes=[(2, 1, 3, 2), [(2, 1, 3, 2), (3, 1, 4, 2)], None, None],
        masks=[None, None, mask, None],
    )
    np.testing.assert_allclose(found.values["gradcam"]["energy"], [0.5, 1, 0.5, np.nan], atol=1e-6)
    assert found.row("gradcam", "pointing").n == 3


def test_a_box_is_in_pixels_of_the_picture_not_of_the_input() -> None:
    image = np.kron(picture((1, 2)), np.ones((10, 10, 1), np.uint8))
    found = evaluate([image], floor=False, measures=["pointing"], boxes=[(20, 10, 30, 20)], target="cat")
    assert found.row("gradcam", "pointing").mean == 1
    missed = evaluate([image], floor=False, measures=["pointing"], boxes=[(40, 30, 50, 40)], target="cat")
    assert missed.row("gradcam", "pointing").mean == 0


def test_a_mask_from_a_file(tmp_path: Path) -> None:
    mask = np.zeros((*SIZE, 3), np.uint8)
    mask[1, 2] = 255
    writing.write(tmp_path / "mask.png", mask)
    found = evaluate([picture((1, 2))], floor=False, measures=["energy"], masks=[tmp_path / "mask.png"])
    assert found.row("gradcam", "energy").mean == pytest.approx(1)


def test_what_is_measured_by_default() -> None:
    every = evaluate([picture((1, 1))] * 2, floor=False)
    names = [m.name for m in every.measures]
    assert names == [n for n, m in list_measures().items() if m.default and "masks" not in m.inputs]
    assert "pointing" not in names
    assert {"pointing", "energy"} <= {m.name for m in evaluate([picture((1, 1))], boxes=[(0, 0, 2, 2)]).measures}


def test_random_draws_anew_for_each_picture_and_the_same_again() -> None:
    images = [picture((1, 1), green=(2, 2))] * 6
    first, again = (evaluate(images, measures=["complexity", "coherency"]) for _ in range(2))
    values = first.values["random"]["complexity"]
    assert len(set(values.tolist())) > 1
    np.testing.assert_array_equal(values, again.values["random"]["complexity"])
    np.testing.assert_array_equal(
        first.values["random"]["coherency"], np.ones(6) * first.values["random"]["coherency"]
    )
    assert len(set(evaluate(images, measures=["complexity"], seed=50).values["random"]["complexity"])) > 1


def test_pictures_are_read_a_few_at_a_time_and_none_is_kept() -> None:
    ahead = []
    done: list[int] = []

    class Watched(Model):
        def trace(self, *given: Any) -> Any:
            done.append(len(given[0]))
            return super().trace(*given)

    def images() -> Iterator[np.ndarray]:
        for k in range(20):
            ahead.append(k - sum(done))
            yield picture((k % 4, k % 6))

    found = xcam.evaluate(Watched(), images(), layer="features", measures=["complexity"], floor=False)
    assert len(found.pictures) == 20
    assert max(ahead) < xcam.explanation.explain.BATCH
    assert found.pictures[0] == "picture 1"


def test_a_picture_that_fails_is_told_and_the_others_are_measured(tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    found = evaluate(
        [picture((1, 1)), bad, picture((2, 2))], measures=["complexity"], boxes=[None, (0, 0, 99, 99), None]
    )
    assert found.pictures == ("picture 1", "picture 3")
    assert [path for path, _ in found.failed] == [str(bad)]
    assert all(len(v) == 2 for columns in found.values.values() for v in columns.values())


def test_a_picture_that_the_model_fails_on_does_not_take_its_batch_along() -> None:
    class Fragile(Model):
        def trace(self, x: Any, *given: Any) -> Any:
            if x[:, 2].max() > 0:
                raise ValueError("blue")
            return super().trace(x, *given)

    blue = picture((1, 1))
    blue[0, 0, 2] = 9
    found = xcam.evaluate(Fragile(), [picture((1, 1)), blue], layer="features", measures=["complexity"])
    assert found.pictures == ("picture 1",)
    assert found.failed[0][0] == "picture 2"
    assert "blue" in found.failed[0][1]


def test_what_is_not_installed_is_said_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.sparse.linalg", None)
    with pytest.raises(BackendError, match="measure 'road' needs scipy"):
        evaluate([picture((1, 1))])


def test_an_empty_map_is_noted_once() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = evaluate([picture((1, 1)), picture(green=(1, 1))], target="cat", measures=["complexity"], floor=False)
    assert found.notes == ("gradcam is zero everywhere on 1 of 2 pictures",)


def test_a_target_that_is_no_class_is_measured_by_its_own_value() -> None:
    found = evaluate(
        [picture((1, 1))], floor=False, measures=["average-drop"], target=xcam.Classes((0, 1), (1.0, -1.0))
    )
    assert found.row("gradcam", "average-drop").mean == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"methods": ["gradcan"]}, "unknown method 'gradcan'"),
        ({"methods": [], "floor": False}, "no method is named"),
        ({"methods": {"gradcam": {"m": 1}}}, "has no option 'm'"),
        ({"measures": ["deletoin"]}, "no measure 'deletoin'; nearest: deletion"),
        ({"measures": []}, "no measure is named"),
        ({"measures": {"deletion": {"stride": 2}}}, "measure 'deletion' has no option 'stride'; its options: steps"),
        ({"measures": {"deletion": {"steps": 0.5}}}, "steps=0.5 of measure 'deletion' is invalid; give an integer"),
        ({"measures": ["pointing"]}, "pointing needs to know where the object is"),
        ({"boxes": [(0, 0, 1, 1)] * 3}, "3 boxes for 2 pictures"),
        ({"boxes": [(0, 0, 7, 4)] * 2}, "the box 0, 0, 7, 4 of picture 1 does not lie within its 6×4 pixels"),
        ({"boxes": [(2, 2, 2, 3)] * 2}, "(or is empty)"),
        ({"boxes": [(0, 0, float("nan"), 1)] * 2}, "does not lie within"),
        ({"boxes": ["no", "no"]}, "give four numbers"),
        ({"masks": [np.ones((3, 3))] * 2}, "the mask of picture 1 is 3×3, the picture 6×4"),
        ({"target": [0]}, "1 targets for 2 pictures"),
        ({"target": 9}, "no class 9"),
        ({"target": "top2"}, "several targets on one picture"),
        ({"level": 95}, "level is 95"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 0.5}, "seed is 0.5"),
        ({"measures": {"road": {"noise": -1.0}}}, "noise is -1"),
        ({"stages": 0}, "stages is 0"),
        ({"layer": "nowhere"}, "unknown layer 'nowhere'"),
        ({"measures": ["randomization"]}, "the randomisation test shuffles weights, which backend 'fake' cannot do"),
    ],
)
def test_bad_input_is_one_line(options: dict[str, Any], said: str) -> None:
    images = [picture((1, 1)), picture((2, 2))]
    with pytest.raises(XcamError) as caught:
        xcam.evaluate(Model(), images, **({"layer": "features"} | options))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_wrong_for_all_pictures_is_found_on_the_first_ones() -> None:
    left = iter([picture((1, 1))] * 1000)
    with pytest.raises(InputError, match="steps is 0"):
        evaluate(left, measures={"deletion": {"steps": 0}})
    assert sum(1 for _ in left) > 900


def test_a_generator_and_fewer_targets_than_pictures() -> None:
    images = (picture((1, 1)) for _ in range(2))
    with pytest.raises(InputError, match="1 targets, and there are more pictures"):
        evaluate(images, target=[0])


def test_the_randomisation_test_goes_through_the_pictures_again() -> None:
    asked: list[Any] = []

    class Shuffled(Model):
        parameter_layers = ("first", "second", "third")

        def with_shuffled_weights(self, parts: Any, seed: int) -> Any:
            asked.append((parts, seed))
            return Model()

    images = [picture((1, 1)), picture((2, 2))]
    model = Shuffled()
    found = xcam.evaluate(model, images, layer="features", measures=["randomization"], stages=2, seed=4, floor=False)
    assert asked == [(["second", "third"], 4), (["first", "second", "third"], 4)]
    assert found.row("gradcam", "randomization").mean == pytest.approx(1)
    with pytest.raises(InputError, match="several times; give a list"):
        xcam.evaluate(model, iter(images), layer="features", measures=["randomization"])
    with pytest.raises(BackendError, match="cannot do"):
        evaluate(iter(images), measures=["randomization"])


def test_every_measure_says_what_it_is() -> None:
    for name, measure in list_measures().items():
        assert measure.name == name
        assert measure.summary
        assert any(c.isdigit() for c in measure.source)
        assert measure.better in ("higher", "lower")
        assert measure.bounds[0] < measure.bounds[1]


@pytest.mark.parametrize("count", [1, 3])
def test_a_generator_and_another_number_of_boxes(count: int) -> None:
    with pytest.raises(InputError, match=f"{count} boxes for 2 pictures"):
        evaluate((picture((1, 1)) for _ in range(2)), measures=["energy"], boxes=[(0, 0, 2, 2)] * count)
