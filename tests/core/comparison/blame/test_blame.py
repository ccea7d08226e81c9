"""`xcam.blame`: planted mistakes are named, and contributions add up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import blocks
import xcam
from xcam.images import writing

Change = Callable[[Any], Any]
SCALED: Change = lambda w: w * 1.05  # noqa: E731
TURNED: Change = lambda w: w[::-1]  # noqa: E731
ZEROED: Change = lambda w: w * (np.arange(w.shape[-1]) != 2)  # noqa: E731
LEAKY: Change = lambda x: np.where(x > 0, x, 0.2 * x)  # noqa: E731


def named(result: xcam.Blame) -> set[str]:
    return {c.second for c in result.named}


def run(dense: bool = False, count: int = 1, **changes: Change) -> xcam.Blame:
    return xcam.blame(
        [blocks.network(dense=dense), blocks.network("second", dense=dense, **changes)], blocks.images(count)
    )


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stem": SCALED},
        {"a0": TURNED},
        {"b1": ZEROED},
        {"inside2": LEAKY},
        {"fc": SCALED},
        {"a1": SCALED, "b1": SCALED},  # next to each other
        {"b1": TURNED, "a2": SCALED},
        {"stem": SCALED, "fc": ZEROED},
        {"a0": SCALED, "inside2": LEAKY, "b3": ZEROED},
        {"a1": SCALED, "inside1": LEAKY, "b1": TURNED},
    ],
    ids=lambda changes: "+".join(changes) or "none",
)
def test_exactly_the_planted_locations_are_named(changes: dict[str, Change], dense: bool) -> None:
    result = run(dense, **changes)
    assert named(result) == set(changes)
    scores, heatmap = result.sums
    assert scores == pytest.approx(result.scores.mean, rel=1e-6)
    assert heatmap == pytest.approx(result.heatmap.mean, rel=1e-6, abs=1e-9)


def test_the_largest_contribution_comes_first() -> None:
    result = run(b0=lambda w: w * 1.01, a2=lambda w: w * 1.5)
    assert [c.second for c in result.named] == ["a2", "b0"]
    assert result.table[0]["second"] == "join2"
    shares = [result.share(c) for c in result.ranked]
    assert shares == sorted(shares, reverse=True)


def test_the_order_is_that_of_mending_one_location_at_a_time() -> None:
    """Brute force: the second network with the weights of one location taken from the first."""
    changes = {"a0": lambda w: w * 1.02, "b1": lambda w: w * 1.2, "a3": lambda w: w * 1.08}
    image = blocks.images()[0]
    x = np.float32(image.transpose(2, 0, 1)[None] / 255)
    a = blocks.network().predict(x)

    def left(without: str) -> float:
        kept = {key: change for key, change in changes.items() if key != without}
        return float(np.linalg.norm(blocks.network(**kept).predict(x) - a))

    expected = sorted(changes, key=left)
    assert [c.second for c in run(**changes).named] == expected


def test_both_directions_agree_for_one_mistake_and_disagree_where_mistakes_cancel() -> None:
    one = run(b1=lambda w: w * 1.3)
    (stretch,) = [c for c in one.stretches if c.named]
    assert stretch.reverse_scores.mean == pytest.approx(stretch.scores.mean, rel=0.02)
    assert not stretch.interacts
    two = run(b1=lambda w: w * 3, fc=lambda w: w[:, ::-1])
    assert any(c.interacts for c in two.stretches)
    assert "interact" in " ".join(two.sentences)


def test_several_images_give_intervals_and_memory_for_one() -> None:
    result = run(count=5, b1=lambda w: w * 1.3, a3=SCALED)
    assert len(result.images) == 5
    for c in result.stretches:
        assert c.scores.low <= c.scores.mean <= c.scores.high
    first = next(c for c in result.stretches if c.second == "join1")
    assert first.scores.low > 0


def test_a_pass_of_each_model_and_a_tail_for_each_location() -> None:
    first, second = blocks.network(), blocks.network("second")
    result = xcam.blame([first, second], blocks.images())
    assert second.passes.count("trace") == 1
    assert second.passes.count("gradients") == 0
    locations, heatmaps = len(result.stretches) - 1, 1 + sum(c.second != "pool" for c in result.stretches[:-1])
    assert second.passes.count("resume") == locations + heatmaps


def test_no_difference_is_stated() -> None:
    result = run()
    assert result.verdict == "identical"
    assert result.named == []
    assert "agree within rounding" in result.sentences[0]
    assert result.to_dict()["difference"]["scores"]["mean"] == 0


def test_classes_in_another_order_are_compared_by_label() -> None:
    labels = ["a", "b", "c", "d", "e"]
    order = [3, 0, 4, 1, 2]
    second = blocks.network("second", [labels[k] for k in order], fc=lambda w: w[order])
    result = xcam.blame([blocks.network(labels=labels), second], blocks.images())
    assert result.verdict == "identical"
    assert named(result) == set()


def test_failing_images_are_listed_and_the_others_count(tmp_path: Any) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    writing.write(tmp_path / "good.png", blocks.images()[0])
    models = [blocks.network(), blocks.network("second", b1=SCALED)]
    result = xcam.blame(models, [tmp_path / "bad.png", tmp_path / "good.png"])
    assert [path for path, _ in result.failed] == [str(tmp_path / "bad.png")]
    assert named(result) == {"b1"}
    with pytest.raises(xcam.InputError, match="no image can be examined"):
        xcam.blame(models, [tmp_path / "bad.png"])


def test_models_without_common_layers() -> None:
    other = blocks.network("second", width=7)
    other.layers = [layer for layer in other.layers if layer.shape[0] == 7]
    with pytest.raises(xcam.InputError, match="no layer of second corresponds to one of first"):
        xcam.blame([blocks.network(), other], blocks.images(), layer="relu3")


def test_a_model_that_cannot_be_cut() -> None:
    second = blocks.network("second")
    second.capabilities = frozenset({"gradients"})
    with pytest.raises(
        xcam.BackendError,
        match=r"cannot blame layers of second: backend 'numpy' does not run a model from given values",
    ):
        xcam.blame([blocks.network(), second], blocks.images())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "scorecam"}, "it runs the model on changed images; choose one of gradcam"),
        ({"level": 1.0}, "cannot use level=1.0"),
        ({"method": "none"}, "unknown method"),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, Any], message: str) -> None:
    with pytest.raises(xcam.InputError, match=message):
        xcam.blame([blocks.network(), blocks.network("second")], blocks.images(), **options)


def test_the_number_of_models_and_images() -> None:
    with pytest.raises(xcam.InputError, match="cannot blame 1 models; give two"):
        xcam.blame([blocks.network()], blocks.images())
    with pytest.raises(xcam.InputError, match="empty list of images"):
        xcam.blame([blocks.network(), blocks.network()], [])
    with pytest.raises(xcam.OptionError, match="has no option 'quick'"):
        xcam.blame([blocks.network(), blocks.network()], blocks.images(), quick=True)


def test_many_locations_are_chosen_by_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    from xcam.comparison.blame import blame

    monkeypatch.setattr(blame, "MOST_LOCATIONS", 4)
    result = run(b1=lambda w: w * 1.3)
    assert len(result.stretches) == 5
    assert named(result) == {"b1"}
    assert any("values are swapped at 4 of 11 locations" in finding for finding in result.findings)
