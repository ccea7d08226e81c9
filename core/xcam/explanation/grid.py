"""Several explanations in one image: classes, methods or layers side by side, each under a caption."""

from __future__ import annotations

from collections.abc import Sequence

from xcam.errors import InputError, keywords_checked
from xcam.explanation.result import Explanation
from xcam.images import reading, resizing
from xcam.images.montage import SIDE, drawable, tiled, with_notes
from xcam.images.overlay import Blend, Style


@keywords_checked()
def grid(
    explanations: Sequence[Explanation],
    captions: Sequence[str] | None = None,
    *,
    columns: int = 0,
    alpha: float = 0.5,
    colormap: str = "jet",
    blend: Blend = "mix",
    style: Style = "heat",
) -> reading.Image:
    """Draw the overlays of several explanations in one image.

    Args:
        explanations: One or more.
        captions: One for each; default: how they differ (class, method, layer or model).
        columns: The number of columns; 0: as square as possible.
        alpha: The opacity of the heatmap, 0…1.
        colormap: An OpenCV colormap.
        blend: `mix` or `add`, as in `Explanation.overlay`.
        style: `heat`, `contour` or `signed`, as in `Explanation.overlay`.

    Returns:
        uint8 [H, W, 3] RGB, with the explanations' notes in a strip below.

    Raises:
        InputError: There is nothing to draw, or an argument cannot be used.
    """
    if not explanations:
        raise InputError("there is nothing to draw; give one explanation or more")
    if not isinstance(columns, int) or columns < 0:
        raise InputError(f"cannot use columns={columns!r}; give a positive integer, or 0 for a nearly square grid")
    texts = list(captions) if captions is not None else distinct(explanations)
    if len(texts) != len(explanations):
        raise InputError(f"{len(texts)} captions for {len(explanations)} images; give one for each")
    sheet = tiled([_small(e).overlay(alpha, colormap, blend, style) for e in explanations], texts, columns)
    return with_notes(sheet, tuple(dict.fromkeys(note for e in explanations for note in e.notes)))


def _small(e: Explanation) -> Explanation:
    """Return a copy whose image is not larger than a tile: a dozen images of 48 megapixels would fill the memory."""
    height, width = e.image.shape[:2]
    factor = SIDE[1] / max(height, width)
    if factor >= 1 or e.values is not None:
        return e
    return e.with_image(resizing.resize(e.image, (max(1, round(height * factor)), max(1, round(width * factor)))))


def distinct(explanations: Sequence[Explanation]) -> list[str]:
    """Return a caption for each explanation: the properties in which they differ."""
    rows = [(_name(e), e.method, e.layer, e.model, e.backend) for e in explanations]
    differing = [k for k in range(5) if len({row[k] for row in rows}) > 1] or [0]
    names = [", ".join(row[k] for k in differing) for row in rows]
    shares = [float(e.scores[e.index]) if e.index is not None else None for e in explanations]
    if differing == [0]:
        return [n if p is None else f"{n} {p:.0%}" for n, p in zip(names, shares, strict=True)]
    return names


def _name(e: Explanation) -> str:
    """Return the label; the index where the font lacks the label's characters."""
    lost = drawable(e.label).count("?") > e.label.count("?")
    return f"class {e.index}" if lost and e.index is not None else e.label
