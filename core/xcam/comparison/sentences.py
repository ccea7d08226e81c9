"""Numbers and findings in words that a reader who trains no models understands. Pure: values in, text out."""

from __future__ import annotations

import math

from xcam.comparison.result import ORDER, Comparison, Measures, Verdict

SIGNS: dict[Verdict, str] = {"identical": "=", "equivalent": "≈", "different": "≠"}
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
NONE = "–"


def number(value: float) -> str:
    """Three digits that count; powers of ten below a thousandth: `0.0312`, `3.1 × 10⁻⁵`."""
    if math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size == 0:
        text = "0"
    elif size >= 999.5:
        text = f"{size:,.0f}".replace(",", "\u202f") if size < 1e7 else _power(size)
    elif size >= 0.0009995:
        text = f"{size:.3g}"
    else:
        text = _power(size)
    return f"−{text}" if value < 0 else text


def _power(size: float) -> str:
    mantissa, exponent = f"{size:.1e}".split("e")
    return f"{mantissa}\u00a0×\u00a010{str(int(exponent)).translate(RAISED)}"


def likeness(value: float) -> str:
    """A correlation, to four places; `> 0.9999` where rounding would call it perfect and it is not."""
    if math.isnan(value):
        return NONE
    if value >= 1:
        return "1"
    if round(value, 4) == 1:
        return ">\u00a00.9999"
    return f"{value:.4f}".replace("-", "−")


def share(value: float) -> str:
    """A share in percent, with one digit behind the point; never rounded to none or to all."""
    if math.isnan(value):
        return NONE
    if value in (0, 1):
        return f"{value:.0%}"
    if 0 < value < 0.0005:
        return "<\u00a00.1%"
    if 0.9995 <= value < 1:
        return ">\u00a099.9%"
    return f"{value:.1%}".replace("-", "−")


def count(n: int, one: str, many: str = "") -> str:
    """`1 picture`, `2 pictures`."""
    return f"{n} {one if n == 1 else many or one + 's'}"


def measures(found: Measures) -> list[str]:
    """The cells under MEASURES."""
    return [
        number(found.largest),
        likeness(found.pearson),
        likeness(found.spearman),
        likeness(found.ssim),
        share(found.overlap),
        share(found.distance),
        number(found.logits),
        "yes" if found.same_class else "no",
    ]


MEASURES = (
    ("Largest difference", "of the heatmaps, which go from 0 to 1; 0 is best"),
    ("Correlation (Pearson)", "1 is best"),
    ("Rank correlation (Spearman)", "1 is best"),
    ("Structural similarity (SSIM)", "1 is best"),
    ("Overlap of the hottest fifth", "100% is best"),
    ("Distance of the hottest points", "in diagonals of the picture; 0% is best"),
    ("Difference of the class scores", "relative to the largest; 0 is best"),
    ("Same top class", "do both name the same?"),
)


def headline(comparison: Comparison) -> str:
    """The verdict in a few words."""
    if not comparison.images or not comparison.pairs:
        return "Nothing could be compared"
    return {
        "identical": "Identical: the models look at the same places",
        "equivalent": "Equivalent: the models look at practically the same places",
        "different": "Different: the models do not look at the same places",
    }[comparison.verdict]


def sentences(comparison: Comparison) -> list[str]:
    """The verdict in sentences, the most important first. Layers and causes are told elsewhere."""
    if not comparison.pairs:
        return ["A comparison takes two models or more."]
    if not comparison.images:
        return [f"No picture got through: {count(len(comparison.failed), 'picture')} failed."]
    total, n = len(comparison.images), len(comparison.names)
    models = "Both models" if n == 2 else f"All {n} models"
    everywhere = {1: "in the one picture", 2: "in both pictures"}.get(total, f"in all {total} pictures")
    largest = max((m.largest for image in comparison.images for m in image.measures.values()), default=math.nan)
    verdict = comparison.verdict
    if verdict == "identical":
        out = [f"{models} look at the same places {everywhere}; what differs, if anything, is rounding."]
    elif verdict == "equivalent":
        out = [
            f"{models} look at practically the same places {everywhere}: on a scale from 0 to 1, their heatmaps differ "
            f"by {number(largest)} at most. On these pictures, one can stand in for the other."
        ]
    else:
        bad = sum(image.verdict == "different" for image in comparison.images)
        where = everywhere.capitalize() if bad == total else f"In {bad} of {total} pictures"
        if n == 2:
            out = [f"{where}, the two models look at different places."]
        else:
            pairs = comparison.pairs
            wrong = sum(comparison.of(pair) == "different" for pair in pairs)
            among = (
                "every pair of them differs" if wrong == len(pairs) else f"{wrong} of their {len(pairs)} pairs differ"
            )
            out = [f"{where}, the models look at different places: {among}."]
    changed = sum(not all(m.same_class for m in image.measures.values()) for image in comparison.images)
    if changed:
        where = "it" if total == 1 else "every picture" if changed == total else count(changed, "picture")
        out.append(f"They name different classes in {where}.")
    elif verdict != "identical":
        out.append("They still name the same class in " + ("it." if total == 1 else "every picture."))
    if comparison.failed:
        out.append(f"{count(len(comparison.failed), 'more picture')} could not be compared.")
    return out


def tally(comparison: Comparison) -> list[tuple[Verdict, int]]:
    """How many pictures have each verdict, the worst first."""
    return [(v, sum(image.verdict == v for image in comparison.images)) for v in reversed(ORDER)]


def shorter(name: str, length: int) -> str:
    """A long name without its middle."""
    return name if len(name) <= length else f"{name[: length // 2 - 1]}…{name[-(length - length // 2) :]}"
