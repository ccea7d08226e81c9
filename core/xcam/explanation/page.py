"""The report of explanations: the content of its template, which computes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xcam.errors import InputError
from xcam.explanation.grid import distinct
from xcam.explanation.result import Explanation, class_label
from xcam.images import reading
from xcam.report import rendering, thumbnails
from xcam.report.formatting import count, number, percent


def write(explanations: Sequence[Explanation], path: Path) -> None:
    """Write a report, with a tab for each class, method or layer of an image.

    Raises:
        InputError: There is nothing to report, or the file cannot be written.
        BackendError: Jinja2 is not installed.
    """
    if not explanations:
        raise InputError("there is nothing to report; give one explanation or more")
    rendering.write(rendering.check_path(path), "single.html", content(explanations))


def content(explanations: Sequence[Explanation]) -> dict[str, Any]:
    """Return the content of single.html: a group for each image, in the given order."""
    groups: dict[Any, list[Explanation]] = {}
    for e in explanations:
        groups.setdefault(e.path if e.path is not None else id(e.image), []).append(e)
    names = image_names([group[0].path for group in groups.values()])
    side = thumbnails.side_for(len(groups))
    models = list(dict.fromkeys(e.model for e in explanations))
    return {
        "title": f"Where {models[0]} looked" if len(models) == 1 else f"Where {len(models)} models looked",
        "count": count(len(groups), "image"),
        "methods": list(dict.fromkeys(e.method for e in explanations)),
        "heat": thumbnails.stops(thumbnails.HEAT),
        "groups": [
            {
                "name": name,
                "path": str(group[0].path or ""),
                "image": thumbnails.embed(_marked(group), side),
                "panes": [_pane(e, name, caption, side) for e, caption in zip(group, distinct(group), strict=True)],
            }
            for name, group in zip(names, groups.values(), strict=True)
        ],
    }


def _marked(group: Sequence[Explanation]) -> reading.Image:
    """Return the image of a group with its boxes and regions."""
    image = group[0].image
    for e in group if group[0].values is None else ():
        image = e.marked(image)
    return image


def _pane(e: Explanation, name: str, caption: str, side: int) -> dict[str, Any]:
    return {
        "caption": caption,
        "uri": thumbnails.heat(e.drawn_heatmap, side=side),
        "alt": f"Heatmap on {name}: {strongest(e)}",
        "facts": _facts(e),
        "notes": e.notes,
        "zero": not bool(e.positive.any()),
        "predictions": predictions(e),
    }


def image_names(paths: Sequence[Path | None]) -> list[str]:
    """Return a name for each image: its file name, its path where two names are equal, else a number."""
    counts = Counter(path.name for path in paths if path is not None)
    return [
        f"Image {k + 1}" if path is None else path.name if counts[path.name] == 1 else str(path)
        for k, path in enumerate(paths)
    ]


def strongest(explanation: Explanation) -> str:
    """Return where a heatmap is strongest, for a screen reader."""
    values = explanation.unit_heatmap
    if not values.any():
        return f"no region supports {explanation.label}"
    peak = np.unravel_index(int(np.argmax(values)), values.shape)
    if values.ndim != 2:
        position = ", ".join(f"{k} of {n}" for k, n in zip(peak, values.shape, strict=True))
        return f"for {explanation.label}, strongest at index {position}"
    (y, x), (height, width) = peak, values.shape
    return f"for {explanation.label}, strongest {(x + 0.5) / width:.0%} from the left, {(y + 0.5) / height:.0%} from the top"


def predictions(explanation: Explanation) -> list[dict[str, Any]]:
    """Return rows for the three best classes, and for the explained class where it is not one of them."""
    scores = explanation.scores
    indices = explanation.top(3)
    if explanation.index is not None and indices and explanation.index not in indices:
        indices.append(explanation.index)
    are_probabilities = bool(scores.size) and float(scores.min()) >= 0 and float(scores.max()) <= 1.0001
    rows = []
    for index in indices:
        value = float(scores[index])
        is_explained = index == explanation.index
        label = explanation.label if is_explained else class_label(explanation.labels, index)
        rows.append(
            {
                "label": f"class {index}" if label == str(index) else label,
                "value": percent(value) if are_probabilities else number(value),
                "width": f"{100 * min(value, 1):.4g}" if are_probabilities else None,
                "explained": is_explained,
            }
        )
    return rows


def _facts(e: Explanation) -> list[tuple[str, str]]:
    kind = "Class" if e.index is not None else "Target"
    return [
        (kind, e.label),
        ("Score", number(e.score)),
        ("Method", e.method),
        ("Layer", e.layer),
        ("Map", "×".join(str(n) for n in e.cam.shape)),
        ("Model", f"{e.model} ({e.backend})"),
    ]
