"""The verdict of a comparison as text for readers who do not train models."""

from __future__ import annotations

import math

from xcam.comparison.data import ORDER, ComparisonData, Measures, Verdict
from xcam.report.formatting import correlation, count, number, percent

SIGNS: dict[Verdict, str] = {"identical": "=", "equivalent": "≈", "different": "≠"}
MEASURES = (
    ("Largest difference", "of the heatmaps, which range from 0 to 1; 0 is best"),
    ("Correlation (Pearson)", "1 is best"),
    ("Rank correlation (Spearman)", "1 is best"),
    ("Structural similarity (SSIM)", "1 is best"),
    ("Overlap of the hottest fifth", "100% is best"),
    ("Distance of the hottest points", "relative to the image's diagonal; 0% is best"),
    ("Difference of the class scores", "relative to the largest; 0 is best"),
    ("Same top class", "do both models have the same top class?"),
)
"""The name of each measure, and a hint for its reader."""


def cells(measures: Measures) -> list[str]:
    """Return the values of `MEASURES` as text."""
    return [
        number(measures.largest),
        correlation(measures.pearson),
        correlation(measures.spearman),
        correlation(measures.ssim),
        percent(measures.overlap),
        percent(measures.distance),
        number(measures.logits),
        "yes" if measures.same_class else "no",
    ]


def headline(comparison: ComparisonData) -> str:
    """Return the verdict as a headline."""
    if not comparison.images or not comparison.pairs:
        return "Nothing could be compared"
    if all(image.has_zero_maps for image in comparison.images):
        return {
            "identical": "Identical: the class scores agree",
            "equivalent": "Equivalent: the class scores agree, but the heatmaps are zero and show no region",
            "different": "Different: the class scores do not agree, and the heatmaps are zero and show no region",
        }[comparison.verdict]
    return {
        "identical": "Identical: the models look at the same regions",
        "equivalent": "Equivalent: the models look at practically the same regions",
        "different": "Different: the models do not look at the same regions",
    }[comparison.verdict]


def sentences(comparison: ComparisonData) -> list[str]:
    """Return the verdict in sentences, the most important first, without layers and causes."""
    if not comparison.pairs:
        return ["A comparison takes two models or more."]
    if not comparison.images:
        return [f"No image could be compared: {count(len(comparison.failed), 'image')} failed."]
    total, n = len(comparison.images), len(comparison.names)
    models = "Both models" if n == 2 else f"All {n} models"
    everywhere = {1: "in the one image", 2: "in both images"}.get(total, f"in all {total} images")
    verdict = comparison.verdict
    if all(image.has_zero_maps for image in comparison.images):
        out = [
            f"The heatmaps are zero {everywhere}: they do not show whether the models look at the same regions. Choose "
            "another layer, class or method."
        ]
    elif verdict == "identical":
        out = [f"{models} look at the same regions {everywhere}; the differences, if any, are rounding."]
    elif verdict == "equivalent":
        largest = max((m.largest for image in comparison.images for m in image.measures.values()), default=math.nan)
        out = [
            f"{models} look at practically the same regions {everywhere}: on a scale from 0 to 1, their heatmaps differ "
            f"by {number(largest)} at most. On these images, one can replace the other."
        ]
    else:
        out = [_different(comparison, everywhere)]
    changed = sum(not all(m.same_class for m in image.measures.values()) for image in comparison.images)
    if changed:
        where = "it" if total == 1 else "every image" if changed == total else count(changed, "image")
        out.append(f"They predict different classes in {where}.")
    elif verdict != "identical":
        out.append("They still predict the same class in " + ("it." if total == 1 else "every image."))
    if comparison.failed:
        out.append(f"{count(len(comparison.failed), 'more image')} could not be compared.")
    return out


def _different(comparison: ComparisonData, everywhere: str) -> str:
    total, pairs = len(comparison.images), comparison.pairs
    different = sum(image.verdict == "different" for image in comparison.images)
    where = everywhere.capitalize() if different == total else f"In {different} of {total} images"
    if len(comparison.names) == 2:
        return f"{where}, the two models look at different regions."
    unlike = sum(comparison.of(pair) == "different" for pair in pairs)
    among = "every pair of them differs" if unlike == len(pairs) else f"{unlike} of their {len(pairs)} pairs differ"
    return f"{where}, the models look at different regions: {among}."


def tally(comparison: ComparisonData) -> list[tuple[Verdict, int]]:
    """Return the number of images with each verdict, the worst verdict first."""
    return [(v, sum(image.verdict == v for image in comparison.images)) for v in reversed(ORDER)]
