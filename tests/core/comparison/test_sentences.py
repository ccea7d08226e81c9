"""The verdict as text."""

from __future__ import annotations

from dataclasses import replace

from report_pages import comparison, measured
from xcam.comparison import sentences


def test_the_verdict_counts_images_pairs_and_classes() -> None:
    c = comparison(3, 3)
    c.images[1].measures[0, 2] = measured("different", 0.5, same_class=False)
    assert sentences.sentences(c) == [
        "In 1 of 3 images, the models look at different regions: 1 of their 3 pairs differ.",
        "They predict different classes in 1 image.",
    ]


def test_maps_that_are_zero_show_no_region() -> None:
    c = comparison(2, 2)
    zero = replace(measured("equivalent"), both_zero=True)
    c.images[1].measures[0, 1] = zero
    assert "look at" in sentences.headline(c)
    c.images[0].measures[0, 1] = zero
    assert sentences.headline(c) == "Equivalent: the class scores agree, but the heatmaps are zero and show no region"
    assert sentences.sentences(c)[0] == (
        "The heatmaps are zero in both images: they do not show whether the models look at the same regions. Choose another "
        "layer, class or method."
    )
