"""The verdict as text."""

from __future__ import annotations

from report_pages import comparison, measured
from xcam.comparison import sentences


def test_the_verdict_counts_images_pairs_and_classes() -> None:
    c = comparison(3, 3)
    c.images[1].measures[0, 2] = measured("different", 0.5, same_class=False)
    assert sentences.sentences(c) == [
        "In 1 of 3 images, the models look at different regions: 1 of their 3 pairs differ.",
        "They predict different classes in 1 image.",
    ]
